//! Convolution: gradients, agreement of both forms, errors. Values are in `reference`.

use candle_core::{DType, Result, Tensor, Var};
use sala_core::testing::TRAJECTORY_F64;
use sala_models::{
    kernels::{Choice, with_choice},
    ops::{Conv2dConfig, ImageFormat, conv2d},
};

use crate::gradcheck::{
    FAST, check, check_half, check_layouts, normal, normal_var, refused, weighted_sum,
};

/// One convolution: `(N, C, H, W)`, `(O, Kh, Kw)` and how the kernel moves.
struct Case {
    x: [usize; 4],
    weight: [usize; 3],
    config: Conv2dConfig,
}

fn case(x: [usize; 4], weight: [usize; 3], config: Conv2dConfig) -> Case {
    Case { x, weight, config }
}

/// Small ones for differences: every setting, odd sizes, sizes of one, remainders of strides.
fn small() -> Vec<Case> {
    let plain = Conv2dConfig::default();
    let padded = |padding| Conv2dConfig { padding, ..plain };
    let strided = |stride, padding| Conv2dConfig {
        stride,
        padding,
        ..plain
    };
    vec![
        case([1, 1, 1, 1], [1, 1, 1], plain),
        case([2, 3, 4, 5], [2, 3, 3], padded((1, 1))),
        case([1, 2, 5, 4], [3, 2, 3], padded((0, 2))),
        case([2, 2, 5, 4], [3, 3, 3], strided((2, 2), (1, 1))),
        case([1, 2, 7, 6], [2, 3, 2], strided((3, 2), (0, 1))),
        case([1, 2, 5, 5], [2, 1, 1], strided((2, 2), (0, 0))),
        case([1, 1, 3, 2], [2, 2, 1], strided((4, 3), (2, 1))),
        case([1, 2, 2, 2], [1, 2, 2], padded((3, 3))),
        // Windows that see nothing but padding, along one axis and along both.
        case([1, 1, 4, 4], [1, 1, 1], strided((8, 8), (2, 2))),
        case([2, 2, 3, 4], [3, 1, 2], strided((9, 2), (1, 1))),
        case(
            [1, 2, 3, 4],
            [2, 1, 1],
            Conv2dConfig {
                groups: 2,
                ..strided((2, 8), (0, 2))
            },
        ),
        case([1, 1, 2, 3], [2, 2, 2], strided((usize::MAX, 2), (1, 0))),
        case(
            [1, 2, 7, 8],
            [2, 3, 2],
            Conv2dConfig {
                dilation: (2, 3),
                ..padded((1, 2))
            },
        ),
        case(
            [1, 2, 8, 7],
            [2, 3, 3],
            Conv2dConfig {
                dilation: (2, 1),
                ..strided((3, 2), (2, 1))
            },
        ),
        case(
            [2, 4, 4, 3],
            [6, 3, 2],
            Conv2dConfig {
                groups: 2,
                ..strided((2, 1), (1, 0))
            },
        ),
        case(
            [1, 3, 4, 5],
            [3, 3, 3],
            Conv2dConfig {
                groups: 3,
                ..strided((1, 2), (1, 1))
            },
        ),
        case(
            [1, 2, 4, 4],
            [4, 2, 3],
            Conv2dConfig {
                groups: 2,
                ..padded((1, 1))
            },
        ),
    ]
}

/// Larger than the tiles and pieces that work is cut into, in all directions.
fn large() -> Vec<Case> {
    let plain = Conv2dConfig::default();
    vec![
        case([3, 5, 19, 23], [37, 3, 3], Conv2dConfig::same(3, 1)),
        case([2, 40, 17, 13], [35, 3, 3], Conv2dConfig::same(3, 2)),
        case([5, 130, 6, 7], [18, 3, 3], Conv2dConfig::same(3, 1)),
        case([2, 350, 5, 5], [16, 1, 1], Conv2dConfig::same(1, 2)),
        case([2, 3, 30, 31], [20, 7, 7], Conv2dConfig::same(7, 2)),
        case(
            [2, 32, 9, 9],
            [64, 3, 3],
            Conv2dConfig {
                groups: 2,
                ..Conv2dConfig::same(3, 1)
            },
        ),
        case(
            [2, 45, 15, 14],
            [45, 5, 5],
            Conv2dConfig {
                groups: 45,
                ..Conv2dConfig::same(5, 2)
            },
        ),
        case(
            [1, 16, 12, 12],
            [16, 3, 3],
            Conv2dConfig {
                dilation: (3, 2),
                padding: (3, 2),
                ..plain
            },
        ),
    ]
}

impl Case {
    fn x(&self, format: ImageFormat) -> Tensor {
        format
            .from_channels_first(&normal("images", &self.x))
            .unwrap()
    }

    fn weight(&self) -> Tensor {
        let [outputs, rows, columns] = self.weight;
        normal(
            "kernel",
            &[outputs, self.x[1] / self.config.groups, rows, columns],
        )
    }

    fn bias(&self) -> Tensor {
        normal("bias", &[self.weight[0]])
    }

    /// The result and all gradients, with the weights of the sum the same for both formats.
    fn run(&self, format: ImageFormat, dtype: DType) -> Result<[Tensor; 4]> {
        let var = |t: Tensor| Var::from_tensor(&t.to_dtype(dtype)?);
        let (x, weight, bias) = (var(self.x(format))?, var(self.weight())?, var(self.bias())?);
        let y = conv2d(&x, &weight, Some(&bias), self.config.with_format(format))?;
        let y = format.to_channels_first(&y)?;
        let weights = normal("weights of the sum", y.dims()).to_dtype(dtype)?;
        let gradients = (&y * weights)?.sum_all()?.backward()?;
        let of = |v: &Var| gradients.get(v).cloned().unwrap();
        Ok([
            y,
            format.to_channels_first(&of(&x))?,
            of(&weight),
            of(&bias),
        ])
    }
}

const FORMATS: [ImageFormat; 2] = [ImageFormat::ChannelsFirst, ImageFormat::ChannelsLast];
#[test]
fn gradients_agree_with_differences() {
    for case in small() {
        for format in FORMATS {
            let x = Var::from_tensor(&case.x(format)).unwrap();
            let weight = Var::from_tensor(&case.weight()).unwrap();
            let bias = Var::from_tensor(&case.bias()).unwrap();
            let vars = [
                ("x".into(), x.clone()),
                ("w".into(), weight.clone()),
                ("b".into(), bias.clone()),
            ];
            check(&vars, || {
                let config = case.config.with_format(format);
                weighted_sum(&conv2d(&x, &weight, Some(&bias), config)?)
            });
        }
    }
}

#[test]
fn all_forms_and_formats_agree() {
    for case in small().into_iter().chain(large()) {
        let composed = || case.run(ImageFormat::ChannelsFirst, DType::F64).unwrap();
        let wanted = with_choice(Choice::Composed, composed);
        for format in FORMATS {
            for form in FAST {
                with_choice(form, || agree(&case, format, &wanted));
            }
        }
    }
}

/// In double precision to rounding; in single to the rounding errors of a sum, relative to its largest value.
fn agree(case: &Case, format: ImageFormat, wanted: &[Tensor; 4]) {
    let largest = |t: &Tensor| {
        let largest = t.abs().unwrap().max_all().unwrap();
        largest.to_scalar::<f64>().unwrap()
    };
    let exact = case.run(format, DType::F64).unwrap();
    let single = case.run(format, DType::F32).unwrap();
    for (i, what) in ["y", "x", "w", "b"].into_iter().enumerate() {
        TRAJECTORY_F64.assert_tensors(what, &exact[i], &wanted[i]);
        let off = largest(&(single[i].to_dtype(DType::F64).unwrap() - &wanted[i]).unwrap());
        let bound = 3e-6 * largest(&wanted[i]);
        assert!(off <= bound, "{what}: {off:e} over {bound:e}");
    }
}

#[test]
fn strides_of_the_input_do_not_matter() {
    for (config, dims) in [
        (Conv2dConfig::same(3, 2), [2, 3, 5, 4]),
        (Conv2dConfig::same(1, 1), [1, 3, 1, 3]),
    ] {
        let kernel = 2 * config.padding.0 + 1;
        let weight = normal_var("w", &[2, 3, kernel, kernel]);
        check_layouts(&dims, |x| conv2d(x, &weight, None, config));
    }
}

#[test]
fn half_precision_is_computed_in_f32() {
    let weight = normal("w", &[4, 3, 3, 3]).to_dtype(DType::F32).unwrap();
    check_half(&[2, 3, 5, 6], |x| {
        conv2d(x, &weight, None, Conv2dConfig::same(3, 1))
    });
}

#[test]
fn only_the_gradients_that_are_needed_are_computed() {
    let config = Conv2dConfig::same(3, 1);
    let (x, w) = (normal("x", &[1, 2, 4, 4]), normal("w", &[2, 2, 3, 3]));
    let (x_var, w_var) = (Var::from_tensor(&x).unwrap(), Var::from_tensor(&w).unwrap());
    let gradients = |x: &Tensor, w: &Tensor| {
        let y = conv2d(x, w, None, config).unwrap();
        y.sum_all().unwrap().backward().unwrap()
    };
    let of_weight = gradients(&x, &w_var);
    assert!(of_weight.get(&w_var).is_some() && of_weight.get(&x).is_none());
    let of_x = gradients(&x_var, &w);
    assert!(of_x.get(&x_var).is_some() && of_x.get(&w).is_none());
}

#[test]
fn wrong_arguments_are_refused() {
    let (x, w) = (normal("x", &[2, 4, 5, 6]), normal("w", &[6, 4, 3, 3]));
    let plain = Conv2dConfig::default();
    let run = |x: &Tensor, w: &Tensor, config| conv2d(x, w, None, config);
    for (result, parts) in [
        (
            run(&x.get(0).unwrap(), &w, plain),
            vec!["conv2d", "x", "(N, C, H, W)", "[4, 5, 6]"],
        ),
        (
            run(&normal("x", &[2, 3, 5, 6]), &w, plain),
            vec!["x", "C = 4", "[2, 3, 5, 6]"],
        ),
        (
            run(&normal("x", &[0, 4, 5, 6]), &w, plain),
            vec!["x", "with elements", "[0, 4, 5, 6]"],
        ),
        (
            run(&x, &normal("w", &[6, 4, 3]), plain),
            vec!["weight", "(O, C / groups, Kh, Kw)", "[6, 4, 3]"],
        ),
        (
            run(&x, &w.to_dtype(DType::F32).unwrap(), plain),
            vec!["weight", "F64", "F32"],
        ),
        (
            run(&x.to_dtype(DType::U8).unwrap(), &w, plain),
            vec!["x", "f32", "U8"],
        ),
        (
            run(&normal("x", &[2, 4, 2, 6]), &w, plain),
            vec!["x", "3 long", "[2, 4, 2, 6]"],
        ),
        (
            run(
                &x,
                &w,
                Conv2dConfig {
                    stride: (1, 0),
                    ..plain
                },
            ),
            vec!["stride", "at least 1", "0"],
        ),
        (
            run(
                &x,
                &w,
                Conv2dConfig {
                    dilation: (0, 1),
                    ..plain
                },
            ),
            vec!["dilation", "at least 1"],
        ),
        (
            run(&x, &w, Conv2dConfig { groups: 0, ..plain }),
            vec!["groups", "at least 1"],
        ),
        (
            run(&x, &w, Conv2dConfig { groups: 4, ..plain }),
            vec!["weight", "4 dividing O"],
        ),
        (
            run(&x, &w, plain.with_format(ImageFormat::ChannelsLast)),
            vec!["x", "(N, H, W, C)", "C = 4"],
        ),
        (
            conv2d(&x, &w, Some(&normal("b", &[4])), plain),
            vec!["bias", "(6)", "[4]"],
        ),
    ] {
        refused(result, &parts);
    }
}

// Catches sums of settings that overflow, which would be panics, or sizes of something else.
#[test]
fn settings_that_cannot_be_counted_are_refused() {
    let (x, w) = (normal("x", &[2, 4, 5, 6]), normal("w", &[6, 4, 3, 3]));
    let plain = Conv2dConfig::default();
    let run = |config| conv2d(&x, &w, None, config);
    let dilation = (usize::MAX, 1);
    let dilated = run(Conv2dConfig { dilation, ..plain });
    refused(dilated, &["x", "more than can be counted long"]);
    for (padding, got) in [
        ((0, usize::MAX), usize::MAX.to_string()),
        ((1 << 40, 1 << 40), "1099511627776".into()),
    ] {
        let padded = run(Conv2dConfig { padding, ..plain });
        refused(padded, &["padding", "addressed", &got]);
    }
}
