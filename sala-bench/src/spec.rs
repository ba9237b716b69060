//! What an experiment is: data, network, training, optimizers. Read from TOML, checked as a whole,
//! and written beside the results.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{hex::hex, metrics::Metric, report::Heading};

/// A comparison: every optimizer is run once with every seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Experiment {
    /// Short name; part of the run directory's name.
    pub(crate) name: String,
    /// One sentence for the head of the report.
    pub(crate) description: String,
    pub(crate) data: Data,
    pub(crate) network: Network,
    pub(crate) training: Training,
    /// The first one is the base that the others are compared with.
    pub(crate) optimizers: Vec<Optimizer>,
}

/// The data and how they are prepared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Data {
    /// `embedded`, `hub`, or a folder with the four IDX files.
    pub(crate) source: String,
    /// Share of the training labels that are drawn anew, uniformly from all classes.
    pub(crate) label_noise: f64,
    /// Number of training images held out for validation; their labels stay clean.
    pub(crate) validation: usize,
}

/// The network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Network {
    /// Fully connected layers of these widths.
    Mlp { hidden: Vec<usize>, dropout: f64 },
    /// Convolutions of these widths, each with batch norm and a halving of the image.
    Cnn { widths: Vec<usize>, dropout: f64 },
}

/// The training loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Training {
    pub(crate) epochs: u64,
    pub(crate) batch_size: usize,
    pub(crate) schedule: Schedule,
    /// Epochs of linear warm-up before the schedule.
    #[serde(default)]
    pub(crate) warm_up_epochs: u64,
    /// Seeds, each of which decides the validation split, the label noise, the initial weights, the
    /// order of the data and the dropout masks.
    pub(crate) seeds: Vec<u64>,
}

/// How the learning rate moves, step by step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Schedule {
    Constant,
    /// Half a cosine to zero.
    Cosine,
    /// A straight line to zero.
    Linear,
}

/// An optimizer with its hyper-parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Optimizer {
    /// Name in tables and files.
    pub(crate) name: String,
    pub(crate) base: Base,
    pub(crate) lr: f64,
    pub(crate) weight_decay: f64,
    /// Bound on the global norm of the gradient that updates the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) clip_norm: Option<f64>,
    /// What the radius of a method that climbs is a measure of.
    #[serde(default, skip_serializing_if = "RhoScale::is_absolute")]
    pub(crate) rho_scale: RhoScale,
    pub(crate) method: Method,
}

/// What a radius is a measure of.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum RhoScale {
    /// The distance itself.
    #[default]
    Absolute,
    /// A share of the norm of the weights.
    ParameterNorm,
    /// The radius where the learning rate is this; elsewhere proportional to the learning rate.
    LearningRate(f64),
}

impl RhoScale {
    fn is_absolute(&self) -> bool {
        *self == Self::Absolute
    }
}

/// The base rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Base {
    /// Nesterov momentum 0.9, coupled weight decay.
    SgdNesterov,
    /// β (0.9, 0.999), ε 1e-8, decoupled weight decay.
    Adamw,
}

/// What is composed with the base.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Method {
    Base {},
    Lookahead {
        k: u64,
        alpha: f64,
    },
    Sam {
        rho: f64,
        #[serde(default = "whole")]
        direction_fraction: f64,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        stable: bool,
    },
    Asam {
        rho: f64,
        eta: f64,
        #[serde(default = "whole")]
        direction_fraction: f64,
    },
    SamEvery {
        k: u64,
        rho: f64,
        #[serde(default = "whole")]
        direction_fraction: f64,
    },
    LookSam {
        k: u64,
        alpha: f64,
        rho: f64,
        #[serde(default = "whole")]
        direction_fraction: f64,
    },
    Gsam {
        alpha: f64,
        rho: f64,
        #[serde(default = "whole")]
        direction_fraction: f64,
    },
    FriendlySam {
        sigma: f64,
        lambda: f64,
        rho: f64,
        #[serde(default = "whole")]
        direction_fraction: f64,
    },
    MomentumSam {
        mu: f64,
        rho: f64,
    },
    Sala {
        k: u64,
        alpha: f64,
        rho: f64,
        #[serde(default = "whole")]
        direction_fraction: f64,
    },
}

fn whole() -> f64 {
    1.0
}

impl Method {
    /// Length of a cycle at whose end the method may climb, for methods that decide it as they go.
    pub(crate) fn deciding_cycle(&self) -> Option<u64> {
        match *self {
            Self::Sala { k, .. } => Some(k),
            _ => None,
        }
    }

    /// The same with another radius, for methods that have one.
    pub(crate) fn with_rho(mut self, radius: f64) -> Self {
        match &mut self {
            Self::Base {} | Self::Lookahead { .. } => {}
            Self::Sam { rho, .. }
            | Self::Asam { rho, .. }
            | Self::SamEvery { rho, .. }
            | Self::LookSam { rho, .. }
            | Self::Gsam { rho, .. }
            | Self::FriendlySam { rho, .. }
            | Self::MomentumSam { rho, .. }
            | Self::Sala { rho, .. } => *rho = radius,
        }
        self
    }
}

impl Experiment {
    /// Reads and checks an experiment; `origin` names it in errors.
    pub(crate) fn from_toml(text: &str, origin: &str) -> Result<Self> {
        let experiment: Self =
            toml::from_str(text).with_context(|| format!("cannot read the experiment {origin}"))?;
        experiment
            .validate()
            .with_context(|| format!("the experiment {origin} cannot be run"))?;
        Ok(experiment)
    }

    pub(crate) fn to_toml(&self) -> Result<String> {
        toml::to_string(self).context("cannot write the experiment as TOML")
    }

    /// Checks what can be checked without data; the optimizers' numbers are checked where they are
    /// built, before anything runs.
    pub(crate) fn validate(&self) -> Result<()> {
        ensure!(
            is_plain_name(&self.name),
            "name: letters, digits, - _ . wanted, got `{}`",
            self.name
        );
        let noise = self.data.label_noise;
        ensure!(
            (0.0..=1.0).contains(&noise),
            "data.label_noise must be in [0, 1], got {noise}"
        );
        ensure!(
            self.data.validation > 0,
            "data.validation must be >= 1, got 0"
        );
        let training = &self.training;
        ensure!(training.epochs > 0, "training.epochs must be >= 1, got 0");
        ensure!(
            training.batch_size > 0,
            "training.batch_size must be >= 1, got 0"
        );
        let warm_up = training.warm_up_epochs;
        ensure!(
            warm_up < training.epochs,
            "training.warm_up_epochs must be below the {} epochs, got {warm_up}",
            training.epochs
        );
        check_seeds(&training.seeds)?;
        check_optimizers(&self.optimizers)
    }

    /// Keeps the optimizers of these names, in this order.
    pub(crate) fn select(&mut self, names: &[String]) -> Result<()> {
        let find = |name: &String| {
            self.optimizers
                .iter()
                .find(|o| &o.name == name)
                .cloned()
                .with_context(|| {
                    let known: Vec<_> = self.optimizers.iter().map(|o| o.name.as_str()).collect();
                    format!(
                        "no optimizer `{name}` in this experiment; it has {}",
                        known.join(", ")
                    )
                })
        };
        self.optimizers = names.iter().map(find).collect::<Result<_>>()?;
        self.validate()
    }

    /// Eight hexadecimal digits that differ when anything in the experiment does.
    pub(crate) fn fingerprint(&self) -> Result<String> {
        Ok(fingerprint(&self.to_toml()?))
    }

    /// What a report on it is about.
    pub(crate) fn heading(&self) -> Result<Heading> {
        Ok(Heading {
            name: self.name.clone(),
            fingerprint: self.fingerprint()?,
            metric: Metric::Accuracy,
            weights: "the weights at the end of training",
            optimizers: self.optimizers.iter().map(|o| o.name.clone()).collect(),
            seeds: self.training.seeds.len(),
        })
    }
}

/// Eight hexadecimal digits of a plan's text.
pub(crate) fn fingerprint(plan: &str) -> String {
    hex(&Sha256::digest(plan.as_bytes())[..4])
}

/// Whether a name can be part of a file's.
pub(crate) fn is_plain_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !name.is_empty() && name.chars().all(plain)
}

/// Checks a list of optimizers: there are some, with names of their own and numbers that are allowed.
pub(crate) fn check_optimizers(optimizers: &[Optimizer]) -> Result<()> {
    ensure!(
        !optimizers.is_empty(),
        "optimizers must hold at least one optimizer"
    );
    let mut names = BTreeSet::new();
    for optimizer in optimizers {
        let name = &optimizer.name;
        ensure!(
            is_plain_name(name),
            "optimizer name: letters, digits, - _ . wanted, got `{name}`"
        );
        ensure!(
            names.insert(name),
            "optimizers: the name `{name}` is used twice"
        );
        crate::registry::check_optimizer(optimizer)?;
    }
    Ok(())
}

/// Checks a list of seeds: there are some, and each once.
pub(crate) fn check_seeds(seeds: &[u64]) -> Result<()> {
    ensure!(
        !seeds.is_empty(),
        "training.seeds must hold at least one seed"
    );
    let distinct: BTreeSet<_> = seeds.iter().collect();
    ensure!(
        distinct.len() == seeds.len(),
        "training.seeds holds a seed twice"
    );
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const SMALL: &str = r#"
        name = "small"
        description = "A network that learns something in a second."
        [data]
        source = "embedded"
        label_noise = 0.0
        validation = 4600
        [network]
        kind = "mlp"
        hidden = [16]
        dropout = 0.1
        [training]
        epochs = 2
        batch_size = 64
        schedule = "cosine"
        seeds = [0, 1]
        [[optimizers]]
        name = "sgd"
        base = "sgd-nesterov"
        lr = 0.05
        weight_decay = 5e-4
        method = { kind = "base" }
        [[optimizers]]
        name = "sala"
        base = "sgd-nesterov"
        lr = 0.05
        weight_decay = 5e-4
        method = { kind = "sala", k = 2, alpha = 0.5, rho = 0.2, direction_fraction = 0.25 }
    "#;

    #[test]
    fn an_experiment_survives_being_written_and_read() {
        let experiment = Experiment::from_toml(SMALL, "small").unwrap();
        let again = Experiment::from_toml(&experiment.to_toml().unwrap(), "again").unwrap();
        assert_eq!(experiment, again);
        assert_eq!(
            experiment.fingerprint().unwrap(),
            again.fingerprint().unwrap()
        );
    }

    #[test]
    fn a_changed_number_changes_the_fingerprint() {
        let one = Experiment::from_toml(SMALL, "one").unwrap();
        let two = Experiment::from_toml(&SMALL.replace("rho = 0.2", "rho = 0.3"), "two").unwrap();
        assert_ne!(one.fingerprint().unwrap(), two.fingerprint().unwrap());
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let cases = [
            ("epochs = 2", "epochs = 0", "training.epochs"),
            ("epochs = 2", "epoch = 2", "epoch"),
            ("seeds = [0, 1]", "seeds = [1, 1]", "twice"),
            ("label_noise = 0.0", "label_noise = 1.5", "data.label_noise"),
            ("name = \"sala\"", "name = \"sgd\"", "`sgd` is used twice"),
            ("name = \"small\"", "name = \"a/b\"", "a/b"),
            (
                "rho = 0.2",
                "rho = -0.2",
                "ParamsSala.rho must be finite and >= 0, got -0.2",
            ),
            ("kind = \"base\"", "kind = \"base\", rho = 1", "rho"),
            ("kind = \"mlp\"", "kind = \"mpl\"", "mpl"),
            ("lr = 0.05", "lr = nan", "ParamsSgd.lr"),
        ];
        for (from, to, words) in cases {
            assert!(SMALL.contains(from), "{from}");
            let error = Experiment::from_toml(&SMALL.replace(from, to), "bad").unwrap_err();
            let message = format!("{error:#}");
            assert!(
                message.contains("bad") && message.contains(words),
                "{from} → {to}: {message}"
            );
        }
    }

    #[test]
    fn optimizers_are_selected_by_name_and_in_order() {
        let mut experiment = Experiment::from_toml(SMALL, "small").unwrap();
        experiment.select(&["sala".into()]).unwrap();
        assert_eq!(experiment.optimizers.len(), 1);
        let message = experiment.select(&["adam".into()]).unwrap_err().to_string();
        assert!(
            message.contains("`adam`") && message.contains("it has sala"),
            "{message}"
        );
    }
}
