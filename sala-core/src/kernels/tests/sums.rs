//! Norms, products, sums and directions.

use super::*;
use crate::kernels::like;

// Catches elements that a sum leaves out or counts twice. The reference sums in f64: a sum of 80 000
// squares in f32 is not that exact.
#[test]
fn a_squared_norm_counts_every_element_once() {
    for_all(|form, len, dtype| {
        let x = form.wave(len, 0.2, dtype);
        let wanted: f64 = values(&x).iter().map(|x| x * x).sum();
        let got = number(form.kernels(dtype).squared_norm(&x).unwrap());
        testing::SCALAR.assert(&format!("{len} elements"), got, wanted);
    });
}

// Catches a difference that is hidden from the step's check: a lane, rest or chunk whose sum is lost.
#[test]
fn one_element_that_is_not_finite_shows_in_the_norm_wherever_it_is() {
    const PLACES: [usize; 8] = [
        0,
        15,
        16,
        CHUNK - 1,
        CHUNK,
        4 * CHUNK - 1,
        4 * CHUNK,
        4 * CHUNK + 60,
    ];
    for form in forms() {
        for (&dtype, at) in form.dtypes.iter().flat_map(|d| PLACES.map(|at| (d, at))) {
            for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                let mut x = vec![1.0; 4 * CHUNK + 61];
                x[at] = bad;
                let x = Tensor::new(x, &form.device)
                    .unwrap()
                    .to_dtype(dtype)
                    .unwrap();
                let norm = number(form.kernels(dtype).squared_norm(&x).unwrap());
                assert_eq!(norm.is_nan(), bad.is_nan(), "{}: {bad} at {at}", form.name);
                assert!(!norm.is_finite(), "{}: {bad} at {at}", form.name);
            }
        }
    }
}

// Catches a factor that is left out, and magnitudes without their offset.
#[test]
fn products_sums_and_adaptive_directions_are_the_composed_ones() {
    for_all(|form, len, dtype| {
        let (x, y) = (form.wave(len, 0.2, dtype), form.wave(len, 1.1, dtype));
        let wanted: f64 = values(&x).iter().zip(values(&y)).map(|(x, y)| x * y).sum();
        let got = number(form.kernels(dtype).dot(&x, &y).unwrap());
        let near = testing::Tolerance {
            atol: 1e-9,
            rtol: 1e-9,
        };
        near.assert("dot", got, wanted);

        let (mut a, mut b) = (y.force_contiguous().unwrap(), y.force_contiguous().unwrap());
        form.kernels(dtype).accumulate(&mut a, &x, 0.3).unwrap();
        Composed.accumulate(&mut b, &x, 0.3).unwrap();
        assert_near("sum", &a, &b);

        let (w, x) = (form.var(len, 0.4, dtype), form.wide(len, 0.2, dtype));
        let adaptive = |kernels: &dyn Kernels| {
            let mut direction = like(&w).unwrap();
            let sum = kernels.adaptive(&mut direction, &w, &x, 0.01).unwrap();
            (direction, sum)
        };
        let ((a, sum), (b, _)) = (adaptive(form.kernels(dtype)), adaptive(&Composed));
        assert_near("adaptive direction", &a, &b);
        let scaled = values(&w).into_iter().zip(values(&x));
        let wanted: f64 = scaled.map(|(w, g)| ((w.abs() + 0.01) * g).powi(2)).sum();
        let allowed = if dtype == DType::F64 { 1e-12 } else { 1e-5 };
        assert!((number(sum) - wanted).abs() <= allowed * wanted.max(1e-12));
    });
}

// Catches factors that change places, a second tensor that is left out, and a limit on one side only.
#[test]
fn combinations_and_clamped_values_are_the_composed_ones() {
    for_all(|form, len, dtype| {
        let kernels = form.kernels(dtype);
        let (x, y) = (form.wave(len, 0.2, dtype), form.wide(len, 1.1, dtype));
        let (mut got, mut wanted) = (like(&x).unwrap(), like(&x).unwrap());
        for by in [None, Some((-1.7, &y))] {
            kernels.combine(&mut got, (0.3, &x), by).unwrap();
            Composed.combine(&mut wanted, (0.3, &x), by).unwrap();
            assert_same_bits("combined", &got, &wanted);
        }
        kernels.clamp(&mut got, &x, 0.4).unwrap();
        Composed.clamp(&mut wanted, &x, 0.4).unwrap();
        assert_same_bits("clamped", &got, &wanted);
    });
}
