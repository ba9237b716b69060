//! Eigenvalues, trace and density on quadratics whose spectrum is given.

use candle_core::{DType, Device, Tensor, Var};
use sala_core::{
    MicroBatches, ParamSet, Pass,
    sharpness::{
        Advance, Ball, Cost, ParamsAverage, ParamsDensity, ParamsLanczos, ParamsPower, ParamsTrace,
        ParamsWorst, Products, Step, Surface, average_sharpness, gradient_noise, lanczos,
        power_iteration, spectral_density, trace, worst_sharpness,
    },
};

use super::problems::{Quadratic, assert_near, bulk_and_outliers, direction, flat};

/// The demand.
const RELATIVE: f64 = 1e-6;

fn sorted(mut values: Vec<f64>, by: impl Fn(&f64) -> f64) -> Vec<f64> {
    values.sort_by(|a, b| by(b).total_cmp(&by(a)));
    values
}

#[test]
fn lanczos_finds_the_given_ends_of_the_spectrum() {
    let problem = Quadratic::new(bulk_and_outliers(100), DType::F64);
    let mut loss = |pass| problem.loss(pass);
    let config = ParamsLanczos {
        count: 4,
        max_steps: 100,
        tolerance: 1e-8,
        vectors: true,
        ..Default::default()
    };
    let ends = lanczos(&mut Surface::new(&problem.params(), &mut loss), &config).unwrap();
    assert!(ends.converged && ends.steps < 100, "{} steps", ends.steps);
    let wanted = sorted(problem.spectrum.clone(), |&x| x);
    for (ritz, wanted) in ends.largest.iter().zip(&wanted) {
        assert_near(ritz.value, *wanted, RELATIVE * wanted.abs());
    }
    assert_near(ends.smallest.value, -3.0, 3.0 * RELATIVE);
    // H v = λ v with the Hessian written out.
    let hessian = problem.hessian();
    for (ritz, vector) in ends.largest.iter().zip(&ends.vectors) {
        let v = flat(vector);
        assert_near(v.iter().map(|x| x * x).sum(), 1.0, 1e-9);
        for (row, x) in hessian.iter().zip(&v) {
            let product: f64 = row.iter().zip(&v).map(|(h, x)| h * x).sum();
            assert_near(product, ritz.value * x, 1e-5);
        }
    }
}

#[test]
fn an_unconverged_ritz_value_is_within_its_bound_of_an_eigenvalue() {
    let problem = Quadratic::new(bulk_and_outliers(100), DType::F64);
    for max_steps in [2, 4, 8] {
        let mut loss = |pass| problem.loss(pass);
        let config = ParamsLanczos {
            max_steps,
            tolerance: 1e-12,
            ..Default::default()
        };
        let ends = lanczos(&mut Surface::new(&problem.params(), &mut loss), &config).unwrap();
        assert!(!ends.converged);
        assert_eq!(ends.steps, max_steps);
        for ritz in [ends.largest[0], ends.smallest] {
            let distances = problem.spectrum.iter().map(|x| (x - ritz.value).abs());
            let nearest = distances.fold(f64::INFINITY, f64::min);
            assert!(
                nearest <= ritz.error + 1e-9 && ritz.error > 1e-6,
                "{nearest:e}, {ritz:?}"
            );
        }
    }
}

#[test]
fn three_eigenvalues_take_three_products_and_show_each_once() {
    // Without making vectors orthogonal again, and without an end at an invariant space, copies appear.
    let spectrum: Vec<f64> = (0..60).map(|i| [1.0, 2.0, 7.0][i % 3]).collect();
    let problem = Quadratic::new(spectrum, DType::F64);
    let mut loss = |pass| problem.loss(pass);
    let mut surface = Surface::new(&problem.params(), &mut loss)
        .with_products(Products::Differences(Step::Fixed(0.1)));
    let config = ParamsLanczos {
        count: 3,
        ..Default::default()
    };
    let ends = lanczos(&mut surface, &config).unwrap();
    assert!(ends.converged);
    for (ritz, wanted) in ends.largest.iter().zip([7.0, 2.0, 1.0]) {
        assert_near(ritz.value, wanted, 1e-9);
    }
}

#[test]
fn power_iteration_finds_the_largest_magnitudes_with_their_signs() {
    let problem = Quadratic::new(bulk_and_outliers(60), DType::F64);
    let mut loss = |pass| problem.loss(pass);
    let config = ParamsPower {
        count: 3,
        max_steps: 500,
        tolerance: 1e-10,
        ..Default::default()
    };
    let top = power_iteration(&mut Surface::new(&problem.params(), &mut loss), &config).unwrap();
    for (pair, wanted) in top.pairs.iter().zip([8.0, 5.0, -3.0]) {
        assert!(pair.converged);
        assert_near(pair.value, wanted, RELATIVE * wanted.abs());
        assert!(pair.residual < 1e-3, "{}", pair.residual);
    }
}

#[test]
fn more_eigenvalues_than_dimensions_are_all_there_are() {
    let w = Var::new(&[1f64, 1.0], &Device::Cpu).unwrap();
    let params = ParamSet::new([("w", w.clone())]).unwrap();
    let curvatures = Tensor::new(&[3f64, 1.0], &Device::Cpu).unwrap();
    let mut loss = |_: Pass| ((w.sqr()? * &curvatures)? * 0.5)?.sum_all();
    let mut surface = Surface::new(&params, &mut loss);
    let config = ParamsPower {
        count: 5,
        tolerance: 1e-12,
        ..Default::default()
    };
    assert_eq!(
        power_iteration(&mut surface, &config).unwrap().pairs.len(),
        2
    );
    let config = ParamsLanczos {
        count: 5,
        ..Default::default()
    };
    let ends = lanczos(&mut surface, &config).unwrap();
    assert_eq!((ends.largest.len(), ends.steps), (2, 2));
}

#[test]
fn the_trace_lies_within_its_error_bar_as_often_as_it_should() {
    let problem = Quadratic::new(bulk_and_outliers(60), DType::F64);
    let hessian = problem.hessian();
    let wanted: f64 = problem.spectrum.iter().sum();
    // sd of one sample: √(2 Σ_{i≠j} Hᵢⱼ²)
    let off: f64 = (0..60)
        .flat_map(|i| (0..60).map(move |j| (i, j)))
        .filter(|(i, j)| i != j)
        .map(|(i, j)| hessian[i][j].powi(2))
        .sum();
    let error_of_thirty = (2.0 * off / 30.0).sqrt();
    let (mut within, mut errors) = (0, 0.0);
    for seed in 0..40 {
        let mut loss = |pass| problem.loss(pass);
        let mut surface = Surface::new(&problem.params(), &mut loss)
            .with_products(Products::Differences(Step::Fixed(0.1)));
        let config = ParamsTrace { samples: 30, seed };
        let trace = trace(&mut surface, &config).unwrap();
        let error = trace.standard_error.unwrap();
        within += u32::from((trace.value - wanted).abs() <= 2.0 * error);
        errors += error / 40.0;
        assert_eq!(
            trace.cost,
            Cost {
                gradients: 60.0,
                losses: 0.0
            }
        );
    }
    // Of 40, 95 % are 38; fewer than 34 happen once in a hundred times.
    assert!((34..=40).contains(&within), "{within} of 40");
    assert_near(errors, error_of_thirty, 0.1 * error_of_thirty);
}

#[test]
fn the_density_is_that_of_the_given_spectrum() {
    let n = 200;
    let problem = Quadratic::new(bulk_and_outliers(n), DType::F64);
    let mut loss = |pass| problem.loss(pass);
    let mut surface = Surface::new(&problem.params(), &mut loss)
        .with_products(Products::Differences(Step::Fixed(0.1)));
    let config = ParamsDensity {
        samples: 10,
        steps: 30,
        seed: 1,
    };
    let density = spectral_density(&mut surface, &config).unwrap();
    assert_eq!(density.dimension, n);
    for nodes in &density.samples {
        assert_near(nodes.iter().map(|node| node.weight).sum(), 1.0, 1e-12);
    }
    let (low, high) = density.range();
    assert_near(low, -3.0, 1e-6);
    assert_near(high, 8.0, 1e-6);
    // Widened alike, the two differ by less than a tenth of their mass.
    let sigma = 0.1;
    let exact = |t: f64| {
        let normal = |x: &f64| (-0.5 * ((t - x) / sigma).powi(2)).exp();
        let sum: f64 = problem.spectrum.iter().map(normal).sum();
        sum / (n as f64 * sigma * (2.0 * std::f64::consts::PI).sqrt())
    };
    let cell = 0.02;
    let ts = (0..650).map(|i| -4.0 + cell * f64::from(i));
    let (mut mass, mut distance) = (0.0, 0.0);
    for t in ts {
        mass += cell * density.at(t, sigma);
        distance += cell * (density.at(t, sigma) - exact(t)).abs();
    }
    assert_near(mass, 1.0, 1e-6);
    assert!(distance < 0.1, "{distance}");
    // Moments against those of the spectrum, within their own spread.
    for k in 1..4 {
        let moments = density.moments(k);
        let mean = moments.iter().sum::<f64>() / 10.0;
        let spread = moments.iter().map(|m| (m - mean).powi(2)).sum::<f64>() / 9.0;
        let wanted = problem.spectrum.iter().map(|x| x.powi(k)).sum::<f64>() / n as f64;
        assert_near(mean, wanted, 3.5 * (spread / 10.0).sqrt());
    }
}

#[test]
fn single_precision_keeps_three_digits_with_the_step_that_is_chosen() {
    let problem = Quadratic::new(bulk_and_outliers(100), DType::F32);
    let mut loss = |pass| problem.loss(pass);
    let mut surface = Surface::new(&problem.params(), &mut loss);
    let config = ParamsLanczos {
        count: 2,
        tolerance: 1e-4,
        ..Default::default()
    };
    let ends = lanczos(&mut surface, &config).unwrap();
    assert!(ends.converged);
    assert_near(ends.largest[0].value, 8.0, 8e-4);
    assert_near(ends.largest[1].value, 5.0, 5e-4);
    assert_near(ends.smallest.value, -3.0, 3e-4);
    let step = surface.difference_step().unwrap();
    assert!(step.disagreement.unwrap() < 1e-3, "{step:?}");
}

#[test]
fn the_step_is_smaller_where_the_loss_bends_faster() {
    // cos(k w): third derivatives grow with k, so the best step falls.
    let chosen = |k: f64| {
        let w = Var::new(&[0.3f64, -0.2], &Device::Cpu).unwrap();
        let params = ParamSet::new([("w", w.clone())]).unwrap();
        let mut loss = |_: Pass| (w.affine(k, 0.4)?.cos()? * -1.0)?.sum_all();
        let mut surface = Surface::new(&params, &mut loss);
        let v = [0.6, 0.8];
        let product = surface.hessian_product(&direction(&params, &v)).unwrap();
        let wanted = |w: f64, v: f64| k * k * (k * w + 0.4).cos() * v;
        let got = flat(&product);
        assert_near(got[0], wanted(0.3, 0.6), 1e-6 * k * k);
        assert_near(got[1], wanted(-0.2, 0.8), 1e-6 * k * k);
        surface.difference_step().unwrap().h
    };
    assert!(
        chosen(1000.0) < chosen(1.0),
        "{} {}",
        chosen(1000.0),
        chosen(1.0)
    );
}

#[test]
fn the_step_is_so_small_that_no_kink_is_crossed() {
    // A kink 1e-11 away: the gradient jumps by 1000 there, which a larger step takes for curvature.
    let start = [0.5f64, 0.25];
    let w = Var::new(&start, &Device::Cpu).unwrap();
    let params = ParamSet::new([("w", w.clone())]).unwrap();
    let mut loss = |_: Pass| {
        let beyond = (w.narrow(0, 0, 1)? - (start[0] + 1e-11))?.relu()?;
        (w.sqr()?.sum_all()? * 0.5)? + (beyond.sum_all()? * 1000.0)?
    };
    let mut surface = Surface::new(&params, &mut loss);
    let product = surface.hessian_product(&direction(&params, &[0.6, 0.8]));
    let got = flat(&product.unwrap());
    assert_near(got[0], 0.6, 1e-4);
    assert_near(got[1], 0.8, 1e-4);
    let step = surface.difference_step().unwrap();
    assert!(step.disagreement.unwrap() < 1e-4, "{step:?}");
}

#[test]
fn every_measurement_says_what_it_took() {
    let problem = Quadratic::new(bulk_and_outliers(20), DType::F64);
    let params = problem.params();
    let (mut gradients, mut losses) = (0usize, 0usize);
    {
        let mut count = Counted {
            problem: &problem,
            gradients: &mut gradients,
            losses: &mut losses,
        };
        let mut surface = Surface::new(&params, &mut count);
        surface.difference_step().unwrap();
        let took = surface.cost();
        assert_near(took.gradients, 32.0, 0.0);
        let worst = ParamsWorst {
            steps: 3,
            ..Default::default()
        };
        let cost = worst_sharpness(&mut surface, &worst).unwrap().cost;
        assert_eq!((cost.gradients, cost.losses), (3.0, 1.0));
        let average = ParamsAverage {
            samples: 4,
            ball: Ball::Adaptive { eta: 0.1 },
            ..Default::default()
        };
        let cost = average_sharpness(&mut surface, &average).unwrap().cost;
        assert_eq!((cost.gradients, cost.losses), (0.0, 9.0));
        let density = ParamsDensity {
            samples: 2,
            steps: 5,
            seed: 0,
        };
        let cost = spectral_density(&mut surface, &density).unwrap().cost;
        assert_eq!((cost.gradients, cost.losses), (20.0, 0.0));
        let total = surface.cost();
        drop(surface);
        assert_eq!(
            (total.gradients, total.losses),
            (gradients as f64, losses as f64)
        );
    }
}

struct Counted<'a> {
    problem: &'a Quadratic,
    gradients: &'a mut usize,
    losses: &'a mut usize,
}

impl sala_core::Objective for Counted<'_> {
    fn evaluate(&mut self, pass: Pass) -> candle_core::Result<sala_core::Evaluation> {
        assert_eq!(pass, Pass::Probe);
        *self.gradients += 1;
        sala_core::Evaluation::of_loss(self.problem.loss(pass)?)
    }

    fn loss(&mut self, pass: Pass) -> candle_core::Result<Tensor> {
        assert_eq!(pass, Pass::Probe);
        *self.losses += 1;
        self.problem.loss(pass)
    }
}

#[test]
fn a_product_over_micro_batches_is_that_of_their_mean() {
    let w = Var::new(&[0.5f64, -1.0], &Device::Cpu).unwrap();
    let params = ParamSet::new([("w", w.clone())]).unwrap();
    let mut loss = |part: usize, _: Pass| (w.powf(4.0)? * (part + 1) as f64)?.sum_all();
    let mut parts = MicroBatches::new(&params, 3, &mut loss);
    let mut surface = Surface::new(&params, &mut parts);
    // mean of 1, 2, 3 is 2: H = diag(24 w²)
    let product = surface
        .hessian_product(&direction(&params, &[1.0, 1.0]))
        .unwrap();
    let got = flat(&product);
    assert_near(got[0], 6.0, 1e-6);
    assert_near(got[1], 24.0, 1e-6);
}

#[test]
fn the_noise_scale_is_that_of_gradients_written_out() {
    // Rows x with loss w · x: gradients are the means of rows of each part.
    let rows: [[f64; 2]; 4] = [[1.0, 0.0], [3.0, 1.0], [2.0, -1.0], [4.0, 2.0]];
    let w = Var::new(&[0f64, 0.0], &Device::Cpu).unwrap();
    let params = ParamSet::new([("w", w.clone())]).unwrap();
    let mut loss =
        |part: usize, _: Pass| (w.as_tensor() * Tensor::new(&rows[part], &Device::Cpu)?)?.sum_all();
    let mut parts = MicroBatches::new(&params, 4, &mut loss);
    let noise = gradient_noise(&mut Surface::new(&params, &mut parts), 32).unwrap();
    // mean (2.5, 0.5), squared norm 6.5; deviations squared: 2.5, 0.5, 2.5, 4.5, over 3
    let spread = 10.0 / 3.0;
    assert_near(noise.norm, 6.5f64.sqrt(), 1e-12);
    assert_near(noise.variance, 32.0 * spread, 1e-10);
    assert_near(noise.squared_signal, 6.5 - spread / 4.0, 1e-12);
    let scale = 32.0 * spread / (6.5 - spread / 4.0);
    assert_near(noise.scale.unwrap(), scale, 1e-10);
    assert_near(noise.cost.gradients, 1.0, 1e-12);
    let mut whole = |_: Pass| w.sqr()?.sum_all();
    let message = gradient_noise(&mut Surface::new(&params, &mut whole), 1)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("at least 2 micro-batches, got one of 1"),
        "{message}"
    );
}

#[test]
fn progress_is_told_from_the_first_part_to_the_last() {
    let problem = Quadratic::new(bulk_and_outliers(20), DType::F64);
    let seen = std::cell::RefCell::new(Vec::new());
    let mut loss = |pass| problem.loss(pass);
    let watch = |at: Advance| seen.borrow_mut().push((at.measure, at.done, at.total));
    let mut surface = Surface::new(&problem.params(), &mut loss).observed_by(watch);
    let config = ParamsTrace {
        samples: 3,
        seed: 0,
    };
    trace(&mut surface, &config).unwrap();
    let wanted = [1, 2, 3].map(|done| ("trace", done, 3));
    assert_eq!(*seen.borrow(), wanted);
}
