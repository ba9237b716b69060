//! Initialisation, shapes and gradients of linear layers and convolutions.

use candle_core::{DType, Device, Module, Tensor};
use sala_models::{
    Mode, Rng, VarStore,
    ops::{Conv2d, Conv2dConfig, Dropout, Linear, add, linear, relu, relu6},
};

use crate::gradcheck::{check, check_layouts, normal, normal_var, refused, values, weighted_sum};

fn store() -> VarStore {
    VarStore::new(5, DType::F64, &Device::Cpu)
}

/// Largest magnitude and root mean square.
fn extent(store: &VarStore, name: &str) -> (f64, f64) {
    let v = values(&store.get(name).unwrap());
    let squares = v.iter().map(|x| x * x).sum::<f64>();
    (
        v.iter().fold(0_f64, |m, x| m.max(x.abs())),
        (squares / v.len() as f64).sqrt(),
    )
}

#[test]
fn initial_values_fill_the_range_of_one_over_the_root_of_the_fan_in() {
    let store = store();
    Linear::new(400, 100, store.builder().pp("l")).unwrap();
    let grouped = Conv2dConfig {
        groups: 2,
        ..Default::default()
    };
    Conv2d::new(32, 64, 3, grouped, store.builder().pp("c")).unwrap();
    // 16 channels of a group times 9 places.
    for (name, bound) in [
        ("l.weight", 1.0 / 20.0),
        ("l.bias", 1.0 / 20.0),
        ("c.weight", 1.0 / 12.0),
        ("c.bias", 1.0 / 12.0),
    ] {
        let (largest, rms) = extent(&store, name);
        assert!(
            largest <= bound && largest > 0.9 * bound,
            "{name} {largest}"
        );
        let wanted = bound / 3_f64.sqrt();
        assert!((rms / wanted - 1.0).abs() < 0.2, "{name} {rms}");
    }
}

#[test]
fn gradients_agree_with_differences() {
    let store = store();
    let l = Linear::new(3, 2, store.builder().pp("l")).unwrap();
    let strided = Conv2dConfig::same(3, 2);
    let c = Conv2d::new(2, 3, 3, strided, store.builder().pp("c")).unwrap();
    let (features, images) = (normal_var("f", &[4, 3]), normal_var("i", &[2, 2, 5, 5]));
    let mut vars = store.trainable();
    vars.push(("features".into(), features.clone()));
    vars.push(("images".into(), images.clone()));
    check(&vars, || {
        weighted_sum(&l.forward(&features)?)? + weighted_sum(&c.forward(&images)?)?
    });
}

#[test]
fn layers_without_bias_have_none() {
    let store = store();
    assert!(
        Linear::without_bias(3, 2, store.builder().pp("l"))
            .unwrap()
            .bias()
            .is_none()
    );
    let plain = Conv2dConfig::default();
    assert!(
        Conv2d::without_bias(3, 2, 1, plain, store.builder().pp("c"))
            .unwrap()
            .bias()
            .is_none()
    );
    assert_eq!(store.all().len(), 2);
}

#[test]
fn sizes_that_make_no_layer_are_refused_and_leave_nothing_behind() {
    let store = store();
    let config = |groups| Conv2dConfig {
        groups,
        ..Default::default()
    };
    let vb = || store.builder();
    assert!(Linear::new(0, 2, vb()).is_err());
    assert!(Linear::without_bias(2, 0, vb()).is_err());
    assert!(Conv2d::new(2, 2, 0, config(1), vb()).is_err());
    assert!(Conv2d::new(2, 2, 1, config(0), vb()).is_err());
    let error = Conv2d::without_bias(3, 4, 1, config(2), vb())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("groups") && error.contains("got 2"),
        "{error}"
    );
    assert!(store.all().is_empty());
}

#[test]
fn products_and_sums_have_the_gradients_of_differences_in_any_layout() {
    for [rows, inputs, outputs] in [[1, 1, 1], [3, 1, 2], [1, 5, 1], [4, 3, 7]] {
        let (x, weight) = (
            normal("x", &[rows, inputs]),
            normal("w", &[outputs, inputs]),
        );
        let bias = normal("b", &[outputs]);
        check_layouts(&[rows, inputs], |x| linear(x, &weight, Some(&bias)));
        check_layouts(&[outputs, inputs], |weight| linear(&x, weight, Some(&bias)));
        check_layouts(&[outputs], |bias| linear(&x, &weight, Some(bias)));
        check_layouts(&[rows, inputs], |a| add(a, &x));
        check_layouts(&[rows, inputs], |b| add(&x, b));
    }
}

#[test]
fn wrong_arguments_are_refused_with_both_values() {
    let of = |dims: &[usize]| normal("x", dims);
    let integers = Tensor::zeros((2, 3), DType::U32, &Device::Cpu).unwrap();
    let (x, weight) = (of(&[2, 3]), of(&[4, 3]));
    let narrow = |t: &Tensor| t.to_dtype(DType::F32).unwrap();
    let op = "linear";
    let product = |x: &Tensor, weight: &Tensor| linear(x, weight, None);
    refused(product(&of(&[0, 3]), &weight), &[op, "x", "[0, 3]"]);
    refused(product(&integers, &weight), &[op, "x", "f32", "U32"]);
    refused(
        product(&x, &of(&[4, 2])),
        &[op, "weight", "(O, 3)", "[4, 2]"],
    );
    refused(product(&x, &of(&[3])), &[op, "weight", "(O, 3)", "[3]"]);
    refused(product(&x, &narrow(&weight)), &[op, "weight", "F64", "F32"]);
    let with = |bias: &Tensor| linear(&x, &weight, Some(bias));
    refused(with(&of(&[3])), &[op, "bias", "(4)", "[3]"]);
    refused(with(&narrow(&of(&[4]))), &[op, "bias", "F64", "F32"]);

    refused(add(&x, &of(&[3, 2])), &["add", "b", "[2, 3]", "[3, 2]"]);
    refused(add(&x, &narrow(&x)), &["add", "b", "F64", "F32"]);
    refused(add(&of(&[0]), &of(&[0])), &["add", "a", "[0]"]);
    refused(relu(&integers), &["relu", "x", "f32", "U32"]);
    refused(relu6(&of(&[0, 2])), &["relu6", "x", "[0, 2]"]);
    let dropout = Dropout::new(0.5, Rng::new(0).stream("d")).unwrap();
    let dropped = |x: &Tensor| dropout.forward(x, Mode::train(0));
    refused(dropped(&integers), &["dropout", "x", "f32", "U32"]);
    refused(dropped(&of(&[0, 2])), &["dropout", "x", "[0, 2]"]);
}
