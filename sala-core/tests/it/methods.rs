//! Every method of the catalogue over both bases, for tests that hold for all of them.

use candle_core::{Device, Tensor, Var};
use sala_core::{
    MomentumAtPull, ParamSet, ParamsAdam, ParamsAsam, ParamsFriendlySam, ParamsGsam, ParamsLookSam,
    ParamsLookahead, ParamsMomentumSam, ParamsSala, ParamsSam, ParamsSamEvery, ParamsSgd, Pass,
    SlowInit,
    catalogue::{Base, Direction, Method},
    perturb::RhoScale,
};

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

/// Least squares of a two-layer tanh network with fixed weights as its start: small, not convex, and
/// without a random number.
pub struct Problem {
    pub first: Var,
    pub second: Var,
    inputs: Tensor,
    targets: Tensor,
}

impl Problem {
    pub fn new(dtype: candle_core::DType) -> Self {
        let wave = |shape: (usize, usize), phase: f64| {
            let n = shape.0 * shape.1;
            let values: Vec<f64> = (0..n).map(|i| (1.7 * i as f64 + phase).sin()).collect();
            Tensor::from_vec(values, shape, &Device::Cpu)
                .unwrap()
                .to_dtype(dtype)
                .unwrap()
        };
        Self {
            first: Var::from_tensor(&wave((3, 5), 0.3)).unwrap(),
            second: Var::from_tensor(&wave((5, 2), 1.1)).unwrap(),
            inputs: wave((8, 3), 2.0),
            targets: wave((8, 2), 0.7),
        }
    }

    /// Names such that the order of creation and the order of names differ.
    pub fn named(&self) -> Vec<(String, Var)> {
        vec![
            ("z.first".into(), self.first.clone()),
            ("a.second".into(), self.second.clone()),
        ]
    }

    pub fn params(&self) -> ParamSet {
        ParamSet::new(self.named()).unwrap()
    }

    pub fn loss(&self, pass: Pass) -> candle_core::Result<Tensor> {
        self.loss_of(&pass.take(&self.inputs)?, &pass.take(&self.targets)?)
    }

    /// The loss of some of the eight rows.
    pub fn loss_of_rows(&self, start: usize, count: usize) -> candle_core::Result<Tensor> {
        let rows = |t: &Tensor| t.narrow(0, start, count);
        self.loss_of(&rows(&self.inputs)?, &rows(&self.targets)?)
    }

    fn loss_of(&self, x: &Tensor, y: &Tensor) -> candle_core::Result<Tensor> {
        (x.matmul(&self.first)?.tanh()?.matmul(&self.second)? - y)?
            .sqr()?
            .mean_all()
    }

    pub fn weights(&self) -> Vec<Tensor> {
        [&self.first, &self.second]
            .iter()
            .map(|v| v.copy().unwrap().detach())
            .collect()
    }
}
