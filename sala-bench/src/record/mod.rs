//! Records: what a run leaves on disk.
//!
//! ```text
//! DIR/experiment.toml           what is run
//! DIR/environment.json          where and by which version
//! DIR/runs/sgd-seed0.jsonl      one line an epoch, then one line for the run
//! DIR/runs/….checkpoint.safetensors   to go on with a run that was interrupted
//! DIR/models/                   weights of complete runs, where they are to be kept
//! DIR/runs.jsonl                the last line of every complete run
//! DIR/summary.{json,md,csv}     the report
//! ```
//!
//! A run that is under way writes to `….jsonl.partial`, flushed after every line, and gets its name
//! when it is complete. So whatever has the final name is whole, and everything else is gone on with from
//! its checkpoint or run again: runs are deterministic, and end at the same bits. The lines before a
//! checkpoint are in it, so the file of a run that goes on is written anew and agrees with it.

mod dir;
mod file;

use serde::{Deserialize, Serialize};

use crate::metrics::{Metric, Score};

pub(crate) use dir::{Access, PLAN, RunDir, Sharing, run_file};
pub(crate) use file::{RunWriter, read_run};

/// One epoch of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct EpochRecord {
    /// From 1.
    pub(crate) epoch: u64,
    /// Steps taken since the beginning of the run.
    pub(crate) steps: u64,
    /// Learning rate of the epoch's last step.
    pub(crate) lr: f64,
    /// Mean over the epoch's steps of the first pass's loss.
    pub(crate) train_loss: f64,
    /// Mean over the epoch's steps of the norm of the gradient that updated the weights.
    pub(crate) grad_norm: f64,
    pub(crate) validation: Score,
    /// Gradient evaluations of a whole batch in this epoch.
    pub(crate) evaluations: f64,
    /// Steps of this epoch that climbed.
    pub(crate) ascents: u64,
    /// Last gap of the epoch, for methods with one.
    pub(crate) gap: Option<f64>,
    /// Seconds of training in this epoch, changes to slow weights and back included, evaluation not.
    pub(crate) train_s: f64,
    /// Of those, seconds of changing to slow weights and back, statistics that are taken anew included.
    #[serde(default)]
    pub(crate) swap_s: f64,
}

/// A complete run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunRecord {
    pub(crate) optimizer: String,
    pub(crate) seed: u64,
    /// Nothing when the run went to its end; else why it stopped (it diverged), in words.
    pub(crate) failure: Option<String>,
    pub(crate) steps: u64,
    /// Gradient evaluations of a whole batch, all steps together.
    pub(crate) evaluations: f64,
    pub(crate) ascents: u64,
    /// Cycles at whose end the method could have climbed, if it decides that as it goes.
    pub(crate) cycles: Option<u64>,
    pub(crate) train_s: f64,
    /// The epoch whose weights were scored last, where that was chosen on the validation part (early
    /// stopping); nothing for the weights at the end of training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) epoch: Option<u64>,
    /// Of those weights, as the test score.
    pub(crate) validation: Option<Score>,
    /// If the test part was to be read.
    pub(crate) test: Option<Score>,
    /// SHA-256 over those parameters: equal for equal bits.
    pub(crate) parameters: String,
    /// Fingerprint of the data that were trained on and validated with. Records of earlier versions have none,
    /// nor the next two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) data: Option<String>,
    /// Fingerprint of the test part, where that is read by itself after the last step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) test_data: Option<String>,
    /// Version and commit of the program that made the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) program: Option<String>,
}

impl RunRecord {
    /// Its score on the validation part; nothing if it diverged.
    pub(crate) fn validated(&self, metric: Metric) -> Option<f64> {
        let ended = self.failure.is_none();
        self.validation
            .filter(|_| ended)
            .and_then(|score| metric.of(&score))
    }

    /// Whether the other run may stand beside this one: what both say of their data is the same.
    pub(crate) fn shares_data_with(&self, other: &Self) -> bool {
        let agree = |a: &Option<String>, b: &Option<String>| a.is_none() || b.is_none() || a == b;
        agree(&self.data, &other.data) && agree(&self.test_data, &other.test_data)
    }
}

/// Version and commit of this program.
pub(crate) const PROGRAM: &str = concat!(env!("CARGO_PKG_VERSION"), " ", env!("SALA_COMMIT"));

/// What the files of a run are called by.
pub(crate) fn run_name(optimizer: &str, seed: u64) -> String {
    format!("{optimizer}-seed{seed}")
}

/// Where the numbers were made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Environment {
    pub(crate) version: String,
    pub(crate) commit: String,
    pub(crate) candle: String,
    pub(crate) os: String,
    pub(crate) arch: String,
    pub(crate) threads: usize,
    pub(crate) device: String,
}

impl Environment {
    pub(crate) fn here(device: &str) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            commit: env!("SALA_COMMIT").into(),
            candle: env!("CANDLE_VERSION").into(),
            os: std::env::consts::OS.into(),
            arch: std::env::consts::ARCH.into(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            device: device.into(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn score(accuracy: f64) -> Score {
        Score {
            loss: 0.5,
            accuracy: Some(accuracy),
            ..Score::default()
        }
    }

    pub(crate) fn run(optimizer: &str, seed: u64) -> RunRecord {
        RunRecord {
            optimizer: optimizer.into(),
            seed,
            failure: None,
            steps: 10,
            evaluations: 12.5,
            ascents: 5,
            cycles: Some(5),
            train_s: 1.5,
            epoch: None,
            validation: Some(score(0.8)),
            test: Some(score(0.1 + 0.2)),
            parameters: "abc".into(),
            data: None,
            test_data: None,
            program: None,
        }
    }
}
