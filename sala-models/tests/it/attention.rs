//! Attention: gradients, masks, shared heads, errors. Values are in `reference`.

use candle_core::{DType, Device, Result, Tensor};
use sala_core::testing::TRAJECTORY_F64;
use sala_models::{
    Mode, Rng,
    ops::{Attention, Dropout},
};

use crate::gradcheck::{
    check, check_half, in_every_form, normal, normal_var, refused, values, weighted_sum,
};

const PLAIN: Attention = Attention {
    causal: false,
    scale: None,
    dropout: None,
};
const CAUSAL: Attention = Attention {
    causal: true,
    scale: None,
    dropout: None,
};

fn bytes<const N: usize>(rows: &[[u8; 3]; N]) -> Tensor {
    Tensor::new(rows, &Device::Cpu).unwrap()
}

/// Checks the gradients for 4 heads of queries and 2 of keys, seen through strides as networks
/// make them: `(B, T, H, D)` with heads and positions exchanged.
fn check_gradients(attention: Attention, queries: usize, mask: Option<&Tensor>) {
    let q = normal_var("q", &[2, queries, 4, 2]);
    let k = normal_var("k", &[2, 3, 2, 2]);
    let v = normal_var("v", &[2, 3, 2, 1]);
    let vars = [
        ("q".into(), q.clone()),
        ("k".into(), k.clone()),
        ("v".into(), v.clone()),
    ];
    check(&vars, || {
        let (q, k, v) = (q.transpose(1, 2)?, k.transpose(1, 2)?, v.transpose(1, 2)?);
        weighted_sum(&attention.forward(&q, &k, &v, mask)?)
    });
}

#[test]
fn gradients_agree_with_differences_under_every_mask() {
    let padding = bytes(&[[1, 1, 0], [1, 0, 0]])
        .reshape((2, 1, 1, 3))
        .unwrap();
    let blind = bytes(&[[1, 0, 1], [0, 0, 0]]);
    for (attention, queries, mask) in [
        (PLAIN, 1, None),
        (PLAIN, 5, None),
        (CAUSAL, 3, None),
        (CAUSAL, 2, None),
        (PLAIN, 2, Some(&padding)),
        (CAUSAL, 3, Some(&padding)),
        (PLAIN, 2, Some(&blind)),
        (CAUSAL, 2, Some(&normal("bias", &[4, 1, 3]))),
    ] {
        check_gradients(attention, queries, mask);
    }
}

#[test]
fn gradients_agree_with_differences_under_dropout() {
    let dropout = Dropout::new(0.3, Rng::new(1).stream("shares")).unwrap();
    let dropping = Attention {
        dropout: dropout.mask(Mode::train(2)),
        ..CAUSAL
    };
    check_gradients(dropping, 3, None);
    check_gradients(dropping, 2, None);
}

#[test]
fn an_added_mask_receives_its_gradient() {
    let (q, k) = (normal("q", &[1, 2, 3, 2]), normal("k", &[1, 1, 4, 2]));
    let bias = normal_var("bias", &[2, 3, 4]);
    for attention in [PLAIN, CAUSAL] {
        check(&[("bias".into(), bias.clone())], || {
            weighted_sum(&attention.forward(&q, &k, &k, Some(&bias))?)
        });
    }
}

#[test]
fn shared_keys_are_the_same_as_repeated_ones() {
    in_every_form(|| {
        let (q, k) = (normal("q", &[2, 6, 3, 4]), normal("k", &[2, 2, 5, 4]));
        let repeated: Vec<Tensor> = (0..6).map(|h| k.narrow(1, h / 3, 1).unwrap()).collect();
        let repeated = Tensor::cat(&repeated, 1).unwrap();
        let wanted = PLAIN.forward(&q, &repeated, &repeated, None).unwrap();
        let got = PLAIN.forward(&q, &k, &k, None).unwrap();
        TRAJECTORY_F64.assert_tensors("grouped", &got, &wanted);
    });
}

#[test]
fn the_future_does_not_matter_and_the_last_query_stands_at_the_last_key() {
    in_every_form(|| {
        let whole = normal("x", &[1, 2, 5, 4]);
        let all = CAUSAL.forward(&whole, &whole, &whole, None).unwrap();
        for length in 1..5 {
            let part = whole.narrow(2, 0, length).unwrap();
            let got = CAUSAL.forward(&part, &part, &part, None).unwrap();
            let wanted = all.narrow(2, 0, length).unwrap();
            TRAJECTORY_F64.assert_tensors("prefix", &got, &wanted);
            // As in decoding with cached keys.
            let last = whole.narrow(2, 5 - length, length).unwrap();
            let got = CAUSAL.forward(&last, &whole, &whole, None).unwrap();
            let wanted = all.narrow(2, 5 - length, length).unwrap();
            TRAJECTORY_F64.assert_tensors("last queries", &got, &wanted);
        }
    });
}

#[test]
fn causal_and_boolean_masks_add_up_whatever_number_says_yes() {
    in_every_form(|| {
        let x = normal("x", &[1, 1, 3, 2]);
        let mask = bytes(&[[128, 2, 1], [0, 128, 1], [2, 0, 128]]);
        let both = bytes(&[[1, 0, 0], [0, 1, 0], [1, 0, 1]]);
        let got = CAUSAL.forward(&x, &x, &x, Some(&mask)).unwrap();
        let wanted = PLAIN.forward(&x, &x, &x, Some(&both)).unwrap();
        assert_eq!(values(&got), values(&wanted));
    });
}

#[test]
fn half_precision_is_computed_in_f32() {
    // Parts of one tensor, because gradients of one that is used three times are added in half precision.
    let parts = |x: &Tensor| -> Result<Vec<Tensor>> { (0..3).map(|i| x.narrow(0, i, 1)).collect() };
    check_half(&[3, 2, 7, 16], |x| {
        let part = parts(x)?;
        CAUSAL.forward(&part[0], &part[1], &part[2], None)
    });
    let bias = normal("bias", &[7, 7]).to_dtype(DType::F32).unwrap();
    check_half(&[3, 2, 7, 16], |x| {
        let part = parts(x)?;
        PLAIN.forward(&part[0], &part[1], &part[2], Some(&bias))
    });
}

#[test]
fn wrong_arguments_are_refused() {
    let of = |dims: &[usize]| normal("x", dims);
    let run = |q: &[usize], k: &[usize], v: &[usize]| -> Result<Tensor> {
        PLAIN.forward(&of(q), &of(k), &of(v), None)
    };
    let op = "attention";
    let (q, k) = ([2, 4, 3, 2], [2, 2, 3, 2]);
    refused(run(&q[1..], &k, &k), &[op, "q", "[4, 3, 2]"]);
    refused(run(&q, &k[1..], &k), &[op, "k", "[2, 3, 2]"]);
    refused(
        run(&q, &[2, 3, 3, 2], &k),
        &[op, "k", "divides 4", "[2, 3, 3, 2]"],
    );
    refused(
        run(&q, &[1, 2, 3, 2], &k),
        &[op, "k", "(2, G", "[1, 2, 3, 2]"],
    );
    refused(
        run(&q, &[2, 2, 3, 1], &k),
        &[op, "k", "S, 2)", "[2, 2, 3, 1]"],
    );
    refused(
        run(&q, &k, &[2, 2, 4, 2]),
        &[op, "v", "(2, 2, 3, E)", "[2, 2, 4, 2]"],
    );
    refused(
        run(&q, &[2, 2, 0, 2], &[2, 2, 0, 2]),
        &[op, "k", "[2, 2, 0, 2]"],
    );
    refused(run(&[0, 4, 3, 2], &k, &k), &[op, "q", "[0, 4, 3, 2]"]);
    let (q, k) = (of(&q), of(&k));
    let narrow = k.to_dtype(DType::F32).unwrap();
    refused(
        PLAIN.forward(&q, &k, &narrow, None),
        &[op, "v", "F64", "F32"],
    );
    let masked = |mask: Tensor| PLAIN.forward(&q, &k, &k, Some(&mask));
    refused(masked(of(&[2, 3])), &[op, "mask", "[2, 4, 3, 3]", "[2, 3]"]);
    refused(
        masked(of(&[3, 3]).to_dtype(DType::F32).unwrap()),
        &[op, "mask", "F32"],
    );
    refused(
        masked(of(&[3, 3]).to_dtype(DType::U32).unwrap()),
        &[op, "mask", "U32"],
    );
    let scaled = |scale| Attention {
        scale: Some(scale),
        ..PLAIN
    };
    refused(
        scaled(f64::NAN).forward(&q, &k, &k, None),
        &[op, "scale", "NaN"],
    );
    let short = k.narrow(2, 0, 2).unwrap();
    refused(
        CAUSAL.forward(&q, &short, &short, None),
        &[op, "q", "at most 2", "got 3"],
    );
}

// Catches shares that are not divided by what is kept, or dropped more or less often than asked for.
#[test]
fn dropout_of_shares_keeps_their_mean() {
    const DRAWS: u64 = 2000;
    let dropout = Dropout::new(0.4, Rng::new(3).stream("shares")).unwrap();
    let [q, k, v] = ["q", "k", "v"].map(|name| normal(name, &[1, 2, 2, 3]));
    in_every_form(|| {
        let of = |mode| {
            let attention = Attention {
                dropout: dropout.mask(mode),
                ..PLAIN
            };
            values(&attention.forward(&q, &k, &v, None).unwrap())
        };
        let drawn: Vec<Vec<f64>> = (0..DRAWS).map(|draw| of(Mode::train(draw))).collect();
        for (i, wanted) in of(Mode::eval()).into_iter().enumerate() {
            let each = drawn.iter().map(|y| y[i]);
            let mean = each.clone().sum::<f64>() / DRAWS as f64;
            let variance = each.map(|y| (y - mean).powi(2)).sum::<f64>() / DRAWS as f64;
            // Five standard errors, which are about a hundredth of the values.
            let error = 5.0 * (variance / DRAWS as f64).sqrt();
            assert!((mean - wanted).abs() < error, "{i}: {mean} for {wanted}");
        }
    });
}
