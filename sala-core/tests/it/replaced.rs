//! Weights that are loaded into the model while an optimizer is at work.

use candle_core::{DType, Tensor};
use sala_core::{
    Average, Averaged, Error, Evaluation, Minimizer, ParamsAveraged, Pass,
    catalogue::build,
    testing::{TRAJECTORY_F64, assert_same_bits, values},
};

use crate::methods::{Problem, combinations};

/// Loads other weights, and returns them.
fn replace(problem: &Problem) -> Vec<Tensor> {
    for var in [&problem.first, &problem.second] {
        var.set(&var.affine(-0.5, 0.25).unwrap()).unwrap();
    }
    problem.weights()
}

#[track_caller]
fn assert_weights(what: &str, problem: &Problem, wanted: &[Tensor]) {
    for (got, wanted) in problem.weights().iter().zip(wanted) {
        assert_same_bits(what, got, wanted);
    }
}

fn step(problem: &Problem, optimizer: &mut impl Minimizer) {
    optimizer
        .step(&mut |pass: Pass| problem.loss(pass))
        .unwrap();
}

// Catches slow weights, averages and masters that bring the old weights back, at whatever step they are replaced.
#[test]
fn what_follows_the_weights_begins_anew_where_they_are() {
    for (name, base, method) in combinations() {
        for (dtype, masters) in [(DType::F32, false), (DType::BF16, true)] {
            for steps in 3..=7 {
                let problem = Problem::new(dtype);
                let mut params = problem.params();
                if masters {
                    params = params.with_f32_masters().unwrap();
                }
                let mut optimizer = build(params, &base, &method, None).unwrap();
                for _ in 0..steps {
                    step(&problem, &mut optimizer);
                }
                let new = replace(&problem);
                optimizer.weights_replaced().unwrap();
                let what = format!("{name} in {dtype:?} after {steps}");
                let slow = optimizer.slow_weights().and_then(|slow| slow.tensors());
                let named = problem.params().vars();
                for (got, wanted) in slow.iter().flat_map(|s| s.iter().zip(&named)) {
                    assert_eq!(values(got), values(wanted), "{what}: slow weights");
                }
                // Steps that move nothing by themselves.
                optimizer.set_learning_rate(0.0);
                for _ in 0..7 {
                    step(&problem, &mut optimizer);
                    assert_weights(&what, &problem, &new);
                }
                optimizer
                    .with_slow_weights(|| -> sala_core::Result<()> {
                        assert_weights(&what, &problem, &new);
                        Ok(())
                    })
                    .unwrap();
            }
        }
    }
}

#[test]
fn an_average_begins_anew() {
    let (_, base, method) = combinations().remove(0);
    let problem = Problem::new(DType::F64);
    let inner = build(problem.params(), &base, &method, None).unwrap();
    let config = ParamsAveraged {
        average: Average::Equal,
        ..Default::default()
    };
    let mut averaged = Averaged::new(inner, config).unwrap();
    for _ in 0..3 {
        step(&problem, &mut averaged);
    }
    replace(&problem);
    averaged.weights_replaced().unwrap();
    let mut seen = Vec::new();
    for _ in 0..2 {
        step(&problem, &mut averaged);
        seen.push(problem.weights());
    }
    let view = averaged.slow_view().unwrap();
    for (i, got) in problem.weights().iter().enumerate() {
        let mean = ((&seen[0][i] + &seen[1][i]).unwrap() * 0.5).unwrap();
        TRAJECTORY_F64.assert_tensors("mean of the two", got, &mean);
    }
    drop(view);
}

#[test]
fn weights_are_not_replaced_in_the_middle_of_a_step() {
    for (name, base, method) in combinations() {
        let problem = Problem::new(DType::F64);
        let mut optimizer = build(problem.params(), &base, &method, None).unwrap();
        for _ in 0..4 {
            let pass = optimizer.begin().unwrap();
            if matches!(pass, Pass::Direction { .. }) {
                let direction = Evaluation::of_loss(problem.loss(pass).unwrap()).unwrap();
                let _ = optimizer.first_step(direction).unwrap();
            }
            let refused = optimizer.weights_replaced();
            if pass == Pass::Clean {
                refused.unwrap();
            } else {
                assert!(matches!(refused, Err(Error::Order { .. })), "{name}");
            }
            optimizer.abandon();
            step(&problem, &mut optimizer);
        }
    }
}
