//! What holds for every method: dtype kept, order and tied weights do not matter, switched-off values
//! give the base, equal runs have equal bits.

use candle_core::{DType, Device, Tensor, Var};
use proptest::prelude::*;
use sala_core::{
    Clip, Minimizer, ParamSet, ParamsAsam, ParamsFriendlySam, ParamsGsam, ParamsLookahead,
    ParamsMomentumSam, ParamsSala, ParamsSam, ParamsSamEvery, ParamsSgd, Pass, Sam, Sgd,
    catalogue::{Base, Method, build},
    kernels::with_choice,
    testing::{SCALAR, TRAJECTORY_F32, TRAJECTORY_F64, assert_same_bits, values},
};

use crate::methods::{Problem, bases, combinations, forms};

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
    let step = |clip| {
        let w = Var::new(&[30f64, 40.0], &Device::Cpu).unwrap();
        let params = ParamSet::new([("w", w.clone())]).unwrap();
        let base = Base::Sgd(ParamsSgd {
            lr: 1.0,
            ..Default::default()
        });
        let mut optimizer = build(params, &base, &Method::Base, Some(clip)).unwrap();
        let report = optimizer.step(&mut |_: Pass| w.sqr()?.sum_all()).unwrap();
        SCALAR.assert("norm before clipping", report.grad_norm, 100.0);
        values(&w)
    };
    for form in forms() {
        // The gradient (60, 80) becomes (3, 4), or (60, 70).
        let by_norm = with_choice(form, || step(Clip::Norm(5.0)));
        SCALAR.assert("first weight", by_norm[0], 27.0);
        SCALAR.assert("second weight", by_norm[1], 36.0);
        let by_value = with_choice(form, || step(Clip::Value(70.0)));
        SCALAR.assert("first weight", by_value[0], -30.0);
        SCALAR.assert("second weight", by_value[1], -30.0);
    }
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

/// Quadratics ½ Σ aᵢ (wᵢ − bᵢ)² in three variables of different sizes, and steps over them.
mod random {
    use super::*;

    #[derive(Debug, Clone)]
    pub struct Quadratic {
        pub start: Vec<f64>,
        pub curvature: Vec<f64>,
        pub target: Vec<f64>,
    }

    pub fn quadratics() -> impl Strategy<Value = Quadratic> {
        let numbers = |range: std::ops::Range<f64>| prop::collection::vec(range, 6);
        (numbers(-2.0..2.0), numbers(0.1..2.0), numbers(-1.0..1.0)).prop_map(
            |(start, curvature, target)| Quadratic {
                start,
                curvature,
                target,
            },
        )
    }

    impl Quadratic {
        /// The weights after some steps, the parameters named as told.
        pub fn run(
            &self,
            names: [&str; 3],
            base: &Base,
            method: &Method,
            steps: usize,
        ) -> Vec<f64> {
            let ranges = [0..1, 1..3, 3..6];
            let tensor = |x: &[f64]| Tensor::new(x, &Device::Cpu).unwrap();
            let vars = ranges
                .clone()
                .map(|r| Var::from_tensor(&tensor(&self.start[r])).unwrap());
            let params = ParamSet::new(names.into_iter().zip(vars.iter().cloned())).unwrap();
            let mut optimizer = build(params, base, method, None).unwrap();
            for _ in 0..steps {
                optimizer
                    .step(&mut |_: Pass| {
                        let mut loss = Tensor::zeros((), DType::F64, &Device::Cpu)?;
                        for (var, range) in vars.iter().zip(ranges.clone()) {
                            let off = (var.as_tensor() - tensor(&self.target[range.clone()]))?;
                            let curved = (off.sqr()? * tensor(&self.curvature[range]))?;
                            loss = (loss + (curved.sum_all()? * 0.5)?)?;
                        }
                        Ok(loss)
                    })
                    .unwrap();
            }
            vars.iter().flat_map(|v| values(v)).collect()
        }
    }
}

fn assert_near(got: &[f64], wanted: &[f64]) -> Result<(), TestCaseError> {
    for (got, wanted) in got.iter().zip(wanted) {
        let allowed = TRAJECTORY_F64.atol + TRAJECTORY_F64.rtol * wanted.abs();
        prop_assert!((got - wanted).abs() <= allowed, "{got} instead of {wanted}");
    }
    Ok(())
}

const NAMES: [&str; 3] = ["a", "b", "c"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_ascent_with_a_norm_goes_by_rho(
        rho in 1e-3f64..10.0,
        start in prop::collection::vec(0.5f64..5.0, 4),
    ) {
        let sam = ParamsSam { rho, ..Default::default() };
        let friendly = ParamsFriendlySam { sam, ..Default::default() };
        let momentum = ParamsMomentumSam { rho, ..Default::default() };
        for method in [
            Method::Sam(sam),
            Method::FriendlySam(friendly),
            Method::MomentumSam(momentum),
            Method::Gsam(ParamsGsam { sam, ..Default::default() }),
        ] {
            let w = Var::new(start.as_slice(), &Device::Cpu).unwrap();
            let params = ParamSet::new([("w", w.clone())]).unwrap();
            let config = ParamsSgd { lr: 1e-4, ..Default::default() };
            let mut optimizer = build(params, &Base::Sgd(config), &method, None).unwrap();
            for step in 0..3 {
                let before = values(&w);
                let mut distance = 0.0f64;
                optimizer.step(&mut |_: Pass| {
                    // Another loss at each step, or the mean gradient of F-SAM would leave nothing.
                    let moved = values(&w).into_iter().zip(&before).map(|(a, b)| (a - b).powi(2));
                    distance = distance.max(moved.sum::<f64>().sqrt());
                    let weights = Tensor::new(&[1.0, 2.0 + f64::from(step), 0.5, 1.5], &Device::Cpu)?;
                    (w.sqr()? * weights)?.sum_all()
                }).unwrap();
                let stays = step == 0 && matches!(method, Method::MomentumSam(_));
                let wanted = if stays { 0.0 } else { rho };
                prop_assert!((distance - wanted).abs() < 1e-9 * (1.0 + rho), "{method:?}: {distance}");
            }
        }
    }

    #[test]
    fn a_radius_of_zero_is_the_base(problem in random::quadratics()) {
        let sam = ParamsSam { rho: 0.0, ..Default::default() };
        let off = [
            Method::Sam(sam),
            Method::Sam(ParamsSam { stable: true, ..sam }),
            Method::Asam(ParamsAsam { rho: 0.0, ..Default::default() }),
            Method::SamEvery(ParamsSamEvery { k: 3, sam }),
            Method::Gsam(ParamsGsam { sam, ..Default::default() }),
            Method::FriendlySam(ParamsFriendlySam { sam, ..Default::default() }),
            Method::MomentumSam(ParamsMomentumSam { rho: 0.0, ..Default::default() }),
        ];
        for (_, base) in bases() {
            let wanted = problem.run(NAMES, &base, &Method::Base, 12);
            for method in &off {
                assert_near(&problem.run(NAMES, &base, method, 12), &wanted)?;
            }
        }
    }

    #[test]
    fn alpha_one_is_the_fast_path_and_k_beyond_the_run_the_base(
        problem in random::quadratics(),
        k in 1u64..6,
    ) {
        let ahead = ParamsLookahead { k, alpha: 1.0, ..Default::default() };
        let never = ParamsLookahead { k: 99, ..ahead };
        let sala = ParamsSala { k: 99, rho: 1e9, ..Default::default() };
        let every = ParamsSamEvery { k: 99, ..Default::default() };
        let base_like = [
            Method::Lookahead(ahead),
            Method::Lookahead(never),
            Method::Sala(sala),
            Method::SamEvery(every),
        ];
        for (_, base) in bases() {
            let wanted = problem.run(NAMES, &base, &Method::Base, 12);
            for method in &base_like {
                assert_near(&problem.run(NAMES, &base, method, 12), &wanted)?;
            }
        }
    }

    #[test]
    fn alpha_zero_ends_every_cycle_where_the_run_began(
        problem in random::quadratics(),
        k in 1u64..4,
    ) {
        let config = ParamsLookahead { k, alpha: 0.0, ..Default::default() };
        for (_, base) in bases() {
            let steps = usize::try_from(3 * k).unwrap();
            let got = problem.run(NAMES, &base, &Method::Lookahead(config), steps);
            assert_near(&got, &problem.start)?;
        }
    }

    #[test]
    fn other_names_and_so_another_order_change_nothing(problem in random::quadratics()) {
        for (name, base, method) in combinations() {
            if name.starts_with("look-sam") {
                continue; // divides by a small difference of gradients
            }
            let wanted = problem.run(NAMES, &base, &method, 8);
            assert_near(&problem.run(["z", "b", "a"], &base, &method, 8), &wanted)?;
        }
    }
}
