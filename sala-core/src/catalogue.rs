//! The named methods, each an alias of a composition with a configuration of its own, and a factory
//! for tools that choose a method at run time.
//!
//! | name | composition | gradients a step | reference |
//! |---|---|---|---|
//! | base | [`Descend`] | 1 | |
//! | [`Lookahead`] | base × slow weights | 1 | Zhang et al. 2019, arXiv:1907.08610 |
//! | [`Sam`] | base × L2 × always | 2 | Foret et al. 2021, arXiv:2010.01412 |
//! | [`Asam`] | base × adaptive × always | 2 | Kwon et al. 2021, arXiv:2102.11600 |
//! | [`SamEvery`] | base × L2 × every k | 1 + 1/k | |
//! | [`Sala`] | base × slow weights × L2 × proximity | 1 + f/k | Tan et al. 2024, doi:10.1109/TPAMI.2024.3444002 |
//!
//! f is the share of cycles that climb. Where a method has a direction pass, taking it on the share q
//! of the batch (`direction_fraction`) makes the second term q times as large.

use candle_nn::Optimizer;

use crate::{
    base::{Adam, ParamsAdam, ParamsSgd, Sgd},
    compose::{Ascend, Descend, SlowAscend},
    error::{Result, check},
    minimizer::Resumable,
    params::ParamSet,
    perturb::{Adaptive, AscentNorm, L2},
    policy::{Always, EveryK, Proximity},
    slow::{Lookahead, ParamsLookahead, SlowInit},
    state::Stateful,
};

/// Sharpness-aware minimisation: every step climbs by ρ along the gradient first.
pub type Sam<B> = Ascend<B, L2, Always>;

/// Adaptive SAM: every step climbs along the gradient scaled by the weights' magnitudes.
pub type Asam<B> = Ascend<B, Adaptive, Always>;

/// SAM at every k-th step, the base in between.
pub type SamEvery<B> = Ascend<B, L2, EveryK>;

/// Sharpness-aware lookahead; see [`ParamsSala`] for its numbers and [`SlowAscend`] for the algorithm.
pub type Sala<B> = SlowAscend<B, L2, Proximity>;

/// Configuration of [`Sam`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParamsSam {
    /// Radius ρ ≥ 0 of the ascent.
    pub rho: f64,
    /// Over which parameters the ascent is normalised.
    pub norm: AscentNorm,
    /// Share of the batch, in (0, 1], of the direction pass; see [`Pass::take`](crate::Pass::take).
    pub direction_fraction: f64,
}

impl Default for ParamsSam {
    /// ρ = 0.05, the paper's choice for CIFAR.
    fn default() -> Self {
        Self {
            rho: 0.05,
            norm: AscentNorm::Global,
            direction_fraction: 1.0,
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
        check::fraction("ParamsSam", "direction_fraction", self.direction_fraction)
    }
}

impl<B: Optimizer> Sam<B> {
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
        Self::compose(params, base, L2::new(config.rho, config.norm)?, Always)
            .with_direction_fraction(config.direction_fraction)
    }
}

/// Configuration of [`Asam`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParamsAsam {
    /// Radius ρ ≥ 0 in units of the weights' magnitudes: about ten times SAM's.
    pub rho: f64,
    /// Added to the magnitudes: η ≥ 0.
    pub eta: f64,
    /// Over which parameters the ascent is normalised.
    pub norm: AscentNorm,
    /// Share of the batch, in (0, 1], of the direction pass; see [`Pass::take`](crate::Pass::take).
    pub direction_fraction: f64,
}

impl Default for ParamsAsam {
    /// ρ = 0.5 and η = 0.01, the paper's choice for CIFAR-10.
    fn default() -> Self {
        Self {
            rho: 0.5,
            eta: 0.01,
            norm: AscentNorm::Global,
            direction_fraction: 1.0,
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
        check::non_negative("ParamsAsam", "eta", self.eta)?;
        check::fraction("ParamsAsam", "direction_fraction", self.direction_fraction)
    }
}

impl<B: Optimizer> Asam<B> {
    /// Adaptive SAM over `params`, which `base` trains.
    ///
    /// # Errors
    /// Those of [`ParamsAsam::validate`].
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
        let perturbation = Adaptive::new(config.rho, config.eta, config.norm)?;
        Self::compose(params, base, perturbation, Always)
            .with_direction_fraction(config.direction_fraction)
    }
}

/// Configuration of [`SamEvery`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParamsSamEvery {
    /// Climb at the steps k, 2k, …; at least 1.
    pub k: u64,
    /// The climbing steps.
    pub sam: ParamsSam,
}

impl Default for ParamsSamEvery {
    /// Every second step with SAM's default.
    fn default() -> Self {
        Self {
            k: 2,
            sam: ParamsSam::default(),
        }
    }
}

impl<B: Optimizer> SamEvery<B> {
    /// SAM at every k-th step over `params`, which `base` trains.
    ///
    /// # Errors
    /// Those of [`EveryK::new`] and [`ParamsSam::validate`].
    ///
    /// ```
    /// # use candle_core::{Device, Var};
    /// # use sala_core::{Minimizer, ParamSet, ParamsSamEvery, ParamsSgd, Pass, SamEvery, Sgd};
    /// let w = Var::new(&[3f64], &Device::Cpu)?;
    /// let params = ParamSet::new([("w", w.clone())])?;
    /// let base = Sgd::new(&params, ParamsSgd::default())?;
    /// let mut optimizer = SamEvery::new(params, base, ParamsSamEvery::default())?;
    /// let mut climbed = |w: &Var| -> sala_core::Result<bool> {
    ///     Ok(optimizer.step(&mut |_pass: Pass| w.sqr()?.sum_all())?.ascent)
    /// };
    /// assert_eq!([climbed(&w)?, climbed(&w)?, climbed(&w)?], [false, true, false]);
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn new(params: ParamSet, base: B, config: ParamsSamEvery) -> Result<Self> {
        config.sam.validate()?;
        let perturbation = L2::new(config.sam.rho, config.sam.norm)?;
        Self::compose(params, base, perturbation, EveryK::new(config.k)?)
            .with_direction_fraction(config.sam.direction_fraction)
    }
}

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
    /// When the slow weights begin.
    pub init: SlowInit,
    /// Over which parameters the ascent is normalised; the gap is over all of them.
    pub norm: AscentNorm,
    /// Share of the batch, in (0, 1], of the direction pass; see [`Pass::take`](crate::Pass::take).
    pub direction_fraction: f64,
}

impl Default for ParamsSala {
    /// k = 2, α = 0.5, ρ = 0.2: those in the README of the code that SALA's authors released.
    fn default() -> Self {
        Self {
            k: 2,
            alpha: 0.5,
            rho: 0.2,
            init: SlowInit::Construction,
            norm: AscentNorm::Global,
            direction_fraction: 1.0,
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
        check::fraction(OWNER, "direction_fraction", self.direction_fraction)
    }
}

impl<B: Optimizer> Sala<B> {
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
        config.validate()?;
        let perturbation = L2::new(config.rho, config.norm)?;
        let policy = Proximity::new(config.rho)?;
        let slow = (config.k, config.alpha, config.init);
        Self::compose(params, base, slow, perturbation, policy)?
            .with_direction_fraction(config.direction_fraction)
    }
}

/// A base rule with its configuration, for [`build`].
#[derive(Debug, Clone, PartialEq)]
pub enum Base {
    /// [`Sgd`].
    Sgd(ParamsSgd),
    /// [`Adam`]; `AdamW` with [`ParamsAdam::adamw`].
    Adam(ParamsAdam),
}

/// A method with its configuration, for [`build`].
#[derive(Debug, Clone, PartialEq)]
pub enum Method {
    /// The base alone: [`Descend`].
    Base,
    /// [`Lookahead`].
    Lookahead(ParamsLookahead),
    /// [`Sam`].
    Sam(ParamsSam),
    /// [`Asam`].
    Asam(ParamsAsam),
    /// [`SamEvery`].
    SamEvery(ParamsSamEvery),
    /// [`Sala`].
    Sala(ParamsSala),
}

/// Builds a method over a base, with the descent gradient clipped to `clip_norm` if one is given.
///
/// # Errors
/// Those of the configurations.
///
/// ```
/// # use candle_core::{Device, Var};
/// # use sala_core::{ParamSet, ParamsAdam, ParamsSala, catalogue::{Base, Method, build}};
/// let params = ParamSet::new([("w", Var::new(1f32, &Device::Cpu)?)])?;
/// let base = Base::Adam(ParamsAdam::adamw());
/// let optimizer = build(params, &base, &Method::Sala(ParamsSala::default()), Some(1.0))?;
/// assert!(optimizer.slow_weights().is_some());
/// # Ok::<(), sala_core::Error>(())
/// ```
pub fn build(
    params: ParamSet,
    base: &Base,
    method: &Method,
    clip_norm: Option<f64>,
) -> Result<Box<dyn Resumable>> {
    match base {
        Base::Sgd(config) => {
            let base = Sgd::new(&params, config.clone())?;
            build_over(params, base, method, clip_norm)
        }
        Base::Adam(config) => {
            let base = Adam::new(&params, config.clone())?;
            build_over(params, base, method, clip_norm)
        }
    }
}

fn build_over<B: Optimizer + Stateful + 'static>(
    params: ParamSet,
    base: B,
    method: &Method,
    clip_norm: Option<f64>,
) -> Result<Box<dyn Resumable>> {
    macro_rules! boxed {
        ($optimizer:expr) => {{
            let optimizer = $optimizer;
            match clip_norm {
                Some(max) => Box::new(optimizer.with_clip_norm(max)?),
                None => Box::new(optimizer),
            }
        }};
    }
    Ok(match *method {
        Method::Base => boxed!(Descend::new(params, base)),
        Method::Lookahead(config) => boxed!(Lookahead::new(params, base, config)?),
        Method::Sam(config) => boxed!(Sam::new(params, base, config)?),
        Method::Asam(config) => boxed!(Asam::new(params, base, config)?),
        Method::SamEvery(config) => boxed!(SamEvery::new(params, base, config)?),
        Method::Sala(config) => boxed!(Sala::new(params, base, config)?),
    })
}
