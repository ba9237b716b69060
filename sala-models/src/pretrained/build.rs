//! From a configuration to a network.

use super::{Architecture, ModelConfig};
use crate::{
    Error, Network, Result, Rng, VarStore,
    cnn::ResNet,
    transformer::{
        BertClassifier, BertConfig, DistilBertClassifier, DistilBertConfig, Gpt2, Llama, Pooling,
        RobertaClassifier, SentenceEncoder, TokenNetwork, Vit,
    },
};

/// What a network is for, which decides its head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Logits of the classes of a text, `(B, labels)`.
    TextClassification {
        /// How one vector is made of a text.
        pooling: Pooling,
    },
    /// The mean of the features of a text's tokens, `(B, hidden)`; no head.
    SentenceEmbedding,
    /// Logits of the classes of an image, `(N, labels)`.
    ImageClassification,
    /// Logits of each next token, `(B, T, vocabulary)`.
    CausalLm,
}

/// A network that a configuration describes.
pub enum Built {
    /// On texts.
    Tokens(Box<dyn TokenNetwork>),
    /// On images `(N, C, H, W)`.
    Images(Box<dyn Network>),
}

impl Built {
    /// The network on texts, where it is one.
    pub fn tokens(&self) -> Option<&dyn TokenNetwork> {
        match self {
            Self::Tokens(network) => Some(network.as_ref()),
            Self::Images(_) => None,
        }
    }

    /// The network on images, where it is one.
    pub fn images(&self) -> Option<&dyn Network> {
        match self {
            Self::Images(network) => Some(network.as_ref()),
            Self::Tokens(_) => None,
        }
    }
}

impl ModelConfig {
    /// What `architectures` says that the published network is for; nothing where it does not say it or it
    /// is none of the tasks here. An encoder of texts without a head is for sentence embeddings.
    pub fn task(&self) -> Option<Task> {
        let class = self.json().get("architectures")?.get(0)?.as_str()?;
        let pooling = self.pooling();
        match class {
            "BertModel" | "RobertaModel" | "DistilBertModel" => Some(Task::SentenceEmbedding),
            _ if class.ends_with("ForSequenceClassification") => {
                Some(Task::TextClassification { pooling })
            }
            _ if class.ends_with("ForImageClassification") => Some(Task::ImageClassification),
            "GPT2LMHeadModel" | "LlamaForCausalLM" => Some(Task::CausalLm),
            _ => None,
        }
    }

    /// Whether `transformers` computes something else with the saved network for `task` than this library does.
    ///
    /// That is so for classifiers of texts by the mean of their tokens: `transformers`' classes for BERT, RoBERTa and
    /// DistilBERT do not read `classifier_pooling` and take the first token's features, BERT's through a pooler that the
    /// file does not have and that starts at random. All parameters are loaded, and nothing is said about it. How to compute
    /// the same there is in `docs/finetuning.md`.
    ///
    /// ```
    /// use sala_models::{pretrained::{ModelConfig, Task}, transformer::Pooling};
    ///
    /// let config = ModelConfig::from_json(serde_json::json!({"model_type": "bert"}))?;
    /// let classify = |pooling| Task::TextClassification { pooling };
    /// assert!(config.differs_in_transformers(classify(Pooling::Mean)));
    /// assert!(!config.differs_in_transformers(classify(Pooling::First)));
    /// assert!(!config.differs_in_transformers(Task::SentenceEmbedding));
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    pub const fn differs_in_transformers(&self, task: Task) -> bool {
        let mean = matches!(
            task,
            Task::TextClassification {
                pooling: Pooling::Mean
            }
        );
        let reads_texts = matches!(
            self.architecture(),
            Architecture::Bert(_) | Architecture::Roberta(_) | Architecture::DistilBert(_)
        );
        mean && reads_texts
    }

    /// A network for `task`, whose parameters, with initial values, are in `store` under the names of the
    /// hub's classes with a head (see [`names`](super::names)). `rng` seeds the dropout masks only.
    ///
    /// # Errors
    /// [`Error::Argument`] when the architecture has no such task, or as the network's constructor.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use sala_models::{Mode, Rng, VarStore, transformer::{Pooling, Tokens}};
    /// use sala_models::pretrained::{Built, ModelConfig, Task};
    /// use serde_json::json;
    ///
    /// let config = ModelConfig::from_json(json!({
    ///     "model_type": "bert", "hidden_size": 24, "num_hidden_layers": 1, "vocab_size": 30,
    /// }))?;
    /// let config = config.with_labels(["bad", "fair", "good"])?;
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// let task = Task::TextClassification { pooling: Pooling::Mean };
    /// let Built::Tokens(network) = config.build(task, &store, Rng::new(0))? else { panic!() };
    /// let tokens = Tokens::new(Tensor::new(&[[2u32, 7, 5]], &Device::Cpu)?);
    /// assert_eq!(network.forward_tokens(&tokens, Mode::eval())?.dims(), [1, 3]);
    /// assert!(store.get("bert.embeddings.word_embeddings.weight").is_some());
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    pub fn build(&self, task: Task, store: &VarStore, rng: Rng) -> Result<Built> {
        let vb = store.builder();
        Ok(match (self.architecture(), task) {
            (Architecture::Bert(config), Task::TextClassification { pooling }) => {
                let config = BertConfig {
                    pooling,
                    ..config.clone()
                };
                tokens(BertClassifier::new(&config, vb, rng)?)
            }
            (Architecture::Roberta(config), Task::TextClassification { pooling }) => {
                let mut config = config.clone();
                config.bert.pooling = pooling;
                tokens(RobertaClassifier::new(&config, vb, rng)?)
            }
            (Architecture::DistilBert(config), Task::TextClassification { pooling }) => {
                let config = DistilBertConfig {
                    pooling,
                    ..config.clone()
                };
                tokens(DistilBertClassifier::new(&config, vb, rng)?)
            }
            (Architecture::Bert(config), Task::SentenceEmbedding) => {
                tokens(SentenceEncoder::bert(config, vb.pp("bert"), rng)?)
            }
            (Architecture::Roberta(config), Task::SentenceEmbedding) => {
                tokens(SentenceEncoder::roberta(config, vb.pp("roberta"), rng)?)
            }
            (Architecture::DistilBert(config), Task::SentenceEmbedding) => tokens(
                SentenceEncoder::distilbert(config, vb.pp("distilbert"), rng)?,
            ),
            (Architecture::Vit(config), Task::ImageClassification) => {
                images(Vit::new(config, vb, rng)?)
            }
            (Architecture::ResNet(config), Task::ImageClassification) => {
                images(ResNet::new(config, vb)?)
            }
            (Architecture::Gpt2(config), Task::CausalLm) => tokens(Gpt2::new(config, vb, rng)?),
            (Architecture::Llama(config), Task::CausalLm) => tokens(Llama::new(config, vb, rng)?),
            _ => return Err(self.no_such(task)),
        })
    }

    fn no_such(&self, task: Task) -> Error {
        let wanted = match self.architecture() {
            Architecture::Bert(_) | Architecture::Roberta(_) | Architecture::DistilBert(_) => {
                "TextClassification or SentenceEmbedding"
            }
            Architecture::Vit(_) | Architecture::ResNet(_) => "ImageClassification",
            Architecture::Gpt2(_) | Architecture::Llama(_) => "CausalLm",
        };
        Error::Argument {
            op: "ModelConfig::build",
            argument: "task",
            wanted: format!("{wanted} for {}", self.model_type()),
            got: format!("{task:?}"),
        }
    }
}

fn tokens(network: impl TokenNetwork + 'static) -> Built {
    Built::Tokens(Box::new(network))
}

fn images(network: impl Network + 'static) -> Built {
    Built::Images(Box::new(network))
}
