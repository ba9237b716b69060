//! Whatever goes wrong in a pass leaves weights and state as they were, and says what it was.

use candle_core::{DType, Device, Tensor, Var};
use sala_core::{
    Clip, Error, Evaluation, Minimizer, Objective, ParamSet, ParamsSala, ParamsSam, ParamsSamEvery,
    ParamsSgd, Pass, Sala, Sam, SamEvery, Sgd,
    catalogue::{Base, Method, build},
    testing::assert_same_bits,
};

use crate::methods::{Problem, combinations};

/// Runs two steps, then one whose pass `failing` goes wrong, and checks that nothing has changed and
/// that the run goes on as if that step had not been tried.
fn survives(
    failing: Pass,
    sabotage: impl Fn(&Problem) -> candle_core::Result<Tensor>,
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
            Method::Sam(_) | Method::Asam(_) | Method::SamEvery(_)
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
fn configurations_are_checked_by_every_constructor() {
    let problem = Problem::new(DType::F32);
    let params = || problem.params();
    let base = || Sgd::new(&params(), ParamsSgd::default()).unwrap();
    let sala = ParamsSala::default();
    let messages = [
        Sala::new(params(), base(), ParamsSala { k: 0, ..sala }).unwrap_err(),
        Sala::new(params(), base(), ParamsSala { alpha: 1.5, ..sala }).unwrap_err(),
        Sala::new(
            params(),
            base(),
            ParamsSala {
                rho: f64::NAN,
                ..sala
            },
        )
        .unwrap_err(),
        Sala::new(
            params(),
            base(),
            ParamsSala {
                direction_fraction: 0.0,
                ..sala
            },
        )
        .unwrap_err(),
        Sam::new(
            params(),
            base(),
            ParamsSam {
                rho: -0.1,
                ..Default::default()
            },
        )
        .unwrap_err(),
        SamEvery::new(
            params(),
            base(),
            ParamsSamEvery {
                k: 0,
                ..Default::default()
            },
        )
        .unwrap_err(),
        Sgd::new(
            &params(),
            ParamsSgd {
                lr: -1.0,
                ..Default::default()
            },
        )
        .unwrap_err(),
        Sam::new(params(), base(), ParamsSam::default())
            .unwrap()
            .with_clip(Clip::Norm(0.0))
            .unwrap_err(),
    ]
    .map(|error| error.to_string());
    let wanted = [
        "ParamsSala.k must be >= 1, got 0",
        "ParamsSala.alpha must be in [0, 1], got 1.5",
        "ParamsSala.rho must be finite and >= 0, got NaN",
        "ParamsSala.direction_fraction must be in (0, 1], got 0",
        "ParamsSam.rho must be finite and >= 0, got -0.1",
        "EveryK.k must be >= 1, got 0",
        "ParamsSgd.lr must be finite and >= 0, got -1",
        "Clip.Norm must be finite and > 0, got 0",
    ];
    assert_eq!(messages, wanted);
}
