//! A model folder: the network that it describes, with its weights, and such a folder written.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device};
use sala_models::{
    Rng, VarStore,
    pretrained::{
        Architecture, Built, LoadOptions, LoadReport, ModelConfig, SaveOptions, Snapshot, Task,
        Weights, names::matches, save::save,
    },
};
use serde_json::Value;

use crate::spec::read::did_you_mean;

use super::{
    data::{Preprocessing, tokenizer::TextTokenizer},
    spec,
};

/// BERT's layer between its first token and a classifier, which models that were trained without one lack.
const POOLER: &str = "*pooler.dense.*";

/// A published model, and the task that a network is made for.
pub(crate) struct Model {
    snapshot: Snapshot,
    config: ModelConfig,
    task: Task,
    /// The classes that the weights in the folder were trained for.
    known: Vec<String>,
}

impl Model {
    /// Opens a model for a task.
    ///
    /// # Errors
    /// When it cannot be found, its configuration is not understood, or its architecture is for another task.
    pub(crate) fn open(spec: &spec::Model, task: spec::Task) -> Result<Self> {
        let snapshot = find(&spec.path)?;
        let config = read_config(&snapshot, &spec.config)?;
        let config = match spec.pooling {
            Some(pooling) => config.with_pooling(pooling.into()),
            None => config,
        };
        let task = match task {
            spec::Task::TextClassification => Task::TextClassification {
                pooling: config.pooling(),
            },
            spec::Task::ImageClassification => Task::ImageClassification,
            spec::Task::CausalLm => Task::CausalLm,
        };
        Self::of(snapshot, config, task)
    }

    /// Opens a model for the task that its configuration names.
    pub(crate) fn open_trained(path: &str) -> Result<Self> {
        let snapshot = find(path)?;
        let config = read_config(&snapshot, &toml::Table::new())?;
        let task = config.task().with_context(|| {
            format!("`architectures` in {path}/config.json names no class with a head")
        })?;
        ensure!(
            task != Task::SentenceEmbedding,
            "{path} has no head: it makes embeddings and no predictions"
        );
        Self::of(snapshot, config, task)
    }

    fn of(snapshot: Snapshot, config: ModelConfig, task: Task) -> Result<Self> {
        let fits = match config.architecture() {
            Architecture::Bert(_) | Architecture::Roberta(_) | Architecture::DistilBert(_) => {
                matches!(task, Task::TextClassification { .. })
            }
            Architecture::Gpt2(_) | Architecture::Llama(_) => task == Task::CausalLm,
            _ => task == Task::ImageClassification,
        };
        ensure!(
            fits,
            "{} is a model of type {}, which is not for this task",
            snapshot.folder().display(),
            config.model_type()
        );
        Ok(Self {
            known: config.labels().to_vec(),
            snapshot,
            config,
            task,
        })
    }

    pub(crate) fn task(&self) -> Task {
        self.task
    }

    /// Whether `transformers` makes another model of what is saved.
    pub(crate) fn differs_in_transformers(&self) -> bool {
        self.config.differs_in_transformers(self.task)
    }

    /// The commit of the hub that it is from, if it is.
    pub(crate) fn commit(&self) -> Option<&str> {
        self.snapshot.commit()
    }

    pub(crate) fn folder(&self) -> &Path {
        self.snapshot.folder()
    }

    /// The classes, in the order of the outputs.
    pub(crate) fn labels(&self) -> &[String] {
        self.config.labels()
    }

    /// The same for these classes.
    pub(crate) fn with_labels(self, labels: &[String]) -> Result<Self> {
        Ok(Self {
            config: self.config.with_labels(labels)?,
            ..self
        })
    }

    /// The model's tokenizer, which cuts texts to `max_length`.
    pub(crate) fn tokenizer(&self, max_length: usize) -> Result<TextTokenizer> {
        let (vocabulary, longest) = self.token_limits()?;
        ensure!(
            max_length <= longest,
            "max_length must be at most the {longest} tokens that the model has positions for, got {max_length}"
        );
        TextTokenizer::open(self.folder(), max_length, vocabulary)
    }

    /// Number of token ids, and the longest text.
    pub(crate) fn token_limits(&self) -> Result<(usize, usize)> {
        Ok(match self.config.architecture() {
            Architecture::Bert(c) => (c.vocab_size, c.max_position_embeddings),
            Architecture::Roberta(c) => {
                let taken = c.pad_token_id as usize + 1;
                let longest = c.bert.max_position_embeddings.saturating_sub(taken);
                (c.bert.vocab_size, longest)
            }
            Architecture::DistilBert(c) => (c.vocab_size, c.max_position_embeddings),
            Architecture::Gpt2(c) => (c.vocab_size, c.n_positions),
            Architecture::Llama(c) => (c.vocab_size, c.max_position_embeddings),
            _ => bail!("{} does not read texts", self.config.model_type()),
        })
    }

    /// What texts are filled up with. `RoBERTa` counts positions by it; the others never see it.
    pub(crate) fn padding(&self) -> u32 {
        match self.config.architecture() {
            Architecture::Roberta(config) => config.pad_token_id,
            _ => 0,
        }
    }

    /// How images are brought to what the network wants.
    pub(crate) fn preprocessing(&self) -> Result<Preprocessing> {
        let (channels, side) = match self.config.architecture() {
            Architecture::Vit(c) => (c.num_channels, Some(c.image_size)),
            Architecture::ResNet(c) => (c.in_channels, None),
            _ => bail!("{} does not look at images", self.config.model_type()),
        };
        Preprocessing::of(self.folder(), channels, side)
    }

    /// A network with the folder's weights, as `dtype`. A head starts afresh, from the seed, unless the folder has one
    /// for the very same classes.
    pub(crate) fn network(
        &self,
        seed: u64,
        device: &Device,
        dtype: DType,
    ) -> Result<(VarStore, Built, LoadReport)> {
        let store = VarStore::new(seed, dtype, device);
        let network = self.config.build(self.task, &store, Rng::new(seed))?;
        let weights = Weights::open(self.snapshot.weights())?;
        let has = |pattern: &str| weights.names().any(|name| matches(pattern, name));
        let mut fresh = self.config.head_names(self.task);
        let classifies = self.task != Task::CausalLm;
        if fresh.iter().all(|p| has(p)) && (!classifies || self.known == self.config.labels()) {
            fresh.clear();
        }
        if !has(POOLER) {
            fresh.push(POOLER);
        }
        let options = LoadOptions {
            fresh,
            ..LoadOptions::of(&self.config, self.task)
        };
        let report = weights.load(&store, &options)?;
        tracing::debug!(seed, %report, "model loaded");
        Ok((store, network, report))
    }

    /// Writes a network's weights, its configuration and the tokenizer's files into `folder`.
    pub(crate) fn save(&self, store: &VarStore, folder: &Path) -> Result<()> {
        let options = SaveOptions {
            companions: Some(&self.snapshot),
            ..SaveOptions::of(&self.config)
        };
        save(store, &self.config.to_json(), folder, &options)
            .with_context(|| format!("cannot write the model {}", folder.display()))
    }
}

/// The configuration, with some of its values replaced.
fn read_config(snapshot: &Snapshot, changes: &toml::Table) -> Result<ModelConfig> {
    let path = snapshot.config()?;
    let config = ModelConfig::read(&path)?;
    if changes.is_empty() {
        return Ok(config);
    }
    let Value::Object(mut json) = config.to_json() else {
        bail!("{} is no object", path.display());
    };
    for key in changes.keys() {
        check_key(key, &json, &path)?;
    }
    for (key, value) in changes {
        json.insert(key.clone(), serde_json::to_value(value)?);
    }
    ModelConfig::from_json(json.into()).context("model.config: the changes cannot be made")
}

/// Keys that configurations may lack, and that say something of one network or another all the same.
const OPTIONAL: [&str; 30] = [
    "activation",
    "activation_function",
    "attention_bias",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "classifier_dropout",
    "classifier_pooling",
    "dropout",
    "embd_pdrop",
    "head_dim",
    "hidden_act",
    "hidden_dropout_prob",
    "image_size",
    "initializer_range",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "max_position_embeddings",
    "mlp_bias",
    "n_inner",
    "num_key_value_heads",
    "pad_token_id",
    "patch_size",
    "qkv_bias",
    "resid_pdrop",
    "rms_norm_eps",
    "rope_scaling",
    "rope_theta",
    "seq_classif_dropout",
    "tie_word_embeddings",
];

/// Makes sure that a key is one of a configuration, which has many that nothing reads: one with a slip of the pen
/// would be one more.
fn check_key(key: &str, json: &serde_json::Map<String, Value>, path: &Path) -> Result<()> {
    let mut known = json.keys().map(String::as_str).chain(OPTIONAL);
    if known.clone().any(|k| k == key) {
        return Ok(());
    }
    let hint = did_you_mean(key, &mut known);
    bail!(
        "model.config (--set): {} has no `{key}`{hint}",
        path.display()
    )
}

/// A folder on this machine, or a model of the hub.
fn find(path: &str) -> Result<Snapshot> {
    if Path::new(path).exists() {
        return Snapshot::local(path).with_context(|| format!("cannot open the model {path}"));
    }
    let (name, revision) = match path.split_once('@') {
        Some((name, revision)) => (name, Some(revision)),
        None => (path, None),
    };
    let parts: Vec<&str> = name.split('/').collect();
    ensure!(
        parts.len() == 2
            && parts
                .iter()
                .all(|p| !p.is_empty() && *p != "." && *p != ".."),
        "{path}: wanted a folder with a model, or OWNER/NAME of the hub; there is no such folder"
    );
    from_hub(name, revision)
}

#[cfg(feature = "hub")]
fn from_hub(name: &str, revision: Option<&str>) -> Result<Snapshot> {
    use sala_models::pretrained::Hub;

    let mut shown: Option<(String, indicatif::ProgressBar)> = None;
    let mut show = |progress: sala_models::pretrained::hub::Progress<'_>| {
        if shown.as_ref().is_none_or(|(file, _)| file != progress.file) {
            let bar = crate::progress::bar(progress.size);
            bar.set_prefix(progress.file.to_owned());
            if let Some((_, earlier)) = shown.replace((progress.file.into(), bar)) {
                earlier.finish_and_clear();
            }
        }
        if let Some((_, bar)) = &shown {
            bar.set_position(progress.received);
        }
    };
    let snapshot = Hub::new()?.snapshot_with(name, revision, &mut show)?;
    if let Some((_, bar)) = shown {
        bar.finish_and_clear();
    }
    Ok(snapshot)
}

#[cfg(not(feature = "hub"))]
fn from_hub(name: &str, _: Option<&str>) -> Result<Snapshot> {
    bail!(
        "there is no folder {name}, and this build cannot reach the hub: build with `--features hub`"
    )
}
