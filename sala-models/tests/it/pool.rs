//! Max pooling: values, gradients, and the defect of candle's that it avoids.

use candle_core::{Device, Tensor};
use sala_models::ops::max_pool2d;

use crate::gradcheck::{check, normal, normal_var, values, weighted_sum};

#[test]
fn values_agree_with_those_of_candle() {
    for (dims, size) in [
        (vec![2, 3, 4, 6], 2),
        (vec![1, 2, 7, 5], 2),
        (vec![2, 1, 9, 7], 3),
    ] {
        let x = normal("x", &dims);
        let (ours, theirs) = (max_pool2d(&x, size).unwrap(), x.max_pool2d(size).unwrap());
        assert_eq!(ours.dims(), theirs.dims());
        assert_eq!(values(&ours), values(&theirs));
    }
}

#[test]
fn gradients_agree_with_differences_also_when_windows_do_not_fill_the_image() {
    for (dims, size) in [
        (vec![2, 3, 4, 6], 2),
        (vec![1, 2, 7, 5], 2),
        (vec![2, 1, 5, 4], 3),
        (vec![2, 2, 2, 2], 1),
    ] {
        let x = normal_var("x", &dims);
        check(&[("x".into(), x.clone())], || {
            weighted_sum(&max_pool2d(&x, size)?)
        });
    }
}

#[test]
fn gradients_agree_for_an_input_with_other_strides() {
    let x = normal_var("x", &[2, 4, 4, 3]);
    check(&[("x".into(), x.clone())], || {
        weighted_sum(&max_pool2d(&x.permute((0, 3, 1, 2))?, 2)?)
    });
}

#[test]
fn equal_entries_share_one_gradient() {
    let x = candle_core::Var::new(&[[[[1f64, 1.], [1., 1.]]]], &Device::Cpu).unwrap();
    let grads = max_pool2d(&x, 2)
        .unwrap()
        .sum_all()
        .unwrap()
        .backward()
        .unwrap();
    assert_eq!(values(grads.get(&x).unwrap()), [1., 0., 0., 0.]);
}

/// Fails when candle repairs its backward: then [`max_pool2d`] may hand over to it.
#[test]
fn regression_the_backward_of_candle_is_too_small_by_the_window() {
    let x = candle_core::Var::new(&[[[[1f64, 2.], [3., 4.]]]], &Device::Cpu).unwrap();
    let gradient = |y: Tensor| values(y.sum_all().unwrap().backward().unwrap().get(&x).unwrap());
    assert_eq!(gradient(max_pool2d(&x, 2).unwrap()), [0., 0., 0., 1.]);
    assert_eq!(gradient(x.max_pool2d(2).unwrap()), [0., 0., 0., 0.25]);
}

#[test]
fn wrong_inputs_are_refused() {
    for (dims, size) in [
        (vec![2, 3, 4], 2),
        (vec![1, 1, 1, 4], 2),
        (vec![1, 1, 4, 4], 0),
    ] {
        let text = max_pool2d(&normal("x", &dims), size)
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("max_pool2d") && text.contains(&format!("{dims:?}")),
            "{text}"
        );
    }
}
