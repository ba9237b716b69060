//! Whatever goes wrong in a pass leaves weights and state as they were, and says what it was.

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Optimizer, ParamsAdamW};
use sala_core::{
    Averaged, Clip, Descend, Error, Evaluation, Lookahead, Minimizer, MomentumAtPull, Objective,
    ParamSet, ParamsAsam, ParamsAveraged, ParamsFriendlySam, ParamsGsam, ParamsLookSam,
    ParamsLookahead, ParamsMomentumSam, ParamsSala, ParamsSam, ParamsSamEvery, ParamsSgd, Pass,
    Sam, Sgd,
    catalogue::{Base, Direction, Method, build},
    kernels::with_choice,
    perturb::RhoScale,
    testing::assert_same_bits,
};

use crate::methods::{Problem, bases, combinations, forms};

/// Runs two steps, then one whose pass `failing` goes wrong, and checks that nothing has changed and
/// that the run goes on as if that step had not been tried.
fn survives(
    failing: Pass,
    sabotage: impl Fn(&Problem) -> candle_core::Result<Tensor>,
    words: &[&str],
) {
    for form in forms() {
        with_choice(form, || survives_in_form(failing, &sabotage, words));
    }
}

fn survives_in_form(
    failing: Pass,
    sabotage: &impl Fn(&Problem) -> candle_core::Result<Tensor>,
    words: &[&str],
) {
    for (name, base, method) in combinations() {
        let problem = Problem::new(DType::F64);
        let mut optimizer = build(problem.params(), &base, &method, None).unwrap();
        let mut failures = 0;
        for _ in 0..6 {
            let (before, state) = (
                problem.weights(),
                format!("{:?}", optimizer.state().unwrap()),
            );
            let outcome = optimizer.step(&mut |pass: Pass| {
                let same_kind = std::mem::discriminant(&pass) == std::mem::discriminant(&failing);
                if same_kind {
                    sabotage(&problem)
                } else {
                    problem.loss(pass)
                }
            });
            let Err(error) = outcome else { continue };
            failures += 1;
            let message = error.to_string();
            assert!(
                words.iter().all(|w| message.contains(w)),
                "{name}: {message}"
            );
            for (got, wanted) in problem.weights().iter().zip(&before) {
                assert_same_bits(&name, got, wanted);
            }
            assert_eq!(format!("{:?}", optimizer.state().unwrap()), state, "{name}");
            optimizer
                .step(&mut |pass: Pass| problem.loss(pass))
                .unwrap();
        }
        let climbs = matches!(
            method,
            Method::Sam(_)
                | Method::Asam(_)
                | Method::SamEvery(_)
                | Method::LookSam(_)
                | Method::Gsam(_)
        );
        assert!(
            failures > 0 || !climbs || failing == Pass::Clean,
            "{name}: no {failing} pass was seen"
        );
    }
}

#[test]
fn a_failing_pass_changes_nothing() {
    let fail = |_: &Problem| candle_core::bail!("the loader broke");
    survives(Pass::Clean, fail, &["the loader broke"]);
    survives(
        Pass::Direction { fraction: 1.0 },
        fail,
        &["the loader broke"],
    );
    survives(Pass::Perturbed, fail, &["the loader broke"]);
}

#[test]
fn a_loss_that_is_not_finite_changes_nothing_and_is_named_with_its_pass() {
    let nan = |p: &Problem| p.loss(Pass::Clean)? * f64::NAN;
    survives(
        Pass::Clean,
        nan,
        &["clean pass", "the loss", "NaN", "unchanged"],
    );
    survives(
        Pass::Direction { fraction: 1.0 },
        nan,
        &["direction pass", "the loss", "NaN"],
    );
    survives(Pass::Perturbed, nan, &["perturbed pass", "the loss", "NaN"]);
}

#[test]
fn a_gradient_that_is_not_finite_names_its_parameter() {
    // √0 has a finite value and an infinite slope.
    let infinite = |p: &Problem| {
        p.loss(Pass::Clean)?
            + (p.first.zeros_like()? * p.first.as_tensor())?
                .sqrt()?
                .sum_all()?
    };
    survives(
        Pass::Perturbed,
        infinite,
        &["perturbed pass", "gradient of `z.first`"],
    );
}

// Catches a return to the slow weights that a failed step does not undo: in cycles of one it comes before the update.
#[test]
fn a_step_that_walks_in_cycles_of_one_and_fails_changes_nothing() {
    let sala = Method::Sala(ParamsSala {
        k: 1,
        rho: 0.0,
        ..Default::default()
    });
    for form in forms() {
        with_choice(form, || {
            let problem = Problem::new(DType::F64);
            let (_, base) = bases().remove(0);
            let mut optimizer = build(problem.params(), &base, &sala, None).unwrap();
            optimizer
                .step(&mut |pass: Pass| problem.loss(pass))
                .unwrap();
            let before = problem.weights();
            let mut nan = |pass: Pass| problem.loss(pass)? * f64::NAN;
            optimizer.step(&mut nan).unwrap_err();
            for (got, wanted) in problem.weights().iter().zip(&before) {
                assert_same_bits("weights", got, wanted);
            }
        });
    }
}

#[test]
fn a_missing_gradient_names_its_parameter() {
    let cut = |p: &Problem| p.second.sqr()?.sum_all();
    survives(
        Pass::Clean,
        cut,
        &["clean pass", "`z.first` received no gradient", "freeze"],
    );
    survives(Pass::Perturbed, cut, &["perturbed pass", "`z.first`"]);
}

#[test]
fn a_loss_that_is_no_scalar_is_refused() {
    struct PerSample(Var);
    impl Objective for PerSample {
        fn evaluate(&mut self, _: Pass) -> candle_core::Result<Evaluation> {
            let loss = self.0.sqr()?;
            let grads = loss.sum_all()?.backward()?;
            Ok(Evaluation::new(loss, grads))
        }
    }
    let w = Var::new(&[1f64, 2.0], &Device::Cpu).unwrap();
    let params = ParamSet::new([("w", w.clone())]).unwrap();
    let mut optimizer = build(
        params,
        &Base::Sgd(ParamsSgd::default()),
        &Method::Base,
        None,
    )
    .unwrap();
    let error = optimizer.step(&mut PerSample(w)).unwrap_err();
    assert!(
        matches!(error, Error::LossShape { ref got, .. } if got == &[2]),
        "{error}"
    );
}

#[test]
fn a_gradient_of_another_shape_is_refused() {
    struct Misshapen(Var);
    impl Objective for Misshapen {
        fn evaluate(&mut self, _: Pass) -> candle_core::Result<Evaluation> {
            let mut outcome = Evaluation::of_loss(self.0.sqr()?.sum_all()?)?;
            outcome
                .grads
                .insert(&self.0, Tensor::zeros(3, DType::F64, &Device::Cpu)?);
            Ok(outcome)
        }
    }
    let w = Var::new(&[1f64, 2.0], &Device::Cpu).unwrap();
    let params = ParamSet::new([("w", w.clone())]).unwrap();
    let mut optimizer = build(
        params,
        &Base::Sgd(ParamsSgd::default()),
        &Method::Base,
        None,
    )
    .unwrap();
    let message = optimizer.step(&mut Misshapen(w)).unwrap_err().to_string();
    assert!(
        message.contains("gradient of `w` must have shape [2], got [3]"),
        "{message}"
    );
}

#[test]
fn a_panic_in_the_perturbed_pass_leaves_the_weights_unperturbed() {
    for (name, base, method) in combinations() {
        let problem = Problem::new(DType::F64);
        let mut optimizer = build(problem.params(), &base, &method, None).unwrap();
        for _ in 0..4 {
            let before = problem.weights();
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                optimizer.step(&mut |pass: Pass| {
                    assert!(pass != Pass::Perturbed, "the objective panics");
                    problem.loss(pass)
                })
            }));
            if outcome.is_err() {
                for (got, wanted) in problem.weights().iter().zip(&before) {
                    assert_same_bits(&name, got, wanted);
                }
            }
        }
    }
}

#[test]
fn a_gradient_of_another_dtype_is_refused() {
    struct Wide(Var);
    impl Objective for Wide {
        fn evaluate(&mut self, _: Pass) -> candle_core::Result<Evaluation> {
            let mut outcome = Evaluation::of_loss(self.0.sqr()?.sum_all()?)?;
            let wrong = Tensor::zeros(2, DType::F32, &Device::Cpu)?;
            outcome.grads.insert(&self.0, wrong);
            Ok(outcome)
        }
    }
    let w = Var::new(&[1f64, 2.0], &Device::Cpu).unwrap();
    let params = ParamSet::new([("w", w.clone())]).unwrap();
    let base = Base::Sgd(ParamsSgd::default());
    let mut optimizer = build(params, &base, &Method::Base, None).unwrap();
    let message = optimizer.step(&mut Wide(w)).unwrap_err().to_string();
    assert_eq!(
        message,
        "clean pass: the gradient of `w` must be F64 on Cpu, got F32 on Cpu"
    );
}

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
            "EveryK.k must be >= 1, got 0",
        ),
        (
            built(Method::LookSam(ParamsLookSam {
                alpha: -0.5,
                ..Default::default()
            })),
            "Reuse.alpha must be finite and >= 0, got -0.5",
        ),
        (
            built(Method::LookSam(ParamsLookSam {
                sam: stable,
                ..Default::default()
            })),
            "ParamsLookSam.sam.stable must be false",
        ),
        (
            built(Method::Gsam(ParamsGsam {
                alpha: f64::NAN,
                ..Default::default()
            })),
            "SurrogateGap.alpha must be finite and >= 0, got NaN",
        ),
        (
            built(Method::FriendlySam(ParamsFriendlySam {
                lambda: 1.0,
                ..Default::default()
            })),
            "Friendly.lambda must be in [0, 1), got 1",
        ),
        (
            built(Method::MomentumSam(ParamsMomentumSam {
                mu: 1.0,
                ..Default::default()
            })),
            "Momentum.mu must be in [0, 1), got 1",
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
