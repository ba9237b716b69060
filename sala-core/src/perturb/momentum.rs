//! Momentum SAM's ascent, against the momentum:
//!
//! ```text
//! ε = −ρ v / (‖v‖₂ + 1e-12)       v ← μ v + g   from v = 0
//! ```
//!
//! with g the gradient that updates the weights, taken at w + ε. The momentum points where the loss has
//! been falling, so its reverse is where it rises. Becker, Altrock and Risse 2024, arXiv:2401.12033,
//! algorithm 1. There v is the buffer of SGD; here it is kept apart, so that any base will do, and
//! weight decay does not enter it. Cost: no extra gradient, one read of ‖v‖ a step; memory: one
//! copy of the weights. The first step, where v = 0, is not displaced.

use candle_core::Tensor;

use super::{Ascent, Perturbation};
use crate::{
    error::{Result, check},
    memory::Memory,
    params::ParamSet,
};

/// Ascent against the accumulated gradients.
#[derive(Debug)]
pub struct Momentum {
    mu: f64,
    velocity: Memory,
}

impl Momentum {
    /// Decay μ of the momentum, in [0, 1): that of the base, to follow the paper.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when it is outside.
    ///
    /// ```
    /// # use sala_core::perturb::Momentum;
    /// assert!(Momentum::new(0.9).is_ok());
    /// assert!(Momentum::new(-0.1).is_err());
    /// ```
    pub fn new(mu: f64) -> Result<Self> {
        check::below_one("Momentum", "mu", mu)?;
        let velocity = Memory::new();
        Ok(Self { mu, velocity })
    }
}

impl Perturbation for Momentum {
    fn needs_direction(&self) -> bool {
        false
    }

    fn ascent(&self, _: &ParamSet, _: &[Tensor]) -> Result<Option<Ascent>> {
        let velocity = self.velocity.tensors().map(<[Tensor]>::to_vec);
        velocity
            .map(|v| Ok(Ascent::along(v)?.reversed()))
            .transpose()
    }

    fn remember(&mut self, _: Option<&[Tensor]>, descent: &[Tensor]) -> Result<()> {
        self.velocity.blend(self.mu, 1.0, descent)
    }

    fn memory(&self) -> Option<&Memory> {
        Some(&self.velocity)
    }

    fn memory_mut(&mut self) -> Option<&mut Memory> {
        Some(&mut self.velocity)
    }
}
