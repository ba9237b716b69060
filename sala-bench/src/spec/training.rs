//! The training loop of an experiment.

use std::{collections::BTreeSet, num::NonZero};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// The training loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Keys", into = "Keys")]
pub(crate) struct Training {
    pub(crate) budget: Budget,
    pub(crate) batch_size: usize,
    pub(crate) schedule: Schedule,
    /// Epochs of linear warm-up before the schedule.
    pub(crate) warm_up_epochs: u64,
    /// Training batches whose statistics batch norm averages before slow weights are evaluated; unless set
    /// they are evaluated with the statistics that training tracked at the fast weights.
    pub(crate) recalibrate_batch_norm: Option<NonZero<u64>>,
    /// Seeds, each of which decides the validation split, the label noise, the initial weights, the
    /// order of the data and the dropout masks.
    pub(crate) seeds: Vec<u64>,
}

/// When a run ends. The schedule of the learning rate goes over the whole budget, whatever its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Budget {
    /// Passes over the training images.
    Epochs(u64),
    /// Optimizer steps.
    Steps(u64),
    /// Gradient evaluations of a whole batch: a step of SAM takes two, a direction pass on a quarter of the
    /// batch a quarter. The last step may go beyond it.
    Evaluations(u64),
}

/// How the training loop stands in a file: a budget is one of three keys.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    epochs: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    steps: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    evaluations: Option<u64>,
    batch_size: usize,
    schedule: Schedule,
    #[serde(default)]
    warm_up_epochs: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    recalibrate_batch_norm: Option<NonZero<u64>>,
    seeds: Vec<u64>,
}

impl TryFrom<Keys> for Training {
    type Error = anyhow::Error;

    fn try_from(keys: Keys) -> Result<Self> {
        let budget = match (keys.epochs, keys.steps, keys.evaluations) {
            (Some(n), None, None) => Budget::Epochs(n),
            (None, Some(n), None) => Budget::Steps(n),
            (None, None, Some(n)) => Budget::Evaluations(n),
            _ => anyhow::bail!("one of `epochs`, `steps` and `evaluations` is wanted in training"),
        };
        Ok(Self {
            budget,
            batch_size: keys.batch_size,
            schedule: keys.schedule,
            warm_up_epochs: keys.warm_up_epochs,
            recalibrate_batch_norm: keys.recalibrate_batch_norm,
            seeds: keys.seeds,
        })
    }
}

impl From<Training> for Keys {
    fn from(training: Training) -> Self {
        let (mut epochs, mut steps, mut evaluations) = (None, None, None);
        match training.budget {
            Budget::Epochs(n) => epochs = Some(n),
            Budget::Steps(n) => steps = Some(n),
            Budget::Evaluations(n) => evaluations = Some(n),
        }
        Self {
            epochs,
            steps,
            evaluations,
            batch_size: training.batch_size,
            schedule: training.schedule,
            warm_up_epochs: training.warm_up_epochs,
            recalibrate_batch_norm: training.recalibrate_batch_norm,
            seeds: training.seeds,
        }
    }
}

impl Budget {
    /// How much there is to spend, in steps or in gradient evaluations.
    pub(crate) fn total(self, steps_per_epoch: u64) -> u64 {
        match self {
            Self::Epochs(epochs) => epochs * steps_per_epoch,
            Self::Steps(n) | Self::Evaluations(n) => n,
        }
    }

    /// How much is spent after so many steps and gradient evaluations, in the same unit.
    pub(crate) fn spent(self, steps: u64, evaluations: f64) -> u64 {
        match self {
            Self::Epochs(_) | Self::Steps(_) => steps,
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a positive number far below 2^53; a part of an evaluation is not yet spent"
            )]
            Self::Evaluations(_) => evaluations as u64,
        }
    }

    /// Steps that a run takes at `cost` gradient evaluations each.
    pub(crate) fn steps(self, steps_per_epoch: u64, cost: f64) -> u64 {
        let total = self.total(steps_per_epoch);
        match self {
            Self::Epochs(_) | Self::Steps(_) => total,
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "at most the total, as a step costs one evaluation or more"
            )]
            Self::Evaluations(_) => (total as f64 / cost).ceil() as u64,
        }
    }
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

impl Training {
    pub(super) fn validate(&self) -> Result<()> {
        let (Budget::Epochs(n) | Budget::Steps(n) | Budget::Evaluations(n)) = self.budget;
        let unit = match self.budget {
            Budget::Epochs(_) => "epochs",
            Budget::Steps(_) => "steps",
            Budget::Evaluations(_) => "evaluations",
        };
        ensure!(n > 0, "training.{unit} must be >= 1, got 0");
        ensure!(
            self.batch_size > 0,
            "training.batch_size must be >= 1, got 0"
        );
        if let Budget::Epochs(epochs) = self.budget {
            self.check_warm_up(1, epochs, "epochs")?;
        }
        check_seeds(&self.seeds)
    }

    /// Steps or gradient evaluations of warm-up, and of the whole run, for an optimizer of budget 1.
    ///
    /// # Errors
    /// When the warm-up is as long as the run.
    pub(crate) fn phases(&self, steps_per_epoch: u64) -> Result<(u64, u64)> {
        let total = self.budget.total(steps_per_epoch);
        let unit = match self.budget {
            Budget::Evaluations(_) => "gradient evaluations",
            Budget::Epochs(_) | Budget::Steps(_) => "steps",
        };
        let warm_up = self.check_warm_up(steps_per_epoch, total, unit)?;
        Ok((warm_up, total))
    }

    fn check_warm_up(&self, per_epoch: u64, total: u64, unit: &str) -> Result<u64> {
        let epochs = self.warm_up_epochs;
        let warm_up = epochs * per_epoch;
        ensure!(
            warm_up < total,
            "training.warm_up_epochs must be below the {total} {unit} of a run, got {epochs} ({warm_up} {unit})"
        );
        Ok(warm_up)
    }
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
mod tests {
    use super::*;

    fn read(budget: &str) -> Result<Training> {
        let rest = "batch_size = 8\nschedule = \"cosine\"\nseeds = [0]";
        super::super::read::from_toml(&format!("{budget}\n{rest}"))
    }

    #[test]
    fn a_budget_is_one_of_three() {
        for (text, budget) in [
            ("epochs = 3", Budget::Epochs(3)),
            ("steps = 40", Budget::Steps(40)),
            ("evaluations = 50", Budget::Evaluations(50)),
        ] {
            let training = read(text).unwrap();
            assert_eq!(training.budget, budget);
            let again = toml::to_string(&training).unwrap();
            assert!(again.starts_with(text), "{again}");
        }
        for text in ["", "epochs = 3\nsteps = 40"] {
            let message = read(text).unwrap_err().to_string();
            assert!(message.contains("one of `epochs`, `steps`"), "{message}");
        }
        assert!(
            read("epochs = 3\nepoch = 2")
                .unwrap_err()
                .to_string()
                .contains("Did you mean")
        );
    }

    #[test]
    fn a_budget_is_spent_in_its_own_unit() {
        assert_eq!(Budget::Epochs(3).total(10), 30);
        assert_eq!(Budget::Steps(25).total(10), 25);
        // Seven steps, three of which took half a gradient more.
        let spent = |budget: Budget| budget.spent(7, 8.5);
        assert_eq!(spent(Budget::Epochs(3)), 7);
        assert_eq!(spent(Budget::Steps(25)), 7);
        assert_eq!(spent(Budget::Evaluations(25)), 8);
        // 25 evaluations at two a step: the thirteenth goes beyond.
        assert_eq!(Budget::Evaluations(25).steps(10, 2.0), 13);
        assert_eq!(Budget::Steps(25).steps(10, 2.0), 25);
    }

    #[test]
    fn a_warm_up_must_leave_something_to_the_schedule() {
        let phases = |text: &str| read(text).unwrap().phases(10);
        assert_eq!(phases("steps = 21\nwarm_up_epochs = 2").unwrap(), (20, 21));
        let message = phases("steps = 20\nwarm_up_epochs = 2")
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("below the 20 steps") && message.contains("got 2"),
            "{message}"
        );
        assert!(
            read("epochs = 2\nwarm_up_epochs = 2")
                .unwrap()
                .validate()
                .is_err()
        );
    }
}
