//! Whatever goes wrong in a pass leaves weights and state as they were, and says what it was.

use candle_core::{DType, Device, Tensor, Var};
use sala_core::{
    Error, Evaluation, Minimizer, Objective, ParamSet, ParamsSala, ParamsSgd, Pass, Resumable,
    catalogue::{Base, Method, build},
    kernels::with_choice,
    state::State,
    testing::{assert_same_bits, assert_same_state},
};

use crate::methods::{Problem, bases, combinations, forms};

/// Tries each step with a pass `failing` that goes wrong, and checks that it fails where there is such a pass,
/// that nothing has changed then, and that the run is that of a twin who was never troubled.
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
        let (mut run, mut twin) = (Run::new(&base, &method), Run::new(&base, &method));
        let mut failures = 0;
        for _ in 0..STEPS {
            let before = run.snapshot();
            let problem = &run.problem;
            let outcome = run.optimizer.step(&mut |pass: Pass| {
                if same_kind(pass, failing) {
                    sabotage(problem)
                } else {
                    problem.loss(pass)
                }
            });
            let passes = twin.step();
            let troubled = passes.iter().any(|&pass| same_kind(pass, failing));
            assert_eq!(outcome.is_err(), troubled, "{name}: {failing} pass");
            if let Err(error) = outcome {
                failures += 1;
                let message = error.to_string();
                assert!(
                    words.iter().all(|w| message.contains(w)),
                    "{name}: {message}"
                );
                run.assert_is(&format!("{name}, after a failure"), &before);
                run.step();
            }
            run.assert_is(&format!("{name}, beside a twin"), &twin.snapshot());
        }
        let wanted = has_pass(&name, &method, failing);
        assert_eq!(failures > 0, wanted, "{name}: {failing} passes seen");
    }
}

/// Enough for three cycles of SALA's.
const STEPS: usize = 9;

/// A problem and what trains it.
struct Run {
    problem: Problem,
    optimizer: Box<dyn Resumable>,
}

impl Run {
    fn new(base: &Base, method: &Method) -> Self {
        let problem = Problem::new(DType::F64);
        let optimizer = build(problem.params(), base, method, None).unwrap();
        Self { problem, optimizer }
    }

    /// One step; yields its passes.
    fn step(&mut self) -> Vec<Pass> {
        let mut passes = Vec::new();
        let problem = &self.problem;
        let mut loss = |pass: Pass| {
            passes.push(pass);
            problem.loss(pass)
        };
        self.optimizer.step(&mut loss).unwrap();
        passes
    }

    fn snapshot(&self) -> (Vec<Tensor>, State) {
        (self.problem.weights(), self.optimizer.state().unwrap())
    }

    #[track_caller]
    fn assert_is(&self, what: &str, (weights, state): &(Vec<Tensor>, State)) {
        for (got, wanted) in self.problem.weights().iter().zip(weights) {
            assert_same_bits(&format!("{what}: weights"), got, wanted);
        }
        assert_same_state(what, &self.optimizer.state().unwrap(), state);
    }
}

fn same_kind(a: Pass, b: Pass) -> bool {
    std::mem::discriminant(&a) == std::mem::discriminant(&b)
}

/// Whether the first steps of a method have such a pass.
fn has_pass(name: &str, method: &Method, pass: Pass) -> bool {
    let always_climbs = matches!(
        method,
        Method::Sam(_) | Method::Asam(_) | Method::Gsam(_) | Method::FriendlySam(_)
    );
    let never_climbs = matches!(method, Method::Base | Method::Lookahead(_));
    let along_momentum = name.contains("momentum");
    match pass {
        // In cycles of one SALA starts near, and is never far on this problem.
        Pass::Clean => !always_climbs && !name.starts_with("sala-k1"),
        Pass::Direction { .. } | Pass::Perturbed => !never_climbs && !along_momentum,
        Pass::Displaced => along_momentum,
        Pass::Probe => false,
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
    survives(Pass::Displaced, fail, &["the loader broke"]);
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
    survives(Pass::Displaced, nan, &["displaced pass", "the loss", "NaN"]);
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
fn a_panic_at_moved_weights_changes_nothing() {
    let moved = |pass| matches!(pass, Pass::Perturbed | Pass::Displaced);
    for (name, base, method) in combinations() {
        let (mut run, mut twin) = (Run::new(&base, &method), Run::new(&base, &method));
        let mut panics = 0;
        for _ in 0..STEPS {
            let before = run.snapshot();
            let (problem, optimizer) = (&run.problem, &mut run.optimizer);
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                optimizer.step(&mut |pass: Pass| {
                    assert!(!moved(pass), "the objective panics");
                    problem.loss(pass)
                })
            }));
            let troubled = twin.step().into_iter().any(moved);
            assert_eq!(outcome.is_err(), troubled, "{name}");
            if outcome.is_err() {
                panics += 1;
                run.assert_is(&name, &before);
                run.step();
            }
            run.assert_is(&format!("{name}, beside a twin"), &twin.snapshot());
        }
        let climbs = !matches!(method, Method::Base | Method::Lookahead(_));
        assert_eq!(panics > 0, climbs, "{name}: {panics} panics");
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
