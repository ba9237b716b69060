//! How far a perturbation goes.
//!
//! ```text
//! ε = s ρ' d / (‖d‖₂ + 1e-12)        ρ' = ρ | ρ ‖w‖₂ | ρ η / η_ref
//! ```
//!
//! with d the direction, s the parameter's own factor ([`ParamSet::with_rho_scale`]), w all trainable
//! weights and η the learning rate. The norm runs over the parameters with s > 0.

use crate::{
    error::{Result, check},
    params::ParamSet,
};

/// Added to the norm that a direction is divided by, as in the released SAM and SALA code; it keeps a
/// zero gradient from becoming 0/0.
const NORM_EPS: f64 = 1e-12;

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

/// What the number ρ is a measure of.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum RhoScale {
    /// The distance itself.
    #[default]
    Absolute,
    /// A share of the parameters' norm: ρ' = ρ ‖w‖₂. One value then serves models of any size.
    ParameterNorm,
    /// Proportional to the learning rate: ρ' = ρ η / `reference`, so that ρ is the radius where
    /// the learning rate is `reference`. SALA's gap shrinks with the learning rate, too, so the share of
    /// cycles that climb keeps its meaning; GSAM (Zhuang et al. 2022) does it with its ρ.
    LearningRate {
        /// The learning rate, above 0, at which the radius is ρ.
        reference: f64,
    },
}

/// Radius of an ascent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Radius {
    rho: f64,
    scale: RhoScale,
    norm: AscentNorm,
}

impl Radius {
    /// ρ ≥ 0, what it is a measure of, and what the direction is normalised over.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when `rho` is negative or not finite, or the reference
    /// learning rate not finite and above 0.
    ///
    /// ```
    /// # use sala_core::perturb::{AscentNorm, Radius, RhoScale};
    /// assert!(Radius::new(0.05, RhoScale::Absolute, AscentNorm::Global).is_ok());
    /// assert!(Radius::new(f64::NAN, RhoScale::Absolute, AscentNorm::Global).is_err());
    /// ```
    pub fn new(rho: f64, scale: RhoScale, norm: AscentNorm) -> Result<Self> {
        check::non_negative("Radius", "rho", rho)?;
        if let RhoScale::LearningRate { reference } = scale {
            check::positive("RhoScale::LearningRate", "reference", reference)?;
        }
        Ok(Self { rho, scale, norm })
    }

    /// A distance, over all parameters.
    ///
    /// # Errors
    /// As for [`Radius::new`].
    pub fn absolute(rho: f64) -> Result<Self> {
        Self::new(rho, RhoScale::Absolute, AscentNorm::Global)
    }

    /// ρ, before any scaling.
    pub fn rho(&self) -> f64 {
        self.rho
    }

    pub(crate) fn set_rho(&mut self, rho: f64) -> Result<()> {
        check::non_negative("Radius", "rho", rho)?;
        self.rho = rho;
        Ok(())
    }

    /// Whether ρ' depends on ‖w‖.
    pub(crate) fn needs_weight_norm(&self) -> bool {
        self.scale == RhoScale::ParameterNorm
    }

    /// ρ' at a learning rate and the norm of the weights, which only [`RhoScale::ParameterNorm`] reads.
    pub(crate) fn effective(&self, lr: f64, weight_norm: f64) -> f64 {
        match self.scale {
            RhoScale::Absolute => self.rho,
            RhoScale::ParameterNorm => self.rho * weight_norm,
            RhoScale::LearningRate { reference } => self.rho * lr / reference,
        }
    }

    /// s ρ' / (‖d‖₂ + 1e-12) for each parameter, from the squared norms of its part of the direction.
    pub(crate) fn factors(&self, params: &ParamSet, squares: &[f64], effective: f64) -> Vec<f64> {
        let group = |p: &crate::Param| match self.norm {
            AscentNorm::Global => 0,
            AscentNorm::PerGroup => p.group(),
        };
        let mut sums = vec![0.0; params.groups().len()];
        for (param, square) in params.iter().zip(squares) {
            if param.rho_scale() > 0.0 {
                sums[group(param)] += square;
            }
        }
        let factor = |p: &crate::Param| {
            let norm: f64 = sums[group(p)];
            p.rho_scale() * effective / (norm.sqrt() + NORM_EPS)
        };
        params.iter().map(factor).collect()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;

    #[test]
    fn the_three_scales_by_hand() {
        let radius = |scale| Radius::new(0.1, scale, AscentNorm::Global).unwrap();
        let effective = |scale| radius(scale).effective(0.02, 5.0);
        assert!((effective(RhoScale::Absolute) - 0.1).abs() < 1e-15);
        assert!((effective(RhoScale::ParameterNorm) - 0.5).abs() < 1e-15);
        let reference = RhoScale::LearningRate { reference: 0.05 };
        assert!((effective(reference) - 0.04).abs() < 1e-15);
        assert!(
            Radius::new(
                0.1,
                RhoScale::LearningRate { reference: 0.0 },
                AscentNorm::Global
            )
            .is_err()
        );
    }

    #[test]
    fn unperturbed_parameters_do_not_enter_the_norm() {
        let var = || Var::zeros(1, DType::F64, &Device::Cpu).unwrap();
        let params = ParamSet::new([("a", var()), ("b", var()), ("c", var())]).unwrap();
        let params = params
            .with_rho_scale(0.0, |n| n == "b")
            .and_then(|p| p.with_rho_scale(2.0, |n| n == "c"))
            .unwrap();
        let radius = Radius::absolute(1.0).unwrap();
        // ‖(3, ·, 4)‖ = 5
        let factors = radius.factors(&params, &[9.0, 100.0, 16.0], 1.0);
        for (got, wanted) in factors.iter().zip([0.2, 0.0, 0.4]) {
            assert!((got - wanted).abs() < 1e-12, "{factors:?}");
        }
    }
}
