//! Settings of single parameters, scales of the radius, and schedules.

use candle_core::{DType, Device, Tensor, Var};
use sala_core::{
    Minimizer, ParamSet, ParamsAdam, ParamsSala, ParamsSam, ParamsSgd, Pass, Sam, Sgd, Stateful,
    catalogue::{Base, Method, build},
    perturb::RhoScale,
    schedule::{Cosine, Polynomial, Schedule, Scheduler},
    testing::{SCALAR, assert_same_bits, assert_same_state, values},
};

use crate::methods::{Problem, combinations};

fn step(params: ParamSet, base: &Base, vars: &[&Var]) -> Vec<f64> {
    let mut optimizer = build(params, base, &Method::Base, None).unwrap();
    optimizer
        .step(&mut |_: Pass| {
            let sum = |a: Tensor, v: &&Var| a + v.sum_all()?;
            vars.iter()
                .try_fold(Tensor::zeros((), DType::F64, &Device::Cpu)?, sum)
        })
        .unwrap();
    vars.iter().map(|v| values(v)[0]).collect()
}

// Catches a factor that multiplies the decay's gradient too, or only one of learning rate and decay.
#[test]
fn each_parameter_has_its_learning_rate_and_decay() {
    let vars = || [2.0, 2.0, 2.0].map(|x| Var::new(&[x], &Device::Cpu).unwrap());
    let set = |vars: &[Var; 3]| {
        ParamSet::new(["a", "b", "c"].into_iter().zip(vars.iter().cloned()))
            .and_then(|p| p.with_lr_scale(0.5, |n| n == "b"))
            .and_then(|p| p.with_weight_decay(0.0, |n| n == "c"))
            .unwrap()
    };
    let (lr, weight_decay) = (0.1, 0.5);
    // gradient 1 everywhere; coupled: w − η s (1 + λ w)
    let coupled = Base::Sgd(ParamsSgd {
        lr,
        weight_decay,
        ..Default::default()
    });
    // decoupled: w (1 − η s λ) − η s
    let decoupled = Base::Sgd(ParamsSgd {
        lr,
        weight_decay,
        decoupled: true,
        ..Default::default()
    });
    // Adam's first step has the size of the learning rate, but for ε
    let adamw = Base::Adam(ParamsAdam {
        lr,
        weight_decay,
        eps: 1e-300,
        ..ParamsAdam::adamw()
    });
    for base in [coupled, decoupled, adamw] {
        let vars = vars();
        let got = step(set(&vars), &base, &vars.each_ref());
        for (got, wanted) in got.iter().zip([1.8, 1.9, 1.9]) {
            SCALAR.assert(&format!("{base:?}"), *got, wanted);
        }
    }
}

#[test]
fn no_decay_on_norms_and_biases_is_one_line() {
    let matrix = Var::new(&[[2.0f64]], &Device::Cpu).unwrap();
    let bias = Var::new(&[2.0f64], &Device::Cpu).unwrap();
    let params = ParamSet::new([("w", matrix.clone()), ("b", bias.clone())]).unwrap();
    let params = params.without_decay_on_norms_and_biases();
    let config = ParamsSgd {
        lr: 0.1,
        weight_decay: 0.5,
        ..Default::default()
    };
    let got = step(params, &Base::Sgd(config), &[&matrix, &bias]);
    SCALAR.assert("matrix", got[0], 1.8);
    SCALAR.assert("bias", got[1], 1.9);
}

/// How far SAM's ascent moves each of two parameters.
fn ascent(params: ParamSet, problem: &Problem, config: ParamsSam, lr: f64) -> Vec<f64> {
    let start = problem.weights();
    let base = Sgd::new(
        &params,
        ParamsSgd {
            lr,
            ..Default::default()
        },
    )
    .unwrap();
    let mut sam = Sam::new(params, base, config).unwrap();
    let mut moved = Vec::new();
    sam.step(&mut |pass: Pass| {
        if pass == Pass::Perturbed {
            for (now, start) in problem.weights().iter().zip(&start) {
                moved.push(values(&(now - start)?.sqr()?.sum_all()?)[0].sqrt());
            }
        }
        problem.loss(pass)
    })
    .unwrap();
    moved
}

#[test]
fn an_ascent_of_chosen_parameters_only_goes_the_whole_radius_and_leaves_the_others() {
    let problem = Problem::new(DType::F64);
    let params = problem
        .params()
        .with_rho_scale(0.0, |n| n == "z.first")
        .unwrap();
    let config = ParamsSam {
        rho: 0.3,
        ..Default::default()
    };
    let moved = ascent(params, &problem, config, 0.1);
    assert_eq!(moved[0].to_bits(), 0f64.to_bits());
    SCALAR.assert("the other parameter", moved[1], 0.3);
}

#[test]
fn a_radius_can_follow_the_weights_norm_or_the_learning_rate() {
    let distance = |scale, lr| {
        let problem = Problem::new(DType::F64);
        let config = ParamsSam {
            rho: 0.3,
            scale,
            ..Default::default()
        };
        let moved = ascent(problem.params(), &problem, config, lr);
        moved[0].hypot(moved[1])
    };
    let problem = Problem::new(DType::F64);
    let squares = problem
        .weights()
        .iter()
        .flat_map(values)
        .map(|w| w * w)
        .sum::<f64>();
    SCALAR.assert("absolute", distance(RhoScale::Absolute, 0.1), 0.3);
    SCALAR.assert(
        "norm",
        distance(RhoScale::ParameterNorm, 0.1),
        0.3 * squares.sqrt(),
    );
    let reference = RhoScale::LearningRate { reference: 0.4 };
    SCALAR.assert("learning rate", distance(reference, 0.1), 0.3 * 0.1 / 0.4);
}

// Catches a threshold that ignores the scale: with ρ above every gap all cycles climb, below none.
#[test]
fn salas_threshold_is_scaled_as_its_ascent_is() {
    let climbs = |rho: f64, scale| {
        let problem = Problem::new(DType::F64);
        let config = ParamsSala {
            k: 2,
            rho,
            scale,
            ..Default::default()
        };
        let base = Base::Sgd(ParamsSgd {
            lr: 0.05,
            ..Default::default()
        });
        let mut sala = build(problem.params(), &base, &Method::Sala(config), None).unwrap();
        let mut gaps = Vec::new();
        let mut climbed = 0;
        for _ in 0..6 {
            let report = sala.step(&mut |pass: Pass| problem.loss(pass)).unwrap();
            climbed += u32::from(report.ascent);
            gaps.push(report.gap.unwrap());
        }
        (climbed, gaps[0])
    };
    let norm = {
        let problem = Problem::new(DType::F64);
        problem
            .weights()
            .iter()
            .flat_map(values)
            .map(|w| w * w)
            .sum::<f64>()
            .sqrt()
    };
    let (_, gap) = climbs(0.0, RhoScale::Absolute);
    // ρ between gap / ‖w‖ and gap climbs only if it is scaled up by the norm (which is above 1).
    assert!(norm > 2.0 && climbs(2.0 * gap / norm, RhoScale::Absolute).0 == 0);
    assert!(climbs(2.0 * gap / norm, RhoScale::ParameterNorm).0 > 0);
    let reference = RhoScale::LearningRate { reference: 0.5 };
    assert!(climbs(2.0 * gap, RhoScale::Absolute).0 > 0 && climbs(2.0 * gap, reference).0 == 0);
}

// Catches a schedule that drives the wrong number, is a step off, or whose position is not resumed.
#[test]
fn learning_rate_radius_and_decay_follow_their_schedules_and_resume() {
    let scheduler = || {
        Scheduler::new()
            .learning_rate(0.1, Cosine::new(10).unwrap())
            .and_then(|s| s.rho(0.2, Polynomial::linear(10, 0.5)?))
            .and_then(|s| s.weight_decay(1e-3, Polynomial::linear(10, 0.0)?))
            .unwrap()
    };
    for (name, base, method) in combinations() {
        let climbs = !name.starts_with("base") && !name.starts_with("lookahead");
        let problem = Problem::new(DType::F64);
        let mut optimizer = build(problem.params(), &base, &method, None).unwrap();
        if !climbs {
            let error = scheduler().advance(&mut optimizer).unwrap_err();
            assert!(
                error
                    .to_string()
                    .contains("rho must be set for a method that climbs")
            );
            continue;
        }
        let mut schedule = scheduler();
        for _ in 0..5 {
            schedule.advance(&mut optimizer).unwrap();
            optimizer
                .step(&mut |pass: Pass| problem.loss(pass))
                .unwrap();
        }
        // A fresh pair, as after a restart.
        let (other, mut resumed) = (Problem::new(DType::F64), scheduler());
        let mut second = build(other.params(), &base, &method, None).unwrap();
        second.load_state(&optimizer.state().unwrap()).unwrap();
        resumed.load_state(&schedule.state().unwrap()).unwrap();
        SCALAR.assert(
            "resumed rho",
            second.rho().unwrap(),
            optimizer.rho().unwrap(),
        );
        assert_eq!(second.weight_decay(), optimizer.weight_decay());
        other
            .first
            .set(&problem.first.force_contiguous().unwrap().detach())
            .unwrap();
        other
            .second
            .set(&problem.second.force_contiguous().unwrap().detach())
            .unwrap();
        for (problem, optimizer, schedule) in [
            (&problem, &mut optimizer, &mut schedule),
            (&other, &mut second, &mut resumed),
        ] {
            schedule.advance(optimizer).unwrap();
            SCALAR.assert(&name, optimizer.learning_rate(), 0.05);
            SCALAR.assert(&name, optimizer.rho().unwrap(), 0.15);
            SCALAR.assert(&name, optimizer.weight_decay().unwrap(), 5e-4);
            optimizer
                .step(&mut |pass: Pass| problem.loss(pass))
                .unwrap();
        }
        for (got, wanted) in other.weights().iter().zip(&problem.weights()) {
            assert_same_bits(&name, got, wanted);
        }
    }
}

/// A schedule that breaks at the third position.
#[derive(Debug)]
struct Broken(f64);

impl Schedule for Broken {
    fn factor(&self, at: u64) -> f64 {
        if at < 2 { 1.0 } else { self.0 }
    }
}

// Catches a learning rate that turns all weights into NaN at the next step, and numbers of which only some are set.
#[test]
fn a_schedule_that_gives_no_number_is_an_error_before_anything_is_set() {
    let problem = Problem::new(DType::F64);
    let base = Base::Sgd(ParamsSgd::default());
    let method = Method::Sam(ParamsSam::default());
    for bad in [f64::NAN, f64::INFINITY, -1.0] {
        let schedulers = [
            Scheduler::new().learning_rate(0.1, Broken(bad)),
            Scheduler::new().weight_decay(0.1, Broken(bad)),
        ];
        for (scheduler, field) in schedulers
            .into_iter()
            .zip(["learning_rate", "weight_decay"])
        {
            let mut optimizer = build(problem.params(), &base, &method, None).unwrap();
            let mut scheduler = scheduler
                .and_then(|s| s.rho(0.2, Polynomial::linear(10, 0.0)?))
                .unwrap();
            scheduler.advance(&mut optimizer).unwrap();
            scheduler.advance(&mut optimizer).unwrap();
            let before = optimizer.state().unwrap();
            let message = scheduler.advance(&mut optimizer).unwrap_err().to_string();
            let wanted = format!("Scheduler.{field} must be finite and >= 0");
            assert!(message.starts_with(&wanted), "{message}");
            assert_same_state(field, &optimizer.state().unwrap(), &before);
            assert_eq!(scheduler.position(), 2);
        }
    }
    // A radius that the method has not.
    let mut optimizer = build(problem.params(), &base, &Method::Base, None).unwrap();
    let mut scheduler = Scheduler::new()
        .learning_rate(0.7, Cosine::new(10).unwrap())
        .and_then(|s| s.rho(0.2, Cosine::new(10)?))
        .unwrap();
    let before = optimizer.learning_rate();
    assert!(scheduler.advance(&mut optimizer).is_err());
    SCALAR.assert("learning rate", optimizer.learning_rate(), before);
}

#[test]
fn a_learning_rate_that_is_none_is_an_error_of_the_next_step() {
    for (name, base, method) in combinations() {
        for bad in [f64::NAN, f64::INFINITY, -0.1] {
            let problem = Problem::new(DType::F64);
            let mut optimizer = build(problem.params(), &base, &method, None).unwrap();
            optimizer.set_learning_rate(bad);
            let before = problem.weights();
            let error = optimizer.step(&mut |pass: Pass| problem.loss(pass));
            let message = error.unwrap_err().to_string();
            let wanted = format!("Minimizer.learning_rate must be finite and >= 0, got {bad}");
            assert_eq!(message, wanted, "{name}");
            for (got, wanted) in problem.weights().iter().zip(&before) {
                assert_same_bits(&name, got, wanted);
            }
        }
    }
}
