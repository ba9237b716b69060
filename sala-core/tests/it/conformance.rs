//! What holds for every method: dtype kept, order and tied weights do not matter, switched-off values
//! give the base, equal runs have equal bits.

use candle_core::{DType, Device, Tensor, Var};
use proptest::prelude::*;
use sala_core::{
    Clip, Minimizer, ParamSet, ParamsAsam, ParamsLookahead, ParamsSala, ParamsSam, ParamsSamEvery,
    ParamsSgd, Pass, Sam, Sgd,
    catalogue::{Base, Method, build},
    testing::{SCALAR, TRAJECTORY_F32, TRAJECTORY_F64, assert_same_bits, values},
};

use crate::methods::{Problem, bases, combinations};

/// The weights after some steps of a method.
fn run(dtype: DType, base: &Base, method: &Method, steps: usize) -> Vec<Tensor> {
    let problem = Problem::new(dtype);
    let mut optimizer = build(problem.params(), base, method, None).unwrap();
    for _ in 0..steps {
        optimizer
            .step(&mut |pass: Pass| problem.loss(pass))
            .unwrap();
    }
    problem.weights()
}

#[test]
fn every_method_lowers_the_loss_and_keeps_the_dtype() {
    for (name, base, method) in combinations() {
        for dtype in [DType::F32, DType::F64] {
            let problem = Problem::new(dtype);
            let loss = |p: &Problem| values(&p.loss(Pass::Clean).unwrap())[0];
            let before = loss(&problem);
            let mut optimizer = build(problem.params(), &base, &method, None).unwrap();
            for _ in 0..30 {
                optimizer
                    .step(&mut |pass: Pass| problem.loss(pass))
                    .unwrap();
            }
            assert_eq!(problem.first.dtype(), dtype, "{name}");
            let after = loss(&problem);
            assert!(
                after < 0.8 * before,
                "{name} in {dtype:?}: {before} to {after}"
            );
        }
    }
}

#[test]
fn two_runs_have_the_same_bits() {
    for (name, base, method) in combinations() {
        let (one, two) = (
            run(DType::F32, &base, &method, 25),
            run(DType::F32, &base, &method, 25),
        );
        for (one, two) in one.iter().zip(&two) {
            assert_same_bits(&name, two, one);
        }
    }
}

#[test]
fn f32_follows_f64() {
    for (name, base, method) in combinations() {
        let (narrow, wide) = (
            run(DType::F32, &base, &method, 20),
            run(DType::F64, &base, &method, 20),
        );
        for (narrow, wide) in narrow.iter().zip(&wide) {
            // Twenty steps of f32 rounding, through a network whose curvature is of the order of one.
            let tolerance = sala_core::testing::Tolerance {
                atol: 1e-5,
                ..TRAJECTORY_F32
            };
            tolerance.assert_tensors(&name, narrow, wide);
        }
    }
}

#[test]
fn names_and_their_order_change_nothing() {
    for (name, base, method) in combinations() {
        let wanted = run(DType::F64, &base, &method, 20);
        let problem = Problem::new(DType::F64);
        let swapped = [("a", problem.first.clone()), ("z", problem.second.clone())];
        let mut optimizer = build(ParamSet::new(swapped).unwrap(), &base, &method, None).unwrap();
        for _ in 0..20 {
            optimizer
                .step(&mut |pass: Pass| problem.loss(pass))
                .unwrap();
        }
        for (got, wanted) in problem.weights().iter().zip(&wanted) {
            TRAJECTORY_F64.assert_tensors(&name, got, wanted);
        }
    }
}

#[test]
fn tied_weights_are_stepped_once() {
    for (name, base, method) in combinations() {
        let wanted = run(DType::F64, &base, &method, 10);
        let problem = Problem::new(DType::F64);
        let mut named = problem.named();
        named.push(("zz.tied".into(), problem.first.clone()));
        let mut optimizer = build(ParamSet::new(named).unwrap(), &base, &method, None).unwrap();
        for _ in 0..10 {
            optimizer
                .step(&mut |pass: Pass| problem.loss(pass))
                .unwrap();
        }
        for (got, wanted) in problem.weights().iter().zip(&wanted) {
            assert_same_bits(&name, got, wanted);
        }
    }
}

#[test]
fn frozen_parameters_stay_and_are_not_perturbed() {
    for (name, base, method) in combinations() {
        let problem = Problem::new(DType::F64);
        let before = values(&problem.first);
        let params = problem.params().freeze(|n| n == "z.first").unwrap();
        let mut optimizer = build(params, &base, &method, None).unwrap();
        for _ in 0..10 {
            optimizer
                .step(&mut |pass: Pass| {
                    assert_eq!(values(&problem.first), before, "{name}, {pass} pass");
                    problem.loss(pass)
                })
                .unwrap();
        }
        assert_eq!(values(&problem.first), before, "{name}");
    }
}

#[test]
fn clipping_bounds_the_update_and_reports_the_norm_before_it() {
    let w = Var::new(&[30f64, 40.0], &Device::Cpu).unwrap();
    let params = ParamSet::new([("w", w.clone())]).unwrap();
    let base = Base::Sgd(ParamsSgd {
        lr: 1.0,
        ..Default::default()
    });
    let mut optimizer = build(params, &base, &Method::Base, Some(Clip::Norm(5.0))).unwrap();
    let report = optimizer.step(&mut |_: Pass| w.sqr()?.sum_all()).unwrap();
    SCALAR.assert("norm before clipping", report.grad_norm, 100.0);
    // The gradient (60, 80) becomes (3, 4).
    SCALAR.assert("first weight", values(&w)[0], 27.0);
    SCALAR.assert("second weight", values(&w)[1], 36.0);
}

#[test]
fn clipping_applies_to_the_descent_gradient_of_every_method_and_not_to_the_ascent() {
    for (name, method) in crate::methods::methods() {
        let problem = Problem::new(DType::F64);
        let before = problem.weights();
        let base = Base::Sgd(ParamsSgd {
            lr: 1.0,
            ..Default::default()
        });
        let mut optimizer =
            build(problem.params(), &base, &method, Some(Clip::Norm(1e-3))).unwrap();
        optimizer
            .step(&mut |pass: Pass| problem.loss(pass))
            .unwrap();
        let after = problem.weights();
        let square = before
            .iter()
            .zip(&after)
            .flat_map(|(b, a)| values(&(a - b).unwrap()));
        let moved = square.map(|x| x * x).sum::<f64>().sqrt();
        // SALA at k = 1 pulls in the same step, half way.
        let wanted = if name == "sala-k1" { 5e-4 } else { 1e-3 };
        assert!((moved - wanted).abs() < 1e-12, "{name} moved by {moved}");
    }
}

#[test]
fn a_direction_pass_on_a_fraction_costs_that_fraction_and_sees_that_many_rows() {
    let problem = Problem::new(DType::F64);
    let base = Sgd::new(&problem.params(), ParamsSgd::default()).unwrap();
    let config = ParamsSam {
        direction_fraction: 0.25,
        ..Default::default()
    };
    let mut sam = Sam::new(problem.params(), base, config).unwrap();
    let batch = Tensor::zeros((8, 1), DType::F64, &Device::Cpu).unwrap();
    let mut rows = Vec::new();
    let report = sam
        .step(&mut |pass: Pass| {
            rows.push(pass.take(&batch)?.dim(0)?);
            problem.loss(pass)
        })
        .unwrap();
    assert_eq!(rows, [2, 8]);
    SCALAR.assert("evaluations", report.evaluations, 1.25);
}

#[test]
fn group_norms_move_every_group_by_rho() {
    use sala_core::perturb::AscentNorm;
    let problem = Problem::new(DType::F64);
    let start = problem.weights();
    let params = problem
        .params()
        .group("second", |n| n == "a.second")
        .unwrap();
    let base = Sgd::new(&params, ParamsSgd::default()).unwrap();
    let config = ParamsSam {
        rho: 0.3,
        norm: AscentNorm::PerGroup,
        ..Default::default()
    };
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
    SCALAR.assert("first group", moved[0], 0.3);
    SCALAR.assert("second group", moved[1], 0.3);
}

#[test]
fn switched_off_methods_are_the_base() {
    for (base_name, base) in bases() {
        let wanted = run(DType::F64, &base, &Method::Base, 20);
        let sam = ParamsSam {
            rho: 0.0,
            ..Default::default()
        };
        let off = [
            ("sam, rho 0", Method::Sam(sam)),
            (
                "asam, rho 0",
                Method::Asam(ParamsAsam {
                    rho: 0.0,
                    ..Default::default()
                }),
            ),
            (
                "sam every, rho 0",
                Method::SamEvery(ParamsSamEvery { k: 2, sam }),
            ),
            (
                "sam every, k beyond the run",
                Method::SamEvery(ParamsSamEvery {
                    k: 99,
                    ..Default::default()
                }),
            ),
            (
                "lookahead, alpha 1",
                Method::Lookahead(ParamsLookahead {
                    alpha: 1.0,
                    ..Default::default()
                }),
            ),
            (
                "lookahead, k beyond the run",
                Method::Lookahead(ParamsLookahead {
                    k: 99,
                    ..Default::default()
                }),
            ),
            (
                "sala, k beyond the run",
                Method::Sala(ParamsSala {
                    k: 99,
                    ..Default::default()
                }),
            ),
        ];
        for (name, method) in off {
            for (got, wanted) in run(DType::F64, &base, &method, 20).iter().zip(&wanted) {
                TRAJECTORY_F64.assert_tensors(&format!("{name} over {base_name}"), got, wanted);
            }
        }
    }
}

#[test]
fn alpha_zero_keeps_the_slow_weights() {
    let problem = Problem::new(DType::F64);
    let start = problem.weights();
    let base = Base::Sgd(ParamsSgd::default());
    let config = ParamsLookahead {
        k: 2,
        alpha: 0.0,
        ..Default::default()
    };
    let mut optimizer = build(problem.params(), &base, &Method::Lookahead(config), None).unwrap();
    for _ in 0..4 {
        optimizer
            .step(&mut |pass: Pass| problem.loss(pass))
            .unwrap();
    }
    for (got, wanted) in problem.weights().iter().zip(&start) {
        assert_same_bits("weights", got, wanted);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn sam_climbs_by_rho(rho in 1e-3f64..10.0, x in -5.0f64..5.0, y in 0.1f64..5.0) {
        let w = Var::new(&[x, y], &Device::Cpu).unwrap();
        let params = ParamSet::new([("w", w.clone())]).unwrap();
        let base = Sgd::new(&params, ParamsSgd::default()).unwrap();
        let mut sam = Sam::new(params, base, ParamsSam { rho, ..Default::default() }).unwrap();
        let mut distance = 0.0;
        sam.step(&mut |pass: Pass| {
            if pass == Pass::Perturbed {
                let now = values(&w);
                distance = (now[0] - x).hypot(now[1] - y);
            }
            w.sqr()?.sum_all()
        }).unwrap();
        prop_assert!((distance - rho).abs() < 1e-9 * (1.0 + rho));
    }
}
