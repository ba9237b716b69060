//! Fast forms against composed ones: values and gradients in f32, odd sizes, and bits for any number of
//! threads.

use std::slice::from_ref;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use sala_core::testing::{FUSED_F32, Tolerance, assert_same_bits};
use sala_models::{
    Mode, Rng,
    kernels::{Choice, with_choice},
    ops::{
        CrossEntropy, Dropout, ImageFormat, Pool2d, Rope, RopePairs, adaptive_avg_pool2d,
        cross_entropy, embedding, gelu, gelu_tanh, global_avg_pool2d, layer_norm, log_softmax,
        masked_softmax, relu, relu6, rms_norm, silu, softmax,
    },
};

use crate::gradcheck::{FAST, FORMS, check_half_of, normal, values};

/// The result and the gradients of the inputs, for a loss that weighs every output differently.
fn run(choice: Choice, inputs: &[Tensor], op: impl Fn(&[Tensor]) -> Result<Tensor>) -> Vec<Tensor> {
    let vars: Vec<Var> = inputs
        .iter()
        .map(|t| Var::from_tensor(t).unwrap())
        .collect();
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let y = with_choice(choice, || op(&tensors)).unwrap();
    let weights = normal("weights", y.dims()).to_dtype(DType::F32).unwrap();
    let weights = weights.to_dtype(y.dtype()).unwrap();
    let loss = (&y * weights).unwrap().sum_all().unwrap();
    let gradients = loss.backward().unwrap();
    let mut all = vec![y];
    all.extend(vars.iter().map(|v| gradients.get(v).unwrap().clone()));
    all
}

/// Compares the fast form in f32 with the composed form of the same numbers in f64, so that only one side
/// rounds. Sums of numbers of both signs are as exact as their largest terms: what is allowed is
/// [`FUSED_F32`], with its relative part of each tensor's largest entry.
#[track_caller]
fn agree(what: &str, inputs: &[Tensor], op: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let cast =
        |dtype| -> Vec<Tensor> { inputs.iter().map(|t| t.to_dtype(dtype).unwrap()).collect() };
    let narrow = cast(DType::F32);
    let wide: Vec<Tensor> = narrow
        .iter()
        .map(|t| t.to_dtype(DType::F64).unwrap())
        .collect();
    let wanted = run(Choice::Composed, &wide, &op);
    let both = FAST.map(|form| run(form, &narrow, &op));
    let pairs = both
        .iter()
        .flat_map(|got| got.iter().zip(&wanted).enumerate());
    for (i, (got, wanted)) in pairs {
        let largest = values(wanted).iter().fold(0_f64, |max, v| max.max(v.abs()));
        let allowed = Tolerance {
            atol: FUSED_F32.atol + FUSED_F32.rtol * largest,
            ..FUSED_F32
        };
        let part = if i == 0 {
            "result".into()
        } else {
            format!("gradient {i}")
        };
        allowed.assert_tensors(
            &format!("{what} {:?}, {part}", inputs[0].dims()),
            got,
            wanted,
        );
    }
}

/// One value, single rows and columns, odd ones, several pieces of rows, rows longer than a piece.
const ROWS: [[usize; 2]; 7] = [
    [1, 1],
    [3, 1],
    [1, 7],
    [5, 33],
    [3, 64],
    [700, 97],
    [3, 17000],
];

#[test]
fn norms_agree() {
    for dims in ROWS {
        let n = dims[1];
        let x = ((normal("x", &dims) * 2.0).unwrap() + 1.0).unwrap();
        let (weight, bias) = (normal("weight", &[n]), normal("bias", &[n]));
        // An eps that is felt: rows of one value have no spread.
        agree("layer_norm", &[x.clone(), weight.clone(), bias], |t| {
            layer_norm(&t[0], &t[1], Some(&t[2]), 0.1)
        });
        agree("layer_norm", &[x.clone(), weight.clone()], |t| {
            layer_norm(&t[0], &t[1], None, 0.1)
        });
        agree("rms_norm", &[x, weight], |t| rms_norm(&t[0], &t[1], 0.1));
    }
}

#[test]
fn softmaxes_agree() {
    for dims in ROWS {
        let x = (normal("x", &dims) * 4.0).unwrap();
        agree("softmax", from_ref(&x), |t| softmax(&t[0], D::Minus1));
        agree("log_softmax", &[x], |t| log_softmax(&t[0], D::Minus1));
    }
    let far = Tensor::new(&[[-1e4f64, 1e4, 9990.], [-1e38, 1e38, 1e38]], &Device::Cpu).unwrap();
    agree("softmax", from_ref(&far), |t| softmax(&t[0], D::Minus1));
    agree("log_softmax", &[far], |t| log_softmax(&t[0], D::Minus1));
}

#[test]
fn masked_softmaxes_agree_for_masks_that_broadcast_in_any_way() {
    let x = normal("x", &[5, 3, 37, 41]);
    for dims in [
        &[5, 3, 37, 41][..],
        &[5, 1, 1, 41],
        &[3, 1, 41],
        &[37, 41],
        &[41],
        &[1],
        &[5, 3, 37, 1],
        &[5, 1, 37, 1],
        &[3, 37, 41],
    ] {
        let added = normal("mask", dims);
        let seen = added.gt(-0.5).unwrap();
        agree("masked_softmax", from_ref(&x), |t| {
            masked_softmax(&t[0], &seen, D::Minus1)
        });
        agree("masked_softmax", from_ref(&x), |t| {
            masked_softmax(
                &t[0],
                &added.to_dtype(DType::F32)?.to_dtype(t[0].dtype())?,
                D::Minus1,
            )
        });
        // What is added to a whole row has no effect, and a gradient of nothing but roundings.
        if dims[dims.len() - 1] > 1 {
            agree("masked_softmax", &[x.clone(), added], |t| {
                masked_softmax(&t[0], &t[1], D::Minus1)
            });
        }
    }
}

#[test]
fn masks_agree_that_repeat_along_every_other_dimension() {
    for (dims, of_mask) in [
        (&[2, 3, 2, 3, 7][..], &[2, 1, 2, 1, 7][..]),
        (&[2, 2, 2, 2, 2, 2, 5], &[2, 1, 2, 1, 2, 1, 5]),
    ] {
        let seen = normal("mask", of_mask).gt(-0.5).unwrap();
        agree("masked_softmax", &[normal("x", dims)], |t| {
            masked_softmax(&t[0], &seen, D::Minus1)
        });
    }
}

#[test]
fn cross_entropies_agree() {
    for dims in ROWS {
        let [rows, classes] = dims;
        let x = (normal("x", &dims) * 3.0).unwrap();
        let of = |i: usize| i64::try_from(i * 7 % classes).unwrap();
        let targets: Vec<i64> = (0..rows)
            .map(|i| if i % 3 == 1 { -1 } else { of(i) })
            .collect();
        let targets = Tensor::new(targets, &Device::Cpu).unwrap();
        for label_smoothing in [0.0, 0.3] {
            let loss = CrossEntropy {
                label_smoothing,
                ignore_index: Some(-1),
            };
            agree("classes", from_ref(&x), |t| loss.forward(&t[0], &targets));
            // Behind another operation the gradient of the loss is not 1.
            agree("scaled", from_ref(&x), |t| {
                loss.forward(&t[0], &targets)? * -3.0
            });
            let soft = softmax(&normal("t", &dims), 1).unwrap();
            let loss = CrossEntropy {
                ignore_index: None,
                ..loss
            };
            agree("distributions", &[x.clone(), soft], |t| {
                loss.forward(&t[0], &t[1])? * 2.0
            });
        }
    }
}

#[test]
fn a_loss_can_be_differentiated_twice_and_without_its_logits() {
    let (x, t) = (normal("x", &[4, 5]), normal("t", &[4, 5]));
    let t = Var::from_tensor(&softmax(&t, 1).unwrap()).unwrap();
    let gradient = |loss: &Tensor, var: &Var| values(loss.backward().unwrap().get(var).unwrap());
    let loss = cross_entropy(&x, &t).unwrap();
    let alone = gradient(&loss, &t);
    let x = Var::from_tensor(&x).unwrap();
    let loss = cross_entropy(&x, &t).unwrap();
    assert_eq!(gradient(&loss, &x), gradient(&loss, &x));
    assert_eq!(gradient(&loss, &t), alone);
}

#[test]
fn activations_agree() {
    for dims in [&[1][..], &[3, 7], &[33000]] {
        let x = (normal("x", dims) * 3.0).unwrap();
        for (name, op) in [
            ("relu", relu as fn(&Tensor) -> Result<Tensor>),
            ("relu6", |x| relu6(&(x * 3.0)?)),
            ("silu", silu),
            ("gelu", gelu),
            ("gelu_tanh", gelu_tanh),
        ] {
            agree(name, from_ref(&x), |t| op(&t[0]));
        }
    }
    let x = Var::new(&[f32::NAN, 0., -1., 6., 7., 5.], &Device::Cpu).unwrap();
    for (op, wanted) in [
        (
            relu as fn(&Tensor) -> Result<Tensor>,
            [1., 0., 0., 1., 1., 1.],
        ),
        (relu6, [1., 0., 0., 0., 0., 1.]),
    ] {
        for form in FORMS {
            let y = with_choice(form, || op(&x)).unwrap();
            assert!(values(&y)[0].is_nan());
            let slope = y.sum_all().unwrap().backward().unwrap();
            assert_eq!(values(slope.get(&x).unwrap()), wanted);
        }
    }
}

#[test]
fn rotary_embeddings_agree() {
    for pairs in [RopePairs::Halves, RopePairs::Interleaved] {
        for dims in [&[1, 2][..], &[2, 3, 5, 6], &[3, 5, 34], &[40, 13, 64]] {
            let (features, positions) = (dims[dims.len() - 1], dims[dims.len() - 2] + 3);
            agree("rope", &[normal("x", dims)], |t| {
                let dtype = t[0].dtype();
                let rope = Rope::new(features, positions, 50., pairs, dtype, &Device::Cpu)?;
                rope.forward(&t[0], 3)
            });
        }
    }
}

#[test]
fn embeddings_agree() {
    let stream = Rng::new(1).stream("indices");
    for (entries, size, lookups) in [
        (1, 1, 5),
        (7, 3, 1),
        (900, 65, 700),
        (3, 17000, 9),
        (1500, 7, 5000),
        (2000, 1100, 40),
        (5000, 2, 9),
    ] {
        let indices = (0..lookups).map(|i| u32::try_from(stream.below(i, entries)).unwrap());
        let indices = Tensor::new(indices.collect::<Vec<_>>(), &Device::Cpu).unwrap();
        let table = normal("table", &[usize::try_from(entries).unwrap(), size]);
        agree("embedding", &[table], |t| embedding(&t[0], &indices));
    }
}

#[test]
fn indices_of_every_type_find_their_rows_and_add_up() {
    for entries in [3, 1200] {
        let table = [normal("table", &[entries, 5])];
        let indices = Tensor::new(&[[2u32, 0, 2], [1, 2, 0]], &Device::Cpu).unwrap();
        let wanted = run(Choice::Composed, &table, |t| embedding(&t[0], &indices));
        for dtype in [DType::U8, DType::U32, DType::I64] {
            let indices = indices.to_dtype(dtype).unwrap();
            let got = run(Choice::Emulated, &table, |t| embedding(&t[0], &indices));
            for (got, wanted) in got.iter().zip(&wanted) {
                assert_eq!(values(got), values(wanted));
            }
        }
    }
}

#[test]
fn slopes_of_a_row_that_occurs_often_are_added_up_in_f32() {
    let indices = Tensor::zeros(600, DType::U32, &Device::Cpu).unwrap();
    for entries in [2, 1100] {
        let table = Var::ones((entries, 1), DType::BF16, &Device::Cpu).unwrap();
        let y = with_choice(Choice::Emulated, || embedding(&table, &indices)).unwrap();
        let slope = y.sum_all().unwrap().backward().unwrap();
        let slope = values(slope.get(&table).unwrap());
        assert_eq!((slope[0], slope[1]), (600.0, 0.0));
    }
}

#[test]
fn an_index_that_counts_nothing_makes_its_row_and_its_loss_undefined_on_a_card() {
    with_choice(Choice::Emulated, || {
        for entries in [3_u32, 2000] {
            for bad in [i64::from(entries), -1, i64::MIN, 1 << 32] {
                let table = normal("table", &[entries as usize, 2]);
                let table = Var::from_tensor(&table).unwrap();
                let indices = Tensor::new(&[1, bad], &Device::Cpu).unwrap();
                let y = embedding(&table, &indices).unwrap();
                let nan: Vec<bool> = values(&y).iter().map(|v| v.is_nan()).collect();
                assert_eq!(nan, [false, false, true, true]);
                let slope = y.sum_all().unwrap().backward().unwrap();
                let slope = values(slope.get(&table).unwrap());
                assert_eq!(slope[..4], [0., 0., 1., 1.], "{bad}");

                let logits = Var::from_tensor(&normal("x", &[2, 3])).unwrap();
                let targets = Tensor::new(&[1, bad], &Device::Cpu).unwrap();
                let ignoring = |ignore_index| CrossEntropy {
                    ignore_index,
                    ..Default::default()
                };
                let plain = ignoring(None).forward(&logits, &targets).unwrap();
                assert!(values(&plain)[0].is_nan() || entries > 3 && bad == 2000);
                let of_other = ignoring(Some(bad)).forward(&logits, &targets).unwrap();
                assert!(values(&of_other)[0].is_finite());
                let none = Tensor::new(&[bad, bad], &Device::Cpu).unwrap();
                let loss = ignoring(Some(bad)).forward(&logits, &none).unwrap();
                assert!(values(&loss)[0].is_nan());
            }
        }
    });
}

#[test]
fn losses_of_half_precision_are_those_of_f32_and_their_gradients_rounded_ones() {
    let soft = softmax(&normal("t", &[5, 9]), 1).unwrap();
    let classes = Tensor::new(&[1i64, 8, -1, 0, 3], &Device::Cpu).unwrap();
    let smoothed = CrossEntropy {
        label_smoothing: 0.1,
        ..Default::default()
    };
    let ignoring = CrossEntropy {
        ignore_index: Some(-1),
        ..smoothed
    };
    for (dtype, rounding) in [(DType::BF16, 1.0 / 256.0), (DType::F16, 1.0 / 2048.0)] {
        let cast = |t: &Tensor, to| t.to_dtype(dtype).unwrap().to_dtype(to).unwrap();
        let x = normal("x", &[5, 9]);
        for soft_dtype in [dtype, DType::F32] {
            let near = |got: &[Tensor], wanted: &[Tensor]| {
                assert_eq!(got[0].dtype(), DType::F32);
                assert_eq!(got[1].dtype(), dtype);
                for (got, wanted) in got.iter().zip(wanted) {
                    let wanted = values(wanted);
                    let largest = wanted.iter().fold(0_f64, |max, v| max.max(v.abs()));
                    for (got, wanted) in values(got).iter().zip(&wanted) {
                        assert!((got - wanted).abs() <= rounding * largest, "{got} {wanted}");
                    }
                }
            };
            let op = |t: &[Tensor]| smoothed.forward(&t[0], &t[1]);
            let (narrow, soft) = (cast(&x, dtype), cast(&soft, soft_dtype));
            let wide = [cast(&x, DType::F64), soft.to_dtype(DType::F64).unwrap()];
            let wanted = run(Choice::Composed, &wide, op);
            near(&run(Choice::Emulated, &[narrow.clone(), soft], op), &wanted);
            let op = |t: &[Tensor]| ignoring.forward(&t[0], &classes);
            let wanted = run(Choice::Composed, &wide[..1], op);
            near(&run(Choice::Emulated, &[narrow], op), &wanted);
        }
    }
}

#[test]
fn rotary_embeddings_of_half_precision_are_rounded_once() {
    for pairs in [RopePairs::Halves, RopePairs::Interleaved] {
        for features in [6, 16] {
            check_half_of(&FAST, &[2, 5, features], |x| {
                let rope = Rope::new(features, 5, 50., pairs, DType::F32, &Device::Cpu)?;
                rope.forward(x, 0)
            });
        }
    }
}

#[test]
fn dropout_has_the_same_bits() {
    let layer = Dropout::new(0.3, Rng::new(8).stream("d")).unwrap();
    for dims in [&[1][..], &[3, 85], &[257], &[5, 9001]] {
        for dtype in [DType::F32, DType::F64] {
            let x = [normal("x", dims).to_dtype(dtype).unwrap()];
            let op = |t: &[Tensor]| layer.forward(&t[0], Mode::train(5));
            let wanted = run(Choice::Composed, &x, op);
            for form in FAST {
                for (got, wanted) in run(form, &x, op).iter().zip(&wanted) {
                    assert_same_bits("dropout", got, wanted);
                }
            }
        }
    }
}

#[test]
fn the_word_at_the_threshold_of_dropout_falls_on_the_same_side() {
    let stream = Rng::new(8).stream("d");
    let word = f64::from(stream.at(5).bits(0));
    let x = [Tensor::ones(1, DType::F32, &Device::Cpu).unwrap()];
    for (above, kept) in [(0.0, true), (0.5, false), (1.0, false)] {
        let layer = Dropout::new((word + above) / 4_294_967_296.0, stream).unwrap();
        for choice in FORMS {
            let y = run(choice, &x, |t| layer.forward(&t[0], Mode::train(5)));
            assert_eq!(values(&y[0])[0] > 0.0, kept, "{above}");
        }
    }
}

fn pools(format: ImageFormat) -> [Pool2d; 4] {
    let square = Pool2d::square(3).with_format(format);
    [
        Pool2d::square(2).with_format(format),
        Pool2d {
            padding: (1, 1),
            stride: (2, 2),
            ..square
        },
        Pool2d {
            padding: (1, 0),
            stride: (2, 1),
            count_include_pad: false,
            ceil_mode: true,
            ..square
        },
        Pool2d {
            kernel: (2, 3),
            stride: (3, 4),
            ..square
        },
    ]
}

#[test]
fn pools_agree_for_both_formats_and_any_number_of_channels() {
    for dims in [
        [1, 1, 4, 4],
        [2, 3, 7, 9],
        [3, 17, 6, 5],
        [2, 64, 9, 8],
        [1, 130, 40, 9],
    ] {
        // Few different values: many windows have several largest ones.
        let x = (normal("x", &dims) * 1.5).unwrap().round().unwrap();
        for format in [ImageFormat::ChannelsFirst, ImageFormat::ChannelsLast] {
            let x = [format.from_channels_first(&x).unwrap()];
            for pool in pools(format) {
                agree("max", &x, |t| pool.max(&t[0]));
                agree("average", &x, |t| pool.average(&t[0]));
            }
            agree("global", &x, |t| global_avg_pool2d(&t[0], format));
        }
        agree("adaptive", &[x], |t| adaptive_avg_pool2d(&t[0], (3, 2)));
    }
}

#[test]
fn a_window_without_numbers_above_minus_infinity_has_its_first_pixel_as_winner() {
    let inf = f64::INFINITY;
    for channels in [1, 2] {
        let format = ImageFormat::ChannelsLast;
        let x = Tensor::full(-inf, (1, 2, 2, channels), &Device::Cpu).unwrap();
        let x = Var::from_tensor(&x).unwrap();
        let padded = Pool2d {
            padding: (1, 1),
            ..Pool2d::square(3).with_format(format)
        };
        let y = padded.max(&x).unwrap();
        assert_eq!(values(&y), vec![-inf; channels]);
        let gradient = y.sum_all().unwrap().backward().unwrap();
        let gradient = values(gradient.get(&x).unwrap());
        assert!(
            gradient[..channels].iter().all(|&g| g == 1.0),
            "{gradient:?}"
        );
        assert!(
            gradient[channels..].iter().all(|&g| g == 0.0),
            "{gradient:?}"
        );
        let nan = Tensor::new(&[1., f64::NAN, 3., 2.], &Device::Cpu).unwrap();
        let nan = nan
            .reshape((1, 2, 2, 1))
            .unwrap()
            .repeat((1, 1, 1, channels))
            .unwrap();
        let y = Pool2d::square(2).with_format(format).max(&nan).unwrap();
        assert!(values(&y).iter().all(|v| v.is_nan()));
    }
}

#[test]
fn windows_of_more_places_than_a_byte_counts_have_their_gradient_too() {
    let x = normal("x", &[1, 2, 17, 16]);
    let pool = Pool2d {
        kernel: (17, 16),
        ..Pool2d::square(1)
    };
    agree("max", &[x], |t| pool.max(&t[0]));
}

/// Everything that is cut into pieces, at sizes of several pieces.
fn everything() -> Vec<Tensor> {
    let f32 = |name: &str, dims: &[usize]| normal(name, dims).to_dtype(DType::F32).unwrap();
    let (x, w, b) = (f32("x", &[700, 96]), f32("w", &[96]), f32("b", &[96]));
    let images = f32("images", &[4, 20, 21, 33]);
    let indices: Vec<u32> = (0..2000).map(|i| i * 37 % 700).collect();
    let indices = Tensor::new(indices, &Device::Cpu).unwrap();
    let classes = Tensor::new(vec![3u32; 700], &Device::Cpu).unwrap();
    let dropout = Dropout::new(0.3, Rng::new(8).stream("d")).unwrap();
    let mask = f32("mask", &[96]);
    let rope = Rope::new(96, 700, 50., RopePairs::Halves, DType::F32, &Device::Cpu).unwrap();
    let mut all = vec![];
    let one = [x.clone()];
    let three = [x, w.clone(), b];
    all.extend(run(Choice::Auto, &three, |t| {
        layer_norm(&t[0], &t[1], Some(&t[2]), 0.1)
    }));
    all.extend(run(Choice::Auto, &three[..2], |t| {
        rms_norm(&t[0], &t[1], 0.1)
    }));
    all.extend(run(Choice::Auto, &one, |t| softmax(&t[0], 1)));
    all.extend(run(Choice::Auto, &one, |t| log_softmax(&t[0], 1)));
    all.extend(run(Choice::Auto, &one, |t| masked_softmax(&t[0], &mask, 1)));
    all.extend(run(Choice::Auto, &one, |t| {
        cross_entropy(&t[0], &classes)? * 2.0
    }));
    all.extend(run(Choice::Auto, &one, |t| gelu(&t[0])));
    all.extend(run(Choice::Auto, &one, |t| {
        dropout.forward(&t[0], Mode::train(1))
    }));
    all.extend(run(Choice::Auto, &one, |t| rope.forward(&t[0], 0)));
    all.extend(run(Choice::Auto, &one, |t| embedding(&t[0], &indices)));
    for format in [ImageFormat::ChannelsFirst, ImageFormat::ChannelsLast] {
        for pool in pools(format) {
            let images = [images.clone()];
            all.extend(run(Choice::Auto, &images, |t| pool.max(&t[0])));
            all.extend(run(Choice::Auto, &images, |t| pool.average(&t[0])));
        }
    }
    all
}

#[test]
fn results_have_the_same_bits_for_any_number_of_threads() {
    let of = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap().install(everything)
    };
    let wanted = of(1);
    for threads in [2, 3] {
        for (i, (got, wanted)) in of(threads).iter().zip(&wanted).enumerate() {
            assert_same_bits(&format!("{threads} threads, tensor {i}"), got, wanted);
        }
    }
}
