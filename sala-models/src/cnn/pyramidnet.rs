//! Pyramidal residual networks (Han, Kim and Kim 2017, arXiv:1610.02915).
//!
//! PyramidNet-`d`-`α` has three groups of `n` blocks, `d = 6 n + 2` for basic ones and `9 n + 2` for
//! bottlenecks, and block `i` of the `3 n`, counted from 1 through all groups, has the width
//! `16 + i α / 3n`, rounded (halves to even):
//!
//! ```text
//! basic:       y = bn3(conv 3×3 (relu(bn2(conv 3×3 (bn1 x))))) + s(x)
//! bottleneck:  y = bn4(conv 1×1 (relu(bn3(conv 3×3 (relu(bn2(conv 1×1 (bn1 x)))))))) + s(x)
//! ```
//!
//! Every convolution has as many outputs as the block is wide, but the last of a bottleneck four times as
//! many. The stride is in the first 3 × 3 convolution,
//! and `s(x)` has no parameters: `x`, averaged over 2 × 2 pixels where the block has a stride of 2, with
//! zeros for the channels it lacks.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::parts::{blocks_of_a_group, check_depth, group_stride, he_conv, head, images, norm};
use crate::{
    Error, Mode, Network,
    error::check_sizes,
    kernels::parts::pad,
    ops::{BatchNorm, Conv2d, ImageFormat, Linear, Pool2d, add, global_avg_pool2d},
};

const CONFIG: &str = "PyramidNetConfig";

/// The kind of a [`PyramidNet`]'s blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PyramidNetBlock {
    /// Two 3 × 3 convolutions.
    #[default]
    Basic,
    /// 1 × 1, 3 × 3 and 1 × 1, the last with four times the channels.
    Bottleneck,
}

impl PyramidNetBlock {
    /// A block's output channels over its width.
    const fn expansion(self) -> usize {
        match self {
            Self::Basic => 1,
            Self::Bottleneck => 4,
        }
    }
}

/// The sizes of a [`PyramidNet`].
///
/// The default is PyramidNet-110-270 for colour images in ten classes.
///
/// ```
/// use sala_models::cnn::{PyramidNetBlock, PyramidNetConfig};
///
/// let smaller = PyramidNetConfig { depth: 20, widening: 48, ..Default::default() };
/// assert!(smaller.validate().is_ok());
///
/// let block = PyramidNetBlock::Bottleneck;
/// let deeper = PyramidNetConfig { block, depth: 164, ..Default::default() };
/// assert!(deeper.validate().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PyramidNetConfig {
    /// Channels of an image: 1 for grey, 3 for colour.
    pub in_channels: usize,
    /// Number of outputs.
    pub classes: usize,
    /// The kind of its blocks.
    pub block: PyramidNetBlock,
    /// Number of convolutions and the last layer: 8, 14, 20, … for basic blocks, 11, 20, 29, … for
    /// bottlenecks.
    pub depth: usize,
    /// How much wider the last block is than the first convolution.
    pub widening: usize,
}

impl Default for PyramidNetConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            classes: 10,
            block: PyramidNetBlock::Basic,
            depth: 110,
            widening: 270,
        }
    }
}

impl PyramidNetConfig {
    /// Checks that all sizes are at least one and that the depth is `6 n + 2`, or `9 n + 2` for
    /// bottlenecks, with `n` at least one.
    ///
    /// # Errors
    /// [`Error::Config`], naming the field.
    ///
    /// ```
    /// use sala_models::cnn::PyramidNetConfig;
    ///
    /// let bad = PyramidNetConfig { depth: 100, ..Default::default() };
    /// assert!(bad.validate().unwrap_err().to_string().contains("depth must be 6 n + 2"));
    /// ```
    pub fn validate(&self) -> crate::Result<()> {
        let sizes = [
            ("in_channels", self.in_channels),
            ("classes", self.classes),
            ("widening", self.widening),
        ];
        check_sizes(CONFIG, sizes)?;
        self.group()?;
        Ok(())
    }

    /// The number of blocks of a group. The first convolution and the last layer are in no block.
    fn group(&self) -> crate::Result<usize> {
        let (layers, wanted) = match self.block {
            PyramidNetBlock::Basic => (2, "6 n + 2 with n >= 1"),
            PyramidNetBlock::Bottleneck => (3, "9 n + 2 with n >= 1 for bottlenecks"),
        };
        let blocks = blocks_of_a_group(self.depth, layers, 2);
        check_depth(CONFIG, blocks, wanted, self.depth)
    }

    /// The width of block `i` of `blocks`, counted from 1; the first convolution's for 0.
    const fn width(&self, i: usize, blocks: usize) -> usize {
        let (whole, rest) = (i * self.widening / blocks, i * self.widening % blocks);
        // 16 is even, so the sum is even when the added part is.
        let up = 2 * rest > blocks || (2 * rest == blocks && whole % 2 == 1);
        16 + whole + up as usize
    }
}

/// A pyramidal residual network for classification.
///
/// From images `(N, in_channels, H, W)`, whose sides are multiples of 4, to `(N, classes)`: what the last
/// group leaves is averaged over all pixels. Parameters are `conv1` and `bn1`; in block `j` of group `i`
/// `layer{i}.{j}.bn1`, `conv1`, `bn2`, `conv2`, `bn3` (and `conv3`, `bn4` of a bottleneck); `bn_final`; and
/// `fc`. Convolutions start from He's
/// normal law over their outputs, the last bias from zero.
#[derive(Debug, Clone)]
pub struct PyramidNet {
    stem: (Conv2d, BatchNorm),
    blocks: Vec<Block>,
    norm: BatchNorm,
    fc: Linear,
    format: ImageFormat,
}

impl PyramidNet {
    /// A network with parameters under the builder's prefix.
    ///
    /// # Errors
    /// When the configuration is not valid, or the store holds one of the names with another shape.
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use sala_models::{VarStore, cnn::{PyramidNet, PyramidNetConfig}};
    ///
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// let small = PyramidNetConfig { depth: 8, widening: 9, ..Default::default() };
    /// PyramidNet::new(&small, store.builder())?;
    /// assert_eq!(store.get("layer3.0.bn3.weight").map(|v| v.elem_count()), Some(16 + 9));
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    #[expect(
        clippy::needless_pass_by_value,
        reason = "candle's layers take the builder by value"
    )]
    pub fn new(config: &PyramidNetConfig, vb: VarBuilder) -> crate::Result<Self> {
        config.validate()?;
        let format = ImageFormat::fastest(vb.dtype(), vb.device())?;
        let depth = config.group()?;
        let width = |i| config.width(i, 3 * depth);
        let mut channels = width(0);
        let stem = (
            he_conv((config.in_channels, channels), 3, 1, format, vb.pp("conv1"))?,
            norm(channels, format, vb.pp("bn1"))?,
        );
        let mut blocks = Vec::with_capacity(3 * depth);
        for i in 0..3 * depth {
            let (group, number) = (i / depth, i % depth);
            let vb = vb.pp(format!("layer{}", group + 1)).pp(number);
            let shape = Shape {
                kind: config.block,
                inputs: channels,
                width: width(i + 1),
                stride: group_stride(group, number),
            };
            blocks.push(Block::new(shape, format, vb)?);
            channels = shape.outputs();
        }
        Ok(Self {
            stem,
            blocks,
            norm: norm(channels, format, vb.pp("bn_final"))?,
            fc: head(channels, config.classes, vb.pp("fc"))?,
            format,
        })
    }
}

impl Network for PyramidNet {
    /// `x` is `(N, in_channels, H, W)`.
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        const OP: &str = "PyramidNet";
        let images = images(OP, x, &self.stem.0)?;
        let (_, _, height, width) = x.dims4()?;
        if height % 4 != 0 || width % 4 != 0 {
            return Err(Error::Argument {
                op: OP,
                argument: "x",
                wanted: "of height and width that are multiples of 4".into(),
                got: format!("shape {:?}", x.dims()),
            }
            .into());
        }
        let (conv, norm) = &self.stem;
        let mut x = norm.forward(&conv.forward(&images)?, mode)?;
        for block in &self.blocks {
            x = block.forward(&x, mode)?;
        }
        let features = global_avg_pool2d(&self.norm.forward_relu(&x, mode)?, self.format)?;
        self.fc.forward(&features)
    }
}

/// The sizes of a block.
#[derive(Clone, Copy)]
struct Shape {
    kind: PyramidNetBlock,
    inputs: usize,
    width: usize,
    stride: usize,
}

impl Shape {
    const fn outputs(self) -> usize {
        self.width * self.kind.expansion()
    }

    /// Channels, kernel and stride of each convolution.
    fn convolutions(self) -> Vec<((usize, usize), usize, usize)> {
        let Self {
            inputs,
            width,
            stride,
            ..
        } = self;
        match self.kind {
            PyramidNetBlock::Basic => vec![((inputs, width), 3, stride), ((width, width), 3, 1)],
            PyramidNetBlock::Bottleneck => vec![
                ((inputs, width), 1, 1),
                ((width, width), 3, stride),
                ((width, self.outputs()), 1, 1),
            ],
        }
    }
}

#[derive(Debug, Clone)]
struct Block {
    /// A norm before each convolution; relu stands between all but the first.
    layers: Vec<(BatchNorm, Conv2d)>,
    norm: BatchNorm,
    /// The average over pixels in the shortcut.
    pool: Option<Pool2d>,
    /// Channels that the shortcut lacks.
    added: usize,
    format: ImageFormat,
}

impl Block {
    fn new(shape: Shape, format: ImageFormat, vb: VarBuilder) -> crate::Result<Self> {
        let norm = |number: usize, channels| norm(channels, format, vb.pp(format!("bn{number}")));
        let layer = |(i, (sizes, kernel, stride)): (usize, ((usize, usize), usize, usize))| {
            let conv = vb.pp(format!("conv{}", i + 1));
            let conv = he_conv(sizes, kernel, stride, format, conv)?;
            Ok((norm(i + 1, sizes.0)?, conv))
        };
        let convolutions = shape.convolutions();
        let last = convolutions.len() + 1;
        let layers = convolutions.into_iter().enumerate().map(layer);
        let pool = Pool2d::square(shape.stride).with_format(format);
        Ok(Self {
            layers: layers.collect::<crate::Result<_>>()?,
            norm: norm(last, shape.outputs())?,
            pool: (shape.stride > 1).then_some(pool),
            added: shape.outputs() - shape.inputs,
            format,
        })
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let mut y = x.clone();
        for (i, (norm, conv)) in self.layers.iter().enumerate() {
            let normed = match i {
                0 => norm.forward(&y, mode)?,
                _ => norm.forward_relu(&y, mode)?,
            };
            y = conv.forward(&normed)?;
        }
        add(&self.norm.forward(&y, mode)?, &self.shortcut(x)?)
    }

    fn shortcut(&self, x: &Tensor) -> Result<Tensor> {
        let pooled = match &self.pool {
            Some(pool) => pool.average(x)?,
            None => x.clone(),
        };
        if self.added == 0 {
            return Ok(pooled);
        }
        pad(&pooled, self.format.channel(), 0, self.added)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_widen_evenly_and_round_halves_to_even() {
        let channels = |depth, widening| {
            let config = PyramidNetConfig {
                depth,
                widening,
                ..Default::default()
            };
            let blocks = 3 * config.group().unwrap();
            (0..=blocks)
                .map(|i| config.width(i, blocks))
                .collect::<Vec<_>>()
        };
        assert_eq!(channels(110, 270)[..3], [16, 21, 26]);
        assert_eq!(channels(110, 270)[54], 286);
        // 16 + i · 3/6: halves go to 16 (16.5), 18 (17.5) and 18 (18.5).
        assert_eq!(channels(14, 3), [16, 16, 17, 18, 18, 18, 19]);
        assert_eq!(channels(8, 4), [16, 17, 19, 20]);
    }
}
