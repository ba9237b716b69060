//! The data of an experiment and how they are prepared.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

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

impl Data {
    /// Checks what can be checked without the data.
    pub(super) fn validate(&self) -> Result<()> {
        let noise = self.label_noise;
        ensure!(
            (0.0..=1.0).contains(&noise),
            "data.label_noise must be in [0, 1], got {noise}"
        );
        ensure!(self.validation > 0, "data.validation must be >= 1, got 0");
        Ok(())
    }
}
