//! Momentum SAM.

use candle_nn::Optimizer;

use crate::{
    blend::Ascended,
    compose::Ascend,
    error::{Result, check},
    params::ParamSet,
    perturb::{AscentNorm, Momentum, Radius, RhoScale},
    policy::Always,
};

/// One gradient a step, taken at weights displaced against the momentum. See [`Momentum`] for the
/// equations.
pub type MomentumSam<B> = Ascend<B, Momentum, Always>;

/// Configuration of [`MomentumSam`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParamsMomentumSam {
    /// Radius ρ ≥ 0 of the displacement.
    pub rho: f64,
    /// What ρ is a measure of.
    pub scale: RhoScale,
    /// Over which parameters the momentum is normalised.
    pub norm: AscentNorm,
    /// Decay μ in [0, 1) of the momentum.
    pub mu: f64,
}

impl Default for ParamsMomentumSam {
    /// ρ = 0.3 and μ = 0.9: those of the code released with the paper.
    fn default() -> Self {
        Self {
            rho: 0.3,
            scale: RhoScale::Absolute,
            norm: AscentNorm::Global,
            mu: 0.9,
        }
    }
}

impl ParamsMomentumSam {
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) that names the field.
    pub fn validate(&self) -> Result<()> {
        const OWNER: &str = "ParamsMomentumSam";
        check::non_negative(OWNER, "rho", self.rho)?;
        self.radius()?;
        check::below_one(OWNER, "mu", self.mu)
    }

    fn radius(&self) -> Result<Radius> {
        Radius::new(self.rho, self.scale, self.norm)
    }
}

impl<B: Optimizer + 'static> MomentumSam<B> {
    /// Momentum SAM over `params`, which `base` trains.
    ///
    /// # Errors
    /// Those of [`ParamsMomentumSam::validate`].
    ///
    /// ```
    /// # use candle_core::{Device, Var};
    /// # use sala_core::{Minimizer, MomentumSam, ParamSet, ParamsMomentumSam, ParamsSgd, Pass, Sgd};
    /// let w = Var::new(&[3f64], &Device::Cpu)?;
    /// let params = ParamSet::new([("w", w.clone())])?;
    /// let base = Sgd::new(&params, ParamsSgd { lr: 0.1, ..Default::default() })?;
    /// let config = ParamsMomentumSam { rho: 1.0, ..Default::default() };
    /// let mut optimizer = MomentumSam::new(params, base, config)?;
    /// optimizer.step(&mut |_pass: Pass| w.sqr()?.sum_all())?; // 3 − 0.1 · 6 = 2.4, the momentum is 6
    /// optimizer.step(&mut |_pass: Pass| w.sqr()?.sum_all())?; // gradient at 2.4 − 1: 2.4 − 0.1 · 2.8
    /// assert!((w.to_vec1::<f64>()?[0] - 2.12).abs() < 1e-10);
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn new(params: ParamSet, base: B, config: ParamsMomentumSam) -> Result<Self> {
        config.validate()?;
        let ascent = (Momentum::new(config.mu)?, config.radius()?);
        Self::compose(params, base, ascent, Always, Ascended::default())
    }
}
