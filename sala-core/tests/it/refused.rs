//! What is refused before a step: values, and combinations that would be ignored.

use candle_core::DType;
use candle_nn::{Optimizer, ParamsAdamW};
use sala_core::{
    Averaged, Clip, Descend, Error, Lookahead, Minimizer, MomentumAtPull, ParamSet, ParamsAsam,
    ParamsAveraged, ParamsFriendlySam, ParamsGsam, ParamsLookSam, ParamsLookahead,
    ParamsMomentumSam, ParamsSala, ParamsSam, ParamsSamEvery, ParamsSgd, Pass, Sam, Sgd,
    catalogue::{Base, Direction, Method, build},
    perturb::RhoScale,
};

use crate::methods::Problem;

/// Every constructor with a value that it must refuse, and how the error must begin.
#[test]
#[expect(
    clippy::too_many_lines,
    reason = "a table, one entry for each refused value"
)]
fn configurations_are_checked_by_every_constructor() {
    let problem = Problem::new(DType::F32);
    let params = || problem.params();
    let sgd = || Sgd::new(&params(), ParamsSgd::default()).unwrap();
    let built = |method| build(params(), &Base::Sgd(ParamsSgd::default()), &method, None).err();
    let (sam, sala) = (ParamsSam::default(), ParamsSala::default());
    let bad_sam = ParamsSam { rho: -0.1, ..sam };
    let stable = ParamsSam {
        stable: true,
        ..sam
    };
    let parts = ParamsSam {
        micro_batches: 4,
        ..sam
    };
    let zero_rate = RhoScale::LearningRate { reference: 0.0 };
    let adaptive = Direction::Adaptive {
        eta: -1.0,
        weights_only: false,
    };
    let momentum = Direction::Momentum { mu: 0.9 };
    let errors = [
        (
            built(Method::Sala(ParamsSala { k: 0, ..sala })),
            "ParamsSala.k must be >= 1, got 0",
        ),
        (
            built(Method::Sala(ParamsSala { alpha: 1.5, ..sala })),
            "ParamsSala.alpha must be in [0, 1], got 1.5",
        ),
        (
            built(Method::Sala(ParamsSala {
                rho: f64::NAN,
                ..sala
            })),
            "ParamsSala.rho must be finite and >= 0, got NaN",
        ),
        (
            built(Method::Sala(ParamsSala {
                direction_fraction: 0.0,
                ..sala
            })),
            "ParamsSala.direction_fraction must be in (0, 1], got 0",
        ),
        (
            built(Method::Sala(ParamsSala {
                scale: zero_rate,
                ..sala
            })),
            "RhoScale::LearningRate.reference must be finite and > 0, got 0",
        ),
        (
            built(Method::SalaOver(sala, adaptive)),
            "Adaptive.eta must be finite and >= 0, got -1",
        ),
        (
            built(Method::SalaOver(
                ParamsSala {
                    stable: true,
                    ..sala
                },
                momentum,
            )),
            "SlowAscend.blend must be the gradient at the perturbed weights as it is",
        ),
        (
            built(Method::Sam(bad_sam)),
            "ParamsSam.rho must be finite and >= 0, got -0.1",
        ),
        (
            built(Method::Sam(ParamsSam {
                micro_batches: 0,
                ..sam
            })),
            "ParamsSam.micro_batches must be >= 1, got 0",
        ),
        (
            built(Method::Asam(ParamsAsam {
                eta: f64::INFINITY,
                ..Default::default()
            })),
            "ParamsAsam.eta must be finite and >= 0, got inf",
        ),
        (
            built(Method::SamEvery(ParamsSamEvery {
                k: 0,
                ..Default::default()
            })),
            "ParamsSamEvery.k must be >= 1, got 0",
        ),
        (
            built(Method::LookSam(ParamsLookSam {
                alpha: -0.5,
                ..Default::default()
            })),
            "ParamsLookSam.alpha must be finite and >= 0, got -0.5",
        ),
        (
            built(Method::LookSam(ParamsLookSam {
                sam: stable,
                ..Default::default()
            })),
            "ParamsLookSam.sam.stable must be false",
        ),
        (
            built(Method::LookSam(ParamsLookSam {
                sam: parts,
                ..Default::default()
            })),
            "ParamsLookSam.sam.micro_batches must be 1: this method remembers the gradients of whole batches, got 4",
        ),
        (
            built(Method::FriendlySam(ParamsFriendlySam {
                sam: parts,
                ..Default::default()
            })),
            "ParamsFriendlySam.sam.micro_batches must be 1",
        ),
        (
            built(Method::SalaOver(
                ParamsSala {
                    micro_batches: 4,
                    ..sala
                },
                momentum,
            )),
            "SlowAscend.micro_batches must be 1 for a perturbation or blend that remembers gradients, got 4",
        ),
        (
            built(Method::MomentumSam(ParamsMomentumSam {
                rho: -1.0,
                ..Default::default()
            })),
            "ParamsMomentumSam.rho must be finite and >= 0, got -1",
        ),
        (
            built(Method::Asam(ParamsAsam {
                weights_only: true,
                ..Default::default()
            })),
            "ParamSet: the rule for `weights_only` matches none of the 2",
        ),
        (
            built(Method::Gsam(ParamsGsam {
                alpha: f64::NAN,
                ..Default::default()
            })),
            "ParamsGsam.alpha must be finite and >= 0, got NaN",
        ),
        (
            built(Method::FriendlySam(ParamsFriendlySam {
                lambda: 1.0,
                ..Default::default()
            })),
            "ParamsFriendlySam.lambda must be in [0, 1), got 1",
        ),
        (
            built(Method::MomentumSam(ParamsMomentumSam {
                mu: 1.0,
                ..Default::default()
            })),
            "ParamsMomentumSam.mu must be in [0, 1), got 1",
        ),
        (
            built(Method::Lookahead(ParamsLookahead {
                k: 0,
                ..Default::default()
            })),
            "ParamsLookahead.k must be >= 1, got 0",
        ),
        (
            Sgd::new(
                &params(),
                ParamsSgd {
                    lr: -1.0,
                    ..Default::default()
                },
            )
            .err(),
            "ParamsSgd.lr must be finite and >= 0, got -1",
        ),
        (
            Sam::new(params(), sgd(), sam)
                .unwrap()
                .with_clip(Clip::Norm(0.0))
                .err(),
            "Clip.Norm must be finite and > 0, got 0",
        ),
        (
            Sam::new(params(), sgd(), sam)
                .unwrap()
                .with_clip(Clip::Value(-1.0))
                .err(),
            "Clip.Value must be finite and > 0, got -1",
        ),
        (
            Sam::new(params(), sgd(), sam)
                .unwrap()
                .set_rho(f64::NAN)
                .err(),
            "Radius.rho must be finite and >= 0, got NaN",
        ),
        (
            Sam::new(params(), sgd(), sam)
                .unwrap()
                .set_weight_decay(-1.0)
                .err(),
            "Minimizer.weight_decay must be finite and >= 0, got -1",
        ),
        (
            Averaged::new(
                sgd_alone(&params()),
                ParamsAveraged {
                    every: 0,
                    ..Default::default()
                },
            )
            .err(),
            "ParamsAveraged.every must be >= 1, got 0",
        ),
    ];
    for (error, wanted) in errors {
        let message = error.map(|e| e.to_string()).unwrap_or_default();
        assert!(
            message.starts_with(wanted),
            "wanted {wanted}, got {message}"
        );
    }
}

fn sgd_alone(params: &ParamSet) -> Descend<Sgd> {
    Descend::new(
        params.clone(),
        Sgd::new(params, ParamsSgd::default()).unwrap(),
    )
}

#[test]
fn what_only_built_in_bases_can_do_is_refused_over_another_by_name() {
    let problem = Problem::new(DType::F32);
    let adamw = || candle_nn::AdamW::new(problem.params().vars(), ParamsAdamW::default()).unwrap();
    let config = ParamsLookahead {
        momentum: MomentumAtPull::Reset,
        ..Default::default()
    };
    let message = Lookahead::new(problem.params(), adamw(), config)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("needs Sgd or Adam as its base"),
        "{message}"
    );
    let mut sam = Sam::new(problem.params(), adamw(), ParamsSam::default()).unwrap();
    assert!(sam.weight_decay().is_none());
    assert!(matches!(
        sam.set_weight_decay(0.1),
        Err(Error::ForeignBase { .. })
    ));
}

// Catches settings that a base never hears of and so ignores.
#[test]
fn settings_that_the_base_does_not_know_are_refused() {
    let problem = Problem::new(DType::F32);
    let scaled = problem
        .params()
        .with_lr_scale(0.5, |name| name == "z.first")
        .unwrap();
    let stale = Sgd::new(&problem.params(), ParamsSgd::default()).unwrap();
    let foreign = candle_nn::AdamW::new(scaled.vars(), ParamsAdamW::default()).unwrap();
    let mut loss = |pass: Pass| problem.loss(pass);
    let mut sam = Sam::new(scaled.clone(), stale, ParamsSam::default()).unwrap();
    let message = sam.step(&mut loss).unwrap_err().to_string();
    assert!(message.contains("made before `z.first`"), "{message}");
    let mut sgd = Descend::new(scaled.clone(), foreign);
    let message = sgd.step(&mut loss).unwrap_err().to_string();
    assert!(
        message.contains("single parameters needs Sgd or Adam"),
        "{message}"
    );
    let fresh = Sgd::new(&scaled, ParamsSgd::default()).unwrap();
    assert!(Descend::new(scaled, fresh).step(&mut loss).is_ok());
}
