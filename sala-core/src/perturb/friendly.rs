//! Friendly SAM's ascent, along what is particular to the batch:
//!
//! ```text
//! m ← λ m + (1 − λ) g        from m = 0
//! d = g − σ m
//! ```
//!
//! with g the gradient at the weights and m the estimate of the full gradient. Li, Zhou, He, Cheng and
//! Huang 2024, arXiv:2403.12350, algorithm 1. The released code starts at m = g and subtracts the mean of
//! before the step instead: for σ = 1 that points the same way, but for the start. A step that does not
//! climb contributes its gradient to m, too. Cost: one extra gradient; memory: one copy of the weights,
//! and the first gradient is kept through the second pass.

use candle_core::Tensor;

use super::{Ascent, Perturbation};
use crate::{
    error::{Result, check},
    memory::Memory,
    params::ParamSet,
    vector,
};

/// Ascent along the gradient less the mean of past gradients.
#[derive(Debug)]
pub struct Friendly {
    sigma: f64,
    lambda: f64,
    mean: Memory,
}

impl Friendly {
    /// Share σ ≥ 0 of the mean that is taken off, and its decay λ in [0, 1).
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when either is outside.
    ///
    /// ```
    /// # use sala_core::perturb::Friendly;
    /// assert!(Friendly::new(1.0, 0.9).is_ok());
    /// assert!(Friendly::new(1.0, 1.0).is_err());
    /// ```
    pub fn new(sigma: f64, lambda: f64) -> Result<Self> {
        check::non_negative("Friendly", "sigma", sigma)?;
        check::below_one("Friendly", "lambda", lambda)?;
        let mean = Memory::new();
        Ok(Self {
            sigma,
            lambda,
            mean,
        })
    }
}

impl Perturbation for Friendly {
    fn ascent(&self, _: &ParamSet, gradients: &[Tensor]) -> Result<Option<Ascent>> {
        // d = g − σ (λ m + (1 − λ) g)
        let own = 1.0 - self.sigma * (1.0 - self.lambda);
        let past = self.sigma * self.lambda;
        let directions = match self.mean.tensors() {
            None => vector::scaled(gradients, own),
            Some(mean) => vector::combined((own, gradients), (-past, mean)),
        }?;
        Ok(Some(Ascent::along(directions)?))
    }

    fn remember(&mut self, at_weights: Option<&[Tensor]>, _: &[Tensor]) -> Result<()> {
        match at_weights {
            Some(g) => self.mean.blend(self.lambda, 1.0 - self.lambda, g),
            None => Ok(()),
        }
    }

    fn memory(&self) -> Option<&Memory> {
        Some(&self.mean)
    }

    fn memory_mut(&mut self) -> Option<&mut Memory> {
        Some(&mut self.mean)
    }
}
