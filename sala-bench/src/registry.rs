//! From names and numbers of a specification to networks, optimizers and schedules.

use anyhow::{Context, Result};
use candle_core::{Device, Var};
use sala_core::{
    Clip, ParamSet, ParamsAdam, ParamsAsam, ParamsFriendlySam, ParamsGsam, ParamsLookSam,
    ParamsLookahead, ParamsMomentumSam, ParamsSala, ParamsSam, ParamsSamEvery, ParamsSgd,
    Resumable,
    catalogue::{self, Method as CoreMethod},
    perturb,
    schedule::{Constant, Cosine, Polynomial, Schedule, WarmUp},
};
use sala_models::{Mlp, MlpConfig, Rng, SimpleCnn, SimpleCnnConfig, VarStore};

use crate::spec::{Base, Method, Network, Optimizer, RhoScale, Schedule as ScheduleKind};

/// A network for images of `[channels, height, width]` with its parameters in `store`; the store's
/// seed decides initial weights and dropout masks.
pub(crate) fn network(
    spec: &Network,
    [channels, height, width]: [usize; 3],
    classes: usize,
    store: &VarStore,
) -> Result<Box<dyn sala_models::Network>> {
    let rng = Rng::new(store.seed());
    match spec {
        Network::Mlp { hidden, dropout } => {
            let inputs = channels * height * width;
            let config = MlpConfig {
                inputs,
                hidden: hidden.clone(),
                classes,
                dropout: *dropout,
            };
            Ok(Box::new(Mlp::new(&config, store.builder(), rng)?))
        }
        Network::Cnn { widths, dropout } => {
            anyhow::ensure!(
                height == width,
                "the cnn wants square images, got {height}×{width}"
            );
            let config = SimpleCnnConfig {
                in_channels: channels,
                image_size: height,
                classes,
                widths: widths.clone(),
                dropout: *dropout,
            };
            Ok(Box::new(SimpleCnn::new(&config, store.builder(), rng)?))
        }
    }
}

/// The optimizer over these parameters.
pub(crate) fn optimizer(spec: &Optimizer, params: ParamSet) -> Result<Box<dyn Resumable>> {
    let clip = spec.clip_norm.map(Clip::Norm);
    catalogue::build(params, &base(spec), &method(spec), clip)
        .with_context(|| format!("optimizer `{}`", spec.name))
}

/// Whether the numbers of an optimizer are allowed, by building it over a parameter of its own.
pub(crate) fn check_optimizer(spec: &Optimizer) -> Result<()> {
    let probe = Var::new(0f32, &Device::Cpu)?;
    optimizer(spec, ParamSet::new([("probe", probe)])?).map(|_| ())
}

fn base(spec: &Optimizer) -> catalogue::Base {
    let Optimizer {
        lr, weight_decay, ..
    } = *spec;
    match spec.base {
        Base::SgdNesterov => catalogue::Base::Sgd(ParamsSgd {
            lr,
            momentum: 0.9,
            nesterov: true,
            weight_decay,
            ..ParamsSgd::default()
        }),
        Base::Adamw => catalogue::Base::Adam(ParamsAdam {
            lr,
            weight_decay,
            ..ParamsAdam::adamw()
        }),
    }
}

fn method(spec: &Optimizer) -> CoreMethod {
    let scale = match spec.rho_scale {
        RhoScale::Absolute => perturb::RhoScale::Absolute,
        RhoScale::ParameterNorm => perturb::RhoScale::ParameterNorm,
        RhoScale::LearningRate(reference) => perturb::RhoScale::LearningRate { reference },
    };
    let climbing = |rho, direction_fraction| ParamsSam {
        rho,
        scale,
        direction_fraction,
        ..ParamsSam::default()
    };
    match spec.method {
        Method::Base {} => CoreMethod::Base,
        Method::Lookahead { k, alpha } => CoreMethod::Lookahead(ParamsLookahead {
            k,
            alpha,
            ..ParamsLookahead::default()
        }),
        Method::Sam {
            rho,
            direction_fraction,
            stable,
        } => CoreMethod::Sam(ParamsSam {
            stable,
            ..climbing(rho, direction_fraction)
        }),
        Method::Asam {
            rho,
            eta,
            direction_fraction,
        } => CoreMethod::Asam(ParamsAsam {
            rho,
            scale,
            eta,
            direction_fraction,
            ..ParamsAsam::default()
        }),
        Method::SamEvery {
            k,
            rho,
            direction_fraction,
        } => CoreMethod::SamEvery(ParamsSamEvery {
            k,
            sam: climbing(rho, direction_fraction),
        }),
        Method::LookSam {
            k,
            alpha,
            rho,
            direction_fraction,
        } => CoreMethod::LookSam(ParamsLookSam {
            k,
            alpha,
            sam: climbing(rho, direction_fraction),
        }),
        Method::Gsam {
            alpha,
            rho,
            direction_fraction,
        } => CoreMethod::Gsam(ParamsGsam {
            alpha,
            sam: climbing(rho, direction_fraction),
        }),
        Method::FriendlySam {
            sigma,
            lambda,
            rho,
            direction_fraction,
        } => CoreMethod::FriendlySam(ParamsFriendlySam {
            sigma,
            lambda,
            sam: climbing(rho, direction_fraction),
        }),
        Method::MomentumSam { mu, rho } => CoreMethod::MomentumSam(ParamsMomentumSam {
            mu,
            rho,
            scale,
            ..ParamsMomentumSam::default()
        }),
        Method::Sala {
            k,
            alpha,
            rho,
            direction_fraction,
        } => CoreMethod::Sala(ParamsSala {
            k,
            alpha,
            rho,
            scale,
            direction_fraction,
            ..ParamsSala::default()
        }),
    }
}

/// The factor of the learning rate by optimizer step: a linear rise over `warm_up` of the `total` steps, then
/// the schedule over those that remain.
pub(crate) fn schedule(kind: ScheduleKind, warm_up: u64, total: u64) -> Result<Box<dyn Schedule>> {
    let rest = total - warm_up;
    let after: Box<dyn Schedule> = match kind {
        ScheduleKind::Constant => Box::new(Constant),
        ScheduleKind::Cosine => Box::new(Cosine::new(rest)?),
        ScheduleKind::Linear => Box::new(Polynomial::linear(rest, 0.0)?),
    };
    Ok(if warm_up == 0 {
        after
    } else {
        Box::new(WarmUp::new(warm_up, after)?)
    })
}
