//! What a fine-tuning is: model, data, training, optimizers. Read from TOML, checked as a whole, and
//! written beside the results.

use std::{fmt, path::PathBuf};

use anyhow::{Context, Result, ensure};
use sala_models::transformer;
use serde::{Deserialize, Serialize};

use crate::{
    metrics::Metric,
    spec::{
        Device, Optimizer, Precision, ReportSettings, Running, Schedule, check_optimizers,
        check_seeds, fingerprint, is_plain_name, read,
    },
};

/// A fine-tuning: every optimizer is run once with every seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FineTune {
    /// Short name; part of the run directory's name.
    pub(crate) name: String,
    /// One sentence for the head of the report.
    #[serde(default)]
    pub(crate) description: String,
    pub(crate) task: Task,
    #[serde(default, skip_serializing_if = "Device::is_cpu")]
    pub(crate) device: Device,
    #[serde(default, skip_serializing_if = "Precision::is_f32")]
    pub(crate) precision: Precision,
    pub(crate) model: Model,
    pub(crate) data: Data,
    #[serde(default)]
    pub(crate) training: Training,
    /// What reports show beside the differences to the base.
    #[serde(default, skip_serializing_if = "ReportSettings::is_default")]
    pub(crate) report: ReportSettings,
    /// How the runs are made.
    #[serde(default, skip_serializing)]
    pub(crate) running: Running,
    /// The first one is the base that the others are compared with.
    pub(crate) optimizers: Vec<Optimizer>,
}

/// What the model learns to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Task {
    TextClassification,
    ImageClassification,
    CausalLm,
}

impl Task {
    /// What validation chooses by unless it is told.
    pub(crate) fn default_metric(self) -> Metric {
        match self {
            Self::TextClassification | Self::ImageClassification => Metric::Accuracy,
            Self::CausalLm => Metric::Perplexity,
        }
    }

    fn has(self, metric: Metric) -> bool {
        match metric {
            Metric::Accuracy | Metric::MacroF1 | Metric::Matthews => self != Self::CausalLm,
            Metric::Perplexity => self == Self::CausalLm,
            Metric::Loss => true,
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TextClassification => "text-classification",
            Self::ImageClassification => "image-classification",
            Self::CausalLm => "causal-lm",
        })
    }
}

/// The model to start from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Model {
    /// A folder, or `owner/name` of the Hugging Face hub, with `@revision` if one is wanted.
    pub(crate) path: String,
    /// How a classifier of texts makes one vector of a text; what the model's configuration says unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pooling: Option<Pooling>,
    /// Values put in place of those in the model's `config.json`, such as `attention_probs_dropout_prob`.
    #[serde(default, skip_serializing_if = "toml::Table::is_empty")]
    pub(crate) config: toml::Table,
}

/// How one vector is made of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Pooling {
    /// The first token's.
    First,
    /// The mean over the tokens.
    Mean,
}

impl From<Pooling> for transformer::Pooling {
    fn from(pooling: Pooling) -> Self {
        match pooling {
            Pooling::First => Self::First,
            Pooling::Mean => Self::Mean,
        }
    }
}

/// The data and how they are prepared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Data {
    /// Files, or a folder of images.
    pub(crate) train: Vec<PathBuf>,
    /// A file or folder, or the share of the training examples that is held out.
    #[serde(default = "tenth")]
    pub(crate) validation: Part,
    /// A file or folder, or a share; evaluated once a run, after its training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) test: Option<Part>,
    /// Decides which examples the shares hold; the same for every seed and optimizer.
    #[serde(default)]
    pub(crate) split_seed: u64,
    #[serde(default = "text")]
    pub(crate) text_column: String,
    #[serde(default = "label")]
    pub(crate) label_column: String,
    /// Of a Parquet file with images.
    #[serde(default = "image")]
    pub(crate) image_column: String,
    /// Tokens that a text is cut to; for language models the length of a block.
    #[serde(default = "usual_length")]
    pub(crate) max_length: usize,
}

fn tenth() -> Part {
    Part::Share(0.1)
}
fn text() -> String {
    "text".into()
}
fn label() -> String {
    "label".into()
}
fn image() -> String {
    "image".into()
}
fn usual_length() -> usize {
    128
}

impl Data {
    /// Of these training files, with everything else as it is unless it is told.
    pub(crate) fn of(train: Vec<PathBuf>) -> Self {
        Self {
            train,
            validation: tenth(),
            test: None,
            split_seed: 0,
            text_column: text(),
            label_column: label(),
            image_column: image(),
            max_length: usual_length(),
        }
    }
}

/// Where a part of the data comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Part {
    /// A share of the training examples, above 0 and below 1.
    Share(f64),
    /// A file or folder of its own.
    File(PathBuf),
}

impl Part {
    /// A number is a share, everything else a path.
    pub(crate) fn parse(text: &str) -> Self {
        text.parse()
            .map_or_else(|_| Self::File(text.into()), Self::Share)
    }
}

/// The training loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Training {
    pub(crate) epochs: u64,
    /// Examples of a step.
    pub(crate) batch_size: usize,
    /// In how many parts a batch goes through the network, one after the other.
    pub(crate) accumulate: usize,
    pub(crate) schedule: Schedule,
    /// Share of the steps over which the learning rate rises.
    pub(crate) warm_up: f64,
    /// Factor of the learning rate from each layer to the one below.
    pub(crate) layerwise_lr_decay: f64,
    /// Parameters that stay as they are: names, with `*` for any characters.
    pub(crate) freeze: Vec<String>,
    /// Stop after so many epochs without a better score on the validation part, and take the best epoch's
    /// weights; without it all epochs are trained and the last weights taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) early_stopping: Option<u64>,
    /// What validation chooses by, and what runs are compared by; that of the task unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) metric: Option<Metric>,
    /// Which models are kept.
    pub(crate) keep: Keep,
    /// Seeds, each of which decides a fresh head's weights, the order of the data and the dropout masks.
    pub(crate) seeds: Vec<u64>,
}

impl Default for Training {
    /// Three epochs in batches of 16 with a linear schedule after a tenth of warm-up: what fine-tuning
    /// usually begins with (Devlin et al. 2019, appendix A.3).
    fn default() -> Self {
        Self {
            epochs: 3,
            batch_size: 16,
            accumulate: 1,
            schedule: Schedule::Linear,
            warm_up: 0.1,
            layerwise_lr_decay: 1.0,
            freeze: Vec::new(),
            early_stopping: None,
            metric: None,
            keep: Keep::Best,
            seeds: vec![0],
        }
    }
}

/// Which of the trained models stay on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Keep {
    /// The best on the validation part, of all runs.
    Best,
    /// That of every run.
    All,
    None,
}

impl FineTune {
    /// Reads a specification; `origin` names it in errors.
    pub(crate) fn from_toml(text: &str, origin: &str) -> Result<Self> {
        read::from_toml(text).with_context(|| format!("cannot read the fine-tuning {origin}"))
    }

    pub(crate) fn to_toml(&self) -> Result<String> {
        toml::to_string(self).context("cannot write the fine-tuning as TOML")
    }

    /// What validation chooses by.
    pub(crate) fn metric(&self) -> Metric {
        let default = self.task.default_metric();
        self.training.metric.unwrap_or(default)
    }

    /// Checks what can be checked without data and model.
    pub(crate) fn validate(&self) -> Result<()> {
        let name = &self.name;
        ensure!(
            is_plain_name(name),
            "name: letters, digits, - _ . wanted, got `{name}`"
        );
        ensure!(!self.data.train.is_empty(), "data.train must name a file");
        for (field, part) in [
            ("data.validation", Some(&self.data.validation)),
            ("data.test", self.data.test.as_ref()),
        ] {
            if let Some(Part::Share(share)) = part {
                ensure!(
                    *share > 0.0 && *share < 1.0,
                    "{field} must be a path or a share above 0 and below 1, got {share}"
                );
            }
        }
        let length = self.data.max_length;
        ensure!(length > 1, "data.max_length must be >= 2, got {length}");
        self.training.validate()?;
        self.precision.check(self.device)?;
        let metric = self.metric();
        ensure!(
            self.task.has(metric),
            "training.metric: {} has no {}",
            self.task,
            metric.name()
        );
        check_seeds(&self.training.seeds)?;
        self.report.validate(&self.optimizers)?;
        check_optimizers(&self.optimizers)
    }

    pub(crate) fn fingerprint(&self) -> Result<String> {
        Ok(fingerprint(&self.to_toml()?))
    }
}

impl Training {
    fn validate(&self) -> Result<()> {
        let counts = [
            ("epochs", self.epochs),
            ("batch_size", self.batch_size as u64),
            ("accumulate", self.accumulate as u64),
            ("early_stopping", self.early_stopping.unwrap_or(1)),
        ];
        for (field, count) in counts {
            ensure!(count > 0, "training.{field} must be >= 1, got 0");
        }
        let (parts, rows) = (self.accumulate, self.batch_size);
        ensure!(
            parts <= rows,
            "training.accumulate must be at most the batch size {rows}, got {parts}"
        );
        let (warm_up, decay) = (self.warm_up, self.layerwise_lr_decay);
        ensure!(
            (0.0..1.0).contains(&warm_up),
            "training.warm_up must be a share in [0, 1), got {warm_up}"
        );
        ensure!(
            decay > 0.0 && decay <= 1.0,
            "training.layerwise_lr_decay must be in (0, 1], got {decay}"
        );
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const SMALL: &str = r#"
        name = "small"
        task = "text-classification"
        [model]
        path = "some/model"
        pooling = "mean"
        [data]
        train = ["train.csv"]
        validation = 0.2
        test = "test.csv"
        [training]
        seeds = [0, 1]
        freeze = ["*embeddings*"]
        [[optimizers]]
        name = "adamw"
        base = "adamw"
        lr = 5e-5
        weight_decay = 0.01
        method = { kind = "base" }
    "#;

    fn read(text: &str) -> Result<FineTune> {
        let spec = FineTune::from_toml(text, "bad")?;
        spec.validate()?;
        Ok(spec)
    }

    #[test]
    fn a_specification_survives_being_written_and_read() {
        let spec = read(SMALL).unwrap();
        assert_eq!(spec.data.validation, Part::Share(0.2));
        assert_eq!(spec.data.test, Some(Part::File("test.csv".into())));
        assert_eq!((spec.training.epochs, spec.metric()), (3, Metric::Accuracy));
        assert_eq!(read(&spec.to_toml().unwrap()).unwrap(), spec);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let cases = [
            ("validation = 0.2", "validation = 1.5", "data.validation"),
            ("validation = 0.2", "valid = 0.2", "valid"),
            ("seeds = [0, 1]", "seeds = [1, 1]", "twice"),
            ("seeds = [0, 1]", "warm_up = 1.0", "training.warm_up"),
            ("seeds = [0, 1]", "accumulate = 32", "accumulate"),
            ("seeds = [0, 1]", "early_stopping = 0", "early_stopping"),
            (
                "seeds = [0, 1]",
                "metric = \"perplexity\"",
                "has no perplexity",
            ),
            ("pooling = \"mean\"", "pooling = \"max\"", "max"),
            ("lr = 5e-5", "lr = -1.0", "lr"),
            ("text-class", "test-class", "test-class"),
            ("[model]", "precision = \"tf32\"\n[model]", "cuda alone"),
        ];
        for (from, to, words) in cases {
            assert!(SMALL.contains(from), "{from}");
            let message = format!("{:#}", read(&SMALL.replace(from, to)).unwrap_err());
            assert!(message.contains(words), "{from} → {to}: {message}");
        }
    }
}
