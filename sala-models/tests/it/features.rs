//! GELU, `SiLU`, rotary embedding and embedding: gradients, properties, errors. Values are in
//! `reference`.

use candle_core::{DType, Device, Tensor, Var};
use sala_core::testing::TRAJECTORY_F64;
use sala_models::{
    VarStore,
    ops::{Embedding, Rope, RopePairs, embedding, gelu, gelu_tanh, relu6, rope, silu},
};

use crate::gradcheck::{
    check, check_half, check_layouts, normal, normal_var, refused, values, weighted_sum,
};

const BOTH: [RopePairs; 2] = [RopePairs::Halves, RopePairs::Interleaved];

fn table(features: usize, positions: usize, pairs: RopePairs, dtype: DType) -> Rope {
    Rope::new(features, positions, 50.0, pairs, dtype, &Device::Cpu).unwrap()
}

#[test]
fn gradients_of_activations_agree_with_differences() {
    let shapes: [&[usize]; 3] = [&[1], &[3, 1], &[2, 3, 5]];
    for dims in shapes {
        check_layouts(dims, |x| gelu(&(x * 3.0)?));
        check_layouts(dims, |x| gelu_tanh(&(x * 3.0)?));
        check_layouts(dims, silu);
        check_layouts(dims, |x| relu6(&(x * 5.0)?));
    }
}

#[test]
fn gradients_of_the_rotary_embedding_agree_with_differences() {
    for pairs in BOTH {
        let rope = table(4, 9, pairs, DType::F64);
        let shapes: [&[usize]; 3] = [&[1, 4], &[5, 4], &[1, 2, 3, 4]];
        for dims in shapes {
            check_layouts(dims, |x| rope.forward(x, 4));
        }
        check_layouts(&[3, 2], |x| table(2, 3, pairs, DType::F64).forward(x, 0));
    }
}

#[test]
fn half_precision_is_computed_in_f32() {
    check_half(&[7, 9], gelu);
    check_half(&[7, 9], gelu_tanh);
    check_half(&[7, 9], silu);
    check_half(&[7, 9], |x| relu6(&(x * 4.0)?));
    for pairs in BOTH {
        let rope = table(6, 300, pairs, DType::BF16);
        check_half(&[2, 4, 6], |x| rope.forward(x, 290));
    }
}

#[test]
fn far_tails_are_finite() {
    for op in [gelu, gelu_tanh, silu] {
        let x = Var::new(&[-1e4f32, -100., 100., 1e4], &Device::Cpu).unwrap();
        let y = op(&x).unwrap();
        // -0.0 is equal to 0.0.
        assert_eq!(values(&y), [0., 0., 100., 1e4]);
        let gradient = y.sum_all().unwrap().backward().unwrap();
        assert_eq!(values(gradient.get(&x).unwrap()), [0., 0., 1., 1.]);
    }
}

/// What a rotary embedding is for: a product of queries and keys depends on their distance only.
#[test]
fn products_depend_on_the_distance_of_positions() {
    for pairs in BOTH {
        let rope = table(6, 40, pairs, DType::F64);
        let (q, k) = (normal("q", &[1, 6]), normal("k", &[1, 6]));
        let product = |at: usize, other: usize| {
            let (q, k) = (
                rope.forward(&q, at).unwrap(),
                rope.forward(&k, other).unwrap(),
            );
            values(&(q * k).unwrap()).iter().sum::<f64>()
        };
        TRAJECTORY_F64.assert("near and far", product(30, 27), product(3, 0));
        assert!((product(3, 0) - product(4, 0)).abs() > 1e-3);
    }
}

#[test]
fn angles_of_far_positions_keep_their_digits() {
    let rope = Rope::new(
        2,
        100_001,
        10_000.0,
        RopePairs::Halves,
        DType::F32,
        &Device::Cpu,
    )
    .unwrap();
    let x = Tensor::new(&[[1f32, 0.]], &Device::Cpu).unwrap();
    let got = values(&rope.forward(&x, 100_000).unwrap());
    let wanted = Tensor::new(&[1e5f64.cos(), 1e5f64.sin()], &Device::Cpu).unwrap();
    assert_eq!(got, values(&wanted.to_dtype(DType::F32).unwrap()));
}

#[test]
fn rows_that_occur_often_gather_all_their_gradients() {
    // In bf16 a running sum of ones stops at 256.
    for (dtype, often) in [(DType::F64, 3), (DType::BF16, 1024)] {
        let table = Var::zeros((3, 2), dtype, &Device::Cpu).unwrap();
        let mut indices = vec![1u32; often];
        indices.push(2);
        let indices = Tensor::new(indices, &Device::Cpu).unwrap();
        let y = embedding(&table, &indices).unwrap();
        assert_eq!(y.dtype(), dtype);
        let gradient = y.sum_all().unwrap().backward().unwrap();
        let often = often as f64;
        assert_eq!(
            values(gradient.get(&table).unwrap()),
            [0., 0., often, often, 1., 1.]
        );
    }
}

#[test]
fn gradients_of_the_embedding_agree_with_differences_for_any_indices() {
    let indices = Tensor::new(&[[[3u8, 0], [3, 3]], [[1, 0], [0, 3]]], &Device::Cpu).unwrap();
    let narrowed = indices.transpose(0, 2).unwrap().narrow(1, 1, 1).unwrap();
    for indices in [indices, narrowed] {
        check_layouts(&[4, 3], |table| embedding(table, &indices));
    }
    let one = Tensor::new(0i64, &Device::Cpu).unwrap();
    check_layouts(&[1, 1], |table| embedding(table, &one));
}

#[test]
fn the_embedding_layer_learns_and_starts_standard_normal() {
    let store = VarStore::new(4, DType::F64, &Device::Cpu);
    let layer = Embedding::new(200, 10, store.builder()).unwrap();
    let start = values(layer.weight());
    let square = start.iter().map(|v| v * v).sum::<f64>() / start.len() as f64;
    assert!((square - 1.0).abs() < 0.1, "{square}");
    let y = layer
        .forward(&Tensor::new(&[5u32], &Device::Cpu).unwrap())
        .unwrap();
    assert_eq!(values(&y), start[50..60]);
    let gradients = y.sum_all().unwrap().backward().unwrap();
    assert!(gradients.get(&store.trainable()[0].1).is_some());
}

#[test]
fn tables_of_the_rotary_embedding_are_differentiated_when_they_are_given() {
    let (cos, sin) = (normal_var("cos", &[3, 2]), normal_var("sin", &[3, 2]));
    let x = normal("x", &[2, 3, 4]);
    for pairs in BOTH {
        check(
            &[("cos".into(), cos.clone()), ("sin".into(), sin.clone())],
            || weighted_sum(&rope(&x, &cos, &sin, pairs)?),
        );
    }
}

#[test]
fn wrong_arguments_are_refused() {
    let integers = Tensor::new(&[1u32], &Device::Cpu).unwrap();
    let empty = normal("x", &[0, 2]);
    refused(gelu(&integers), &["gelu", "x", "U32"]);
    refused(gelu_tanh(&empty), &["gelu_tanh", "x", "[0, 2]"]);
    refused(silu(&empty), &["silu", "x", "[0, 2]"]);

    let new = |features, positions, base, dtype| {
        Rope::new(
            features,
            positions,
            base,
            RopePairs::Halves,
            dtype,
            &Device::Cpu,
        )
    };
    refused(
        new(3, 5, 10., DType::F32),
        &["rope", "features", "even", "3"],
    );
    refused(new(0, 5, 10., DType::F32), &["rope", "features", "0"]);
    refused(new(4, 0, 10., DType::F32), &["rope", "positions", "0"]);
    refused(new(4, 5, -1., DType::F32), &["rope", "base", "-1"]);
    refused(new(4, 5, 10., DType::U32), &["rope", "dtype", "U32"]);
    let rope = new(4, 5, 10., DType::F32).unwrap();
    let x = Tensor::zeros((2, 4), DType::F32, &Device::Cpu).unwrap();
    assert!(rope.forward(&x, 3).is_ok());
    refused(rope.forward(&x, 4), &["rope", "offset", "5", "got 4"]);
    refused(rope.forward(&x, usize::MAX), &["rope", "offset"]);
    refused(
        rope.forward(&x.to_dtype(DType::F64).unwrap(), 0),
        &["rope", "cos", "F64", "F32"],
    );
    refused(
        rope.forward(&x.narrow(1, 0, 2).unwrap(), 0),
        &["rope", "cos", "(2, 1)", "[2, 2]"],
    );
    refused(
        rope.forward(&x.narrow(1, 0, 3).unwrap(), 0),
        &["rope", "x", "even", "[2, 3]"],
    );
    refused(rope.forward(&x.get(0).unwrap(), 0), &["rope", "x", "[4]"]);

    let table = normal("table", &[4, 2]);
    let of = |v: &[i64]| Tensor::new(v, &Device::Cpu).unwrap();
    let op = "embedding";
    refused(
        embedding(&table, &of(&[0, 4])),
        &[op, "indices", "0..4", "got 4"],
    );
    refused(embedding(&table, &of(&[-1])), &[op, "indices", "got -1"]);
    let most = Tensor::new(&[u32::MAX], &Device::Cpu).unwrap();
    refused(embedding(&table, &most), &[op, "indices", "4294967295"]);
    let none = Tensor::zeros((0, 3), DType::U32, &Device::Cpu).unwrap();
    refused(embedding(&table, &none), &[op, "indices", "[0, 3]"]);
    refused(
        embedding(&table, &table),
        &[op, "indices", "integer", "F64"],
    );
    refused(
        embedding(&table.get(0).unwrap(), &of(&[0])),
        &[op, "table", "[2]"],
    );
    let store = VarStore::new(4, DType::F64, &Device::Cpu);
    assert!(Embedding::new(0, 2, store.builder()).is_err());
    assert!(Embedding::new(2, 0, store.builder()).is_err());
}
