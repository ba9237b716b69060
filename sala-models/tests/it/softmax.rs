//! Softmax and cross entropy: gradients, extreme numbers, masks, errors. Values are in `reference`.

use candle_core::{D, DType, Device, Tensor, Var};
use sala_core::testing::TRAJECTORY_F64;
use sala_models::ops::{CrossEntropy, cross_entropy, log_softmax, masked_softmax, softmax};

use crate::gradcheck::{
    FAST, check, check_half_of, check_layouts, in_every_form, normal, normal_var, refused, values,
    weighted_sum,
};

const INF: f64 = f64::INFINITY;

fn tensor<const N: usize>(rows: &[[f64; 3]; N]) -> Tensor {
    Tensor::new(rows, &Device::Cpu).unwrap()
}

#[test]
fn gradients_agree_with_differences_over_every_dimension() {
    let shapes: [&[usize]; 4] = [&[1], &[3, 1], &[1, 4], &[2, 3, 5]];
    for dims in shapes {
        for dim in 0..dims.len() {
            check_layouts(dims, |x| softmax(x, dim));
            check_layouts(dims, |x| log_softmax(x, dim));
        }
    }
}

#[test]
fn gradients_of_masked_rows_agree_with_differences_also_where_nothing_is_left() {
    let mask = Tensor::new(&[[1u8, 0, 255], [0, 0, 0], [1, 1, 1]], &Device::Cpu).unwrap();
    check_layouts(&[2, 3, 3], |x| masked_softmax(x, &mask, D::Minus1));
    check_layouts(&[2, 3, 3], |x| masked_softmax(x, &mask.t()?, 1));
    // An added mask is differentiated as well.
    let (x, bias) = (normal_var("x", &[2, 3, 4]), normal_var("bias", &[3, 1]));
    check(
        &[("x".into(), x.clone()), ("bias".into(), bias.clone())],
        || weighted_sum(&masked_softmax(&x, &bias, 1)?),
    );
}

#[test]
fn a_row_of_which_nothing_is_left_is_zero_and_so_is_its_gradient() {
    in_every_form(|| {
        let none = Tensor::new(&[[0u8, 0, 0], [1, 1, 0]], &Device::Cpu).unwrap();
        let minus = tensor(&[[-INF; 3], [0., 0., -INF]]);
        for mask in [none, minus] {
            let x = Var::from_tensor(&tensor(&[[1., 2., 3.], [5., 5., 5.]])).unwrap();
            let y = masked_softmax(&x, &mask, D::Minus1).unwrap();
            assert_eq!(values(&y), [0., 0., 0., 0.5, 0.5, 0.]);
            let loss = weighted_sum(&y).unwrap();
            let gradient = values(loss.backward().unwrap().get(&x).unwrap());
            assert_eq!(gradient[..3], [0.; 3]);
            assert!(gradient[3] != 0. && gradient[5] == 0., "{gradient:?}");
        }
    });
}

#[test]
fn what_a_boolean_mask_hides_does_not_matter_and_what_it_leaves_does() {
    in_every_form(|| {
        let mask = Tensor::new(&[1u8, 1, 0], &Device::Cpu).unwrap();
        for hidden in [f64::NAN, INF, -INF, 1e300] {
            let x = Var::from_tensor(&tensor(&[[1., 1., hidden]])).unwrap();
            let y = masked_softmax(&x, &mask, D::Minus1).unwrap();
            assert_eq!(values(&y), [0.5, 0.5, 0.]);
            let gradient = weighted_sum(&y).unwrap().backward().unwrap();
            assert!(
                values(gradient.get(&x).unwrap())
                    .iter()
                    .all(|g| g.is_finite())
            );
            let y = masked_softmax(&tensor(&[[1., f64::NAN, hidden]]), &mask, 1).unwrap();
            assert!(values(&y)[0].is_nan(), "a NaN that counts must show");
        }
    });
}

#[test]
fn extreme_numbers_neither_overflow_nor_vanish() {
    in_every_form(|| {
        let x = tensor(&[[1e4, 1e4, -1e4], [-1e300, -1e300, -1e300]]);
        let third = 1.0 / 3.0;
        let wanted = tensor(&[[0.5, 0.5, 0.], [third; 3]]);
        TRAJECTORY_F64.assert_tensors("softmax", &softmax(&x, 1).unwrap(), &wanted);
        let logs = values(&log_softmax(&x, 1).unwrap());
        TRAJECTORY_F64.assert("log of what underflows", logs[2], -2e4 - 2f64.ln());
        TRAJECTORY_F64.assert("log of equal ones", logs[3], -(3f64.ln()));
    });
}

#[test]
fn half_precision_is_computed_in_f32() {
    check_half_of(&FAST, &[3, 50], |x| softmax(x, 1));
    check_half_of(&FAST, &[3, 50], |x| log_softmax(x, 0));
    let mask = Tensor::from_vec(
        (0..50).map(|i| u8::from(i % 3 > 0)).collect(),
        50,
        &Device::Cpu,
    );
    let mask = mask.unwrap();
    check_half_of(&FAST, &[3, 50], |x| masked_softmax(x, &mask, 1));
    in_every_form(|| {
        let classes = Tensor::new(&[1u32, 9, 49], &Device::Cpu).unwrap();
        let logits = normal("logits", &[3, 50]).to_dtype(DType::BF16).unwrap();
        let loss = cross_entropy(&logits, &classes).unwrap();
        assert_eq!(loss.dtype(), DType::F32);
        let wide = cross_entropy(&logits.to_dtype(DType::F32).unwrap(), &classes).unwrap();
        assert_eq!(values(&loss), values(&wide));
    });
}

#[test]
fn gradients_of_the_cross_entropy_agree_with_differences() {
    let classes = Tensor::new(&[[2i64, 0], [7, 1], [1, 7]], &Device::Cpu).unwrap();
    for label_smoothing in [0.0, 0.3, 0.9] {
        let plain = CrossEntropy {
            label_smoothing,
            ..Default::default()
        };
        let ignoring = CrossEntropy {
            ignore_index: Some(7),
            ..plain
        };
        check_layouts(&[3, 2, 3], |x| ignoring.forward(x, &classes));
        check_layouts(&[1, 1], |x| {
            plain.forward(x, &Tensor::new(&[0u8], &Device::Cpu)?)
        });
        let (x, t) = (normal_var("x", &[3, 4]), normal_var("t", &[3, 4]));
        check(
            &[("logits".into(), x.clone()), ("targets".into(), t.clone())],
            || plain.forward(&x, &t),
        );
    }
    let x = normal_var("x", &[4]);
    check(&[("logits".into(), x.clone())], || {
        cross_entropy(&x, &Tensor::new(3u32, &Device::Cpu)?)
    });
}

#[test]
fn ignored_rows_do_not_matter_whatever_they_hold() {
    in_every_form(|| {
        let classes = Tensor::new(&[1u32, 2, 0], &Device::Cpu).unwrap();
        let ignoring = CrossEntropy {
            ignore_index: Some(2),
            ..Default::default()
        };
        let x = Var::from_tensor(&tensor(&[
            [0., 1., 2.],
            [f64::NAN, INF, -INF],
            [3., 1., 0.],
        ]))
        .unwrap();
        let loss = ignoring.forward(&x, &classes).unwrap();
        let counted = tensor(&[[0., 1., 2.], [3., 1., 0.]]);
        let wanted = cross_entropy(&counted, &Tensor::new(&[1u32, 0], &Device::Cpu).unwrap());
        assert_eq!(values(&loss), values(&wanted.unwrap()));
        let gradient = values(loss.backward().unwrap().get(&x).unwrap());
        assert_eq!(gradient[3..6], [0.; 3]);
        assert!(gradient.iter().all(|g| g.is_finite()), "{gradient:?}");
    });
}

#[test]
fn classes_that_are_impossible_by_the_logits_cost_nothing_unless_they_are_wanted() {
    in_every_form(|| {
        let x = Var::from_tensor(&tensor(&[[0., 0., -INF]])).unwrap();
        let class = |c: u32| Tensor::new(&[c], &Device::Cpu).unwrap();
        let loss = cross_entropy(&x, &class(0)).unwrap();
        TRAJECTORY_F64.assert("loss", values(&loss)[0], 2f64.ln());
        let gradient = values(loss.backward().unwrap().get(&x).unwrap());
        assert_eq!(gradient, [-0.5, 0.5, 0.]);
        assert_eq!(values(&cross_entropy(&x, &class(2)).unwrap()), [INF]);
    });
}

#[test]
fn wrong_arguments_are_refused() {
    let x = normal("x", &[2, 3]);
    let of = |v: &[i64]| Tensor::new(v, &Device::Cpu).unwrap();
    let (empty, integers) = (normal("x", &[2, 0]), of(&[1, 2]));
    refused(softmax(&empty, 1), &["softmax", "x", "[2, 0]"]);
    refused(softmax(&integers, 0), &["softmax", "x", "I64"]);
    assert!(softmax(&x, 2).is_err());
    refused(log_softmax(&empty, 1), &["log_softmax", "x", "[2, 0]"]);
    let mask = |dims: &[usize], dtype| Tensor::ones(dims, dtype, &Device::Cpu).unwrap();
    let on = |mask: Tensor| masked_softmax(&x, &mask, 1);
    refused(
        on(mask(&[2, 2], DType::U8)),
        &["masked_softmax", "mask", "[2, 3]", "[2, 2]"],
    );
    refused(on(mask(&[1, 2, 3], DType::U8)), &["mask", "[1, 2, 3]"]);
    refused(on(mask(&[3], DType::U32)), &["mask", "F64", "U32"]);
    refused(on(mask(&[3], DType::F32)), &["mask", "F64", "F32"]);

    let op = "cross_entropy";
    refused(cross_entropy(&empty, &integers), &[op, "logits", "[2, 0]"]);
    refused(
        cross_entropy(&x, &of(&[1, 3])),
        &[op, "targets", "0..3", "got 3"],
    );
    refused(cross_entropy(&x, &of(&[-1, 0])), &[op, "targets", "got -1"]);
    refused(cross_entropy(&x, &of(&[1])), &[op, "targets", "[2]", "[1]"]);
    refused(
        cross_entropy(&x, &normal("t", &[2])),
        &[op, "targets", "[2, 3]", "[2]"],
    );
    let most = Tensor::new(&[u32::MAX, 0], &Device::Cpu).unwrap();
    refused(
        cross_entropy(&x, &most),
        &[op, "targets", "0..3", "4294967295"],
    );
    let smoothed = |label_smoothing| CrossEntropy {
        label_smoothing,
        ..Default::default()
    };
    refused(
        smoothed(1.5).forward(&x, &integers),
        &[op, "label_smoothing", "1.5"],
    );
    refused(
        smoothed(f64::NAN).forward(&x, &integers),
        &[op, "label_smoothing"],
    );
    let ignoring = CrossEntropy {
        ignore_index: Some(1),
        ..Default::default()
    };
    refused(ignoring.forward(&x, &of(&[1, 1])), &[op, "targets", "none"]);
    refused(ignoring.forward(&x, &x), &[op, "ignore_index", "got 1"]);
}
