use super::{Blend, Direction};
use crate::{error::Result, gradients::Gradients};

/// The gradient at the perturbed weights: SAM. With `stable` its norm becomes that of the gradient at
/// the weights, which keeps SAM from stalling at saddles at no cost (Tan et al. 2024, arXiv:2401.07250).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ascended {
    /// Rescale to the first gradient's norm.
    pub stable: bool,
}

impl Blend for Ascended {
    fn name(&self) -> String {
        if self.stable {
            "Ascended, stable".into()
        } else {
            "Ascended".into()
        }
    }

    fn needs_direction(&self) -> bool {
        self.stable
    }

    fn is_plain(&self) -> bool {
        !self.stable
    }

    fn climbed(&mut self, direction: &Direction, _: f64, gradients: &mut Gradients) -> Result<()> {
        if self.stable && gradients.norm() > 0.0 {
            gradients.scale(direction.norm / gradients.norm())?;
        }
        Ok(())
    }
}
