//! ε = ρ T² g / (‖T g‖₂ + 1e-12) with T = |w| + η: ASAM's ascent, which is invariant to a rescaling of
//! the weights that leaves the function alone (Kwon et al. 2021, arXiv:2102.11600, equation 9).
//!
//! The paper applies T to weights and leaves biases with T = 1, which is the option `weights_only`: as in the
//! released code a weight is what has `weight` in its name, be it `conv1.weight` or `weight_ih_l0`. By
//! default T applies to every parameter. [`ParamSet::with_adaptive`] decides for single ones.

use candle_core::Tensor;

use super::{Ascent, Perturbation};
use crate::{
    error::{Error, Result, check},
    kernels,
    params::{Param, ParamSet},
};

/// The steepest ascent within a ball scaled by the weights' magnitudes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adaptive {
    eta: f64,
    weights_only: bool,
}

impl Adaptive {
    /// Offset η ≥ 0 of the magnitudes; `weights_only` leaves parameters alone that do not have `weight` in
    /// their name, as the code released with the paper does. A method over parameters of which none has is
    /// an error ([`Error::NoMatch`]): its ascent would be SAM's.
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
        let default = !self.weights_only || param.name().contains("weight");
        param.adaptive().unwrap_or(default)
    }
}

impl Perturbation for Adaptive {
    fn check(&self, params: &ParamSet) -> Result<()> {
        if self.weights_only && !params.iter().any(|param| self.scales(param)) {
            return Err(Error::NoMatch {
                rule: "weights_only".into(),
                len: params.len(),
            });
        }
        Ok(())
    }

    fn ascent(&self, params: &ParamSet, gradients: &[Tensor]) -> Result<Option<Ascent>> {
        let pairs = || params.iter().zip(gradients);
        let direction = |(param, g): (&Param, &Tensor)| {
            let scales = self.scales(param);
            Ok(if scales { kernels::like(g)? } else { g.clone() })
        };
        let mut directions = pairs().map(direction).collect::<Result<Vec<_>>>()?;
        let squares = kernels::run(gradients, |kernels| {
            let scale = |((param, g), direction): ((&Param, &Tensor), &mut Tensor)| {
                let kernels = kernels.of(param.var());
                if self.scales(param) {
                    return Ok(kernels.adaptive(direction, param.var(), g, self.eta)?);
                }
                Ok(kernels.squared_norm(g)?)
            };
            pairs().zip(&mut directions).map(scale).collect()
        })?;
        Ok(Some(Ascent::normalised(directions, squares)))
    }
}
