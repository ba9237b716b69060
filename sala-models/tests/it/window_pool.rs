//! Pooling with any windows: gradients, agreement with the plain form, errors. Values are in
//! `reference`.

use candle_core::{DType, Device, Result, Tensor};
use sala_models::ops::{Pool2d, adaptive_avg_pool2d, max_pool2d};

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
fn windows_side_by_side_are_those_of_the_plain_form() {
    let x = normal("x", &[2, 3, 7, 5]);
    let got = Pool2d::square(2).max(&x).unwrap();
    assert_eq!(values(&got), values(&max_pool2d(&x, 2).unwrap()));
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
