//! d = g: SAM's ascent (Foret et al. 2021, arXiv:2010.01412, equation 2).

use candle_core::Tensor;

use super::{Ascent, Perturbation};
use crate::{error::Result, params::ParamSet};

/// The steepest ascent within an L2 ball, to first order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct L2;

impl Perturbation for L2 {
    fn reads_gradients(&self) -> bool {
        false
    }

    fn ascent(&self, _: &ParamSet, _: &[Tensor]) -> Result<Option<Ascent>> {
        Ok(Some(Ascent::gradient()))
    }
}
