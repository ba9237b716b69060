//! Optimizers by their names, with the defaults of the catalogue.

use anyhow::{Context, Result, bail};
use sala_core::{
    ParamsAsam, ParamsFriendlySam, ParamsGsam, ParamsLookSam, ParamsLookahead, ParamsMomentumSam,
    ParamsSala, ParamsSam, ParamsSamEvery,
};

use crate::spec::{Base, Method, Optimizer, RhoScale};

/// The names that [`optimizer`] knows.
pub(crate) const NAMES: [&str; 12] = [
    "adamw",
    "sgd",
    "lookahead",
    "sam",
    "stable-sam",
    "asam",
    "sam-every",
    "look-sam",
    "gsam",
    "friendly-sam",
    "momentum-sam",
    "sala",
];

/// Numbers that all optimizers of a fine-tuning share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shared {
    /// Under the methods; `adamw` and `sgd` name their own.
    pub(crate) base: Base,
    pub(crate) lr: f64,
    pub(crate) weight_decay: f64,
    pub(crate) clip_norm: Option<f64>,
}

/// The optimizer of that name.
pub(crate) fn optimizer(name: &str, shared: &Shared) -> Result<Optimizer> {
    let base = match name {
        "adamw" => Base::Adamw,
        "sgd" => Base::SgdNesterov,
        _ => shared.base,
    };
    let method = method(name).with_context(|| {
        format!(
            "--optimizers: wanted some of {}, got `{name}`",
            NAMES.join(", ")
        )
    })?;
    Ok(Optimizer {
        name: name.into(),
        base,
        lr: shared.lr,
        weight_decay: shared.weight_decay,
        clip_norm: shared.clip_norm,
        rho_scale: RhoScale::Absolute,
        budget: 1.0,
        method,
    })
}

fn method(name: &str) -> Result<Method> {
    let (lookahead, sala) = (ParamsLookahead::default(), ParamsSala::default());
    let (sam, asam) = (ParamsSam::default(), ParamsAsam::default());
    let (every, look) = (ParamsSamEvery::default(), ParamsLookSam::default());
    let (gsam, friendly) = (ParamsGsam::default(), ParamsFriendlySam::default());
    let momentum = ParamsMomentumSam::default();
    Ok(match name {
        "adamw" | "sgd" => Method::Base {},
        "lookahead" => Method::Lookahead {
            k: lookahead.k,
            alpha: lookahead.alpha,
        },
        "sam" | "stable-sam" => Method::Sam {
            rho: sam.rho,
            direction_fraction: 1.0,
            stable: name == "stable-sam",
        },
        "asam" => Method::Asam {
            rho: asam.rho,
            eta: asam.eta,
            direction_fraction: 1.0,
        },
        "sam-every" => Method::SamEvery {
            k: every.k,
            rho: every.sam.rho,
            direction_fraction: 1.0,
        },
        "look-sam" => Method::LookSam {
            k: look.k,
            alpha: look.alpha,
            rho: look.sam.rho,
            direction_fraction: 1.0,
        },
        "gsam" => Method::Gsam {
            alpha: gsam.alpha,
            rho: gsam.sam.rho,
            direction_fraction: 1.0,
        },
        "friendly-sam" => Method::FriendlySam {
            sigma: friendly.sigma,
            lambda: friendly.lambda,
            rho: friendly.sam.rho,
            direction_fraction: 1.0,
        },
        "momentum-sam" => Method::MomentumSam {
            mu: momentum.mu,
            rho: momentum.rho,
        },
        "sala" => Method::Sala {
            k: sala.k,
            alpha: sala.alpha,
            rho: sala.rho,
            direction_fraction: 1.0,
        },
        _ => bail!("no optimizer has this name"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARED: Shared = Shared {
        base: Base::Adamw,
        lr: 5e-5,
        weight_decay: 0.01,
        clip_norm: Some(1.0),
    };

    #[test]
    fn every_name_makes_an_optimizer_that_can_be_built() {
        for name in NAMES {
            let optimizer = optimizer(name, &SHARED).unwrap();
            assert_eq!(optimizer.name, name);
            crate::registry::check_optimizer(&optimizer).unwrap();
        }
        let message = format!("{:#}", optimizer("adan", &SHARED).unwrap_err());
        assert!(
            message.contains("`adan`") && message.contains("sala"),
            "{message}"
        );
    }

    #[test]
    fn a_radius_is_set_where_there_is_one() {
        for name in NAMES {
            let mut optimizer = optimizer(name, &SHARED).unwrap();
            optimizer.method = optimizer.method.with_rho(0.01);
            let text = toml::to_string(&optimizer).unwrap();
            let climbs = !["adamw", "sgd", "lookahead"].contains(&name);
            assert_eq!(text.contains("rho = 0.01"), climbs, "{text}");
        }
    }
}
