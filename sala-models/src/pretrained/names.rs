//! What the hub calls a network's tensors.
//!
//! A network's parameters always stand under its base model's prefix, as in the classes of `transformers`
//! that have a head: `bert.embeddings.word_embeddings.weight`, also where there is no head and the
//! published file has `embeddings.word_embeddings.weight` (all-MiniLM-L6-v2). So groups of parameters have
//! one name, and a head can be added to any of them.
//!
//! Patterns of names are literal, but `*` stands for any run of characters, dots included.

use super::{Architecture, ModelConfig, Task};
use crate::{cnn::resnet_hub_name, transformer::Pooling};

/// From the name of a network's tensor to what the hub calls it.
pub type HubName<'a> = Box<dyn Fn(&str) -> String + 'a>;

impl ModelConfig {
    /// The prefix that the hub's classes with a head give to the names of the network below it, and that a
    /// file of the network alone may leave out.
    ///
    /// ```
    /// use sala_models::pretrained::ModelConfig;
    ///
    /// let config = ModelConfig::from_json(serde_json::json!({"model_type": "gpt2"}))?;
    /// assert_eq!(config.base_model_prefix(), "transformer");
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    pub const fn base_model_prefix(&self) -> &'static str {
        match self.architecture() {
            Architecture::Gpt2(_) => "transformer",
            Architecture::Llama(_) => "model",
            other => other.model_type(),
        }
    }

    /// Patterns of the names that a published file may have and a network for `task` has no use for:
    /// constants that old versions of the library saved, and heads for other tasks.
    ///
    /// Names are full, with [`base_model_prefix`](Self::base_model_prefix).
    pub fn ignored_names(&self, task: Task) -> Vec<&'static str> {
        let mut names = match self.architecture() {
            Architecture::Bert(_) => vec!["*embeddings.position_ids", "cls.*"],
            Architecture::Roberta(_) => vec!["*embeddings.position_ids", "lm_head.*", "*pooler.*"],
            Architecture::DistilBert(_) => vec!["*embeddings.position_ids", "vocab_*"],
            Architecture::Vit(_) => vec!["*pooler.*"],
            Architecture::Gpt2(_) => vec!["*.attn.bias", "*.attn.masked_bias"],
            Architecture::Llama(_) => vec!["*rotary_emb.inv_freq"],
            Architecture::ResNet(_) => vec!["*num_batches_tracked"],
        };
        if let Architecture::Bert(_) = self.architecture()
            && !matches!(task, Task::TextClassification { pooling } if pooling == Pooling::First)
        {
            names.push("bert.pooler.*");
        }
        names.extend(self.head_when_absent(task));
        names
    }

    /// Patterns of the names of the parameters for `task` that the base model does not have: those of a
    /// head. A file of the base model lacks them, so they start afresh. BERT's pooler is not among them: the
    /// base model has it.
    pub fn head_names(&self, task: Task) -> Vec<&'static str> {
        if task == Task::SentenceEmbedding {
            return vec![];
        }
        match self.architecture() {
            Architecture::Llama(config) if config.tie_word_embeddings => vec![],
            Architecture::Llama(_) => vec!["lm_head.*"],
            Architecture::Gpt2(_) => vec![],
            Architecture::DistilBert(_) => vec!["pre_classifier.*", "classifier.*"],
            Architecture::Bert(_)
            | Architecture::Roberta(_)
            | Architecture::Vit(_)
            | Architecture::ResNet(_) => vec!["classifier.*"],
        }
    }

    /// Pairs of names that are one parameter in the network: a name that published files may have too or
    /// instead, and the network's.
    pub fn tied_names(&self) -> Vec<(&'static str, &'static str)> {
        match self.architecture() {
            Architecture::Gpt2(_) => vec![("lm_head.weight", "transformer.wte.weight")],
            Architecture::Llama(config) if config.tie_word_embeddings => {
                vec![("lm_head.weight", "model.embed_tokens.weight")]
            }
            _ => vec![],
        }
    }

    /// What the published file calls the tensor that the network calls `name`.
    ///
    /// They are the same but for residual networks, see [`resnet_hub_name`].
    pub fn hub_name(&self, name: &str) -> String {
        let hub = match self.architecture() {
            Architecture::ResNet(_) => resnet_hub_name(name),
            _ => None,
        };
        hub.unwrap_or_else(|| name.to_owned())
    }

    /// A classifier's parameters, where there is none.
    fn head_when_absent(&self, task: Task) -> Vec<&'static str> {
        match (task, self.architecture()) {
            (Task::SentenceEmbedding, Architecture::DistilBert(_)) => {
                vec!["pre_classifier.*", "classifier.*"]
            }
            (Task::SentenceEmbedding, _) => vec!["classifier.*"],
            (_, Architecture::Gpt2(_)) => vec!["lm_head.weight"],
            (_, Architecture::Llama(config)) if config.tie_word_embeddings => {
                vec!["lm_head.weight"]
            }
            _ => vec![],
        }
    }
}

/// Whether a full name is of a [pattern](self).
///
/// ```
/// use sala_models::pretrained::names::matches;
///
/// assert!(matches("*.attn.bias", "transformer.h.0.attn.bias"));
/// assert!(!matches("*.attn.bias", "transformer.h.0.attn.c_attn.bias"));
/// assert!(matches("cls.*", "cls.predictions.bias"));
/// ```
pub fn matches(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(name) = name.strip_prefix(start) else {
        return false;
    };
    // Every place where the star may end.
    (0..=name.len()).any(|at| name.get(at..).is_some_and(|tail| matches(rest, tail)))
}
