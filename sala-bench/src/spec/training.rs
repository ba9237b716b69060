//! The training loop of an experiment.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

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

impl Training {
    pub(super) fn validate(&self) -> Result<()> {
        ensure!(self.epochs > 0, "training.epochs must be >= 1, got 0");
        ensure!(
            self.batch_size > 0,
            "training.batch_size must be >= 1, got 0"
        );
        let warm_up = self.warm_up_epochs;
        ensure!(
            warm_up < self.epochs,
            "training.warm_up_epochs must be below the {} epochs, got {warm_up}",
            self.epochs
        );
        check_seeds(&self.seeds)
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
