//! From names and numbers of a specification to networks, optimizers and schedules.

use anyhow::{Context, Result, bail, ensure};
use candle_core::{Device, Var};
use sala_core::{
    Clip, ParamSet, ParamsAdam, ParamsAsam, ParamsFriendlySam, ParamsGsam, ParamsLookSam,
    ParamsLookahead, ParamsMomentumSam, ParamsSala, ParamsSam, ParamsSamEvery, ParamsSgd,
    Resumable,
    catalogue::{self, Method as CoreMethod},
    perturb,
    schedule::{Constant, Cosine, Polynomial, Schedule, WarmUp},
};
use sala_models::{
    Mlp, MlpConfig, Rng, SimpleCnn, SimpleCnnConfig, VarStore,
    cnn::{
        EfficientNetLite, EfficientNetLiteConfig, PyramidNet, PyramidNetBlock, PyramidNetConfig,
        ResNet, ResNetConfig, ResNetStem, WideResNet, WideResNetConfig,
    },
};

use crate::spec::{Base, Method, Network, Optimizer, RhoScale, Schedule as ScheduleKind, Stem};

/// A network for images of `[channels, height, width]` with its parameters in `store`; the store's
/// seed decides initial weights and dropout masks.
pub(crate) fn network(
    spec: &Network,
    shape: [usize; 3],
    classes: usize,
    store: &VarStore,
) -> Result<Box<dyn sala_models::Network>> {
    let (rng, vb) = (Rng::new(store.seed()), store.builder());
    Ok(match sized(spec, shape, classes)? {
        Sized::Mlp(config) => Box::new(Mlp::new(&config, vb, rng)?),
        Sized::Cnn(config) => Box::new(SimpleCnn::new(&config, vb, rng)?),
        Sized::Resnet(config) => Box::new(ResNet::new(&config, vb)?),
        Sized::WideResnet(config) => Box::new(WideResNet::new(&config, vb, rng)?),
        Sized::Pyramidnet(config) => Box::new(PyramidNet::new(&config, vb)?),
        Sized::EfficientnetLite(config) => Box::new(EfficientNetLite::new(&config, vb, rng)?),
    })
}

/// Whether the numbers of a network are allowed, for colour images of 32×32 in ten classes.
pub(crate) fn check_network(spec: &Network) -> Result<()> {
    let check = || -> Result<()> {
        Ok(match sized(spec, [3, 32, 32], 10)? {
            Sized::Mlp(config) => config.validate(),
            Sized::Cnn(config) => config.validate(),
            Sized::Resnet(config) => config.validate(),
            Sized::WideResnet(config) => config.validate(),
            Sized::Pyramidnet(config) => config.validate(),
            Sized::EfficientnetLite(config) => config.validate(),
        }?)
    };
    check().context("network")
}

/// A network's configuration for certain images.
enum Sized {
    Mlp(MlpConfig),
    Cnn(SimpleCnnConfig),
    Resnet(ResNetConfig),
    WideResnet(WideResNetConfig),
    Pyramidnet(PyramidNetConfig),
    EfficientnetLite(EfficientNetLiteConfig),
}

fn sized(spec: &Network, [channels, height, width]: [usize; 3], classes: usize) -> Result<Sized> {
    Ok(match *spec {
        Network::Mlp {
            ref hidden,
            dropout,
        } => Sized::Mlp(MlpConfig {
            inputs: channels * height * width,
            hidden: hidden.clone(),
            classes,
            dropout,
        }),
        Network::Cnn {
            ref widths,
            dropout,
        } => {
            ensure!(
                height == width,
                "the cnn wants square images, got {height}×{width}"
            );
            Sized::Cnn(SimpleCnnConfig {
                in_channels: channels,
                image_size: height,
                classes,
                widths: widths.clone(),
                dropout,
            })
        }
        Network::Resnet { depth, width, stem } => Sized::Resnet(ResNetConfig {
            in_channels: channels,
            classes,
            stem: match stem {
                Stem::Cifar => ResNetStem::Cifar,
                Stem::Imagenet => ResNetStem::ImageNet,
            },
            stem_width: width,
            widths: [1, 2, 4, 8].map(|times| times * width),
            ..resnet(depth)?
        }),
        Network::WideResnet {
            depth,
            widening,
            dropout,
        } => Sized::WideResnet(WideResNetConfig {
            in_channels: channels,
            classes,
            depth,
            widening,
            dropout,
        }),
        Network::Pyramidnet {
            depth,
            widening,
            bottleneck,
        } => Sized::Pyramidnet(PyramidNetConfig {
            in_channels: channels,
            classes,
            block: if bottleneck {
                PyramidNetBlock::Bottleneck
            } else {
                PyramidNetBlock::Basic
            },
            depth,
            widening,
        }),
        Network::EfficientnetLite { size, drop_path } => {
            Sized::EfficientnetLite(EfficientNetLiteConfig {
                in_channels: channels,
                classes,
                drop_path,
                ..efficientnet_lite(size)?
            })
        }
    })
}

/// The blocks of a residual network.
fn resnet(depth: usize) -> Result<ResNetConfig> {
    Ok(match depth {
        10 => ResNetConfig {
            depths: [1; 4],
            ..ResNetConfig::resnet18()
        },
        18 => ResNetConfig::resnet18(),
        34 => ResNetConfig::resnet34(),
        50 => ResNetConfig::resnet50(),
        101 => ResNetConfig::resnet101(),
        _ => bail!("resnet.depth must be 10, 18, 34, 50 or 101, got {depth}"),
    })
}

fn efficientnet_lite(size: u8) -> Result<EfficientNetLiteConfig> {
    Ok(match size {
        0 => EfficientNetLiteConfig::lite0(),
        1 => EfficientNetLiteConfig::lite1(),
        2 => EfficientNetLiteConfig::lite2(),
        3 => EfficientNetLiteConfig::lite3(),
        4 => EfficientNetLiteConfig::lite4(),
        _ => bail!("efficientnet-lite.size must be from 0 to 4, got {size}"),
    })
}

/// The optimizer over these parameters.
pub(crate) fn optimizer(spec: &Optimizer, params: ParamSet) -> Result<Box<dyn Resumable>> {
    let clip = spec.clip_norm.map(Clip::Norm);
    let optimizer = catalogue::build(params, &base(spec), &method(spec), clip)
        .with_context(|| format!("optimizer `{}`", spec.name))?;
    Ok(optimizer)
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
