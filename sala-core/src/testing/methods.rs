//! Every method of the catalogue over both bases, for what is to hold for all of them.

use crate::{
    MomentumAtPull, ParamsAdam, ParamsAsam, ParamsFriendlySam, ParamsGsam, ParamsLookSam,
    ParamsLookahead, ParamsMomentumSam, ParamsSala, ParamsSam, ParamsSamEvery, ParamsSgd, SlowInit,
    catalogue::{Base, Direction, Method},
    perturb::RhoScale,
};

/// Both rules, with settings for a problem of a few weights.
pub fn bases() -> Vec<(&'static str, Base)> {
    let nesterov = ParamsSgd {
        lr: 0.05,
        momentum: 0.9,
        nesterov: true,
        weight_decay: 5e-4,
        ..Default::default()
    };
    vec![
        ("sgd", Base::Sgd(nesterov)),
        (
            "adamw",
            Base::Adam(ParamsAdam {
                lr: 0.02,
                ..ParamsAdam::adamw()
            }),
        ),
    ]
}

/// Every method by a name, some of them with several settings.
pub fn methods() -> Vec<(&'static str, Method)> {
    let sam = ParamsSam {
        rho: 0.1,
        ..Default::default()
    };
    let sala = ParamsSala {
        k: 3,
        rho: 0.15,
        ..Default::default()
    };
    let mut all = without_slow_weights(sam);
    all.extend(with_slow_weights(sala));
    all
}

fn without_slow_weights(sam: ParamsSam) -> Vec<(&'static str, Method)> {
    let stable = ParamsSam {
        stable: true,
        ..sam
    };
    let look = ParamsLookSam {
        k: 3,
        sam,
        ..Default::default()
    };
    let friendly = ParamsFriendlySam {
        sam,
        ..Default::default()
    };
    let momentum = ParamsMomentumSam {
        rho: 0.1,
        ..Default::default()
    };
    let gsam = ParamsGsam {
        sam,
        ..Default::default()
    };
    vec![
        ("base", Method::Base),
        ("sam", Method::Sam(sam)),
        ("stable-sam", Method::Sam(stable)),
        ("asam", Method::Asam(ParamsAsam::default())),
        (
            "sam-every-2",
            Method::SamEvery(ParamsSamEvery { k: 2, sam }),
        ),
        ("look-sam", Method::LookSam(look)),
        ("gsam", Method::Gsam(gsam)),
        ("friendly-sam", Method::FriendlySam(friendly)),
        ("momentum-sam", Method::MomentumSam(momentum)),
    ]
}

fn with_slow_weights(sala: ParamsSala) -> Vec<(&'static str, Method)> {
    let lookahead = |momentum| {
        Method::Lookahead(ParamsLookahead {
            momentum,
            ..Default::default()
        })
    };
    let adaptive = Direction::Adaptive {
        eta: 0.01,
        weights_only: false,
    };
    let friendly = Direction::Friendly {
        sigma: 1.0,
        lambda: 0.9,
    };
    let over = |direction| Method::SalaOver(ParamsSala { rho: 0.3, ..sala }, direction);
    vec![
        ("lookahead", lookahead(MomentumAtPull::Keep)),
        ("lookahead-reset", lookahead(MomentumAtPull::Reset)),
        ("lookahead-pull-back", lookahead(MomentumAtPull::PullBack)),
        ("sala", Method::Sala(sala)),
        ("sala-k1", Method::Sala(ParamsSala { k: 1, ..sala })),
        (
            "sala-first-sync",
            Method::Sala(ParamsSala {
                init: SlowInit::FirstSync,
                ..sala
            }),
        ),
        (
            "sala-quarter",
            Method::Sala(ParamsSala {
                direction_fraction: 0.25,
                ..sala
            }),
        ),
        (
            "sala-relative",
            Method::Sala(ParamsSala {
                rho: 0.05,
                scale: RhoScale::ParameterNorm,
                ..sala
            }),
        ),
        ("sala-adaptive", over(adaptive)),
        ("sala-friendly", over(friendly)),
        ("sala-momentum", over(Direction::Momentum { mu: 0.9 })),
    ]
}

/// Every method over every base, with a name for messages.
pub fn combinations() -> Vec<(String, Base, Method)> {
    let mut all = Vec::new();
    for (base_name, base) in bases() {
        for (name, method) in methods() {
            all.push((format!("{name} over {base_name}"), base.clone(), method));
        }
    }
    all
}
