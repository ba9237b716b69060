//! Which entries dropout drops, and when.

use candle_core::{DType, Device, Tensor};
use sala_models::{Mode, Rng, kernels::Choice, ops::Dropout};

use crate::gradcheck::{check, check_half_of, normal_var, values, weighted_sum};

fn layer(p: f64) -> Dropout {
    Dropout::new(p, Rng::new(8).stream("d")).unwrap()
}

fn masks(dropout: Dropout, rows: usize, mode: Mode) -> Vec<f64> {
    let x = Tensor::ones((rows, 50), DType::F64, &Device::Cpu).unwrap();
    values(&dropout.forward(&x, mode).unwrap())
}

#[test]
fn one_draw_is_one_mask_and_another_draw_is_another() {
    let d = layer(0.5);
    let first = masks(d, 20, Mode::train(4));
    assert_eq!(first, masks(d, 20, Mode::train(4).without_stats()));
    let second = masks(d, 20, Mode::train(5));
    let same = first
        .iter()
        .zip(&second)
        .filter(|(a, b)| (*a - *b).abs() < 0.1)
        .count();
    // Independent masks agree in half of 1000 places; five standard deviations are 79.
    assert!(same.abs_diff(500) < 79, "{same}");
}

#[test]
fn layers_and_seeds_have_masks_of_their_own() {
    let of = |seed, name| {
        masks(
            Dropout::new(0.5, Rng::new(seed).stream(name)).unwrap(),
            4,
            Mode::train(0),
        )
    };
    assert_ne!(of(0, "a"), of(0, "b"));
    assert_ne!(of(0, "a"), of(1, "a"));
}

#[test]
fn the_first_rows_keep_their_mask_in_a_smaller_batch() {
    let d = layer(0.3);
    let (full, part) = (masks(d, 16, Mode::train(2)), masks(d, 5, Mode::train(2)));
    assert_eq!(full[..5 * 50], part);
}

#[test]
fn the_mask_follows_the_values_and_not_the_memory() {
    let x = normal_var("x", &[6, 5]);
    let (strided, copied) = (x.t().unwrap(), x.t().unwrap().contiguous().unwrap());
    let d = layer(0.5);
    let of = |t: &Tensor| values(&d.forward(t, Mode::train(0)).unwrap());
    assert_eq!(of(&strided), of(&copied));
}

#[test]
fn the_expectation_is_kept() {
    for p in [0.1, 0.5, 0.9] {
        let kept = masks(layer(p), 400, Mode::train(0));
        let n = kept.len() as f64;
        let mean = kept.iter().sum::<f64>() / n;
        let deviation = (p / (1.0 - p) / n).sqrt();
        assert!((mean - 1.0).abs() < 5.0 * deviation, "p {p}: {mean}");
        let scale = 1.0 / (1.0 - p);
        assert!(
            kept.iter()
                .all(|&v| v.abs() < 1e-15 || (v - scale).abs() < 1e-12)
        );
    }
}

#[test]
fn evaluation_and_zero_probability_are_the_identity() {
    assert!(
        masks(layer(0.5), 4, Mode::eval())
            .iter()
            .all(|&v| (v - 1.0).abs() < 1e-15)
    );
    assert!(
        masks(layer(0.0), 4, Mode::train(0))
            .iter()
            .all(|&v| (v - 1.0).abs() < 1e-15)
    );
}

#[test]
fn probabilities_outside_the_range_are_refused() {
    for p in [-0.1, 1.0, f64::NAN, f64::INFINITY] {
        let text = Dropout::new(p, Rng::new(0).stream("d"))
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("Dropout.p") && text.contains(&p.to_string()),
            "{text}"
        );
    }
}

#[test]
fn gradients_agree_with_differences() {
    let d = layer(0.4);
    for dims in [vec![3, 5], vec![2, 3, 1, 2]] {
        let x = normal_var("x", &dims);
        for mode in [Mode::train(1), Mode::eval()] {
            check(&[("x".into(), x.clone())], || {
                weighted_sum(&d.forward(&x, mode)?)
            });
        }
    }
}

#[test]
fn half_precision_is_multiplied_in_f32_and_rounded_once() {
    check_half_of(&[Choice::Emulated], &[3, 77], |x| {
        layer(0.3).forward(x, Mode::train(1))
    });
}

#[test]
fn every_float_dtype_keeps_its_kind() {
    for dtype in [DType::F64, DType::F32, DType::BF16, DType::F16] {
        let x = Tensor::ones((3, 4), dtype, &Device::Cpu).unwrap();
        assert_eq!(
            layer(0.5).forward(&x, Mode::train(0)).unwrap().dtype(),
            dtype
        );
    }
}
