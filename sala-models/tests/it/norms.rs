//! Layer and RMS norm: gradients, precision, parameters, errors. Values are in `reference`.

use candle_core::{DType, Device, Tensor};
use sala_core::testing::TRAJECTORY_F32;
use sala_models::{
    VarStore,
    ops::{LayerNorm, RmsNorm, layer_norm, rms_norm},
};

use crate::gradcheck::{
    FAST, check, check_half_of, check_layouts, normal, normal_var, refused, values, weighted_sum,
};

/// Rows of one value, a single row, and odd sizes.
const SHAPES: [&[usize]; 5] = [&[1], &[5], &[3, 1], &[1, 4], &[2, 3, 5]];

#[test]
fn gradients_agree_with_differences_for_the_input_and_the_parameters() {
    for dims in SHAPES {
        let size = dims[dims.len() - 1];
        let (weight, bias) = (normal_var("weight", &[size]), normal_var("bias", &[size]));
        check_layouts(dims, |x| layer_norm(x, &weight, Some(&bias), 0.1));
        check_layouts(dims, |x| layer_norm(x, &weight, None, 0.1));
        check_layouts(dims, |x| rms_norm(x, &weight, 0.1));
        let x = normal("x", dims);
        check(
            &[
                ("weight".into(), weight.clone()),
                ("bias".into(), bias.clone()),
            ],
            || {
                let layer = weighted_sum(&layer_norm(&x, &weight, Some(&bias), 0.1)?)?;
                layer + weighted_sum(&rms_norm(&x, &weight, 0.1)?)?
            },
        );
    }
}

#[test]
fn half_precision_is_computed_in_f32() {
    let (weight, bias) = (normal("weight", &[33]), normal("bias", &[33]));
    check_half_of(&FAST, &[4, 33], |x| {
        let (weight, bias) = (weight.to_dtype(DType::F32)?, bias.to_dtype(DType::F32)?);
        layer_norm(x, &weight, Some(&bias), 1e-5)
    });
    check_half_of(&FAST, &[4, 33], |x| {
        rms_norm(x, &weight.to_dtype(DType::F32)?, 1e-5)
    });
}

#[test]
fn a_large_mean_does_not_cost_the_digits_of_a_small_spread() {
    // The mean of squares is 1e8, whose neighbours in f32 are 8 apart.
    let x = (normal("x", &[3, 40]) + 1e4)
        .unwrap()
        .to_dtype(DType::F32)
        .unwrap();
    let weight = Tensor::ones(40, DType::F64, &Device::Cpu).unwrap();
    let wanted = layer_norm(&x.to_dtype(DType::F64).unwrap(), &weight, None, 1e-5).unwrap();
    let got = layer_norm(&x, &weight.to_dtype(DType::F32).unwrap(), None, 1e-5).unwrap();
    for (got, wanted) in values(&got).into_iter().zip(values(&wanted)) {
        assert!((got - wanted).abs() < 1e-2, "{got} {wanted}");
    }
}

#[test]
fn layers_start_as_the_plain_normalisation_and_all_their_parameters_learn() {
    let store = VarStore::new(3, DType::F32, &Device::Cpu);
    let vb = store.builder();
    let layer = LayerNorm::new(5, 1e-5, vb.pp("layer")).unwrap();
    let plain = LayerNorm::without_bias(5, 1e-5, vb.pp("plain")).unwrap();
    let rms = RmsNorm::new(5, 1e-5, vb.pp("rms")).unwrap();
    let x = normal("x", &[4, 5]).to_dtype(DType::F32).unwrap();
    let ones = x.ones_like().unwrap().get(0).unwrap();
    let y = layer.forward(&x).unwrap();
    let wanted = layer_norm(&x, &ones, None, 1e-5).unwrap();
    TRAJECTORY_F32.assert_tensors("at the start", &y, &wanted);
    let all = (y + plain.forward(&x).unwrap()).unwrap() + rms.forward(&x).unwrap();
    let gradients = all
        .unwrap()
        .sqr()
        .unwrap()
        .sum_all()
        .unwrap()
        .backward()
        .unwrap();
    let names: Vec<_> = store
        .trainable()
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(
        names,
        ["layer.bias", "layer.weight", "plain.weight", "rms.weight"]
    );
    for (name, var) in store.trainable() {
        let gradient = values(gradients.get(&var).unwrap());
        assert!(gradient.iter().all(|g| *g != 0.0), "{name} {gradient:?}");
    }
}

#[test]
fn wrong_arguments_are_refused() {
    let (x, weight) = (normal("x", &[2, 3]), normal("w", &[3]));
    let f32 = weight.to_dtype(DType::F32).unwrap();
    let integers = Tensor::zeros((2, 3), DType::U32, &Device::Cpu).unwrap();
    for op in ["layer_norm", "rms_norm"] {
        let norm = |x: &Tensor, weight: &Tensor, eps| match op {
            "rms_norm" => rms_norm(x, weight, eps),
            _ => layer_norm(x, weight, None, eps),
        };
        refused(
            norm(&x, &normal("w", &[2]), 0.1),
            &[op, "weight", "(3)", "[2]"],
        );
        refused(norm(&x, &f32, 0.1), &[op, "weight", "F64", "F32"]);
        refused(norm(&x, &weight, 0.0), &[op, "eps", "positive", "0"]);
        refused(norm(&x, &weight, f64::NAN), &[op, "eps", "NaN"]);
        refused(norm(&integers, &weight, 0.1), &[op, "x", "f32", "U32"]);
        refused(
            norm(&normal("x", &[0, 3]), &weight, 0.1),
            &[op, "x", "[0, 3]"],
        );
        refused(norm(&normal("x", &[]), &weight, 0.1), &[op, "x", "rank 1"]);
    }
    refused(
        layer_norm(&x, &weight, Some(&x), 0.1),
        &["bias", "(3)", "[2, 3]"],
    );
    let store = VarStore::new(3, DType::F32, &Device::Cpu);
    assert!(LayerNorm::new(0, 0.1, store.builder()).is_err());
    assert!(LayerNorm::new(2, -1.0, store.builder()).is_err());
    assert!(RmsNorm::new(0, 0.1, store.builder()).is_err());
    assert!(store.all().is_empty());
}
