//! Winograd's convolutions: agreement with the composed form, gradients, errors in f32, repeatability.

use candle_core::{DType, Result, Tensor, Var};
use sala_core::testing::assert_same_bits;
use sala_models::{
    kernels::{Choice, ConvPrecision, with_choice, with_conv_precision},
    ops::{Conv2dConfig, ImageFormat, conv2d},
};

use crate::gradcheck::{check, normal, weighted_sum};

const TILED: [ConvPrecision; 2] = [ConvPrecision::Balanced, ConvPrecision::Fast];
const NAMES: [&str; 4] = ["y", "x", "weight", "bias"];

/// `(N, H, W, C)`, outputs, and zeros around the images.
struct Case {
    x: [usize; 4],
    outputs: usize,
    padding: (usize, usize),
    format: ImageFormat,
}

fn case(x: [usize; 4], outputs: usize, padding: (usize, usize)) -> Case {
    Case {
        x,
        outputs,
        padding,
        format: ImageFormat::ChannelsLast,
    }
}

impl Case {
    fn config(&self) -> Conv2dConfig {
        Conv2dConfig {
            padding: self.padding,
            format: self.format,
            ..Conv2dConfig::default()
        }
    }

    fn inputs(&self) -> [Tensor; 3] {
        let x = match self.format {
            ImageFormat::ChannelsLast => normal("images", &self.x),
            ImageFormat::ChannelsFirst => {
                let [n, h, w, c] = self.x;
                normal("images", &[n, c, h, w])
            }
        };
        // As large as an initialization makes them, so that results are about as large as inputs.
        let scale = (9.0 * self.x[3] as f64).sqrt().recip();
        let weight = (normal("kernel", &[self.outputs, self.x[3], 3, 3]) * scale).unwrap();
        [x, weight, normal("bias", &[self.outputs])]
    }

    /// The result and all gradients.
    fn run(&self, dtype: DType) -> Vec<Tensor> {
        let vars = self.inputs().map(|t| {
            let t = t.to_dtype(dtype).unwrap();
            Var::from_tensor(&t).unwrap()
        });
        let [x, weight, bias] = &vars;
        let y = conv2d(x, weight, Some(bias), self.config()).unwrap();
        let weights = normal("weights of the sum", y.dims());
        let sum = (&y * weights.to_dtype(dtype).unwrap()).unwrap().sum_all();
        let gradients = sum.unwrap().backward().unwrap();
        let gradient = |var: &Var| gradients.get(var).unwrap().clone();
        let gradients = vars.iter().map(gradient);
        std::iter::once(y).chain(gradients).collect()
    }
}

fn largest(t: &Tensor) -> f64 {
    let t = t.to_dtype(DType::F64).unwrap().abs().unwrap();
    t.max_all().unwrap().to_scalar().unwrap()
}

/// The largest difference relative to the largest entry.
fn off(got: &Tensor, wanted: &Tensor) -> f64 {
    let got = got.to_dtype(DType::F64).unwrap();
    largest(&(got - wanted).unwrap()) / largest(wanted)
}

fn composed(case: &Case) -> Vec<Tensor> {
    with_choice(Choice::Composed, || case.run(DType::F64))
}

#[track_caller]
fn agree(case: &Case) {
    let wanted = composed(case);
    for precision in TILED {
        let got = with_conv_precision(precision, || case.run(DType::F64));
        for ((got, wanted), name) in got.iter().zip(&wanted).zip(NAMES) {
            let off = off(got, wanted);
            let Case { x, outputs, .. } = case;
            assert!(
                off <= 1e-10,
                "{name}, {precision:?}, {x:?} to {outputs}, {:?}: {off:e}",
                case.padding
            );
        }
    }
}

#[test]
fn all_sizes_and_paddings_agree_with_the_composed_form() {
    for padding in 0..=2 {
        for height in 1..=9 {
            for width in 1..=9 {
                if height.min(width) + 2 * padding >= 3 {
                    agree(&case([2, height, width, 3], 5, (padding, padding)));
                }
            }
        }
    }
}

#[test]
fn channels_batches_and_formats_agree_with_the_composed_form() {
    for (inputs, outputs) in [(1, 1), (16, 32), (17, 33), (45, 20), (64, 16), (33, 70)] {
        agree(&case([3, 7, 6, inputs], outputs, (1, 1)));
        agree(&case([1, 5, 8, inputs], outputs, (0, 2)));
    }
    for batch in [1, 2, 13] {
        // The last in more tiles than a chunk has, in whole images and in rows of tiles.
        agree(&case([batch, 21, 19, 6], 7, (1, 1)));
        agree(&case([batch, 16, 24, 6], 7, (1, 1)));
        agree(&case([batch, 24, 18, 6], 7, (2, 0)));
    }
    agree(&Case {
        format: ImageFormat::ChannelsFirst,
        ..case([2, 7, 9, 19], 21, (1, 2))
    });
}

/// Sums of the weight gradient that have but one part, in several rounds.
#[test]
fn many_channels_agree_with_the_composed_form() {
    agree(&case([3, 12, 12, 200], 250, (1, 1)));
    agree(&case([40, 8, 8, 260], 210, (1, 1)));
}

#[test]
fn gradients_agree_with_differences() {
    for precision in TILED {
        for case in [
            case([2, 5, 4, 3], 2, (1, 1)),
            case([1, 6, 5, 2], 3, (0, 2)),
            case([1, 1, 1, 2], 2, (2, 1)),
        ] {
            let [x, weight, bias] = case.inputs().map(|t| Var::from_tensor(&t).unwrap());
            let vars = [
                ("x".into(), x.clone()),
                ("w".into(), weight.clone()),
                ("b".into(), bias.clone()),
            ];
            with_conv_precision(precision, || {
                check(&vars, || {
                    weighted_sum(&conv2d(&x, &weight, Some(&bias), case.config())?)
                });
            });
        }
    }
}

/// What the documentation of [`ConvPrecision`] says.
#[test]
fn errors_in_single_precision_are_bounded() {
    let precisions = [
        ConvPrecision::Exact,
        ConvPrecision::Balanced,
        ConvPrecision::Fast,
    ];
    let mut worst = [[0.0_f64; 3]; 3];
    for case in [
        case([8, 32, 32, 64], 64, (1, 1)),
        case([8, 16, 16, 128], 128, (1, 1)),
        case([8, 8, 8, 256], 256, (1, 1)),
    ] {
        let wanted = with_conv_precision(ConvPrecision::Exact, || case.run(DType::F64));
        for (precision, worst) in precisions.into_iter().zip(&mut worst) {
            let got = with_conv_precision(precision, || case.run(DType::F32));
            for ((got, wanted), worst) in got.iter().zip(&wanted).zip(worst) {
                *worst = worst.max(off(got, wanted));
            }
        }
    }
    for ((precision, worst), bounds) in precisions.into_iter().zip(worst).zip([
        [3e-6, 3e-6, 3e-6],
        [1.5e-6, 1.5e-6, 1.5e-6],
        [3e-5, 3e-5, 3e-5],
    ]) {
        println!("{precision:?}: {worst:?}");
        for ((off, bound), name) in worst.into_iter().zip(bounds).zip(NAMES) {
            assert!(off <= bound, "{precision:?}, {name}: {off:e}");
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    for case in [
        case([5, 16, 16, 20], 40, (1, 1)),
        case([9, 13, 14, 40], 20, (1, 1)),
        case([3, 4, 4, 130], 140, (1, 1)),
    ] {
        for precision in TILED {
            let with_threads = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                let run = || with_conv_precision(precision, || case.run(DType::F32));
                pool.unwrap().install(run)
            };
            let wanted = with_threads(1);
            for threads in [2, 3] {
                for ((got, wanted), name) in with_threads(threads).iter().zip(&wanted).zip(NAMES) {
                    assert_same_bits(name, got, wanted);
                }
            }
        }
    }
}

#[test]
fn other_convolutions_are_not_touched() {
    let plain = Conv2dConfig::same(3, 1);
    let x = normal("x", &[2, 4, 7, 7]).to_dtype(DType::F32).unwrap();
    let run = |weight: [usize; 4], config: Conv2dConfig| -> Result<()> {
        let weight = normal("w", &weight).to_dtype(DType::F32)?;
        let exact =
            with_conv_precision(ConvPrecision::Exact, || conv2d(&x, &weight, None, config))?;
        let fast = with_conv_precision(ConvPrecision::Fast, || conv2d(&x, &weight, None, config))?;
        assert_same_bits("y", &fast, &exact);
        Ok(())
    };
    for (weight, config) in [
        ([6, 4, 3, 3], Conv2dConfig::same(3, 2)),
        ([6, 4, 5, 5], Conv2dConfig::same(5, 1)),
        ([6, 4, 3, 1], plain),
        ([6, 4, 1, 1], Conv2dConfig::default()),
        (
            [6, 4, 3, 3],
            Conv2dConfig {
                dilation: (2, 1),
                ..plain
            },
        ),
        ([6, 2, 3, 3], Conv2dConfig { groups: 2, ..plain }),
        ([4, 1, 3, 3], Conv2dConfig { groups: 4, ..plain }),
        (
            [6, 4, 3, 3],
            Conv2dConfig {
                padding: (1, 3),
                ..plain
            },
        ),
    ] {
        run(weight, config).unwrap();
    }
}
