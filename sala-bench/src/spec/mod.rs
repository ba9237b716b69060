//! What an experiment is: data, network, training, optimizers. Read from TOML, checked as a whole,
//! and written beside the results.

mod augmentation;
mod data;
mod device;
mod network;
mod optimizer;
pub(crate) mod read;
mod report;
mod running;
pub(crate) mod set;
mod training;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::hex::hex;

pub(crate) use augmentation::Augmentation;
pub(crate) use data::{Amount, Data, LabelNoise, NoiseKind};
pub(crate) use device::{Device, Precision};
pub(crate) use network::{Network, Stem};
pub(crate) use optimizer::{Base, Method, Optimizer, RhoScale, check_optimizers};
pub(crate) use report::ReportSettings;
pub(crate) use running::Running;
pub(crate) use training::{Budget, Schedule, Training, check_seeds};

/// A comparison: every optimizer is run once with every seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Experiment {
    /// Short name; part of the run directory's name.
    pub(crate) name: String,
    /// One sentence for the head of the report.
    pub(crate) description: String,
    #[serde(default, skip_serializing_if = "Device::is_cpu")]
    pub(crate) device: Device,
    #[serde(default, skip_serializing_if = "Precision::is_f32")]
    pub(crate) precision: Precision,
    #[serde(default, skip_serializing_if = "TestPart::is_read")]
    pub(crate) test: TestPart,
    pub(crate) data: Data,
    pub(crate) network: Network,
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

/// Whether the test part may be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TestPart {
    /// Once a run, after its training has ended.
    #[default]
    AtTheEnd,
    /// As in searches.
    Never,
}

impl TestPart {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
    fn is_read(&self) -> bool {
        *self == Self::AtTheEnd
    }
}

impl Experiment {
    /// Reads and checks an experiment; `origin` names it in errors.
    pub(crate) fn from_toml(text: &str, origin: &str) -> Result<Self> {
        let experiment: Self = read::from_toml(text)
            .with_context(|| format!("cannot read the experiment {origin}"))?;
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
        self.data.validate()?;
        crate::registry::check_network(&self.network)?;
        self.training.validate()?;
        self.precision.check(self.device)?;
        self.report.validate(&self.optimizers)?;
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
                    let hint = read::did_you_mean(name, known.iter().copied());
                    let known = known.join(", ");
                    format!("no optimizer `{name}` in this experiment; it has {known}{hint}")
                })
        };
        self.optimizers = names.iter().map(find).collect::<Result<_>>()?;
        self.report.references.retain(|r| names.contains(r));
        self.validate()
    }

    /// Eight hexadecimal digits that differ when anything in the experiment does.
    pub(crate) fn fingerprint(&self) -> Result<String> {
        Ok(fingerprint(&self.to_toml()?))
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

    /// [`SMALL`], read.
    pub(crate) fn small() -> Experiment {
        Experiment::from_toml(SMALL, "small").unwrap()
    }

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
            ("epochs = 2", "epoch = 2", "Did you mean `epochs`?"),
            ("epochs = 2", "epochs = 2\nsteps = 9", "one of `epochs`"),
            (
                "[data]",
                "device = \"gpu\"\n[data]",
                "cuda:N or metal wanted, got `gpu`",
            ),
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
            ("lr = 0.05", "lr = 0.05\nbudget = 0.0", "budget must be"),
            (
                "[training]",
                "[report]\nmargin = -1.0\n[training]",
                "report.margin",
            ),
            (
                "[training]",
                "[report]\nreferences = [\"sam\"]\n[training]",
                "no optimizer `sam`; there are sgd, sala",
            ),
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
            message.contains("`adam`") && message.ends_with("it has sala"),
            "{message}"
        );
        let message = experiment.select(&["sla".into()]).unwrap_err().to_string();
        assert!(message.ends_with("did you mean `sala`?"), "{message}");
    }
}
