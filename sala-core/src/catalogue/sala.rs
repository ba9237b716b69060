//! Sharpness-aware lookahead.

use candle_nn::Optimizer;

use crate::{
    blend::Ascended,
    compose::SlowAscend,
    error::{Result, check},
    params::ParamSet,
    perturb::{AscentNorm, L2, Perturbation, Radius, RhoScale},
    policy::Proximity,
    slow::SlowInit,
};

/// Sharpness-aware lookahead; see [`ParamsSala`] for its numbers and [`SlowAscend`] for the algorithm.
pub type Sala<B, P = L2> = SlowAscend<B, P, Proximity>;

/// Configuration of [`Sala`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParamsSala {
    /// Length k of a cycle, at least 1.
    pub k: u64,
    /// Share α in [0, 1] that the slow weights go towards the fast ones.
    pub alpha: f64,
    /// Radius ρ ≥ 0: of the ascent, and the gap below which cycles climb. It depends on the scale of
    /// the weights and of their steps: watch [`StepReport::gap`](crate::StepReport::gap) and the
    /// share of cycles that climb.
    pub rho: f64,
    /// What ρ is a measure of, for the ascent and for the gap.
    pub scale: RhoScale,
    /// When the slow weights begin.
    pub init: SlowInit,
    /// Over which parameters the ascent is normalised; the gap is over all of them.
    pub norm: AscentNorm,
    /// Share of the batch, in (0, 1], of the direction pass; see [`Pass::take`](crate::Pass::take).
    pub direction_fraction: f64,
    /// Rescale the second gradient to the first's norm.
    pub stable: bool,
    /// Perturb each of so many micro-batches on its own, as m-SAM does; see [`SlowAscend::per_micro_batch`].
    pub micro_batches: usize,
}

impl Default for ParamsSala {
    /// k = 2, α = 0.5, ρ = 0.2: those in the README of the code that SALA's authors released.
    fn default() -> Self {
        Self {
            k: 2,
            alpha: 0.5,
            rho: 0.2,
            scale: RhoScale::Absolute,
            init: SlowInit::Construction,
            norm: AscentNorm::Global,
            direction_fraction: 1.0,
            stable: false,
            micro_batches: 1,
        }
    }
}

impl ParamsSala {
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) that names the field.
    pub fn validate(&self) -> Result<()> {
        const OWNER: &str = "ParamsSala";
        check::at_least_one(OWNER, "k", self.k)?;
        check::unit(OWNER, "alpha", self.alpha)?;
        check::non_negative(OWNER, "rho", self.rho)?;
        self.radius()?;
        check::fraction(OWNER, "direction_fraction", self.direction_fraction)?;
        check::at_least_one(OWNER, "micro_batches", self.micro_batches as u64)
    }

    fn radius(&self) -> Result<Radius> {
        Radius::new(self.rho, self.scale, self.norm)
    }
}

impl<B: Optimizer + 'static> Sala<B> {
    /// Sharpness-aware lookahead over `params`, which `base` trains.
    ///
    /// # Errors
    /// Those of [`ParamsSala::validate`] and of copying the parameters.
    ///
    /// ```
    /// # use candle_core::{Device, Var};
    /// # use candle_nn::{AdamW, Optimizer, ParamsAdamW};
    /// # use sala_core::{Minimizer, ParamSet, ParamsSala, Pass, Sala};
    /// let w = Var::new(&[3f64], &Device::Cpu)?;
    /// let params = ParamSet::new([("w", w.clone())])?;
    /// let base = AdamW::new(params.vars(), ParamsAdamW::default())?;
    /// let mut sala = Sala::new(params, base, ParamsSala::default())?;
    /// for _ in 0..10 {
    ///     sala.step(&mut |_pass: Pass| w.sqr()?.sum_all())?;
    /// }
    /// let loss = sala.with_slow_weights(|| w.sqr()?.sum_all())?;
    /// assert!(loss.to_scalar::<f64>()? < 9.0);
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn new(params: ParamSet, base: B, config: ParamsSala) -> Result<Self> {
        Self::over(params, base, config, L2)
    }
}

impl<B: Optimizer + 'static, P: Perturbation> Sala<B, P> {
    /// SALA with another ascent than SAM's in its second stage.
    ///
    /// # Errors
    /// Those of [`Sala::new`], and [`Error::Config`](crate::Error::Config) for `stable` with a
    /// perturbation that takes no gradient at the weights.
    ///
    /// ```
    /// # use candle_core::{Device, Var};
    /// # use sala_core::{Minimizer, ParamSet, ParamsSala, ParamsSgd, Pass, Sala, Sgd, perturb::Momentum};
    /// let w = Var::new(&[3f64], &Device::Cpu)?;
    /// let params = ParamSet::new([("w", w.clone())])?;
    /// let base = Sgd::new(&params, ParamsSgd::default())?;
    /// let config = ParamsSala { rho: 10.0, ..Default::default() };
    /// // the momentum points the ascent: a climb that costs no gradient
    /// let mut sala = Sala::over(params, base, config, Momentum::new(0.9)?)?;
    /// sala.step(&mut |_pass: Pass| w.sqr()?.sum_all())?;
    /// let report = sala.step(&mut |_pass: Pass| w.sqr()?.sum_all())?;
    /// assert!(report.ascent && report.evaluations == 1.0);
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn over(params: ParamSet, base: B, config: ParamsSala, perturbation: P) -> Result<Self> {
        config.validate()?;
        let slow = (config.k, config.alpha, config.init);
        let ascent = (perturbation, config.radius()?);
        let blend = Ascended {
            stable: config.stable,
        };
        Self::compose(params, base, slow, ascent, Proximity, blend)?
            .with_direction_fraction(config.direction_fraction)?
            .per_micro_batch(config.micro_batches)
    }
}
