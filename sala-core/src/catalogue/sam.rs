//! SAM, Stable SAM and m-SAM.

use candle_nn::Optimizer;

use crate::{
    blend::Ascended,
    compose::Ascend,
    error::{Result, check},
    params::ParamSet,
    perturb::{AscentNorm, L2, Radius, RhoScale},
    policy::Always,
};

/// Sharpness-aware minimisation: every step climbs by ρ along the gradient first.
pub type Sam<B> = Ascend<B, L2, Always>;

/// Configuration of [`Sam`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParamsSam {
    /// Radius ρ ≥ 0 of the ascent.
    pub rho: f64,
    /// What ρ is a measure of.
    pub scale: RhoScale,
    /// Over which parameters the ascent is normalised.
    pub norm: AscentNorm,
    /// Share of the batch, in (0, 1], of the direction pass; see [`Pass::take`](crate::Pass::take).
    pub direction_fraction: f64,
    /// Rescale the second gradient to the first's norm: Stable SAM (Tan et al. 2024, arXiv:2401.07250).
    pub stable: bool,
    /// m-SAM: perturb each of so many micro-batches on its own; see [`Ascend::per_micro_batch`].
    pub micro_batches: usize,
}

impl Default for ParamsSam {
    /// ρ = 0.05, the paper's choice for CIFAR.
    fn default() -> Self {
        Self {
            rho: 0.05,
            scale: RhoScale::Absolute,
            norm: AscentNorm::Global,
            direction_fraction: 1.0,
            stable: false,
            micro_batches: 1,
        }
    }
}

impl ParamsSam {
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) that names the field.
    pub fn validate(&self) -> Result<()> {
        check::non_negative("ParamsSam", "rho", self.rho)?;
        self.radius()?;
        check::fraction("ParamsSam", "direction_fraction", self.direction_fraction)?;
        check::at_least_one("ParamsSam", "micro_batches", self.micro_batches as u64)
    }

    pub(super) fn radius(&self) -> Result<Radius> {
        Radius::new(self.rho, self.scale, self.norm)
    }

    /// For methods with a blend of their own, `owner`.
    pub(super) fn forbid_stable(&self, owner: &'static str) -> Result<()> {
        let wanted = "false: this method has a blend of its own";
        check::holds(owner, "sam.stable", !self.stable, wanted, self.stable)
    }

    /// For methods that remember gradients, which have one memory for all micro-batches.
    pub(super) fn forbid_micro_batches(&self, owner: &'static str) -> Result<()> {
        let wanted = "1: this method remembers the gradients of whole batches";
        let count = self.micro_batches;
        check::holds(owner, "sam.micro_batches", count == 1, wanted, count)
    }
}

impl<B: Optimizer + 'static> Sam<B> {
    /// SAM over `params`, which `base` trains.
    ///
    /// # Errors
    /// Those of [`ParamsSam::validate`].
    ///
    /// ```
    /// # use candle_core::{Device, Var};
    /// # use sala_core::{Minimizer, ParamSet, ParamsSam, ParamsSgd, Pass, Sam, Sgd};
    /// let w = Var::new(&[3f64], &Device::Cpu)?;
    /// let params = ParamSet::new([("w", w.clone())])?;
    /// let base = Sgd::new(&params, ParamsSgd { lr: 0.5, ..Default::default() })?;
    /// let mut sam = Sam::new(params, base, ParamsSam { rho: 1.0, ..Default::default() })?;
    /// // climbs from 3 to 4, where the gradient of w² is 8, and descends from 3 to 3 − 0.5 · 8
    /// sam.step(&mut |_pass: Pass| w.sqr()?.sum_all())?;
    /// assert!((w.to_vec1::<f64>()?[0] + 1.0).abs() < 1e-10);
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn new(params: ParamSet, base: B, config: ParamsSam) -> Result<Self> {
        config.validate()?;
        let stable = config.stable;
        Self::compose(
            params,
            base,
            (L2, config.radius()?),
            Always,
            Ascended { stable },
        )?
        .with_direction_fraction(config.direction_fraction)?
        .per_micro_batch(config.micro_batches)
    }
}
