//! What was typed after `sharpness`.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;

use super::measure::Settings;

pub(crate) const EXAMPLES: &str = "\
Examples:
  sala-bench compare --save-models --save-trajectory --out runs/mine
  sala-bench sharpness runs/mine
  sala-bench sharpness runs/mine --optimizers sgd,sala --seeds 0,1 --images 512 --no-figures

Tables and figures go to RUN/sharpness. What has been measured with the same settings is not measured again.
Gradients are taken on training images only; the test part is not read.";

#[derive(Debug, Args)]
pub(crate) struct SharpnessArgs {
    /// Run directories of comparisons that were made with --save-models
    #[arg(required = true, value_name = "RUN")]
    pub(crate) runs: Vec<PathBuf>,
    /// Only these optimizers
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub(crate) optimizers: Option<Vec<String>>,
    /// Only these seeds
    #[arg(long, value_name = "SEED,…", value_delimiter = ',')]
    pub(crate) seeds: Option<Vec<u64>>,
    /// Training images that the loss is taken on, the first of the seed's training part
    #[arg(long, value_name = "N", default_value_t = 1024)]
    images: usize,
    /// Images of a micro-batch, the m of m-sharpness; must divide the images
    #[arg(long, value_name = "N", default_value_t = 128)]
    m: usize,
    /// Radius of the worst rise in L2
    #[arg(long, value_name = "RHO", default_value_t = 0.1)]
    rho: f64,
    /// Radius of the worst rise relative to the weights
    #[arg(long, value_name = "RHO", default_value_t = 0.5)]
    rho_adaptive: f64,
    /// Standard deviation of random displacements, for each weight
    #[arg(long, value_name = "SIGMA", default_value_t = 0.005)]
    sigma: f64,
    /// Steps of the ascent to the worst rise
    #[arg(long, value_name = "N", default_value_t = 10)]
    ascent_steps: usize,
    /// Hessian-vector products for the largest eigenvalue, at most
    #[arg(long, value_name = "N", default_value_t = 40)]
    lanczos_steps: usize,
    /// Random vectors for the trace
    #[arg(long, value_name = "N", default_value_t = 20)]
    trace_samples: usize,
    /// Random displacements for the mean rise, each with its opposite
    #[arg(long, value_name = "N", default_value_t = 20)]
    average_samples: usize,
    /// Seed of all random directions
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    direction_seed: u64,
    /// Numbers only, no figures
    #[arg(long)]
    pub(crate) no_figures: bool,
}

impl SharpnessArgs {
    /// How to measure, checked.
    pub(crate) fn settings(&self) -> Result<Settings> {
        let (images, m) = (self.images, self.m);
        ensure!(
            m > 0 && images % m == 0 && images >= 2 * m,
            "--images must be a multiple of --m and at least twice it, got {images} and {m}"
        );
        for (name, radius) in [
            ("--rho", self.rho),
            ("--rho-adaptive", self.rho_adaptive),
            ("--sigma", self.sigma),
        ] {
            ensure!(
                radius.is_finite() && radius > 0.0,
                "{name} must be finite and > 0, got {radius}"
            );
        }
        for (name, count) in [
            ("--ascent-steps", self.ascent_steps),
            ("--lanczos-steps", self.lanczos_steps),
            ("--trace-samples", self.trace_samples),
            ("--average-samples", self.average_samples),
        ] {
            ensure!(count > 0, "{name} must be >= 1, got 0");
        }
        Ok(Settings {
            images,
            m,
            rho: self.rho,
            rho_adaptive: self.rho_adaptive,
            sigma: self.sigma,
            ascent_steps: self.ascent_steps,
            lanczos_steps: self.lanczos_steps,
            trace_samples: self.trace_samples,
            average_samples: self.average_samples,
            seed: self.direction_seed,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Typed {
        #[command(flatten)]
        args: SharpnessArgs,
    }

    fn settings(words: &[&str]) -> Result<Settings> {
        let words = [&["sharpness", "runs/mine"], words].concat();
        Typed::try_parse_from(words).unwrap().args.settings()
    }

    #[test]
    fn settings_are_checked_by_their_names() {
        assert_eq!(settings(&[]).unwrap().images, 1024);
        for (words, message) in [
            (["--images", "100"], "--images must be a multiple of --m"),
            (["--images", "128"], "at least twice it, got 128 and 128"),
            (["--rho", "0"], "--rho must be finite and > 0, got 0"),
            (
                ["--sigma", "nan"],
                "--sigma must be finite and > 0, got NaN",
            ),
            (["--trace-samples", "0"], "--trace-samples must be >= 1"),
        ] {
            let error = settings(&words).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        assert!(
            Typed::try_parse_from(["sharpness"]).is_err(),
            "no run directory"
        );
    }
}
