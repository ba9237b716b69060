//! The optimizers of an experiment.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::is_plain_name;

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
    /// How much longer it trains than the experiment says: a factor on its epochs (steps, evaluations), with
    /// warm-up and schedule stretched to them. A base at 1.25 or 2 is the rival that a method with as many
    /// gradients has to beat.
    #[serde(default = "whole", skip_serializing_if = "is_whole")]
    pub(crate) budget: f64,
    pub(crate) method: Method,
}

impl Optimizer {
    /// Warm-up and total of a run, as [`Training::phases`](super::Training::phases) has them, both stretched to
    /// the budget.
    pub(crate) fn phases(&self, (warm_up, total): (u64, u64)) -> (u64, u64) {
        let stretched = self.stretched(total);
        (warm_up * stretched / total.max(1), stretched)
    }

    /// A count of steps or evaluations of the experiment, stretched to the budget: the nearest whole one, at
    /// least 1.
    pub(crate) fn stretched(&self, count: u64) -> u64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count times a factor that is checked"
        )]
        let stretched = (self.budget * count as f64).round() as u64;
        stretched.max(1)
    }
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

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
#[expect(clippy::float_cmp, reason = "what is left out is put back exactly")]
fn is_whole(budget: &f64) -> bool {
    *budget == whole()
}

impl Method {
    /// Length of a cycle at whose end the method may climb, for methods that decide it as they go.
    pub(crate) fn deciding_cycle(&self) -> Option<u64> {
        match *self {
            Self::Sala { k, .. } => Some(k),
            _ => None,
        }
    }

    /// Gradient evaluations of a whole batch per step, at least and at most.
    pub(crate) fn cost(&self) -> (f64, f64) {
        let (least, extra) = match *self {
            Self::Base {} | Self::Lookahead { .. } | Self::MomentumSam { .. } => (1.0, 0.0),
            Self::Sam {
                direction_fraction, ..
            }
            | Self::Asam {
                direction_fraction, ..
            }
            | Self::Gsam {
                direction_fraction, ..
            }
            | Self::FriendlySam {
                direction_fraction, ..
            } => (1.0 + direction_fraction, 0.0),
            Self::SamEvery {
                k,
                direction_fraction,
                ..
            }
            | Self::LookSam {
                k,
                direction_fraction,
                ..
            } => (1.0 + direction_fraction / k as f64, 0.0),
            // How many of its cycles climb is seen only as it goes.
            Self::Sala {
                k,
                direction_fraction,
                ..
            } => (1.0, direction_fraction / k as f64),
        };
        (least, least + extra)
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
        let budget = optimizer.budget;
        ensure!(
            budget.is_finite() && budget > 0.0,
            "optimizer `{name}`: budget must be a finite factor above 0, got {budget}"
        );
        crate::registry::check_optimizer(optimizer)?;
    }
    Ok(())
}
