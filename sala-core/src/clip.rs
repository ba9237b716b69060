//! Clipping of the gradient that updates the weights.
//!
//! ```text
//! by norm:   g ← g · min(1, c / ‖g‖₂)         ‖·‖ over all parameters
//! by value:  gᵢ ← min(max(gᵢ, −c), c)
//! ```
//!
//! Pascanu, Mikolov and Bengio 2013, arXiv:1211.5063. The gradient that points an ascent is not
//! clipped, because a perturbation normalises it anyway. Unlike `torch.nn.utils.clip_grad_norm_` nothing
//! is added to the norm, so a clipped gradient has the norm c to rounding. A gradient that is clipped
//! is copied: the objective's own tensors stay as they are.

use crate::error::{Result, check};

/// How far the descent gradient may reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Clip {
    /// Its norm over all parameters is at most this.
    Norm(f64),
    /// The magnitude of each of its elements is at most this.
    Value(f64),
}

impl Clip {
    /// Checks the bound.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when it is not finite and above 0.
    ///
    /// ```
    /// # use sala_core::Clip;
    /// assert!(Clip::Norm(1.0).validate().is_ok());
    /// assert!(Clip::Value(0.0).validate().is_err());
    /// ```
    pub fn validate(self) -> Result<()> {
        match self {
            Self::Norm(max) => check::positive("Clip", "Norm", max),
            Self::Value(max) => check::positive("Clip", "Value", max),
        }
    }
}

/// The factor min(1, max / norm).
pub(crate) fn factor(norm: f64, max: f64) -> f64 {
    if norm > max { max / norm } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::factor;

    #[test]
    fn only_norms_above_the_limit_are_scaled_and_to_the_limit() {
        assert_eq!(factor(0.0, 1.0).to_bits(), 1f64.to_bits());
        assert_eq!(factor(1.0, 1.0).to_bits(), 1f64.to_bits());
        assert!((factor(4.0, 1.0) - 0.25).abs() < 1e-15);
    }
}
