//! Slices of the loss and the plane of a trajectory.

use candle_core::{DType, Tensor};
use sala_core::{
    Error, ParamSet,
    sharpness::{
        Surface, filter_normalised, gaussian, losses_between, losses_in_plane, principal_plane,
    },
};

use super::problems::{Quadratic, assert_near, bulk_and_outliers, direction, flat};

fn problem() -> Quadratic {
    Quadratic::new(bulk_and_outliers(20), DType::F64)
}

/// ½ Σ (x − …)ᵀ H (…) at given parameters.
fn value(problem: &Quadratic, at: &[f64]) -> f64 {
    let hessian = problem.hessian();
    let product = |row: &Vec<f64>| row.iter().zip(at).map(|(h, x)| h * x).sum::<f64>();
    0.5 * hessian
        .iter()
        .map(product)
        .zip(at)
        .map(|(h, x)| h * x)
        .sum::<f64>()
}

fn plus(x: &[f64], y: &[f64], factor: f64) -> Vec<f64> {
    x.iter().zip(y).map(|(x, y)| x + factor * y).collect()
}

#[test]
fn losses_along_a_line_and_in_a_plane_are_those_at_the_displaced_weights() {
    let problem = problem();
    let params = problem.params();
    let tensors: Vec<Tensor> = problem
        .vars()
        .iter()
        .map(|v| v.as_tensor().clone())
        .collect();
    let start = flat(&tensors);
    let axes = [0, 1].map(|number| gaussian(&params, 3, number).unwrap());
    let [x, y] = [0, 1].map(|i| flat(&axes[i]));
    let mut loss = |pass| problem.loss(pass);
    let mut surface = Surface::new(&params, &mut loss);
    let ts = [-0.5, 0.0, 2.0];
    let along = surface.losses_along(&axes[0], &ts).unwrap();
    for (t, got) in ts.iter().zip(along) {
        assert_near(got, value(&problem, &plus(&start, &x, *t)), 1e-10);
    }
    let (xs, ys) = ([-1.0, 0.5], [0.0, 0.25, 1.0]);
    let grid = losses_in_plane(&mut surface, [&axes[0], &axes[1]], &xs, &ys).unwrap();
    assert_eq!((grid.losses.len(), grid.losses[0].len()), (3, 2));
    for (row, b) in grid.losses.iter().zip(ys) {
        for (got, a) in row.iter().zip(xs) {
            let wanted = value(&problem, &plus(&plus(&start, &x, a), &y, b));
            assert_near(*got, wanted, 1e-10);
        }
    }
    assert_near(grid.cost.losses, 6.0, 0.0);
}

#[test]
fn the_line_between_two_solutions_ends_at_both_and_has_the_barrier_between() {
    let problem = problem();
    let params = problem.params();
    let tensors: Vec<Tensor> = problem
        .vars()
        .iter()
        .map(|v| v.as_tensor().clone())
        .collect();
    let start = flat(&tensors);
    let other: Vec<f64> = start.iter().map(|x| -0.5 * x).collect();
    let mut loss = |pass| problem.loss(pass);
    let mut surface = Surface::new(&params, &mut loss);
    let ts = [-0.1, 0.0, 0.25, 1.0];
    let line = losses_between(&mut surface, &direction(&params, &other), &ts).unwrap();
    for (t, got) in ts.iter().zip(&line.losses) {
        assert_near(
            *got,
            value(&problem, &plus(&start, &start, -1.5 * t)),
            1e-10,
        );
    }
    // A convex loss along this line lies below the chord: no barrier, whatever lies outside.
    assert_near(line.barrier, 0.0, 1e-12);
}

#[test]
fn the_plane_of_a_trajectory_is_that_of_its_principal_components() {
    let problem = problem();
    let params = problem.params();
    let [x, y, z] = [0, 1, 2].map(|number| flat(&gaussian(&params, 5, number).unwrap()));
    // A large, a small and a tiny component.
    let at = |a: f64, b: f64, c: f64| {
        let flat = plus(&plus(&plus(&[0.7; 20], &x, a), &y, b), &z, c);
        direction(&params, &flat)
    };
    let points: Vec<_> = (0..12)
        .map(|i| {
            let t = f64::from(i);
            at(11.0 - t, 0.3 * (0.9 * t).sin(), 1e-3 * (2.3 * t).cos())
        })
        .collect();
    let plane = principal_plane(&params, &points).unwrap();
    assert!(plane.explained[0] > 0.9 && plane.explained[0] + plane.explained[1] > 1.0 - 1e-5);
    let [d, e] = [0, 1].map(|i| flat(&plane.directions[i]));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    assert_near(dot(&d, &d), 1.0, 1e-10);
    assert_near(dot(&e, &e), 1.0, 1e-10);
    assert_near(dot(&d, &e), 0.0, 1e-10);
    // Every point is the last one plus its coordinates, but for the tiny component.
    let last = flat(&points[11]);
    for (point, [a, b]) in points.iter().zip(&plane.coordinates) {
        let rebuilt = plus(&plus(&last, &d, *a), &e, *b);
        for (got, wanted) in rebuilt.iter().zip(flat(point)) {
            assert_near(*got, wanted, 0.02);
        }
    }
    // The first component carries the most variance that any direction can: moving it loses some.
    let variance = |v: &[f64]| {
        let along: Vec<f64> = points.iter().map(|p| dot(&flat(p), v)).collect();
        let mean = along.iter().sum::<f64>() / 12.0;
        along.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / dot(v, v)
    };
    for turn in [0.02, -0.02] {
        assert!(variance(&d) > variance(&plus(&d, &e, turn)));
        assert!(variance(&d) > variance(&plus(&d, &z, turn)));
    }
}

#[test]
fn what_spans_no_plane_or_does_not_fit_is_refused() {
    let problem = problem();
    let params = problem.params();
    let at = |t: f64| direction(&params, &[t; 20]);
    let refused = |points: &[Vec<Tensor>], words: &str| {
        let message = principal_plane(&params, points).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    };
    refused(
        &[at(0.0), at(1.0)],
        "at least three points that do not lie on one line, got 2 points",
    );
    refused(
        &[at(0.0), at(1.0), at(2.0), at(5.0)],
        "do not lie on one line, got variances",
    );
    refused(
        &[at(0.0), at(1.0), at(2.0)[..1].to_vec()],
        "the number of tensors must be 2",
    );
    let mut loss = |pass| problem.loss(pass);
    let mut surface = Surface::new(&params, &mut loss);
    let mut wrong = at(1.0);
    wrong[1] = wrong[1].to_dtype(DType::F32).unwrap();
    let errors = [
        surface.losses_along(&wrong, &[0.0]).unwrap_err(),
        surface.hessian_product(&wrong).unwrap_err(),
        losses_between(&mut surface, &wrong, &[0.5]).unwrap_err(),
        losses_in_plane(&mut surface, [&at(1.0), &wrong], &[0.0], &[0.0]).unwrap_err(),
    ];
    for error in errors {
        assert!(
            matches!(&error, Error::Direction { what, .. } if what.contains("`w`")),
            "{error}"
        );
    }
}

#[test]
fn a_filter_normalised_direction_has_the_norms_of_the_weights_rows() {
    let problem = problem();
    let params: ParamSet = problem.params();
    let random = gaussian(&params, 1, 0).unwrap();
    let scaled = filter_normalised(&params, &random).unwrap();
    assert_eq!(flat(&scaled[..1]), [0.0; 4], "biases stay");
    let rows = |t: &Tensor| {
        t.sqr()
            .unwrap()
            .sum(1)
            .unwrap()
            .sqrt()
            .unwrap()
            .to_vec1::<f64>()
            .unwrap()
    };
    let weights = problem.vars()[1].as_tensor().clone();
    for (got, wanted) in rows(&scaled[1]).iter().zip(rows(&weights)) {
        assert_near(*got, wanted, 1e-12);
    }
    // Still along the random one: the signs are the same.
    for (scaled, random) in flat(&scaled[1..]).iter().zip(flat(&random[1..])) {
        assert!(scaled * random > 0.0);
    }
}
