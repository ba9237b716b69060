//! GSAM: lowers the loss at the perturbed weights, and its distance to the loss at the weights.
//!
//! ```text
//! g⊥ = g − (⟨g, g'⟩ / ‖g'‖²) g'          descent: g' − α g⊥
//! ```
//!
//! Zhuang et al. 2022, arXiv:2203.08065, algorithm 1. To first order −g⊥ does not change the loss at
//! the perturbed weights, and raises the one at the weights: the gap closes. Keeps the first gradient
//! through the second pass. The paper also ties ρ to the learning rate:
//! [`RhoScale::LearningRate`](crate::perturb::RhoScale::LearningRate).

use super::{Blend, Direction, EPS};
use crate::{
    error::{Result, check},
    gradients::Gradients,
};

/// g' − α g⊥.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SurrogateGap {
    alpha: f64,
}

impl SurrogateGap {
    /// Weight α ≥ 0 of the orthogonal part.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when it is negative or not finite.
    ///
    /// ```
    /// # use sala_core::blend::SurrogateGap;
    /// assert!(SurrogateGap::new(0.4).is_ok());
    /// assert!(SurrogateGap::new(-0.4).is_err());
    /// ```
    pub fn new(alpha: f64) -> Result<Self> {
        check::non_negative("SurrogateGap", "alpha", alpha)?;
        Ok(Self { alpha })
    }
}

impl Blend for SurrogateGap {
    fn keeps_direction(&self) -> bool {
        true
    }

    fn climbed(
        &mut self,
        direction: &Direction,
        dot: f64,
        gradients: &mut Gradients,
    ) -> Result<()> {
        // g' − α (g − c g') = (1 + α c) g' − α g
        let c = dot / (gradients.norm().powi(2) + EPS);
        let own = 1.0 + self.alpha * c;
        gradients.combine(own, (-self.alpha, &direction.tensors, direction.norm), dot)
    }
}
