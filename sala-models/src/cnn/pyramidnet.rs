//! Pyramidal residual networks (Han, Kim and Kim 2017, arXiv:1610.02915), with basic blocks.
//!
//! PyramidNet-`d`-`α` has three groups of `n = (d − 2) / 6` blocks, and block `i` of the `3 n`, counted
//! from 1 through all groups, has `16 + i α / 3n` channels, rounded (halves to even):
//!
//! ```text
//! y = bn3(conv2(relu(bn2(conv1(bn1 x))))) + s(x)
//! ```
//!
//! where `s(x)` has no parameters: `x`, averaged over 2 × 2 pixels where the block has a stride of 2, with
//! zeros for the channels it lacks.

use candle_core::{Module, Result, Tensor};
use candle_nn::{Init, VarBuilder};

use super::parts::{he_conv, images, norm};
use crate::{
    Error, Mode, Network,
    error::check_sizes,
    ops::{BatchNorm, Conv2d, ImageFormat, Linear, Pool2d, global_avg_pool2d},
};

const CONFIG: &str = "PyramidNetConfig";

/// The sizes of a [`PyramidNet`].
///
/// The default is PyramidNet-110-270 for colour images in ten classes.
///
/// ```
/// use sala_models::cnn::PyramidNetConfig;
///
/// let smaller = PyramidNetConfig { depth: 20, widening: 48, ..Default::default() };
/// assert!(smaller.validate().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PyramidNetConfig {
    /// Channels of an image: 1 for grey, 3 for colour.
    pub in_channels: usize,
    /// Number of outputs.
    pub classes: usize,
    /// Number of convolutions and the last layer: 8, 14, 20, …
    pub depth: usize,
    /// How many channels the last block has more than the first convolution.
    pub widening: usize,
}

impl Default for PyramidNetConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            classes: 10,
            depth: 110,
            widening: 270,
        }
    }
}

impl PyramidNetConfig {
    /// Checks that all sizes are at least one and that the depth is `6 n + 2` with `n` at least one.
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
        if self.depth < 8 || self.depth % 6 != 2 {
            return Err(Error::Config {
                config: CONFIG,
                field: "depth",
                wanted: "6 n + 2 with n >= 1",
                got: self.depth.to_string(),
            });
        }
        Ok(())
    }

    /// The number of blocks of a group.
    const fn group(&self) -> usize {
        (self.depth - 2) / 6
    }

    /// The channels of block `i`, counted from 1; of the first convolution for 0.
    fn channels(&self, i: usize) -> usize {
        let blocks = 3 * self.group();
        let (whole, rest) = (i * self.widening / blocks, i * self.widening % blocks);
        let up = match (2 * rest).cmp(&blocks) {
            std::cmp::Ordering::Less => 0,
            // 16 is even, so the sum is even when the added part is.
            std::cmp::Ordering::Equal => whole % 2,
            std::cmp::Ordering::Greater => 1,
        };
        16 + whole + up
    }
}

/// A pyramidal residual network for classification.
///
/// From images `(N, in_channels, H, W)`, whose sides are multiples of 4, to `(N, classes)`: what the last
/// group leaves is averaged over all pixels. Parameters are `conv1` and `bn1`; in block `j` of group `i`
/// `layer{i}.{j}.bn1`, `conv1`, `bn2`, `conv2`, `bn3`; `bn_final`; and `fc`. Convolutions start from He's
/// normal law over their outputs, the last bias from zero.
#[derive(Debug, Clone)]
pub struct PyramidNet {
    stem: (Conv2d, BatchNorm),
    blocks: Vec<Block>,
    norm: BatchNorm,
    fc: Linear,
    in_channels: usize,
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
        let first = config.channels(0);
        let stem = (
            he_conv((config.in_channels, first), 3, 1, format, vb.pp("conv1"))?,
            norm(first, format, vb.pp("bn1"))?,
        );
        let depth = config.group();
        let mut blocks = Vec::with_capacity(3 * depth);
        for i in 0..3 * depth {
            let (group, number) = (i / depth, i % depth);
            let stride = if group > 0 && number == 0 { 2 } else { 1 };
            let sizes = (config.channels(i), config.channels(i + 1));
            let vb = vb.pp(format!("layer{}", group + 1)).pp(number);
            blocks.push(Block::new(sizes, stride, format, vb)?);
        }
        let last = config.channels(3 * depth);
        let head = vb.pp("fc");
        head.get_with_hints(config.classes, "bias", Init::Const(0.0))?;
        Ok(Self {
            stem,
            blocks,
            norm: norm(last, format, vb.pp("bn_final"))?,
            fc: Linear::new(last, config.classes, head)?,
            in_channels: config.in_channels,
            format,
        })
    }
}

impl Network for PyramidNet {
    /// `x` is `(N, in_channels, H, W)`.
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        const OP: &str = "PyramidNet";
        let images = images(OP, x, self.in_channels, self.format)?;
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

#[derive(Debug, Clone)]
struct Block {
    bn1: BatchNorm,
    conv1: Conv2d,
    bn2: BatchNorm,
    conv2: Conv2d,
    bn3: BatchNorm,
    /// The average over pixels in the shortcut.
    pool: Option<Pool2d>,
    /// Channels that the shortcut lacks.
    added: usize,
    format: ImageFormat,
}

impl Block {
    fn new(
        (inputs, outputs): (usize, usize),
        stride: usize,
        format: ImageFormat,
        vb: VarBuilder,
    ) -> crate::Result<Self> {
        Ok(Self {
            bn1: norm(inputs, format, vb.pp("bn1"))?,
            conv1: he_conv((inputs, outputs), 3, stride, format, vb.pp("conv1"))?,
            bn2: norm(outputs, format, vb.pp("bn2"))?,
            conv2: he_conv((outputs, outputs), 3, 1, format, vb.pp("conv2"))?,
            bn3: norm(outputs, format, vb.pp("bn3"))?,
            pool: (stride > 1).then(|| Pool2d::square(stride).with_format(format)),
            added: outputs - inputs,
            format,
        })
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let inner = self.conv1.forward(&self.bn1.forward(x, mode)?)?;
        let inner = self.conv2.forward(&self.bn2.forward_relu(&inner, mode)?)?;
        self.bn3.forward(&inner, mode)? + self.shortcut(x)?
    }

    fn shortcut(&self, x: &Tensor) -> Result<Tensor> {
        let pooled = match &self.pool {
            Some(pool) => pool.average(x)?,
            None => x.clone(),
        };
        if self.added == 0 {
            return Ok(pooled);
        }
        pooled.pad_with_zeros(self.format.channel(), 0, self.added)
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
            let blocks = (0..=3 * config.group()).map(|i| config.channels(i));
            blocks.collect::<Vec<_>>()
        };
        assert_eq!(channels(110, 270)[..3], [16, 21, 26]);
        assert_eq!(channels(110, 270)[54], 286);
        // 16 + i · 3/6: halves go to 16 (16.5), 18 (17.5) and 18 (18.5).
        assert_eq!(channels(14, 3), [16, 16, 17, 18, 18, 18, 19]);
        assert_eq!(channels(8, 4), [16, 17, 19, 20]);
    }
}
