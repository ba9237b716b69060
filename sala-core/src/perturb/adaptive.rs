//! ε = ρ T² g / (‖T g‖₂ + 1e-12) with T = |w| + η: ASAM's ascent, which is invariant to a rescaling of
//! the weights that leaves the function alone (Kwon et al. 2021, arXiv:2102.11600, equation 9).
//!
//! The paper applies T to weights and leaves biases with T = 1, which is the option `weights_only`; by
//! default T applies to every parameter. [`ParamSet::with_adaptive`] decides for single ones.

use candle_core::Tensor;

use super::{Ascent, Perturbation};
use crate::{
    error::{Result, check},
    kernels::{self},
    params::{Param, ParamSet},
};

/// The steepest ascent within a ball scaled by the weights' magnitudes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adaptive {
    eta: f64,
    weights_only: bool,
}

impl Adaptive {
    /// Offset η ≥ 0 of the magnitudes; `weights_only` leaves parameters alone whose name does not end
    /// in `weight`, as the code released with the paper does.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when `eta` is negative or not finite.
    ///
    /// ```
    /// # use sala_core::perturb::Adaptive;
    /// assert!(Adaptive::new(0.01, false).is_ok());
    /// assert!(Adaptive::new(-1.0, false).is_err());
    /// ```
    pub fn new(eta: f64, weights_only: bool) -> Result<Self> {
        check::non_negative("Adaptive", "eta", eta)?;
        Ok(Self { eta, weights_only })
    }

    fn scales(&self, param: &Param) -> bool {
        let default = !self.weights_only || param.name().ends_with("weight");
        param.adaptive().unwrap_or(default)
    }
}

impl Perturbation for Adaptive {
    fn ascent(&self, params: &ParamSet, gradients: &[Tensor]) -> Result<Option<Ascent>> {
        let scaled = kernels::run(gradients, |kernels| {
            let direction = |(param, g): (&Param, &Tensor)| {
                let kernels = kernels.of(param.var());
                if self.scales(param) {
                    kernels.adaptive(param.var(), g, self.eta)
                } else {
                    Ok((g.clone(), kernels.squared_norm(g)?))
                }
            };
            let pairs = params.iter().zip(gradients).map(direction);
            Ok(pairs.collect::<candle_core::Result<Vec<_>>>()?)
        })?;
        let (directions, squares) = scaled.into_iter().unzip();
        Ok(Some(Ascent::normalised(directions, squares)))
    }
}
