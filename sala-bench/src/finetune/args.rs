//! What was typed after `finetune` and `predict`.

use std::{
    num::NonZero,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};

use super::{
    presets::{self, NAMES, Shared},
    spec::{Data, FineTune, Keep, Model, Part, Pooling, Task, Training},
};
use crate::{
    metrics::Metric,
    record::PLAN,
    spec::{Base, Device, Precision, ReportSettings, RhoScale, Running, Schedule, set::value_of},
};

/// Examples that stand at the end of the help.
pub(crate) const EXAMPLES: &str = "\
Examples:
  sala-bench finetune --model models/minilm --task text-classification --train reviews.csv --pooling mean
  sala-bench finetune --model models/minilm --task text-classification --train reviews.csv --test 0.2 \\
      --optimizers adamw,lookahead,sam,sala --seeds 5 --lr 5e-5 --out results/reviews
  sala-bench finetune --spec reviews.toml --early-stopping 2
  sala-bench finetune --spec reviews.toml --device cuda --precision bf16
  sala-bench finetune --out results/reviews --resume
  sala-bench predict --model results/reviews/models/sala-seed3 --input new.csv

Optimizers: adamw, sgd, lookahead, sam, stable-sam, asam, sam-every, look-sam, gsam, friendly-sam,
momentum-sam, sala. Records go to runs/NAME-FINGERPRINT. Ctrl-C keeps where every run is; the same command
continues at the same bits. docs/finetuning.md explains the options.";

pub(crate) const PREDICT_EXAMPLES: &str = "\
Examples:
  sala-bench predict --model results/reviews/models/sala-seed3 --input new.csv
  echo 'Never again.' | sala-bench predict --model results/reviews/models/sala-seed3 --input -";

#[derive(Debug, Args)]
pub(crate) struct FinetuneArgs {
    /// TOML file with these settings; options given beside it replace what it says
    #[arg(long, value_name = "FILE")]
    pub(crate) spec: Option<PathBuf>,
    /// Name of the run directory [default: that of the model]
    #[arg(long)]
    name: Option<String>,
    /// Model folder, or OWNER/NAME of the Hugging Face hub, with @REVISION if wanted (a build with `--features hub`)
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// What the model is to learn
    #[arg(long, value_enum)]
    task: Option<Task>,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    optimizers: OptimizerArgs,
    #[command(flatten)]
    training: TrainingArgs,
    /// How a classifier of texts makes one vector of a text [default: as the model says]
    #[arg(long, value_enum)]
    pooling: Option<Pooling>,
    /// A value in place of that in the model's config.json; can be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Where to compute: cpu, cuda, cuda:N or metal, if the program was built for it [default: cpu]
    #[arg(long, value_name = "DEVICE")]
    device: Option<Device>,
    /// Numbers to compute with; the weights of bf16 have masters in f32, which start from the model's own [default: f32]
    #[arg(long)]
    precision: Option<Precision>,
    /// Continue what was begun in --out, with its settings
    #[arg(
        long,
        requires = "out",
        // The groups are those of the options below.
        conflicts_with_all = ["spec", "name", "model", "task", "DataArgs", "OptimizerArgs", "TrainingArgs", "pooling",
            "set", "device", "precision", "fresh"]
    )]
    resume: bool,
    #[command(flatten)]
    pub(crate) place: crate::cli::Place,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Data")]
struct DataArgs {
    /// CSV, TSV, JSON Lines or Parquet tables; text files; folders of images
    #[arg(long, value_name = "FILE", num_args = 1..)]
    train: Vec<PathBuf>,
    /// The like for validation, or the share of the training examples to hold out [default: 0.1]
    #[arg(long, value_name = "FILE|SHARE")]
    validation: Option<String>,
    /// The like for the test at the end of each run [default: none]
    #[arg(long, value_name = "FILE|SHARE")]
    test: Option<String>,
    /// Which examples the shares hold [default: 0]
    #[arg(long, value_name = "SEED")]
    split_seed: Option<u64>,
    /// Column with the text [default: text]
    #[arg(long, value_name = "NAME")]
    text_column: Option<String>,
    /// Column with the label [default: label]
    #[arg(long, value_name = "NAME")]
    label_column: Option<String>,
    /// Column with the image, in Parquet files [default: image]
    #[arg(long, value_name = "NAME")]
    image_column: Option<String>,
    /// Tokens that a text is cut to, or of a block for language models [default: 128]
    #[arg(long, value_name = "N")]
    max_length: Option<usize>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Optimizers")]
struct OptimizerArgs {
    /// By name; the first is the base of the comparison [default: adamw]
    #[arg(
        long,
        visible_alias = "optimizer",
        value_name = "NAME,…",
        value_delimiter = ','
    )]
    optimizers: Vec<String>,
    /// What the methods are composed with [default: adamw]
    #[arg(long, value_enum)]
    base: Option<Base>,
    /// Peak learning rate [default: 5e-5]
    #[arg(long)]
    lr: Option<f64>,
    /// Weight decay, of all but norms and biases [default: 0.01]
    #[arg(long)]
    weight_decay: Option<f64>,
    /// Bound on the norm of the gradient that updates the weights; 0 for none [default: 1]
    #[arg(long)]
    clip_norm: Option<f64>,
    /// Radius of the methods that climb [default: that of each method]
    #[arg(long)]
    rho: Option<f64>,
    /// What the radius is a measure of; `learning-rate` lets it follow the schedule from RHO at the peak
    #[arg(long, value_enum)]
    rho_scale: Option<Scale>,
}

/// [`RhoScale`], as it is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scale {
    Absolute,
    ParameterNorm,
    LearningRate,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Training")]
struct TrainingArgs {
    /// So many seeds from 0, or a list of seeds [default: 1]
    #[arg(long, value_name = "N|SEED,…")]
    seeds: Option<String>,
    /// Passes over the training examples [default: 3]
    #[arg(long)]
    epochs: Option<u64>,
    /// Examples of a step [default: 16]
    #[arg(long)]
    batch_size: Option<usize>,
    /// Parts in which a batch goes through the network, to save memory [default: 1]
    #[arg(long, value_name = "PARTS")]
    accumulate: Option<usize>,
    /// How the learning rate falls [default: linear]
    #[arg(long, value_enum)]
    schedule: Option<Schedule>,
    /// Share of the steps over which the learning rate rises [default: 0.1]
    #[arg(long, value_name = "SHARE")]
    warm_up: Option<f64>,
    /// Factor of the learning rate from each layer to the one below [default: 1]
    #[arg(long, value_name = "FACTOR")]
    layerwise_lr_decay: Option<f64>,
    /// Parameters to leave as they are: names, with * for any characters
    #[arg(long, value_name = "PATTERN", num_args = 1..)]
    freeze: Vec<String>,
    /// Stop after so many epochs without a better validation score, and take the best epoch's weights
    #[arg(long, value_name = "EPOCHS")]
    early_stopping: Option<u64>,
    /// What validation chooses by [default: accuracy, or perplexity]
    #[arg(long, value_enum)]
    metric: Option<Metric>,
    /// Which models to keep [default: best]
    #[arg(long, value_enum)]
    keep: Option<Keep>,
}

#[derive(Debug, Args)]
pub(crate) struct PredictArgs {
    /// Folder of a trained model
    #[arg(long, value_name = "DIR")]
    pub(crate) model: String,
    /// Table, text file (one text a line), image or folder of images; - for lines of standard input
    #[arg(long, value_name = "FILE|-")]
    pub(crate) input: PathBuf,
    /// Column with the text [default: text]
    #[arg(long, value_name = "NAME", default_value = "text")]
    pub(crate) text_column: String,
    /// Column with the image, in Parquet files
    #[arg(long, value_name = "NAME", default_value = "image")]
    pub(crate) image_column: String,
    /// Form of the output
    #[arg(long, value_enum, default_value = "jsonl")]
    pub(crate) format: Format,
    /// Tokens that a text is cut to [default: as in training]
    #[arg(long, value_name = "N")]
    pub(crate) max_length: Option<usize>,
    /// Examples that go through the network at once
    #[arg(long, value_name = "N", default_value = "64")]
    pub(crate) batch_size: NonZero<usize>,
    /// Where to compute: cpu, cuda, cuda:N or metal, if the program was built for it
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Cpu)]
    pub(crate) device: Device,
    /// Numbers to compute with
    #[arg(long, default_value = "f32")]
    pub(crate) precision: Precision,
}

/// How predictions are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Jsonl,
    Csv,
}

impl FinetuneArgs {
    /// What is to be run, checked.
    pub(crate) fn finetune(&self) -> Result<FineTune> {
        let mut spec = match (&self.place.out, &self.spec) {
            (Some(out), None) if self.resume => begun(out)?,
            (_, Some(path)) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                FineTune::from_toml(&text, &path.display().to_string())?
            }
            (_, None) => self.blank()?,
        };
        if !self.resume {
            self.change(&mut spec)?;
        }
        spec.validate()
            .context("the fine-tuning with the options given cannot be run")?;
        Ok(spec)
    }

    /// What the required options say.
    fn blank(&self) -> Result<FineTune> {
        let missing = "is needed, or --spec FILE";
        let model = self
            .model
            .as_ref()
            .with_context(|| format!("--model {missing}"))?;
        let task = self.task.with_context(|| format!("--task {missing}"))?;
        let train = self.data.train.clone();
        ensure!(!train.is_empty(), "--train {missing}");
        let plain = |c: char| {
            if c.is_ascii_alphanumeric() || "-_.".contains(c) {
                c
            } else {
                '-'
            }
        };
        let last = model
            .trim_end_matches('/')
            .rsplit('/')
            .next()
            .unwrap_or("model");
        Ok(FineTune {
            report: ReportSettings::default(),
            name: last.chars().map(plain).collect(),
            description: String::new(),
            task,
            device: Device::default(),
            precision: Precision::default(),
            model: Model {
                path: model.clone(),
                pooling: None,
                config: toml::Table::new(),
            },
            data: Data::of(train),
            training: Training::default(),
            running: Running::default(),
            optimizers: Vec::new(),
        })
    }

    fn change(&self, spec: &mut FineTune) -> Result<()> {
        replace(&mut spec.name, self.name.as_ref());
        replace(&mut spec.task, self.task.as_ref());
        replace(&mut spec.model.path, self.model.as_ref());
        replace(&mut spec.device, self.device.as_ref());
        replace(&mut spec.precision, self.precision.as_ref());
        if self.pooling.is_some() {
            spec.model.pooling = self.pooling;
        }
        for pair in &self.set {
            let (key, value) = key_and_value(pair)?;
            spec.model.config.insert(key, value);
        }
        self.data.change(&mut spec.data);
        self.training.change(&mut spec.training)?;
        self.optimizers.change(spec)
    }
}

/// What was begun in a run directory.
fn begun(out: &Path) -> Result<FineTune> {
    let path = out.join(PLAN);
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("nothing to continue: cannot read {}", path.display()))?;
    FineTune::from_toml(&text, &path.display().to_string())
}

/// `key=value`; a value that is none in TOML is text.
fn key_and_value(pair: &str) -> Result<(String, toml::Value)> {
    let Some((key, value)) = pair.split_once('=') else {
        bail!("--set: wanted KEY=VALUE, got `{pair}`");
    };
    Ok((key.into(), value_of(value)))
}

fn replace<T: Clone>(place: &mut T, value: Option<&T>) {
    if let Some(value) = value {
        *place = value.clone();
    }
}

impl DataArgs {
    fn change(&self, data: &mut Data) {
        if !self.train.is_empty() {
            data.train.clone_from(&self.train);
        }
        if let Some(validation) = &self.validation {
            data.validation = Part::parse(validation);
        }
        if let Some(test) = &self.test {
            data.test = Some(Part::parse(test));
        }
        replace(&mut data.split_seed, self.split_seed.as_ref());
        replace(&mut data.text_column, self.text_column.as_ref());
        replace(&mut data.label_column, self.label_column.as_ref());
        replace(&mut data.image_column, self.image_column.as_ref());
        replace(&mut data.max_length, self.max_length.as_ref());
    }
}

impl TrainingArgs {
    fn change(&self, training: &mut Training) -> Result<()> {
        if let Some(text) = &self.seeds {
            training.seeds = seeds(text)?;
        }
        replace(&mut training.epochs, self.epochs.as_ref());
        replace(&mut training.batch_size, self.batch_size.as_ref());
        replace(&mut training.accumulate, self.accumulate.as_ref());
        replace(&mut training.schedule, self.schedule.as_ref());
        replace(&mut training.warm_up, self.warm_up.as_ref());
        replace(
            &mut training.layerwise_lr_decay,
            self.layerwise_lr_decay.as_ref(),
        );
        if !self.freeze.is_empty() {
            training.freeze.clone_from(&self.freeze);
        }
        training.early_stopping = self.early_stopping.or(training.early_stopping);
        training.metric = self.metric.or(training.metric);
        replace(&mut training.keep, self.keep.as_ref());
        Ok(())
    }
}

/// One number is a count, more are seeds.
fn seeds(text: &str) -> Result<Vec<u64>> {
    let read = |seed: &str| {
        let seed = seed.trim();
        seed.parse::<u64>()
            .with_context(|| format!("--seeds: wanted a number, got `{seed}`"))
    };
    let seeds: Vec<u64> = text.split(',').map(read).collect::<Result<_>>()?;
    Ok(match seeds[..] {
        [count] => (0..count).collect(),
        _ => seeds,
    })
}

impl OptimizerArgs {
    /// Names that a file has an optimizer for are those; all others are made with the options.
    fn change(&self, spec: &mut FineTune) -> Result<()> {
        if !self.optimizers.is_empty() {
            let of_name = |name: &String| {
                let there = spec.optimizers.iter().find(|o| &o.name == name);
                there.map_or_else(
                    || presets::optimizer(name, &self.shared()),
                    |o| Ok(o.clone()),
                )
            };
            spec.optimizers = self.optimizers.iter().map(of_name).collect::<Result<_>>()?;
        } else if spec.optimizers.is_empty() {
            spec.optimizers = vec![presets::optimizer(NAMES[0], &self.shared())?];
        }
        for optimizer in &mut spec.optimizers {
            replace(&mut optimizer.lr, self.lr.as_ref());
            replace(&mut optimizer.weight_decay, self.weight_decay.as_ref());
            if self.clip_norm.is_some() {
                optimizer.clip_norm = self.clip_norm.filter(|&norm| norm != 0.0);
            }
            if let Some(rho) = self.rho {
                optimizer.method = optimizer.method.with_rho(rho);
            }
            if let Some(scale) = self.rho_scale {
                optimizer.rho_scale = match scale {
                    Scale::Absolute => RhoScale::Absolute,
                    Scale::ParameterNorm => RhoScale::ParameterNorm,
                    Scale::LearningRate => RhoScale::LearningRate(optimizer.lr),
                };
            }
        }
        Ok(())
    }

    fn shared(&self) -> Shared {
        Shared {
            base: self.base.unwrap_or(Base::Adamw),
            lr: 5e-5,
            weight_decay: 0.01,
            clip_norm: Some(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn spec(words: &[&str]) -> Result<FineTune> {
        let words = [&["sala-bench", "finetune"], words].concat();
        match Cli::try_parse_from(words)?.command {
            Some(Command::Finetune(args)) => args.finetune(),
            other => panic!("{other:?}"),
        }
    }

    const NEEDED: [&str; 6] = [
        "--model",
        "models/mini-lm/",
        "--task",
        "text-classification",
        "--train",
        "a.csv",
    ];

    #[test]
    fn what_is_not_said_has_the_usual_values() {
        let spec = spec(&NEEDED).unwrap();
        assert_eq!(spec.name, "mini-lm");
        assert_eq!(spec.data.validation, Part::Share(0.1));
        let [optimizer] = &spec.optimizers[..] else {
            panic!("one optimizer");
        };
        assert_eq!((optimizer.name.as_str(), optimizer.lr), ("adamw", 5e-5));
        assert_eq!(optimizer.clip_norm, Some(1.0));
    }

    #[test]
    fn options_reach_their_places() {
        let more = [
            "b.csv",
            "--optimizers",
            "adamw,sala",
            "--seeds",
            "3",
            "--lr",
            "1e-4",
            "--rho",
            "0.02",
            "--rho-scale",
            "learning-rate",
            "--clip-norm",
            "0",
            "--validation",
            "v.csv",
            "--test",
            "0.2",
            "--set",
            "hidden_dropout_prob=0.2",
            "--set",
            "hidden_act=relu",
            "--freeze",
            "a.*",
            "b.*",
            "--schedule",
            "cosine",
            "--early-stopping",
            "2",
            "--metric",
            "macro-f1",
            "--keep",
            "none",
        ];
        let spec = spec(&[&NEEDED[..], &more].concat()).unwrap();
        assert_eq!(
            spec.data.train,
            [PathBuf::from("a.csv"), PathBuf::from("b.csv")]
        );
        assert_eq!(spec.data.validation, Part::File("v.csv".into()));
        assert_eq!(spec.data.test, Some(Part::Share(0.2)));
        let sala = &spec.optimizers[1];
        assert_eq!((sala.lr, sala.clip_norm), (1e-4, None));
        assert_eq!(sala.rho_scale, RhoScale::LearningRate(1e-4));
        assert!(format!("{:?}", sala.method).contains("rho: 0.02"));
        assert_eq!(spec.training.seeds, [0, 1, 2]);
        assert_eq!(spec.training.freeze, ["a.*", "b.*"]);
        assert_eq!(
            spec.model.config["hidden_dropout_prob"].as_float(),
            Some(0.2)
        );
        assert_eq!(spec.model.config["hidden_act"].as_str(), Some("relu"));
        assert_eq!(
            (spec.metric(), spec.training.keep),
            (Metric::MacroF1, Keep::None)
        );
    }

    #[test]
    fn one_number_is_a_count_of_seeds_and_a_list_is_a_list() {
        assert_eq!(seeds("3").unwrap(), [0, 1, 2]);
        assert_eq!(seeds("7, 9").unwrap(), [7, 9]);
        assert!(seeds("x").unwrap_err().to_string().contains("`x`"));
    }

    #[test]
    fn options_replace_what_a_file_says() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.toml");
        std::fs::write(&path, super::super::spec::tests::SMALL).unwrap();
        let file = path.to_str().unwrap();
        let spec = spec(&["--spec", file, "--epochs", "9", "--optimizers", "adamw,sam"]).unwrap();
        assert_eq!((spec.name.as_str(), spec.training.epochs), ("small", 9));
        assert_eq!(spec.optimizers.len(), 2);
        assert_eq!(spec.training.seeds, [0, 1]);
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let says = |words: &[&str], wanted: &str| {
            let message = format!("{:#}", spec(words).unwrap_err());
            assert!(message.contains(wanted), "{wanted}: {message}");
        };
        says(&NEEDED[2..], "--model is needed");
        says(&NEEDED[..2], "--task is needed");
        says(&NEEDED[..4], "--train is needed");
        says(&[&NEEDED[..], &["--optimizers", "adan"]].concat(), "`adan`");
        says(&[&NEEDED[..], &["--set", "x"]].concat(), "KEY=VALUE");
        says(&["--out", "nowhere", "--resume"], "nothing to continue");
        says(&["--resume"], "--out");
        for more in [
            ["--epochs", "9"],
            ["--lr", "1"],
            ["--test", "0.2"],
            ["--set", "a=1"],
            ["--precision", "f64"],
        ] {
            let words = [&["--out", "x", "--resume"][..], &more].concat();
            says(&words, "cannot be used with");
        }
    }
}
