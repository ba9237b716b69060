//! ε = ρ g / (‖g‖₂ + 1e-12): SAM's ascent (Foret et al. 2021, arXiv:2010.01412, equation 2).

use candle_core::Tensor;

use super::{AscentNorm, Perturbation};
use crate::{
    error::{Result, check},
    gradients::Gradients,
    params::ParamSet,
};

/// The steepest ascent within an L2 ball of radius ρ, to first order.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct L2 {
    rho: f64,
    norm: AscentNorm,
}

impl L2 {
    /// Radius ρ ≥ 0 and the parameters over which the gradient is normalised.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when `rho` is negative or not finite.
    ///
    /// ```
    /// # use sala_core::perturb::{AscentNorm, L2};
    /// assert!(L2::new(0.05, AscentNorm::Global).is_ok());
    /// assert!(L2::new(f64::NAN, AscentNorm::Global).is_err());
    /// ```
    pub fn new(rho: f64, norm: AscentNorm) -> Result<Self> {
        check::non_negative("L2", "rho", rho)?;
        Ok(Self { rho, norm })
    }
}

impl Perturbation for L2 {
    fn rho(&self) -> f64 {
        self.rho
    }

    fn displacement(&self, params: &ParamSet, gradients: &Gradients) -> Result<Vec<(Tensor, f64)>> {
        let squares = gradients.squared_norms();
        let scales = self.norm.scales(params, squares, self.rho);
        Ok(gradients.tensors().iter().cloned().zip(scales).collect())
    }
}
