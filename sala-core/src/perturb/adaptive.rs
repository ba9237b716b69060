//! ε = ρ T² g / (‖T g‖₂ + 1e-12) with T = |w| + η: ASAM's ascent, which is invariant to a rescaling of
//! the weights that leaves the function alone (Kwon et al. 2021, arXiv:2102.11600, equation 9).
//!
//! Deviation: the paper applies T to weights and not to biases; here it applies to every parameter.

use candle_core::Tensor;

use super::{AscentNorm, Perturbation};
use crate::{
    error::{Result, check},
    gradients::Gradients,
    params::ParamSet,
    vector,
};

/// The steepest ascent within a ball scaled by the weights' magnitudes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adaptive {
    rho: f64,
    eta: f64,
    norm: AscentNorm,
}

impl Adaptive {
    /// Radius ρ ≥ 0, offset η ≥ 0 of the magnitudes, and the parameters over which the scaled
    /// gradient is normalised.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when `rho` or `eta` is negative or not finite.
    ///
    /// ```
    /// # use sala_core::perturb::{Adaptive, AscentNorm};
    /// assert!(Adaptive::new(0.5, 0.01, AscentNorm::Global).is_ok());
    /// assert!(Adaptive::new(0.5, -1.0, AscentNorm::Global).is_err());
    /// ```
    pub fn new(rho: f64, eta: f64, norm: AscentNorm) -> Result<Self> {
        check::non_negative("Adaptive", "rho", rho)?;
        check::non_negative("Adaptive", "eta", eta)?;
        Ok(Self { rho, eta, norm })
    }
}

impl Perturbation for Adaptive {
    fn rho(&self) -> f64 {
        self.rho
    }

    fn displacement(&self, params: &ParamSet, gradients: &Gradients) -> Result<Vec<(Tensor, f64)>> {
        let mut steps = Vec::with_capacity(params.len());
        let mut scaled_gradients = Vec::with_capacity(params.len());
        for (param, g) in params.iter().zip(gradients.tensors()) {
            let magnitude = (param.var().as_detached_tensor().abs()? + self.eta)?;
            let scaled = (&magnitude * g)?;
            steps.push((magnitude * &scaled)?);
            scaled_gradients.push(scaled);
        }
        let squares = vector::read_scalars(vector::squared_norms(&scaled_gradients)?)?;
        let scales = self.norm.scales(params, &squares, self.rho);
        Ok(steps.into_iter().zip(scales).collect())
    }
}
