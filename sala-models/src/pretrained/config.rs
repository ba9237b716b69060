//! The hub's `config.json`.
//!
//! `model_type` decides the architecture. Every key that its network depends on is read, with the default of
//! the Python library `transformers` where it is absent; a value that the network cannot honour is an error.
//! All other keys are kept as they are, so that a configuration that is written back says what it said.

mod encoders;
mod fields;
mod labels;
mod language;
mod rope;
mod vision;

use std::{fs, path::Path};

use serde_json::{Map, Value, json};

pub use self::labels::ProblemType;
use self::{fields::Fields, labels::Labels};
use crate::{
    Error, Result,
    cnn::ResNetConfig,
    transformer::{
        BertConfig, DistilBertConfig, Gpt2Config, LlamaConfig, Pooling, RobertaConfig, VitConfig,
    },
};

/// Where a configuration that does not come from a file is said to stand, in errors.
const PLACE: &str = "config.json";

/// The networks that a `config.json` can describe, each with its sizes and settings.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Architecture {
    /// `bert`: BERT, MiniLM and what else has its shape.
    Bert(BertConfig),
    /// `roberta`.
    Roberta(RobertaConfig),
    /// `distilbert`.
    DistilBert(DistilBertConfig),
    /// `vit`.
    Vit(VitConfig),
    /// `gpt2`.
    Gpt2(Gpt2Config),
    /// `llama`.
    Llama(LlamaConfig),
    /// `resnet`.
    ResNet(ResNetConfig),
}

impl Architecture {
    /// What `model_type` calls it.
    pub const fn model_type(&self) -> &'static str {
        match self {
            Self::Bert(_) => "bert",
            Self::Roberta(_) => "roberta",
            Self::DistilBert(_) => "distilbert",
            Self::Vit(_) => "vit",
            Self::Gpt2(_) => "gpt2",
            Self::Llama(_) => "llama",
            Self::ResNet(_) => "resnet",
        }
    }

    fn read(model_type: &str, fields: Fields, labels: usize) -> Result<Self> {
        Ok(match model_type {
            "bert" => Self::Bert(encoders::bert(fields, labels)?),
            "roberta" => Self::Roberta(encoders::roberta(fields, labels)?),
            "distilbert" => Self::DistilBert(encoders::distilbert(fields, labels)?),
            "vit" => Self::Vit(vision::vit(fields, labels)?),
            "gpt2" => Self::Gpt2(language::gpt2(fields)?),
            "llama" => Self::Llama(language::llama(fields)?),
            "resnet" => Self::ResNet(vision::resnet(fields, labels)?),
            other => {
                let wanted = "bert, roberta, distilbert, vit, gpt2, llama or resnet";
                return Err(fields.refuse("model_type", wanted, format!("`{other}`")));
            }
        })
    }

    /// The class of `transformers` that has this network with a classifier.
    const fn classifier(&self) -> Option<&'static str> {
        match self {
            Self::Bert(_) => Some("BertForSequenceClassification"),
            Self::Roberta(_) => Some("RobertaForSequenceClassification"),
            Self::DistilBert(_) => Some("DistilBertForSequenceClassification"),
            Self::Vit(_) => Some("ViTForImageClassification"),
            Self::ResNet(_) => Some("ResNetForImageClassification"),
            Self::Gpt2(_) | Self::Llama(_) => None,
        }
    }

    fn set_labels(&mut self, count: usize) {
        match self {
            Self::Bert(config) => config.num_labels = count,
            Self::Roberta(config) => config.bert.num_labels = count,
            Self::DistilBert(config) => config.num_labels = count,
            Self::Vit(config) => config.num_labels = count,
            Self::ResNet(config) => config.classes = count,
            Self::Gpt2(_) | Self::Llama(_) => {}
        }
    }
}

/// A hub's `config.json`: the architecture that it describes, and all that it holds.
///
/// ```
/// use sala_models::pretrained::{Architecture, ModelConfig};
/// use serde_json::json;
///
/// let config = ModelConfig::from_json(json!({
///     "model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536,
///     "gradient_checkpointing": false,
/// }))?;
/// let Architecture::Bert(bert) = config.architecture() else { panic!() };
/// assert_eq!((bert.hidden_size, bert.vocab_size), (384, 30_522)); // the second is the default
///
/// let config = config.with_labels(["negative", "positive"])?;
/// let json = config.to_json();
/// assert_eq!(json["id2label"]["1"], "positive");
/// assert_eq!(json["architectures"], json!(["BertForSequenceClassification"]));
/// assert_eq!(json["gradient_checkpointing"], false); // kept, though nothing here reads it
/// # Ok::<(), sala_models::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    architecture: Architecture,
    labels: Labels,
    pooling: Pooling,
    json: Map<String, Value>,
}

impl ModelConfig {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read, [`Error::Json`] when it is not JSON, and as for
    /// [`from_json`](Self::from_json), naming the file.
    ///
    /// ```
    /// use sala_models::pretrained::ModelConfig;
    ///
    /// let folder = tempfile::tempdir()?;
    /// let path = folder.path().join("config.json");
    /// std::fs::write(&path, r#"{"model_type": "gpt2", "n_layer": 6}"#)?;
    /// assert_eq!(ModelConfig::read(&path)?.model_type(), "gpt2");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn read<P: AsRef<Path>>(path: P) -> Result<Self> {
        let path = path.as_ref();
        let bytes = fs::read(path).map_err(|source| Error::Io {
            action: "read",
            path: path.into(),
            source,
        })?;
        let json = serde_json::from_slice(&bytes).map_err(|source| Error::Json {
            path: path.into(),
            source,
        })?;
        Self::parse(json, &path.display().to_string())
    }

    /// Takes the content of a `config.json`.
    ///
    /// # Errors
    /// [`Error::ModelConfig`] when a key has a value of the wrong kind or one that the network cannot
    /// honour; [`Error::Config`] when sizes do not fit each other.
    ///
    /// ```
    /// use sala_models::pretrained::ModelConfig;
    /// use serde_json::json;
    ///
    /// let relative = json!({"model_type": "bert", "position_embedding_type": "relative_key"});
    /// let text = ModelConfig::from_json(relative).unwrap_err().to_string();
    /// assert!(text.contains("`position_embedding_type` must be \"absolute\", got \"relative_key\""));
    /// ```
    pub fn from_json(json: Value) -> Result<Self> {
        Self::parse(json, PLACE)
    }

    fn parse(json: Value, place: &str) -> Result<Self> {
        let Value::Object(json) = json else {
            return Err(Error::ModelConfig {
                place: place.into(),
                key: String::new(),
                wanted: "an object".into(),
                got: json.to_string(),
            });
        };
        let fields = Fields::new(place, &json);
        let labels = Labels::read(fields)?;
        let model_type = fields.text("model_type", "")?;
        let architecture = Architecture::read(model_type, fields, labels.names.len())?;
        Ok(Self {
            architecture,
            labels,
            pooling: encoders::pooling(fields)?,
            json,
        })
    }

    /// The content of a `config.json`: what was read, every key in its place, with what was changed since.
    pub fn to_json(&self) -> Value {
        Value::Object(self.json.clone())
    }

    pub(super) const fn json(&self) -> &Map<String, Value> {
        &self.json
    }

    /// The network that is described.
    pub const fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// What `model_type` says, such as `bert`.
    pub const fn model_type(&self) -> &'static str {
        self.architecture.model_type()
    }

    /// The names of the classes, in the order of a classifier's outputs. Without any in the file they are
    /// `LABEL_0`, `LABEL_1`, …; language models have no use for them.
    pub fn labels(&self) -> &[String] {
        &self.labels.names
    }

    /// What a classifier's outputs are for, where the file says it.
    pub const fn problem_type(&self) -> Option<ProblemType> {
        self.labels.problem
    }

    /// How a classifier of texts makes one vector of a text: the key `classifier_pooling`, `cls` (the
    /// default) or `mean`.
    pub const fn pooling(&self) -> Pooling {
        self.pooling
    }

    /// The same for a new classifier of these classes: `id2label`, `label2id`, `architectures` and
    /// `problem_type` say so too.
    ///
    /// # Errors
    /// [`Error::ModelConfig`] when there are fewer than two names or one stands twice, or the
    /// architecture is a language model.
    pub fn with_labels<S: Into<String>>(
        mut self,
        names: impl IntoIterator<Item = S>,
    ) -> Result<Self> {
        let fields = Fields::new(PLACE, &self.json);
        let Some(class) = self.architecture.classifier() else {
            let wanted = "an architecture that has a classifier";
            return Err(fields.refuse("model_type", wanted, format!("`{}`", self.model_type())));
        };
        let labels = Labels::new(names.into_iter().map(Into::into).collect(), fields)?;
        self.architecture.set_labels(labels.names.len());
        labels.write(&mut self.json);
        self.json.insert("architectures".into(), json!([class]));
        self.labels = labels;
        Ok(self)
    }

    /// The same with a classifier that makes one vector of a text so; without effect on networks that do
    /// not classify texts.
    ///
    /// The key `classifier_pooling` is read here, and by `transformers` for other architectures only: there a saved
    /// classifier by the mean is [another model](Self::differs_in_transformers).
    ///
    /// ```
    /// use sala_models::{pretrained::ModelConfig, transformer::Pooling};
    ///
    /// let config = ModelConfig::from_json(serde_json::json!({"model_type": "bert"}))?;
    /// let config = config.with_pooling(Pooling::Mean);
    /// assert_eq!(config.to_json()["classifier_pooling"], "mean");
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    #[must_use]
    pub fn with_pooling(mut self, pooling: Pooling) -> Self {
        let name = encoders::pooling_name(pooling);
        // A file that says nothing means the default already.
        if pooling != Pooling::default() || self.json.contains_key(encoders::POOLING) {
            self.json.insert(encoders::POOLING.into(), name.into());
        }
        self.pooling = pooling;
        self
    }
}
