//! Fast forms against composed forms, over sizes that are cut into several pieces, and the same bits for
//! any number of threads.

use candle_core::{DType, Device, Result, Tensor, Var};
use sala_core::testing::{TRAJECTORY_F64, assert_same_bits};
use sala_models::{
    Mode, Rng,
    kernels::{Choice, with_choice},
    ops::{Attention, Conv2dConfig, Dropout, ImageFormat, conv2d, linear},
};

use crate::gradcheck::{FAST, FORMS, normal};

/// The result and all gradients of `op`, a function of normal inputs of some shapes.
fn run(shapes: &[&[usize]], dtype: DType, op: impl Fn(&[Tensor]) -> Result<Tensor>) -> Vec<Tensor> {
    let input = |(i, dims): (usize, &&[usize])| {
        let values = normal(&format!("input {i}"), dims).to_dtype(dtype).unwrap();
        Var::from_tensor(&values).unwrap()
    };
    let vars: Vec<Var> = shapes.iter().enumerate().map(input).collect();
    let inputs: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let y = op(&inputs).unwrap();
    let weights = normal("weights of the sum", y.dims())
        .to_dtype(dtype)
        .unwrap();
    let gradients = (&y * weights)
        .unwrap()
        .sum_all()
        .unwrap()
        .backward()
        .unwrap();
    let gradient = |var: &Var| gradients.get(var).unwrap().clone();
    std::iter::once(y)
        .chain(vars.iter().map(gradient))
        .collect()
}

fn largest(t: &Tensor) -> f64 {
    let t = t.to_dtype(DType::F64).unwrap().abs().unwrap();
    t.max_all().unwrap().to_scalar().unwrap()
}

/// In f64 both forms agree to rounding; in f32 the fast one is as near to it as sums of this length can be.
#[track_caller]
fn agree(what: &str, shapes: &[&[usize]], op: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let wanted = with_choice(Choice::Composed, || run(shapes, DType::F64, &op));
    for form in FAST {
        let exact = with_choice(form, || run(shapes, DType::F64, &op));
        let single = with_choice(form, || run(shapes, DType::F32, &op));
        for (i, ((exact, single), wanted)) in exact.iter().zip(&single).zip(&wanted).enumerate() {
            let what = format!("{what}, {form:?}, tensor {i}");
            TRAJECTORY_F64.assert_tensors(&what, exact, wanted);
            let off = largest(&(single.to_dtype(DType::F64).unwrap() - wanted).unwrap());
            let bound = 3e-6 * largest(wanted);
            assert!(off <= bound, "{what}: {off:e} over {bound:e}");
        }
    }
}

/// The same bits with one thread and with several.
fn repeatable(what: &str, shapes: &[&[usize]], op: impl Fn(&[Tensor]) -> Result<Tensor> + Sync) {
    let with_threads = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| run(shapes, DType::F32, &op))
    };
    let wanted = with_threads(1);
    for threads in [2, 3] {
        for (got, wanted) in with_threads(threads).iter().zip(&wanted) {
            assert_same_bits(what, got, wanted);
        }
    }
}

#[test]
fn linear_layers() {
    for (rows, inputs, outputs) in [
        (1, 1, 1),
        (7, 3, 5),
        // Deeper than a block of the right matrix, with more rows than a tile.
        (33, 390, 17),
        (600, 35, 50),
        (3, 700, 16),
        // A card's sum over rows has more parts than a team that adds them up has threads.
        (1500, 2, 128),
    ] {
        let shapes: [&[usize]; 3] = [&[rows, inputs], &[outputs, inputs], &[outputs]];
        let what = format!("linear {rows} {inputs} {outputs}");
        let with_bias = |t: &[Tensor]| linear(&t[0], &t[1], Some(&t[2]));
        agree(&what, &shapes, with_bias);
        agree(&what, &shapes[..2], |t| linear(&t[0], &t[1], None));
        repeatable(&what, &shapes, with_bias);
    }
}

#[test]
fn attentions() {
    for (batch, heads, groups, queries, keys, features, values) in [
        (1, 1, 1, 1, 1, 1, 1),
        (2, 4, 2, 5, 7, 3, 6),
        (1, 6, 1, 130, 140, 20, 18),
        (2, 2, 2, 37, 600, 33, 40),
    ] {
        let shapes: [&[usize]; 3] = [
            &[batch, heads, queries, features],
            &[batch, groups, keys, features],
            &[batch, groups, keys, values],
        ];
        let scores = (batch, heads, queries, keys);
        let uniform = normal("mask", &[batch, 1, queries, keys]);
        let seen = uniform.ge(-0.5).unwrap(); // some rows may see nothing
        let padding = normal("padding", &[batch, 1, 1, keys]).ge(-1.0).unwrap();
        for causal in [false, true] {
            let attention = Attention {
                causal,
                ..Default::default()
            };
            for mask in [None, Some(&seen), Some(&padding)] {
                let what = format!(
                    "attention {scores:?} causal {causal} {:?}",
                    mask.map(Tensor::dims)
                );
                let op = |t: &[Tensor]| attention.forward(&t[0], &t[1], &t[2], mask);
                agree(&what, &shapes, op);
                repeatable(&what, &shapes, op);
            }
            let dropout = Dropout::new(0.4, Rng::new(3).stream("shares")).unwrap();
            let dropping = Attention {
                dropout: dropout.mask(Mode::train(5)),
                ..attention
            };
            let dropped = |t: &[Tensor]| dropping.forward(&t[0], &t[1], &t[2], Some(&padding));
            agree("attention with dropout", &shapes, dropped);
            repeatable("attention with dropout", &shapes, dropped);
            let added = |t: &[Tensor]| {
                let bias = uniform.to_dtype(t[0].dtype())?;
                attention.forward(&t[0], &t[1], &t[2], Some(&bias))
            };
            agree("attention with an added mask", &shapes, added);
        }
    }
}

#[test]
fn attention_among_heads_side_by_side_is_that_of_parted_heads() {
    for (batch, heads, groups, queries, keys, size) in [
        (1, 1, 1, 1, 1, 1),
        (3, 4, 2, 5, 7, 3),
        (2, 6, 6, 70, 300, 17),
    ] {
        let shapes: [&[usize]; 3] = [
            &[batch, queries, heads * size],
            &[batch, keys, groups * size],
            &[batch, keys, groups * size],
        ];
        let mask = normal("mask", &[batch, 1, 1, keys]).ge(-1.0).unwrap();
        let attention = Attention {
            causal: true,
            ..Default::default()
        };
        let packed = |t: &[Tensor]| {
            attention.forward_packed(&t[0], &t[1], &t[2], (heads, groups), Some(&mask))
        };
        let parted = |t: &[Tensor]| {
            let part = |t: &Tensor, heads| t.reshape(((), t.dim(1)?, heads, size))?.transpose(1, 2);
            let (q, k, v) = (
                part(&t[0], heads)?,
                part(&t[1], groups)?,
                part(&t[2], groups)?,
            );
            attention
                .forward(&q, &k, &v, Some(&mask))?
                .transpose(1, 2)?
                .flatten_from(2)
        };
        agree("packed attention", &shapes, packed);
        repeatable("packed attention", &shapes, packed);
        let wanted = with_choice(Choice::Composed, || run(&shapes, DType::F64, parted));
        for form in FAST {
            let got = with_choice(form, || run(&shapes, DType::F64, packed));
            for (got, wanted) in got.iter().zip(&wanted) {
                TRAJECTORY_F64.assert_tensors("packed against parted", got, wanted);
            }
        }
    }
}

/// Half precision on a graphics card rounds the scores, the shares and the slopes of both, each once; its result may
/// be as far from f64 as a few such roundings.
#[test]
fn attention_of_half_precision_is_near_that_of_f64() {
    let (heads, groups, size) = (4, 2, 8);
    let shapes: [&[usize]; 3] = [
        &[2, 9, heads * size],
        &[2, 11, groups * size],
        &[2, 11, groups * size],
    ];
    let padding = normal("padding", &[2, 1, 1, 11]).ge(-1.0).unwrap();
    let added = normal("bias", &[9, 11]);
    let dropout = Dropout::new(0.4, Rng::new(3).stream("shares")).unwrap();
    let attention = Attention {
        causal: true,
        dropout: dropout.mask(Mode::train(5)),
        ..Default::default()
    };
    let tensors = |dtype, half, mask: &Tensor| {
        run(&shapes, dtype, |t| {
            let t = rounded(t, half)?;
            attention.forward_packed(&t[0], &t[1], &t[2], (heads, groups), Some(mask))
        })
    };
    for (dtype, rounding) in [(DType::BF16, 1.0 / 256.0), (DType::F16, 1.0 / 2048.0)] {
        let narrow = added.to_dtype(dtype).unwrap();
        let wide = narrow.to_dtype(DType::F64).unwrap();
        let single = narrow.to_dtype(DType::F32).unwrap();
        for (mask, wanted) in [(&padding, &padding), (&narrow, &wide), (&single, &wide)] {
            let wanted = with_choice(Choice::Composed, || tensors(DType::F64, dtype, wanted));
            for form in FORMS {
                let got = with_choice(form, || tensors(dtype, dtype, mask));
                for (i, (got, wanted)) in got.iter().zip(&wanted).enumerate() {
                    assert_eq!(got.dtype(), dtype);
                    let off = largest(&(got.to_dtype(DType::F64).unwrap() - wanted).unwrap());
                    let bound = 5.0 * rounding * largest(wanted);
                    assert!(
                        off <= bound,
                        "{form:?} {dtype:?} tensor {i}: {off:e} over {bound:e}"
                    );
                }
            }
        }
    }
}

#[test]
fn linear_layers_of_half_precision_are_rounded_a_few_times() {
    let shapes: [&[usize]; 3] = [&[6, 20], &[7, 20], &[7]];
    let op = |dtype, half| {
        run(&shapes, dtype, |t| {
            let t = rounded(t, half)?;
            linear(&t[0], &t[1], Some(&t[2]))
        })
    };
    for (dtype, rounding) in [(DType::BF16, 1.0 / 256.0), (DType::F16, 1.0 / 2048.0)] {
        let wanted = with_choice(Choice::Composed, || op(DType::F64, dtype));
        for form in FORMS {
            for (got, wanted) in with_choice(form, || op(dtype, dtype)).iter().zip(&wanted) {
                let off = largest(&(got.to_dtype(DType::F64).unwrap() - wanted).unwrap());
                let bound = 3.0 * rounding * largest(wanted);
                assert!(off <= bound, "{form:?} {dtype:?}: {off:e} over {bound:e}");
            }
        }
    }
}

/// Numbers of half precision in the type that they have: what is compared starts from the same ones.
fn rounded(tensors: &[Tensor], half: DType) -> Result<Vec<Tensor>> {
    let round = |t: &Tensor| t.to_dtype(half)?.to_dtype(t.dtype());
    tensors.iter().map(round).collect()
}

#[test]
fn convolutions_have_the_same_bits_for_any_number_of_threads() {
    for (x, weight, config) in [
        ([3, 5, 19, 23], [37, 5, 3, 3], Conv2dConfig::same(3, 1)),
        ([2, 20, 17, 13], [35, 20, 3, 3], Conv2dConfig::same(3, 2)),
        (
            [2, 45, 15, 14],
            [45, 1, 5, 5],
            Conv2dConfig {
                groups: 45,
                ..Conv2dConfig::same(5, 1)
            },
        ),
    ] {
        for format in [ImageFormat::ChannelsFirst, ImageFormat::ChannelsLast] {
            let shapes: [&[usize]; 3] = [&x, &weight, &weight[..1]];
            repeatable("conv2d", &shapes, |t| {
                let x = format.from_channels_first(&t[0])?;
                conv2d(&x, &t[1], Some(&t[2]), config.with_format(format))
            });
        }
    }
}

#[test]
fn a_query_that_sees_no_key_gets_zeros_and_no_gradient() {
    let shape: &[usize] = &[1, 1, 2, 3];
    let mask = Tensor::new(&[[[[0u8, 0], [1, 1]]]], &Device::Cpu).unwrap();
    for choice in FORMS {
        let attend = |t: &[Tensor]| Attention::default().forward(&t[0], &t[1], &t[2], Some(&mask));
        let tensors = with_choice(choice, || run(&[shape; 3], DType::F64, attend));
        let first_rows = |t: &Tensor| t.narrow(2, 0, 1).unwrap();
        assert_eq!(largest(&first_rows(&tensors[0])), 0.0);
        assert_eq!(largest(&first_rows(&tensors[1])), 0.0);
        assert!(largest(&tensors[1]) > 0.0);
    }
}
