//! Adaptive SAM.

use candle_nn::Optimizer;

use crate::{
    blend::Ascended,
    compose::Ascend,
    error::{Result, check},
    params::ParamSet,
    perturb::{Adaptive, AscentNorm, Radius, RhoScale},
    policy::Always,
};

/// Adaptive SAM: every step climbs along the gradient scaled by the weights' magnitudes.
pub type Asam<B> = Ascend<B, Adaptive, Always>;

/// Configuration of [`Asam`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParamsAsam {
    /// Radius ρ ≥ 0 in units of the weights' magnitudes: about ten times SAM's.
    pub rho: f64,
    /// What ρ is a measure of.
    pub scale: RhoScale,
    /// Added to the magnitudes: η ≥ 0.
    pub eta: f64,
    /// Scale only parameters with `weight` in their name, as the code released with the paper does.
    pub weights_only: bool,
    /// Over which parameters the ascent is normalised.
    pub norm: AscentNorm,
    /// Share of the batch, in (0, 1], of the direction pass; see [`Pass::take`](crate::Pass::take).
    pub direction_fraction: f64,
    /// Rescale the second gradient to the first's norm.
    pub stable: bool,
}

impl Default for ParamsAsam {
    /// ρ = 0.5 and η = 0.01, the paper's choice for CIFAR-10.
    fn default() -> Self {
        Self {
            rho: 0.5,
            scale: RhoScale::Absolute,
            eta: 0.01,
            weights_only: false,
            norm: AscentNorm::Global,
            direction_fraction: 1.0,
            stable: false,
        }
    }
}

impl ParamsAsam {
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) that names the field.
    pub fn validate(&self) -> Result<()> {
        check::non_negative("ParamsAsam", "rho", self.rho)?;
        self.radius()?;
        check::non_negative("ParamsAsam", "eta", self.eta)?;
        check::fraction("ParamsAsam", "direction_fraction", self.direction_fraction)
    }

    fn radius(&self) -> Result<Radius> {
        Radius::new(self.rho, self.scale, self.norm)
    }
}

impl<B: Optimizer + 'static> Asam<B> {
    /// Adaptive SAM over `params`, which `base` trains.
    ///
    /// # Errors
    /// Those of [`ParamsAsam::validate`], and [`Error::NoMatch`](crate::Error::NoMatch) when `weights_only`
    /// leaves nothing to scale.
    ///
    /// ```
    /// # use candle_core::{Device, Var};
    /// # use sala_core::{Asam, Minimizer, ParamSet, ParamsAsam, ParamsSgd, Pass, Sgd};
    /// let w = Var::new(&[3f64], &Device::Cpu)?;
    /// let params = ParamSet::new([("w", w.clone())])?;
    /// let base = Sgd::new(&params, ParamsSgd { lr: 0.5, ..Default::default() })?;
    /// let config = ParamsAsam { rho: 1.0, eta: 0.0, ..Default::default() };
    /// let mut asam = Asam::new(params, base, config)?;
    /// // climbs by ρ |w| = 3 to 6, where the gradient of w² is 12
    /// asam.step(&mut |_pass: Pass| w.sqr()?.sum_all())?;
    /// assert!((w.to_vec1::<f64>()?[0] + 3.0).abs() < 1e-10);
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn new(params: ParamSet, base: B, config: ParamsAsam) -> Result<Self> {
        config.validate()?;
        let stable = config.stable;
        let ascent = (
            Adaptive::new(config.eta, config.weights_only)?,
            config.radius()?,
        );
        Self::compose(params, base, ascent, Always, Ascended { stable })?
            .with_direction_fraction(config.direction_fraction)
    }
}
