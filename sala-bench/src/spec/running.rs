//! How the runs of an experiment are made. Nothing here changes a number, so it is no part of what an
//! experiment is: it is read from a file, but neither written beside the results nor fingerprinted.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Deserialize;

/// Options on the command line, and fields of `[running]` in a file.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, default)]
#[command(next_help_heading = "Running")]
pub(crate) struct Running {
    /// Keep the final weights of every run, in the folder `models`
    #[arg(long)]
    pub(crate) save_models: bool,
    /// Save where a run stands every so many seconds [default: 30, or less often if saving takes long]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) checkpoint_seconds: Option<f64>,
    /// Save where a run stands every so many epochs
    #[arg(long, value_name = "EPOCHS")]
    pub(crate) checkpoint_epochs: Option<u64>,
    /// Save where a run stands every so many steps
    #[arg(long, value_name = "STEPS", visible_alias = "checkpoint-every")]
    pub(crate) checkpoint_steps: Option<u64>,
    /// Write events for TensorBoard, in the folder `tensorboard`
    #[arg(long)]
    pub(crate) tensorboard: bool,
}

impl Running {
    /// What is given here, and otherwise what `file` says.
    pub(crate) fn or(&self, file: &Self) -> Self {
        Self {
            save_models: self.save_models || file.save_models,
            checkpoint_seconds: self.checkpoint_seconds.or(file.checkpoint_seconds),
            checkpoint_epochs: self.checkpoint_epochs.or(file.checkpoint_epochs),
            checkpoint_steps: self.checkpoint_steps.or(file.checkpoint_steps),
            tensorboard: self.tensorboard || file.tensorboard,
        }
    }

    pub(crate) fn validate(&self) -> Result<()> {
        for (field, count) in [
            ("checkpoint_epochs", self.checkpoint_epochs),
            ("checkpoint_steps", self.checkpoint_steps),
        ] {
            ensure!(count != Some(0), "running.{field} must be >= 1, got 0");
        }
        if let Some(seconds) = self.checkpoint_seconds {
            ensure!(
                Duration::try_from_secs_f64(seconds).is_ok(),
                "running.checkpoint_seconds must be finite and >= 0, got {seconds}"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_goes_before_what_the_file_says() {
        let file: Running =
            toml::from_str("save_models = true\ncheckpoint_epochs = 2\ncheckpoint_seconds = 9.0")
                .unwrap();
        let typed = Running {
            checkpoint_epochs: Some(5),
            ..Running::default()
        };
        let wanted = Running {
            save_models: true,
            checkpoint_epochs: Some(5),
            checkpoint_seconds: Some(9.0),
            ..Running::default()
        };
        assert_eq!(typed.or(&file), wanted);
        wanted.validate().unwrap();
    }

    #[test]
    fn intervals_that_are_none_are_refused() {
        for (text, words) in [
            ("checkpoint_epochs = 0", "checkpoint_epochs must be >= 1"),
            ("checkpoint_steps = 0", "checkpoint_steps must be >= 1"),
            ("checkpoint_seconds = -1.0", "got -1"),
            ("checkpoint_seconds = nan", "got NaN"),
        ] {
            let running: Running = toml::from_str(text).unwrap();
            let message = running.validate().unwrap_err().to_string();
            assert!(message.contains(words), "{message}");
        }
    }
}
