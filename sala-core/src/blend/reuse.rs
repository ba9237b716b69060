//! LookSAM: the part of SAM's gradient that leads to flat regions changes slowly, so it is reused.
//!
//! ```text
//! ascent:    v = g' − (⟨g, g'⟩ / ‖g‖²) g           descent: g'
//! between:   descent: g + α (‖g‖ / ‖v‖) v          g alone before the first ascent
//! ```
//!
//! Liu, Mai, Chen, Hsieh and You 2022, arXiv:2203.02714, algorithm 1. Memory: one copy of the weights,
//! and the first gradient is kept through the second pass.

use candle_core::Tensor;

use super::{Blend, Direction, EPS};
use crate::{
    error::{Result, check},
    gradients::Gradients,
    memory::Memory,
    vector,
};

/// g', and between ascents g with the last ascent's orthogonal part.
#[derive(Debug)]
pub struct Reuse {
    alpha: f64,
    /// v.
    orthogonal: Memory,
}

impl Reuse {
    /// Weight α ≥ 0 of the reused part.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when it is negative or not finite.
    ///
    /// ```
    /// # use sala_core::blend::Reuse;
    /// assert!(Reuse::new(0.7).is_ok());
    /// assert!(Reuse::new(f64::NAN).is_err());
    /// ```
    pub fn new(alpha: f64) -> Result<Self> {
        check::non_negative("Reuse", "alpha", alpha)?;
        let orthogonal = Memory::new();
        Ok(Self { alpha, orthogonal })
    }
}

impl Blend for Reuse {
    fn keeps_direction(&self) -> bool {
        true
    }

    fn climbed(
        &mut self,
        direction: &Direction,
        dot: f64,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let c = dot / (direction.norm.powi(2) + EPS);
        let v = vector::combined((1.0, gradients.tensors()), (-c, &direction.tensors))?;
        self.orthogonal.set(v);
        Ok(())
    }

    fn addition(&self) -> Option<&[Tensor]> {
        self.orthogonal.tensors()
    }

    fn between(&self, (norm, dot): (f64, f64), gradients: &mut Gradients) -> Result<()> {
        let Some(v) = self.orthogonal.tensors() else {
            return Ok(());
        };
        let weight = self.alpha * gradients.norm() / (norm + EPS);
        gradients.combine(1.0, (weight, v, norm), dot)
    }

    fn memory(&self) -> Option<&Memory> {
        Some(&self.orthogonal)
    }

    fn memory_mut(&mut self) -> Option<&mut Memory> {
        Some(&mut self.orthogonal)
    }
}
