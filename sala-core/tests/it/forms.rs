//! The two forms of a step, accumulation, loss scaling and what a step costs in waits for the device.

use candle_core::{DType, Device, Tensor, Var};
use sala_core::{
    Clip, Error, Evaluation, LossScaler, MicroBatches, Minimizer, Objective, ParamSet,
    ParamsLossScaler, ParamsMomentumSam, ParamsSala, ParamsSam, ParamsSgd, Pass, Progress, Sam,
    Sgd, Stateful,
    catalogue::{Base, Method, build},
    kernels::{Choice, with_choice},
    testing::{
        SCALAR, TRAJECTORY_F64, assert_same_bits, assert_same_state, synchronisations, values,
    },
};

use crate::methods::{Problem, bases, combinations, forms, methods};

/// One step in two phases, as a loop without closures would take it.
fn two_phases(problem: &Problem, optimizer: &mut dyn Minimizer) -> sala_core::StepReport {
    let evaluate = |pass: Pass| Evaluation::of_loss(problem.loss(pass).unwrap()).unwrap();
    let pass = optimizer.begin().unwrap();
    assert_eq!(
        optimizer.begin().unwrap(),
        pass,
        "to begin twice is to begin once"
    );
    let mut progress = optimizer.first_step(evaluate(pass)).unwrap();
    if progress == Progress::Perturbed {
        assert!(optimizer.begin().is_err(), "a second pass is outstanding");
        progress = optimizer.second_step(evaluate(Pass::Perturbed)).unwrap();
    }
    let Progress::Done(report) = progress else {
        panic!("{progress:?}")
    };
    report
}

// Catches a form that forgets a part of the step: a pull, a memory, the count.
#[test]
fn both_forms_of_a_step_give_the_same_bits_and_reports() {
    for (name, base, method) in combinations() {
        let (one, two) = (Problem::new(DType::F32), Problem::new(DType::F32));
        let mut closure = build(one.params(), &base, &method, None).unwrap();
        let mut phases = build(two.params(), &base, &method, None).unwrap();
        for _ in 0..12 {
            let wanted = closure.step(&mut |pass: Pass| one.loss(pass)).unwrap();
            assert_eq!(two_phases(&two, &mut phases), wanted, "{name}");
        }
        for (got, wanted) in two.weights().iter().zip(&one.weights()) {
            assert_same_bits(&name, got, wanted);
        }
    }
}

// Catches weights that stay perturbed when a loop gives up, by name, by an error or by dropping all.
#[test]
fn a_step_that_is_given_up_between_its_phases_leaves_weights_and_state() {
    enum Way {
        Abandon,
        Drop,
        BadGradient,
    }
    for (name, base, method) in combinations() {
        for way in [Way::Abandon, Way::Drop, Way::BadGradient] {
            let (problem, other) = (Problem::new(DType::F64), Problem::new(DType::F64));
            let mut optimizer = build(problem.params(), &base, &method, None).unwrap();
            let mut twin = build(other.params(), &base, &method, None).unwrap();
            for _ in 0..6 {
                let before = problem.weights();
                let state = optimizer.state().unwrap();
                let pass = optimizer.begin().unwrap();
                let good = |pass| Evaluation::of_loss(problem.loss(pass).unwrap()).unwrap();
                let bad = || {
                    let loss = (problem.loss(Pass::Clean).unwrap() * f64::NAN).unwrap();
                    Evaluation::of_loss(loss).unwrap()
                };
                let climbs = matches!(pass, Pass::Direction { .. });
                if climbs {
                    let _ = optimizer.first_step(good(pass)).unwrap();
                }
                match way {
                    Way::Abandon => optimizer.abandon(),
                    Way::BadGradient if climbs => {
                        assert!(optimizer.second_step(bad()).is_err());
                    }
                    Way::BadGradient => assert!(optimizer.first_step(bad()).is_err()),
                    Way::Drop => {
                        drop(optimizer);
                        for (got, wanted) in problem.weights().iter().zip(&before) {
                            assert_same_bits(&name, got, wanted);
                        }
                        break;
                    }
                }
                for (got, wanted) in problem.weights().iter().zip(&before) {
                    assert_same_bits(&name, got, wanted);
                }
                assert_same_state(&name, &optimizer.state().unwrap(), &state);
                optimizer
                    .step(&mut |pass: Pass| problem.loss(pass))
                    .unwrap();
                twin.step(&mut |pass: Pass| other.loss(pass)).unwrap();
                let (got, wanted) = (optimizer.state().unwrap(), twin.state().unwrap());
                assert_same_state(&format!("{name}, beside a twin"), &got, &wanted);
                for (got, wanted) in problem.weights().iter().zip(&other.weights()) {
                    assert_same_bits(&name, got, wanted);
                }
            }
        }
    }
}

#[test]
fn phases_in_the_wrong_order_are_errors() {
    for (name, base, method) in combinations() {
        let problem = Problem::new(DType::F64);
        let mut optimizer = build(problem.params(), &base, &method, None).unwrap();
        let evaluation = || Evaluation::of_loss(problem.loss(Pass::Clean).unwrap()).unwrap();
        let message = optimizer.second_step(evaluation()).unwrap_err().to_string();
        assert!(
            message.contains("without an outstanding second pass"),
            "{name}: {message}"
        );
    }
    // A displacement without a gradient must have been made before the gradient is taken.
    let problem = Problem::new(DType::F64);
    let base = Sgd::new(&problem.params(), ParamsSgd::default()).unwrap();
    let mut msam =
        sala_core::MomentumSam::new(problem.params(), base, ParamsMomentumSam::default()).unwrap();
    msam.step(&mut |pass: Pass| problem.loss(pass)).unwrap();
    let before = problem.weights();
    let loss = Evaluation::of_loss(problem.loss(Pass::Clean).unwrap()).unwrap();
    let error = msam.first_step(loss).unwrap_err();
    assert!(matches!(error, Error::Order { .. }), "{error}");
    for (got, wanted) in problem.weights().iter().zip(&before) {
        assert_same_bits("weights", got, wanted);
    }
}

// Catches a checkpoint of perturbed weights, and an evaluation on them.
#[test]
fn in_the_middle_of_a_step_nothing_is_saved_loaded_or_evaluated() {
    for (name, base, method) in combinations() {
        let problem = Problem::new(DType::F64);
        let mut optimizer = build(problem.params(), &base, &method, None).unwrap();
        for _ in 0..5 {
            let rest = optimizer.state().unwrap();
            let pass = optimizer.begin().unwrap();
            let evaluate = |pass| Evaluation::of_loss(problem.loss(pass).unwrap()).unwrap();
            if matches!(pass, Pass::Direction { .. }) {
                let _ = optimizer.first_step(evaluate(pass)).unwrap();
            }
            let displaced = pass == Pass::Displaced || matches!(pass, Pass::Direction { .. });
            assert_eq!(optimizer.is_displaced(), displaced, "{name}");
            assert_eq!(optimizer.state().is_err(), displaced, "{name}");
            assert_eq!(optimizer.load_state(&rest).is_err(), displaced, "{name}");
            let seen = optimizer.with_slow_weights(|| sala_core::Result::Ok(()));
            assert_eq!(seen.is_err(), displaced, "{name}");
            optimizer.abandon();
            optimizer
                .step(&mut |pass: Pass| problem.loss(pass))
                .unwrap();
        }
    }
}

/// The problem's loss on one of `parts` micro-batches of its eight rows.
fn part_loss(
    problem: &Problem,
    parts: usize,
) -> impl FnMut(usize, Pass) -> candle_core::Result<Tensor> + '_ {
    move |part, _| problem.loss_of_rows(part * 8 / parts, 8 / parts)
}

// Catches a sum that is no mean, a part that is left out, and passes that see different parts.
#[test]
fn a_batch_in_parts_takes_every_method_where_the_whole_batch_does() {
    for (name, base, method) in combinations() {
        if name.starts_with("sala-quarter") {
            continue; // a quarter of the whole is another direction than a quarter of each part
        }
        let (one, two) = (Problem::new(DType::F64), Problem::new(DType::F64));
        let mut whole = build(one.params(), &base, &method, None).unwrap();
        let mut parts = build(two.params(), &base, &method, None).unwrap();
        let mut loss = part_loss(&two, 4);
        for _ in 0..9 {
            let wanted = whole.step(&mut |pass: Pass| one.loss(pass)).unwrap();
            let got = parts
                .step(&mut MicroBatches::new(&two.params(), 4, &mut loss))
                .unwrap();
            SCALAR.assert(&format!("{name}: loss"), got.loss, wanted.loss);
            SCALAR.assert(
                &format!("{name}: cost"),
                got.evaluations,
                wanted.evaluations,
            );
        }
        for (got, wanted) in two.weights().iter().zip(&one.weights()) {
            // LookSAM divides by a small difference of gradients.
            let tolerance = sala_core::testing::Tolerance {
                rtol: 100.0 * TRAJECTORY_F64.rtol,
                ..TRAJECTORY_F64
            };
            tolerance.assert_tensors(&name, got, wanted);
        }
    }
}

// Catches an ascent that is shared between micro-batches, and a cost that is counted once for each.
#[test]
fn perturbing_each_micro_batch_is_another_method_that_costs_the_same() {
    let config = ParamsSam {
        rho: 0.5,
        ..Default::default()
    };
    let run = |micro_batches: usize| {
        let problem = Problem::new(DType::F64);
        let base = Sgd::new(&problem.params(), ParamsSgd::default()).unwrap();
        let config = ParamsSam {
            micro_batches,
            ..config
        };
        let mut sam = Sam::new(problem.params(), base, config).unwrap();
        let mut passes = Vec::new();
        let mut parts = part_loss(&problem, 4);
        let mut loss = |part: usize, pass: Pass| {
            passes.push((part, pass == Pass::Perturbed));
            parts(part, pass)
        };
        let mut objective = MicroBatches::new(&problem.params(), 4, &mut loss);
        let report = sam.step(&mut objective).unwrap();
        SCALAR.assert("evaluations", report.evaluations, 2.0);
        (passes, problem.weights())
    };
    let (together, one) = run(1);
    let (alone, two) = run(4);
    let of = |part| [(part, false), (part, true)];
    assert_eq!(together[..4], [0, 1, 2, 3].map(|part| (part, false)));
    assert_eq!(alone, [of(0), of(1), of(2), of(3)].concat());
    let apart = (&one[0] - &two[0])
        .unwrap()
        .abs()
        .unwrap()
        .max_all()
        .unwrap();
    assert!(values(&apart)[0] > 1e-6, "the ascents are the same");
}

// Catches slow weights that are lost while the parameters hold them: with equal micro-batches SALA over
// them is SALA.
#[test]
fn sala_over_equal_micro_batches_is_sala() {
    let run = |micro_batches: usize, k: u64| {
        let problem = Problem::new(DType::F64);
        let (_, base) = bases().remove(0);
        let method = Method::Sala(ParamsSala {
            k,
            rho: 0.6,
            micro_batches,
            ..Default::default()
        });
        let mut sala = build(problem.params(), &base, &method, None).unwrap();
        let mut same = |_: usize, _: Pass| problem.loss_of_rows(0, 8);
        let mut climbs = 0;
        for _ in 0..9 {
            let mut objective = MicroBatches::new(&problem.params(), 4, &mut same);
            climbs += u32::from(sala.step(&mut objective).unwrap().ascent);
        }
        assert!(climbs > 1);
        let slow = sala.slow_weights().unwrap().tensors().unwrap().to_vec();
        [problem.weights(), slow].concat()
    };
    for k in [1, 2, 3] {
        for (got, wanted) in run(4, k).iter().zip(&run(1, k)) {
            TRAJECTORY_F64.assert_tensors(&format!("k = {k}"), got, wanted);
        }
    }
}

// Catches a sum over micro-batches that outlives a step that was given up half way.
#[test]
fn a_step_that_fails_between_its_micro_batches_leaves_nothing_of_them() {
    let run = |fails: bool| {
        let problem = Problem::new(DType::F64);
        let base = Sgd::new(&problem.params(), ParamsSgd::default()).unwrap();
        let config = ParamsSam {
            micro_batches: 4,
            ..Default::default()
        };
        let mut sam = Sam::new(problem.params(), base, config).unwrap();
        let mut parts = part_loss(&problem, 4);
        if fails {
            let before = problem.weights();
            let mut broken = |part: usize, pass: Pass| {
                if part == 2 && pass == Pass::Perturbed {
                    candle_core::bail!("the loader broke");
                }
                problem.loss_of_rows(2 * part, 2)
            };
            let mut objective = MicroBatches::new(&problem.params(), 4, &mut broken);
            assert!(sam.step(&mut objective).is_err());
            for (got, wanted) in problem.weights().iter().zip(&before) {
                assert_same_bits("weights", got, wanted);
            }
        }
        let mut objective = MicroBatches::new(&problem.params(), 4, &mut parts);
        let report = sam.step(&mut objective).unwrap();
        SCALAR.assert("evaluations", report.evaluations, 2.0);
        problem.weights()
    };
    for (got, wanted) in run(true).iter().zip(&run(false)) {
        assert_same_bits("after a failure", got, wanted);
    }
}

// Catches a SALA that returns to the wrong weights between micro-batches. At k = 1 and α = 1 the slow
// weights are the fast ones, and every step climbs: that is SAM.
#[test]
fn sala_in_cycles_of_one_without_a_pull_is_sam_per_micro_batch_too() {
    for micro_batches in [1, 4] {
        let run = |method: &Method| {
            let problem = Problem::new(DType::F64);
            let (_, base) = bases().remove(0);
            let mut optimizer = build(problem.params(), &base, method, None).unwrap();
            let mut loss = part_loss(&problem, 4);
            for _ in 0..6 {
                let mut objective = MicroBatches::new(&problem.params(), 4, &mut loss);
                assert!(optimizer.step(&mut objective).unwrap().ascent);
            }
            problem.weights()
        };
        let rho = 0.4;
        let sam = run(&Method::Sam(ParamsSam {
            rho,
            micro_batches,
            ..Default::default()
        }));
        let sala = run(&Method::Sala(ParamsSala {
            k: 1,
            alpha: 1.0,
            rho,
            micro_batches,
            ..Default::default()
        }));
        for (got, wanted) in sala.iter().zip(&sam) {
            TRAJECTORY_F64.assert_tensors(&format!("{micro_batches}"), got, wanted);
        }
    }
}

#[test]
fn micro_batches_that_do_not_fit_are_errors() {
    let problem = Problem::new(DType::F64);
    let base = || Sgd::new(&problem.params(), ParamsSgd::default()).unwrap();
    let config = ParamsSam {
        micro_batches: 4,
        ..Default::default()
    };
    let mut sam = Sam::new(problem.params(), base(), config).unwrap();
    let error = sam.step(&mut |pass: Pass| problem.loss(pass)).unwrap_err();
    assert!(
        matches!(error, Error::MicroBatches { wanted: 4, got: 1 }),
        "{error}"
    );
    let mut none = part_loss(&problem, 1);
    let mut sgd = sala_core::Descend::new(problem.params(), base());
    let outcome = sgd.step(&mut MicroBatches::new(&problem.params(), 0, &mut none));
    assert!(outcome.unwrap_err().to_string().contains("0 micro-batches"));
    let friendly = sala_core::ParamsFriendlySam {
        sam: config,
        ..Default::default()
    };
    let outcome = sala_core::FriendlySam::new(problem.params(), base(), friendly);
    assert!(
        outcome
            .unwrap_err()
            .to_string()
            .contains("micro_batches must be 1")
    );
}

// Catches a scale that reaches the weights, the loss or the report, and a state that an overflow changes.
#[test]
fn a_scaled_loss_takes_the_same_steps_and_an_overflow_takes_none() {
    for form in forms() {
        with_choice(form, scaled_steps_are_those_of_the_loss);
    }
}

fn scaled_steps_are_those_of_the_loss() {
    for (name, base, method) in combinations() {
        let (one, two) = (Problem::new(DType::F64), Problem::new(DType::F64));
        let mut plain = build(one.params(), &base, &method, Some(Clip::Norm(0.7))).unwrap();
        let mut scaled = build(two.params(), &base, &method, Some(Clip::Norm(0.7))).unwrap();
        let mut scaler = LossScaler::new(ParamsLossScaler::default()).unwrap();
        for step in 0..9 {
            let wanted = plain.step(&mut |pass: Pass| one.loss(pass)).unwrap();
            if step == 4 {
                overflow(&name, &two, &mut scaled, &mut scaler, false);
                overflow(&name, &two, &mut scaled, &mut scaler, true);
            }
            let got = scaler
                .step(&mut scaled, &mut |pass: Pass| two.loss(pass))
                .unwrap();
            let got = got.expect("no overflow");
            SCALAR.assert(&format!("{name}: loss"), got.loss, wanted.loss);
            // Powers of two scale without rounding, but for sums whose terms they carry away.
            let near = (got.grad_norm - wanted.grad_norm).abs() <= 1e-9 * wanted.grad_norm;
            assert!(near, "{name}: {} {}", got.grad_norm, wanted.grad_norm);
        }
        assert_eq!((scaler.scale(), scaler.skipped()), (16_384.0, 2), "{name}");
        for (got, wanted) in two.weights().iter().zip(&one.weights()) {
            TRAJECTORY_F64.assert_tensors(&name, got, wanted);
        }
    }
}

/// A step whose last pass overflows, or whose first.
fn overflow(
    name: &str,
    problem: &Problem,
    optimizer: &mut Box<dyn sala_core::Resumable + Send>,
    scaler: &mut LossScaler,
    in_the_first: bool,
) {
    let state = optimizer.state().unwrap();
    let before = problem.weights();
    let outcome = scaler.step(optimizer, &mut |pass: Pass| {
        let loss = problem.loss(pass)?;
        match pass {
            Pass::Direction { .. } if !in_the_first => Ok(loss),
            _ => loss * 1e308,
        }
    });
    assert!(outcome.unwrap().is_none(), "{name}");
    for (got, wanted) in problem.weights().iter().zip(&before) {
        assert_same_bits(name, got, wanted);
    }
    assert_same_state(name, &optimizer.state().unwrap(), &state);
}

#[test]
fn the_scale_grows_after_so_many_good_steps_falls_to_its_least_and_then_errs() {
    let w = Var::new(&[1f64], &Device::Cpu).unwrap();
    let params = ParamSet::new([("w", w.clone())]).unwrap();
    let base = Base::Sgd(ParamsSgd::default());
    let mut optimizer = build(params, &base, &Method::Base, None).unwrap();
    let config = ParamsLossScaler {
        initial: 4.0,
        interval: 2,
        max: 8.0,
        ..Default::default()
    };
    let mut scaler = LossScaler::new(config).unwrap();
    let mut seen = Vec::new();
    for _ in 0..5 {
        scaler
            .step(&mut optimizer, &mut |_: Pass| w.sqr()?.sum_all())
            .unwrap();
        seen.push(scaler.scale());
    }
    assert_eq!(seen, [4.0, 8.0, 8.0, 8.0, 8.0]);
    let mut nan = |_: Pass| w.sqr()?.sum_all()? * f64::NAN;
    for wanted in [4.0, 2.0, 1.0] {
        assert!(scaler.step(&mut optimizer, &mut nan).unwrap().is_none());
        SCALAR.assert("scale", scaler.scale(), wanted);
    }
    let error = scaler.step(&mut optimizer, &mut nan).unwrap_err();
    assert!(matches!(error, Error::NonFinite { .. }), "{error}");
    // The scaler's own state: five good steps are an odd number.
    let mut fresh = LossScaler::new(config).unwrap();
    fresh.load_state(&scaler.state().unwrap()).unwrap();
    assert_eq!(format!("{fresh:?}"), format!("{scaler:?}"));
    for (bad, words) in [
        (
            ParamsLossScaler {
                growth: 0.5,
                ..config
            },
            "growth must be finite and >= 1",
        ),
        (
            ParamsLossScaler {
                backoff: 1.0,
                ..config
            },
            "backoff must be in (0, 1)",
        ),
        (
            ParamsLossScaler {
                initial: 0.5,
                ..config
            },
            "initial must be between min and max",
        ),
    ] {
        let message = LossScaler::new(bad).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    }
}

// Catches a count that is past the interval and so never meets it again.
#[test]
fn a_scaler_that_is_given_a_shorter_interval_grows_at_its_next_good_step() {
    let w = Var::new(&[1f64], &Device::Cpu).unwrap();
    let params = ParamSet::new([("w", w.clone())]).unwrap();
    let base = Base::Sgd(ParamsSgd::default());
    let mut optimizer = build(params, &base, &Method::Base, None).unwrap();
    let scaler = |interval| {
        let config = ParamsLossScaler {
            initial: 4.0,
            interval,
            ..Default::default()
        };
        LossScaler::new(config).unwrap()
    };
    let mut loss = |_: Pass| w.sqr()?.sum_all();
    let (mut long, mut short) = (scaler(10), scaler(2));
    for _ in 0..5 {
        long.step(&mut optimizer, &mut loss).unwrap();
    }
    short.load_state(&long.state().unwrap()).unwrap();
    short.step(&mut optimizer, &mut loss).unwrap();
    SCALAR.assert("scale", short.scale(), 8.0);
}

// Catches a sum in the losses' own precision: that of bf16 stands still at 256, where the next number is 258.
#[test]
fn losses_of_many_micro_batches_add_up_in_half_precision() {
    let parts = 600;
    for dtype in [DType::BF16, DType::F16] {
        let one = Tensor::ones(1, dtype, &Device::Cpu).unwrap();
        let w = Var::from_tensor(&one).unwrap();
        let params = ParamSet::new([("w", w.clone())]).unwrap();
        // In f16 the sum would overflow.
        let mut loss = |_: usize, _: Pass| w.sum_all()? * 200.0;
        let mut objective = MicroBatches::new(&params, parts, &mut loss);
        let described = format!("{objective:?}");
        assert!(described.contains("count: 600"), "{described}");
        let alone = objective.loss(Pass::Clean).unwrap();
        let with_gradients = objective.evaluate(Pass::Clean).unwrap();
        for mean in [&alone, &with_gradients.loss] {
            assert_eq!(mean.dtype(), DType::F32);
            SCALAR.assert("mean loss", values(mean)[0], 200.0);
        }
    }
}

// Catches a read that a step could do without: on an accelerator each one stalls.
#[test]
fn a_step_waits_for_the_device_once_a_pass_once_a_pull_and_once_for_a_momentum() {
    with_choice(Choice::Composed, count_waits);
    #[cfg(sala_emulated)]
    with_choice(Choice::Emulated, count_waits);
}

fn count_waits() {
    let (_, base) = bases().remove(0);
    for (name, method) in methods() {
        let problem = Problem::new(DType::F32);
        let mut optimizer = build(problem.params(), &base, &method, None).unwrap();
        for step in 1..=12 {
            let mut allowed = 0;
            let before = synchronisations();
            optimizer
                .step(&mut |pass: Pass| {
                    // The pass itself, and the norm of a momentum that no gradient comes with.
                    allowed += if pass == Pass::Displaced { 2 } else { 1 };
                    problem.loss(pass)
                })
                .unwrap();
            let k = if name == "sala-k1" { 1 } else { 3 };
            allowed += u64::from(name.starts_with("sala") && (step + 1) % k == 0);
            assert_eq!(synchronisations() - before, allowed, "{name}, step {step}");
        }
    }
}
