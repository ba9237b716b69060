//! Perturbations: where to look for a higher loss near the weights.

mod adaptive;
mod l2;

pub use adaptive::Adaptive;
pub use l2::L2;

use candle_core::Tensor;

use crate::{error::Result, gradients::Gradients, params::ParamSet};

/// Added to the norm that a direction is divided by, as in the released SAM and SALA code; it keeps a
/// zero gradient from becoming 0/0.
pub(crate) const NORM_EPS: f64 = 1e-12;

/// Points from the weights to where the second gradient is taken.
pub trait Perturbation {
    /// Radius ρ of the neighbourhood, for reports.
    fn rho(&self) -> f64;

    /// ε at the current weights, for each parameter in order: a tensor and the factor that turns it into
    /// ε, so that kernels multiply while they add.
    ///
    /// # Errors
    /// Those of candle's operations.
    fn displacement(&self, params: &ParamSet, gradients: &Gradients) -> Result<Vec<(Tensor, f64)>>;
}

/// Over which parameters an ascent direction is normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AscentNorm {
    /// Over all of them: ‖ε‖₂ = ρ, the theory of SAM.
    #[default]
    Global,
    /// Over each group of the [`ParamSet`] on its own, so every group is moved by ρ: what the
    /// released PyTorch code of SALA does with its parameter groups.
    PerGroup,
}

impl AscentNorm {
    /// ρ / (‖·‖₂ + 1e-12) for each parameter, from the squared norms of the directions.
    fn scales(self, params: &ParamSet, squared: &[f64], rho: f64) -> Vec<f64> {
        let scale = |sum: f64| rho / (sum.sqrt() + NORM_EPS);
        match self {
            Self::Global => vec![scale(squared.iter().sum()); squared.len()],
            Self::PerGroup => {
                let mut sums = vec![0.0; params.groups().len()];
                for (param, square) in params.iter().zip(squared) {
                    sums[param.group()] += square;
                }
                params.iter().map(|p| scale(sums[p.group()])).collect()
            }
        }
    }
}
