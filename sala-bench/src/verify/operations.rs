//! Every operation of `sala_models::ops`, each with sizes small enough for differences and sizes larger than
//! the pieces that kernels cut their work into. A new operation is added to [`all`]; a test holds the list
//! against what the module exports.

use candle_core::{D, Result, Tensor};
use sala_models::{
    Mode, Rng, VarStore,
    kernels::{Choice, with_choice},
    ops::{
        Attention, BatchNorm, Conv2dConfig, CrossEntropy, Dropout, ImageFormat, Pool2d, Rope,
        RopePairs, adaptive_avg_pool2d, add, conv2d, embedding, gelu, gelu_tanh, global_avg_pool2d,
        layer_norm, linear, log_softmax, masked_softmax, relu, relu6, rms_norm, silu, softmax,
    },
};

use super::place::{Place, Subject};

/// Which sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    Small,
    Large,
}

/// Makes an operation at a place.
type Make = Box<dyn Fn(&Place, Size) -> Result<Subject>>;

/// What a network is an operation of.
pub(super) const NETWORK: &str = "network";

pub(super) struct Operation {
    pub(super) name: &'static str,
    /// The item of `sala_models::ops` that computes it.
    pub(super) of: &'static str,
    pub(super) make: Make,
}

impl Operation {
    /// Whether its kernel is as exact as one step of an element-wise operation: sums of products are not, and
    /// neither are networks.
    pub(super) fn is_exact(&self) -> bool {
        !matches!(self.of, "conv2d" | "linear" | "Attention" | NETWORK)
    }

    /// The operation at a place, for the form that it is to be computed in.
    pub(super) fn subject(&self, place: &Place, size: Size, form: Choice) -> Result<Subject> {
        // Networks choose how their images lie when they are made.
        with_choice(form, || (self.make)(place, size))
    }
}

/// An input: its name, and its dimensions for both sizes.
pub(super) type Input = (&'static str, &'static [usize], &'static [usize]);

/// An operation that is a function of what it is differentiated by.
pub(super) fn function(
    name: &'static str,
    of: &'static str,
    inputs: &'static [Input],
    op: impl Fn(&[Tensor]) -> Result<Tensor> + Clone + 'static,
) -> Operation {
    let make = move |place: &Place, size: Size| {
        let var = |&(name, small, large): &Input| {
            let dims = if size == Size::Small { small } else { large };
            Ok((name.to_owned(), place.var(name, dims)?))
        };
        let vars = inputs.iter().map(var).collect::<Result<Vec<_>>>()?;
        let tensors: Vec<Tensor> = vars.iter().map(|(_, v)| v.as_tensor().clone()).collect();
        let op = op.clone();
        Ok(Subject {
            vars,
            buffers: vec![],
            forward: Box::new(move || op(&tensors)),
        })
    };
    Operation {
        name,
        of,
        make: Box::new(make),
    }
}

/// All of them.
pub(super) fn all() -> Vec<Operation> {
    let mut all = element_wise();
    all.extend(products());
    all.extend(convolutions());
    all.extend(batch_norms());
    all.extend(of_rows());
    all.extend(losses());
    all.extend(attentions());
    all.extend(pools());
    all
}

const ROWS: &[Input] = &[("x", &[3, 5], &[65, 257])];
const PAIR: &[Input] = &[("x", &[3, 5], &[65, 257]), ("y", &[3, 5], &[65, 257])];

fn element_wise() -> Vec<Operation> {
    let dropout = |t: &[Tensor]| {
        let layer = Dropout::new(0.3, Rng::new(8).stream("dropout"))?;
        layer.forward(&t[0], Mode::train(5))
    };
    vec![
        function("add", "add", PAIR, |t| add(&t[0], &t[1])),
        function("relu", "relu", ROWS, |t| relu(&t[0])),
        function("relu6", "relu6", ROWS, |t| relu6(&(&t[0] * 4.0)?)),
        function("silu", "silu", ROWS, |t| silu(&t[0])),
        function("gelu", "gelu", ROWS, |t| gelu(&t[0])),
        function("gelu_tanh", "gelu_tanh", ROWS, |t| gelu_tanh(&t[0])),
        function("dropout", "Dropout", ROWS, dropout),
    ]
}

const LINEAR: &[Input] = &[
    ("x", &[2, 3, 4], &[5, 13, 67]),
    ("weight", &[5, 4], &[130, 67]),
    ("bias", &[5], &[130]),
];
const CONV: &[Input] = &[
    ("x", &[2, 2, 5, 4], &[3, 20, 17, 13]),
    ("weight", &[3, 2, 3, 3], &[35, 20, 3, 3]),
    ("bias", &[3], &[35]),
];
const POINTWISE: &[Input] = &[
    ("x", &[2, 3, 3, 2], &[2, 70, 9, 11]),
    ("weight", &[4, 3, 1, 1], &[33, 70, 1, 1]),
    ("bias", &[4], &[33]),
];
const GROUPED: &[Input] = &[
    ("x", &[1, 4, 4, 3], &[2, 32, 9, 8]),
    ("weight", &[6, 2, 3, 3], &[48, 16, 3, 3]),
    ("bias", &[6], &[48]),
];
const DEPTHWISE: &[Input] = &[
    ("x", &[1, 3, 4, 5], &[2, 45, 15, 14]),
    ("weight", &[3, 1, 3, 3], &[45, 1, 3, 3]),
    ("bias", &[3], &[45]),
];
const TABLE: &[Input] = &[("table", &[7, 3], &[90, 65])];

fn products() -> Vec<Operation> {
    vec![
        function("linear", "linear", LINEAR, |t| {
            linear(&t[0], &t[1], Some(&t[2]))
        }),
        function("embedding", "embedding", TABLE, |t| {
            let entries = u32::try_from(t[0].dim(0)?)?;
            let indices = (0..4 * entries).map(|i| i * 37 % 11 % entries);
            let indices = Tensor::from_iter(indices, t[0].device())?;
            embedding(&t[0], &indices.reshape((4, ()))?)
        }),
    ]
}

/// Convolutions of images with channels first, which are brought to the configuration's format and back.
fn convolutions() -> Vec<Operation> {
    let conv = |name, inputs, config: Conv2dConfig| {
        function(name, "conv2d", inputs, move |t| {
            let x = config.format.from_channels_first(&t[0])?;
            let y = conv2d(&x, &t[1], Some(&t[2]), config)?;
            config.format.to_channels_first(&y)
        })
    };
    let same = Conv2dConfig::same(3, 1);
    let in_groups = |groups| Conv2dConfig { groups, ..same };
    let dilated = Conv2dConfig {
        dilation: (2, 1),
        padding: (2, 1),
        ..Conv2dConfig::default()
    };
    let last = ImageFormat::ChannelsLast;
    vec![
        conv("conv2d 3×3", CONV, same),
        conv("conv2d 3×3, channels last", CONV, same.with_format(last)),
        conv("conv2d 3×3, stride 2", CONV, Conv2dConfig::same(3, 2)),
        conv("conv2d 3×3, dilated", CONV, dilated),
        conv("conv2d 1×1, stride 2", POINTWISE, Conv2dConfig::same(1, 2)),
        conv("conv2d 3×3, two groups", GROUPED, in_groups(2)),
        depthwise("conv2d depthwise", same),
        depthwise("conv2d depthwise, channels last", same.with_format(last)),
    ]
}

/// A kernel for each channel; how many there are depends on the size.
fn depthwise(name: &'static str, config: Conv2dConfig) -> Operation {
    function(name, "conv2d", DEPTHWISE, move |t| {
        let groups = t[1].dim(0)?;
        let x = config.format.from_channels_first(&t[0])?;
        let y = conv2d(&x, &t[1], Some(&t[2]), Conv2dConfig { groups, ..config })?;
        config.format.to_channels_first(&y)
    })
}

/// What follows a batch norm in the same operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    Nothing,
    Relu,
    AddRelu,
}

fn batch_norms() -> Vec<Operation> {
    let (first, last) = (ImageFormat::ChannelsFirst, ImageFormat::ChannelsLast);
    let train = Mode::train(0);
    vec![
        batch_norm("batch_norm", train, first, After::Nothing),
        batch_norm("batch_norm, channels last", train, last, After::Nothing),
        batch_norm(
            "batch_norm, evaluation",
            Mode::eval(),
            first,
            After::Nothing,
        ),
        batch_norm("batch_norm + relu", train, first, After::Relu),
        batch_norm("batch_norm + add + relu", train, first, After::AddRelu),
        batch_norm(
            "batch_norm + add + relu, channels last",
            train,
            last,
            After::AddRelu,
        ),
    ]
}

fn batch_norm(name: &'static str, mode: Mode, format: ImageFormat, after: After) -> Operation {
    let make = move |place: &Place, size: Size| {
        let dims = match size {
            Size::Small => [3, 2, 2, 3],
            Size::Large => [9, 70, 5, 7],
        };
        let store = VarStore::new(0, place.dtype, &place.device);
        let layer = BatchNorm::new(dims[1], store.builder())?.with_format(format);
        let mut vars = vec![("x".to_owned(), place.var("x", &dims)?)];
        for name in ["weight", "bias"] {
            vars.push((name.into(), place.fill(&store, name, false)?));
        }
        let mut buffers = vec![];
        for (name, positive) in [("running_mean", false), ("running_var", true)] {
            buffers.push((name.into(), place.fill(&store, name, positive)?));
        }
        let x = vars[0].1.as_tensor().clone();
        let residual = place.var("residual", &dims)?;
        let beside = residual.as_tensor().clone();
        if after == After::AddRelu {
            vars.push(("residual".into(), residual));
        }
        let forward = move || {
            let x = format.from_channels_first(&x)?;
            let y = match after {
                After::Nothing => layer.forward(&x, mode)?,
                After::Relu => layer.forward_relu(&x, mode)?,
                After::AddRelu => {
                    layer.forward_add_relu(&x, &format.from_channels_first(&beside)?, mode)?
                }
            };
            format.to_channels_first(&y)
        };
        Ok(Subject {
            vars,
            buffers,
            forward: Box::new(forward),
        })
    };
    Operation {
        name,
        of: "BatchNorm",
        make: Box::new(make),
    }
}

const NORM: &[Input] = &[
    ("x", &[3, 5], &[65, 257]),
    ("weight", &[5], &[257]),
    ("bias", &[5], &[257]),
];
const SCALE: &[Input] = &[("x", &[3, 5], &[65, 257]), ("weight", &[5], &[257])];
const MASKED: &[Input] = &[
    ("x", &[2, 3, 5], &[7, 33, 65]),
    ("mask", &[3, 5], &[33, 65]),
];
const HEADS: &[Input] = &[("x", &[2, 3, 4], &[6, 31, 34])];
/// Added to mean squares: one that is felt.
const EPS: f64 = 0.1;

/// What works on the last dimension.
fn of_rows() -> Vec<Operation> {
    let rope = |name, pairs| {
        function(name, "Rope", HEADS, move |t| {
            let (_, positions, features) = t[0].dims3()?;
            let (dtype, device) = (t[0].dtype(), t[0].device());
            let rope = Rope::new(features, positions + 3, 50.0, pairs, dtype, device)?;
            rope.forward(&t[0], 3)
        })
    };
    vec![
        function("layer_norm", "layer_norm", NORM, |t| {
            layer_norm(&t[0], &t[1], Some(&t[2]), EPS)
        }),
        function("rms_norm", "rms_norm", SCALE, |t| {
            rms_norm(&t[0], &t[1], EPS)
        }),
        function("softmax", "softmax", ROWS, |t| softmax(&t[0], D::Minus1)),
        function("softmax over columns", "softmax", ROWS, |t| {
            softmax(&t[0], 0)
        }),
        function("log_softmax", "log_softmax", ROWS, |t| {
            log_softmax(&t[0], D::Minus1)
        }),
        function("masked_softmax", "masked_softmax", ROWS, |t| {
            // The first row has nothing left.
            let columns = t[0].dim(1)?;
            let seen = (0..t[0].elem_count()).map(|i| u8::from(i >= columns && i % 3 > 0));
            let seen = Tensor::from_iter(seen, t[0].device())?.reshape(t[0].shape())?;
            masked_softmax(&t[0], &seen, D::Minus1)
        }),
        function("masked_softmax, added", "masked_softmax", MASKED, |t| {
            masked_softmax(&t[0], &t[1], D::Minus1)
        }),
        rope("rope, halves", RopePairs::Halves),
        rope("rope, interleaved", RopePairs::Interleaved),
    ]
}

const LOGITS: &[Input] = &[("logits", &[5, 4], &[65, 257])];
const DISTRIBUTIONS: &[Input] = &[
    ("logits", &[5, 4], &[65, 257]),
    ("targets", &[5, 4], &[65, 257]),
];

fn losses() -> Vec<Operation> {
    vec![
        function("cross_entropy", "CrossEntropy", LOGITS, |t| {
            let (rows, classes) = t[0].dims2()?;
            let classes = i64::try_from(classes)?;
            // Every third row does not count.
            let class = |row| if row % 3 == 1 { -1 } else { row * 7 % classes };
            let targets = Tensor::from_iter((0_i64..).take(rows).map(class), t[0].device())?;
            let loss = CrossEntropy {
                label_smoothing: 0.1,
                ignore_index: Some(-1),
            };
            loss.forward(&t[0], &targets)
        }),
        function(
            "cross_entropy, distributions",
            "CrossEntropy",
            DISTRIBUTIONS,
            |t| {
                let loss = CrossEntropy {
                    label_smoothing: 0.1,
                    ignore_index: None,
                };
                loss.forward(&t[0], &t[1])
            },
        ),
    ]
}

/// `(B, H, T, D)`, `(B, G, S, D)` and `(B, G, S, E)`.
const ATTENTION: &[Input] = &[
    ("q", &[1, 2, 2, 3], &[2, 4, 33, 18]),
    ("k", &[1, 2, 3, 3], &[2, 4, 35, 18]),
    ("v", &[1, 2, 3, 2], &[2, 4, 35, 10]),
];
/// With heads of eight features side by side, twice as many of queries as of keys.
const PACKED: &[Input] = &[
    ("q", &[1, 2, 8], &[2, 33, 32]),
    ("k", &[1, 2, 4], &[2, 33, 16]),
    ("v", &[1, 2, 4], &[2, 33, 16]),
];

fn attentions() -> Vec<Operation> {
    vec![
        function("attention, padding, dropout", "Attention", ATTENTION, |t| {
            let dropout = Dropout::new(0.2, Rng::new(8).stream("shares"))?;
            let attention = Attention {
                dropout: dropout.mask(Mode::train(3)),
                ..Attention::default()
            };
            let keys = t[1].dim(2)?;
            // The last key is padding.
            let seen = (0..keys).map(|key| u8::from(key + 1 < keys));
            let seen = Tensor::from_iter(seen, t[0].device())?.reshape((1, 1, 1, keys))?;
            attention.forward(&t[0], &t[1], &t[2], Some(&seen))
        }),
        function("attention, causal, grouped", "Attention", PACKED, |t| {
            let attention = Attention {
                causal: true,
                ..Attention::default()
            };
            attention.forward_packed(&t[0], &t[1], &t[2], (4, 2), None)
        }),
    ]
}

const IMAGES: &[Input] = &[("x", &[1, 2, 5, 4], &[3, 17, 13, 18])];

fn pools() -> Vec<Operation> {
    let (first, last) = (ImageFormat::ChannelsFirst, ImageFormat::ChannelsLast);
    let overlapping = Pool2d {
        padding: (1, 1),
        stride: (2, 2),
        ..Pool2d::square(3)
    };
    let max = |name, format| {
        function(name, "Pool2d", IMAGES, move |t| {
            let x = overlapping
                .with_format(format)
                .max(&format.from_channels_first(&t[0])?)?;
            format.to_channels_first(&x)
        })
    };
    vec![
        max("max pool", first),
        max("max pool, channels last", last),
        function("average pool", "Pool2d", IMAGES, move |t| {
            overlapping.average(&t[0])
        }),
        function("adaptive_avg_pool2d", "adaptive_avg_pool2d", IMAGES, |t| {
            adaptive_avg_pool2d(&t[0], (3, 2))
        }),
        function("global_avg_pool2d", "global_avg_pool2d", IMAGES, move |t| {
            global_avg_pool2d(&t[0], first)
        }),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Exported layers around operations of the list, and types of settings.
    const AROUND: [&str; 11] = [
        "Conv2d",
        "Conv2dConfig",
        "DropoutMask",
        "Embedding",
        "ImageFormat",
        "LayerNorm",
        "Linear",
        "RmsNorm",
        "RopePairs",
        "cross_entropy",
        "rope",
    ];

    // Catches an operation that is exported and never verified.
    #[test]
    fn every_exported_operation_is_in_the_list() {
        let module = include_str!("../../../sala-models/src/ops/mod.rs");
        let exports = module.lines().filter_map(|l| l.strip_prefix("pub use "));
        let items = exports.flat_map(|line| {
            let (_, items) = line.split_once("::").unwrap();
            items.trim_matches(['{', '}', ';', ' ']).split(", ")
        });
        let items: BTreeSet<&str> = items.collect();
        assert!(
            items.contains("silu") && items.contains("Pool2d"),
            "{items:?}"
        );
        let verified: BTreeSet<&str> = all().iter().map(|operation| operation.of).collect();
        let missing: Vec<_> = items
            .iter()
            .filter(|item| !verified.contains(*item) && !AROUND.contains(item))
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
        let gone: Vec<_> = verified.difference(&items).collect();
        assert!(gone.is_empty(), "{gone:?}");
    }

    #[test]
    fn names_are_unique() {
        let names: Vec<_> = all().iter().map(|operation| operation.name).collect();
        assert_eq!(names.len(), names.iter().collect::<BTreeSet<_>>().len());
    }
}
