//! Pooling: gradients, the defect of candle's that is avoided, formats, errors. Values are in `reference`.

use candle_core::{DType, Device, Result, Tensor, Var};
use sala_models::ops::{Pool2d, adaptive_avg_pool2d};

use crate::gradcheck::{check_half, check_layouts, normal, refused, values};

/// Overlapping, padded, with gaps, and reaching beyond the image.
fn pools() -> [Pool2d; 5] {
    let square = Pool2d::square(3);
    [
        Pool2d {
            stride: (1, 2),
            ..square
        },
        Pool2d {
            padding: (1, 1),
            stride: (2, 2),
            ceil_mode: true,
            ..square
        },
        Pool2d {
            padding: (1, 0),
            count_include_pad: false,
            ceil_mode: true,
            ..square
        },
        Pool2d {
            kernel: (2, 1),
            stride: (3, 2),
            ..square
        },
        Pool2d::square(1),
    ]
}

#[test]
fn gradients_agree_with_differences() {
    let shapes: [&[usize]; 3] = [&[1, 1, 3, 3], &[2, 1, 5, 4], &[1, 3, 4, 7]];
    for dims in shapes {
        for pool in pools() {
            check_layouts(dims, |x| pool.max(x));
            check_layouts(dims, |x| pool.average(x));
        }
        for outputs in [(1, 1), (2, 3), (5, 2)] {
            check_layouts(dims, |x| adaptive_avg_pool2d(x, outputs));
        }
    }
}

#[test]
fn an_image_of_one_pixel_is_its_own_pool() {
    let x = normal("x", &[2, 3, 1, 1]);
    let one = Pool2d::square(1);
    for y in [
        one.max(&x),
        one.average(&x),
        adaptive_avg_pool2d(&x, (1, 1)),
    ] {
        assert_eq!(values(&y.unwrap()), values(&x));
    }
}

#[test]
fn values_agree_with_those_of_candle_also_when_windows_do_not_fill_the_image() {
    for (dims, size) in [([2, 3, 4, 6], 2), ([1, 2, 7, 5], 2), ([2, 1, 9, 7], 3)] {
        let x = normal("x", &dims);
        let (ours, theirs) = (Pool2d::square(size).max(&x), x.max_pool2d(size));
        let (ours, theirs) = (ours.unwrap(), theirs.unwrap());
        assert_eq!(ours.dims(), theirs.dims());
        assert_eq!(values(&ours), values(&theirs));
    }
}

#[test]
fn equal_entries_share_one_gradient() {
    let x = Var::new(&[[[[1f64, 1.], [1., 1.]]]], &Device::Cpu).unwrap();
    let y = Pool2d::square(2).max(&x).unwrap().sum_all().unwrap();
    assert_eq!(
        values(y.backward().unwrap().get(&x).unwrap()),
        [1., 0., 0., 0.]
    );
}

/// Fails when candle repairs its backward: then windows side by side may be handed over to it.
#[test]
fn regression_the_backward_of_candle_is_too_small_by_the_window() {
    let x = Var::new(&[[[[1f64, 2.], [3., 4.]]]], &Device::Cpu).unwrap();
    let gradient = |y: Tensor| values(y.sum_all().unwrap().backward().unwrap().get(&x).unwrap());
    let ours = Pool2d::square(2).max(&x).unwrap();
    assert_eq!(gradient(ours), [0., 0., 0., 1.]);
    assert_eq!(gradient(x.max_pool2d(2).unwrap()), [0., 0., 0., 0.25]);
}

#[test]
fn an_infinite_pixel_stays_in_its_windows() {
    let mut pixels = vec![1f64; 16];
    pixels[0] = f64::INFINITY;
    let x = Tensor::from_vec(pixels, (1, 1, 4, 4), &Device::Cpu).unwrap();
    let inf = f64::INFINITY;
    for y in [
        Pool2d::square(2).average(&x),
        adaptive_avg_pool2d(&x, (2, 2)),
    ] {
        assert_eq!(values(&y.unwrap()), [inf, 1., 1., 1.]);
    }
}

#[test]
fn half_precision_is_computed_in_f32() {
    for pool in pools() {
        check_half(&[1, 2, 7, 6], |x| pool.max(x));
        check_half(&[1, 2, 7, 6], |x| pool.average(x));
    }
    check_half(&[1, 2, 7, 6], |x| adaptive_avg_pool2d(x, (2, 1)));
}

#[test]
fn wrong_arguments_are_refused() {
    let x = normal("x", &[1, 2, 4, 5]);
    let square = Pool2d::square(3);
    for op in ["max_pool2d", "avg_pool2d"] {
        let run = |pool: Pool2d, x: &Tensor| -> Result<Tensor> {
            if op == "max_pool2d" {
                pool.max(x)
            } else {
                pool.average(x)
            }
        };
        refused(
            run(square, &normal("x", &[2, 4, 5])),
            &[op, "x", "[2, 4, 5]"],
        );
        refused(
            run(square, &normal("x", &[0, 2, 4, 5])),
            &[op, "x", "[0, 2, 4, 5]"],
        );
        refused(
            run(square, &x.to_dtype(DType::U8).unwrap()),
            &[op, "x", "U8"],
        );
        refused(
            run(Pool2d::square(5), &x),
            &[op, "x", "(5, 5)", "[1, 2, 4, 5]"],
        );
        refused(
            run(Pool2d::square(usize::MAX), &x),
            &[op, "x", "[1, 2, 4, 5]"],
        );
        refused(run(Pool2d::square(0), &x), &[op, "kernel", "at least 1"]);
        refused(
            run(
                Pool2d {
                    stride: (1, 0),
                    ..square
                },
                &x,
            ),
            &[op, "stride", "got 0"],
        );
        refused(
            run(
                Pool2d {
                    padding: (0, 2),
                    ..square
                },
                &x,
            ),
            &[op, "padding", "half", "got 2"],
        );
    }
    refused(
        adaptive_avg_pool2d(&x, (0, 1)),
        &["adaptive_avg_pool2d", "outputs", "got 0"],
    );
    refused(
        adaptive_avg_pool2d(&x.get(0).unwrap(), (1, 1)),
        &["adaptive_avg_pool2d", "x"],
    );
}
