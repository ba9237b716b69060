//! m-sharpness against numbers by hand and against the exact maximum.

use candle_core::{DType, Device, Tensor, Var};
use sala_core::{
    Error, MicroBatches, ParamSet, Pass,
    sharpness::{
        Ball, ParamsAverage, ParamsWorst, Spread, Surface, average_sharpness, worst_sharpness,
    },
};

use super::problems::{Quadratic, assert_near, bulk_and_outliers};

fn set(values: &[f64]) -> (Var, ParamSet) {
    let w = Var::new(values, &Device::Cpu).unwrap();
    (w.clone(), ParamSet::new([("w", w)]).unwrap())
}

#[test]
fn one_step_is_the_climb_of_sam_on_each_micro_batch() {
    let (w, params) = set(&[1.0, 2.0]);
    // ½ c w² summed, with c its own in each part: gradients c w
    let curvatures = [[3.0, 2.0], [0.0, 1.0]];
    let mut loss = |part: usize, _: Pass| {
        ((w.sqr()? * Tensor::new(&curvatures[part], &Device::Cpu)?)? * 0.5)?.sum_all()
    };
    let mut parts = MicroBatches::new(&params, 2, &mut loss);
    let config = ParamsWorst {
        rho: 0.5,
        steps: 1,
        ..Default::default()
    };
    let rise = worst_sharpness(&mut Surface::new(&params, &mut parts), &config).unwrap();
    // Part 0: g = (3, 4), δ = (0.3, 0.4); part 1: g = (0, 2), δ = (0, 0.5).
    let first = 0.5 * (3.0 * 1.3 * 1.3 + 2.0 * 2.4 * 2.4) - 0.5 * (3.0 + 8.0);
    let second = 0.5 * 2.5 * 2.5 - 2.0;
    assert_near(rise.batches[0], first, 1e-12);
    assert_near(rise.batches[1], second, 1e-12);
    assert_near(rise.mean, f64::midpoint(first, second), 1e-12);
    assert_near(
        rise.standard_error.unwrap(),
        (first - second).abs() / 2.0,
        1e-12,
    );
    assert_near(rise.cost.gradients, 1.0, 1e-12);
    assert_near(rise.cost.losses, 1.0, 1e-12);
}

#[test]
fn an_adaptive_step_is_the_climb_of_asam() {
    let (w, params) = set(&[2.0, 1.0]);
    let slope = Tensor::new(&[1.0, 2.0], &Device::Cpu).unwrap();
    let mut loss = |_: Pass| (w.as_tensor() * &slope)?.sum_all();
    let config = ParamsWorst {
        rho: 0.5,
        ball: Ball::Adaptive { eta: 1.0 },
        steps: 1,
    };
    let rise = worst_sharpness(&mut Surface::new(&params, &mut loss), &config).unwrap();
    // c = (3, 2), c g = (3, 4): δ = ρ c (c g) / 5 = (0.9, 0.8), and the loss rises by g · δ.
    assert_near(rise.mean, 0.9 + 1.6, 1e-12);
    // A parameter that is said not to be adaptive has c = 1: δ = ρ g / ‖g‖.
    let params = params.with_adaptive(false, |_| true).unwrap();
    let rise = worst_sharpness(&mut Surface::new(&params, &mut loss), &config).unwrap();
    assert_near(rise.mean, 0.5 * 5f64.sqrt(), 1e-12);
}

#[test]
fn many_steps_reach_the_worst_point_of_the_ball_and_one_does_not() {
    let problem = Quadratic::new(bulk_and_outliers(40), DType::F64);
    problem.to_minimum();
    let mut loss = |pass| problem.loss(pass);
    let params = problem.params();
    let mut surface = Surface::new(&params, &mut loss);
    let mut rise = |steps| {
        let config = ParamsWorst {
            rho: 0.3,
            steps,
            ..Default::default()
        };
        worst_sharpness(&mut surface, &config).unwrap().mean
    };
    // At the minimum the worst is ½ ρ² λ_max.
    let worst = 0.5 * 0.09 * 8.0;
    assert_near(rise(60), worst, 1e-3 * worst);
    assert!(rise(1) < 0.5 * worst, "a random direction: {}", rise(1));
    assert!(rise(60) <= worst * (1.0 + 1e-9));
}

#[test]
fn the_average_over_the_sphere_is_the_trace_over_twice_the_dimension() {
    let n = 80;
    let problem = Quadratic::new(bulk_and_outliers(n), DType::F64);
    let wanted = problem.spectrum.iter().sum::<f64>() / (2.0 * n as f64);
    let params = problem.params();
    let rise = |spread, rho| {
        let mut loss = |pass| problem.loss(pass);
        let config = ParamsAverage {
            rho,
            spread,
            samples: 400,
            ..Default::default()
        };
        average_sharpness(&mut Surface::new(&params, &mut loss), &config).unwrap()
    };
    // E ½ δᵀ H δ = ½ ρ² tr H / n, and n times as much for the normal distribution.
    let sphere = rise(Spread::Sphere, 0.5);
    let error = sphere.standard_error.unwrap();
    assert!(error < 0.1 * wanted * 0.25, "{error}");
    assert_near(sphere.mean, 0.25 * wanted, 3.0 * error);
    let gaussian = rise(Spread::Gaussian, 0.5);
    assert_near(
        gaussian.mean,
        0.25 * n as f64 * wanted,
        3.0 * gaussian.standard_error.unwrap(),
    );
}

#[test]
fn the_average_scales_with_the_weights_where_it_is_adaptive() {
    let (w, params) = set(&[3.0, 0.0]);
    let mut loss = |_: Pass| w.sqr()?.sum_all();
    let config = ParamsAverage {
        rho: 0.1,
        ball: Ball::Adaptive { eta: 0.0 },
        spread: Spread::Gaussian,
        samples: 2000,
        seed: 1,
    };
    let rise = average_sharpness(&mut Surface::new(&params, &mut loss), &config).unwrap();
    // Only the first element moves, with sd 0.3: E δ² = 0.09.
    assert_near(rise.mean, 0.09, 3.0 * rise.standard_error.unwrap());
    assert!(rise.standard_error.unwrap() < 0.005);
}

#[test]
fn a_rise_beyond_the_finite_numbers_is_an_error_and_bad_numbers_are_refused() {
    let (w, params) = set(&[1.0]);
    let mut loss = |_: Pass| w.affine(800.0, 0.0)?.exp()?.sum_all()?.affine(1e-300, 0.0);
    let mut surface = Surface::new(&params, &mut loss);
    let far = ParamsWorst {
        rho: 1.0,
        ..Default::default()
    };
    let error = worst_sharpness(&mut surface, &far).unwrap_err();
    assert!(
        matches!(
            error,
            Error::NonFinite {
                pass: Pass::Probe,
                ..
            }
        ),
        "{error}"
    );
    let bad = ParamsWorst {
        rho: f64::NAN,
        ..Default::default()
    };
    let message = worst_sharpness(&mut surface, &bad).unwrap_err().to_string();
    assert_eq!(message, "ParamsWorst.rho must be finite and >= 0, got NaN");
    let none = ParamsAverage {
        samples: 0,
        ..Default::default()
    };
    let message = average_sharpness(&mut surface, &none)
        .unwrap_err()
        .to_string();
    assert_eq!(message, "ParamsAverage.samples must be >= 1, got 0");
}
