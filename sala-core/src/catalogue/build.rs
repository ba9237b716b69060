//! Building a method by name, for tools that choose it at run time.

use candle_nn::Optimizer;

use super::{
    Asam, FriendlySam, Gsam, LookSam, MomentumSam, ParamsAsam, ParamsFriendlySam, ParamsGsam,
    ParamsLookSam, ParamsMomentumSam, ParamsSala, ParamsSam, ParamsSamEvery, Sala, Sam, SamEvery,
};
use crate::{
    base::{Adam, ParamsAdam, ParamsSgd, Sgd},
    clip::Clip,
    compose::Descend,
    error::Result,
    minimizer::Resumable,
    params::ParamSet,
    perturb::{Adaptive, Friendly, L2, Momentum, Perturbation},
    slow::{Lookahead, ParamsLookahead},
    state::Stateful,
};

/// A base rule with its configuration, for [`build`].
#[derive(Debug, Clone, PartialEq)]
pub enum Base {
    /// [`Sgd`].
    Sgd(ParamsSgd),
    /// [`Adam`]; `AdamW` with [`ParamsAdam::adamw`].
    Adam(ParamsAdam),
}

/// Along what SALA climbs, for [`Method::SalaOver`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Direction {
    /// [`L2`].
    Gradient,
    /// [`Adaptive`].
    Adaptive {
        /// Offset η of the magnitudes.
        eta: f64,
        /// Scale weights only.
        weights_only: bool,
    },
    /// [`Friendly`].
    Friendly {
        /// Share σ of the mean.
        sigma: f64,
        /// Its decay λ.
        lambda: f64,
    },
    /// [`Momentum`].
    Momentum {
        /// Its decay μ.
        mu: f64,
    },
}

impl Direction {
    fn build(self) -> Result<Box<dyn Perturbation + Send>> {
        Ok(match self {
            Self::Gradient => Box::new(L2),
            Self::Adaptive { eta, weights_only } => Box::new(Adaptive::new(eta, weights_only)?),
            Self::Friendly { sigma, lambda } => Box::new(Friendly::new(sigma, lambda)?),
            Self::Momentum { mu } => Box::new(Momentum::new(mu)?),
        })
    }
}

/// A method with its configuration, for [`build`].
#[derive(Debug, Clone, PartialEq)]
pub enum Method {
    /// The base alone: [`Descend`].
    Base,
    /// [`Lookahead`].
    Lookahead(ParamsLookahead),
    /// [`Sam`], Stable SAM and m-SAM.
    Sam(ParamsSam),
    /// [`Asam`].
    Asam(ParamsAsam),
    /// [`SamEvery`].
    SamEvery(ParamsSamEvery),
    /// [`LookSam`].
    LookSam(ParamsLookSam),
    /// [`Gsam`].
    Gsam(ParamsGsam),
    /// [`FriendlySam`].
    FriendlySam(ParamsFriendlySam),
    /// [`MomentumSam`].
    MomentumSam(ParamsMomentumSam),
    /// [`Sala`].
    Sala(ParamsSala),
    /// [`Sala`] with another ascent.
    SalaOver(ParamsSala, Direction),
}

/// Builds a method over a base, with the descent gradient clipped if so asked. It may go to another thread.
///
/// # Errors
/// Those of the configurations.
///
/// ```
/// # use candle_core::{Device, Var};
/// # use sala_core::{Clip, ParamSet, ParamsAdam, ParamsSala, catalogue::{Base, Method, build}};
/// let params = ParamSet::new([("w", Var::new(1f32, &Device::Cpu)?)])?;
/// let base = Base::Adam(ParamsAdam::adamw());
/// let method = Method::Sala(ParamsSala::default());
/// let optimizer = build(params, &base, &method, Some(Clip::Norm(1.0)))?;
/// assert!(optimizer.slow_weights().is_some());
/// # Ok::<(), sala_core::Error>(())
/// ```
pub fn build(
    params: ParamSet,
    base: &Base,
    method: &Method,
    clip: Option<Clip>,
) -> Result<Box<dyn Resumable + Send>> {
    match base {
        Base::Sgd(config) => {
            let base = Sgd::new(&params, config.clone())?;
            build_over(params, base, method, clip)
        }
        Base::Adam(config) => {
            let base = Adam::new(&params, config.clone())?;
            build_over(params, base, method, clip)
        }
    }
}

fn build_over<B: Optimizer + Stateful + Send + 'static>(
    params: ParamSet,
    base: B,
    method: &Method,
    clip: Option<Clip>,
) -> Result<Box<dyn Resumable + Send>> {
    macro_rules! boxed {
        ($optimizer:expr) => {{
            let optimizer = $optimizer;
            match clip {
                Some(clip) => Box::new(optimizer.with_clip(clip)?),
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
        Method::LookSam(config) => boxed!(LookSam::new(params, base, config)?),
        Method::Gsam(config) => boxed!(Gsam::new(params, base, config)?),
        Method::FriendlySam(config) => boxed!(FriendlySam::new(params, base, config)?),
        Method::MomentumSam(config) => boxed!(MomentumSam::new(params, base, config)?),
        Method::Sala(config) => boxed!(Sala::new(params, base, config)?),
        Method::SalaOver(config, direction) => {
            boxed!(Sala::over(params, base, config, direction.build()?)?)
        }
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn every_method_can_go_to_another_thread() {
        for (name, base, method) in crate::testing::methods::combinations() {
            let w = Var::new(&[3f64, 4.0], &Device::Cpu).unwrap();
            let params = ParamSet::new([("w", w.clone())]).unwrap();
            let mut optimizer = build(params, &base, &method, None).unwrap();
            let step = move || {
                let mut loss = |_: crate::Pass| w.sqr()?.sum_all();
                optimizer.step(&mut loss).map(|report| report.step)
            };
            let step = std::thread::spawn(step).join().unwrap();
            assert_eq!(step.unwrap(), 1, "{name}");
        }
    }
}
