//! Wide residual networks (Zagoruyko and Komodakis 2016, arXiv:1605.07146).
//!
//! WRN-`d`-`k` has three groups of `(d − 4) / 6` blocks, of `16 k`, `32 k` and `64 k` channels. Norm and
//! relu stand before each convolution:
//!
//! ```text
//! a = relu(bn1(x))        y = conv2(dropout(relu(bn2(conv1 a)))) + s        s = x, or conv 1×1 a
//! ```
//!
//! where the shortcut has a convolution, with the block's stride, when the number of channels changes.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::parts::{blocks_of_a_group, check_depth, group_stride, he_conv, head, images, norm};
use crate::{
    Mode, Network, Rng,
    error::{check_probability, check_sizes},
    ops::{BatchNorm, Conv2d, Dropout, ImageFormat, Linear, add, global_avg_pool2d},
};

const CONFIG: &str = "WideResNetConfig";

/// The sizes of a [`WideResNet`].
///
/// The default is WRN-28-10 without dropout, for colour images in ten classes.
///
/// ```
/// use sala_models::cnn::WideResNetConfig;
///
/// let smaller = WideResNetConfig { depth: 16, widening: 4, ..Default::default() };
/// assert!(smaller.validate().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct WideResNetConfig {
    /// Channels of an image: 1 for grey, 3 for colour.
    pub in_channels: usize,
    /// Number of outputs.
    pub classes: usize,
    /// Number of convolutions and the last layer: 10, 16, 22, 28, …
    pub depth: usize,
    /// How many times wider than a thin residual network.
    pub widening: usize,
    /// Probability of dropping an entry between a block's convolutions, in `[0, 1)`.
    pub dropout: f64,
}

impl Default for WideResNetConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            classes: 10,
            depth: 28,
            widening: 10,
            dropout: 0.0,
        }
    }
}

impl WideResNetConfig {
    /// Checks that all sizes are at least one, that the depth is `6 n + 4` with `n` at least one, and
    /// that the probability lies in `[0, 1)`.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config), naming the field.
    ///
    /// ```
    /// use sala_models::cnn::WideResNetConfig;
    ///
    /// let bad = WideResNetConfig { depth: 18, ..Default::default() };
    /// assert!(bad.validate().unwrap_err().to_string().contains("depth must be 6 n + 4"));
    /// ```
    pub fn validate(&self) -> crate::Result<()> {
        let sizes = [
            ("in_channels", self.in_channels),
            ("classes", self.classes),
            ("widening", self.widening),
        ];
        check_sizes(CONFIG, sizes)?;
        self.group()?;
        check_probability(CONFIG, "dropout", self.dropout)
    }

    /// The number of blocks of a group. The first convolution and three shortcuts are in no block.
    fn group(&self) -> crate::Result<usize> {
        let blocks = blocks_of_a_group(self.depth, 2, 4);
        check_depth(CONFIG, blocks, "6 n + 4 with n >= 1", self.depth)
    }
}

/// A wide residual network for classification.
///
/// From images `(N, in_channels, H, W)` of any size to `(N, classes)`: what the last group leaves is
/// averaged over all pixels. Parameters are `conv1`; in block `j` of group `i` `block{i}.layer.{j}.bn1`,
/// `conv1`, `bn2`, `conv2` and, where the number of channels changes, `convShortcut`; `bn1`; and `fc`.
/// Convolutions start from He's normal law over their outputs, the last bias from zero.
#[derive(Debug, Clone)]
pub struct WideResNet {
    stem: Conv2d,
    blocks: Vec<Block>,
    norm: BatchNorm,
    fc: Linear,
    format: ImageFormat,
}

impl WideResNet {
    /// A network with parameters under the builder's prefix. `rng` seeds the dropout masks only; the
    /// initial values come from the store behind `vb`.
    ///
    /// # Errors
    /// When the configuration is not valid, or the store holds one of the names with another shape.
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use sala_models::{Rng, VarStore, cnn::{WideResNet, WideResNetConfig}};
    ///
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// let thin = WideResNetConfig { depth: 10, widening: 1, ..Default::default() };
    /// WideResNet::new(&thin, store.builder(), Rng::new(0))?;
    /// assert!(store.get("block2.layer.0.convShortcut.weight").is_some());
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    #[expect(
        clippy::needless_pass_by_value,
        reason = "candle's layers take the builder by value"
    )]
    pub fn new(config: &WideResNetConfig, vb: VarBuilder, rng: Rng) -> crate::Result<Self> {
        config.validate()?;
        let format = ImageFormat::fastest(vb.dtype(), vb.device())?;
        let mut channels = 16;
        let stem = he_conv((config.in_channels, channels), 3, 1, format, vb.pp("conv1"))?;
        let depth = config.group()?;
        let mut blocks = Vec::with_capacity(3 * depth);
        for group in 0..3 {
            let vb = vb.pp(format!("block{}", group + 1)).pp("layer");
            let width = (16 * config.widening) << group;
            for number in 0..depth {
                let stride = group_stride(group, number);
                let vb = vb.pp(number);
                let masks = rng.stream(&format!("dropout/{}", vb.prefix()));
                let dropout = Dropout::new(config.dropout, masks)?;
                blocks.push(Block::new((channels, width), stride, dropout, format, vb)?);
                channels = width;
            }
        }
        Ok(Self {
            stem,
            blocks,
            norm: norm(channels, format, vb.pp("bn1"))?,
            fc: head(channels, config.classes, vb.pp("fc"))?,
            format,
        })
    }
}

impl Network for WideResNet {
    /// `x` is `(N, in_channels, H, W)`.
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let images = images("WideResNet", x, &self.stem)?;
        let mut x = self.stem.forward(&images)?;
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
    dropout: Dropout,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
    format: ImageFormat,
}

impl Block {
    fn new(
        (inputs, width): (usize, usize),
        stride: usize,
        dropout: Dropout,
        format: ImageFormat,
        vb: VarBuilder,
    ) -> crate::Result<Self> {
        // Where the stride is 2 the number of channels doubles, so `x` itself always fits.
        let shortcut = (inputs != width)
            .then(|| he_conv((inputs, width), 1, stride, format, vb.pp("convShortcut")))
            .transpose()?;
        Ok(Self {
            bn1: norm(inputs, format, vb.pp("bn1"))?,
            conv1: he_conv((inputs, width), 3, stride, format, vb.pp("conv1"))?,
            bn2: norm(width, format, vb.pp("bn2"))?,
            dropout,
            conv2: he_conv((width, width), 3, 1, format, vb.pp("conv2"))?,
            shortcut,
            format,
        })
    }

    /// Masks count entries in the order (N, C, H, W), so that they are the same in every format.
    fn drop(&self, x: Tensor, mode: Mode) -> Result<Tensor> {
        if !mode.train || self.dropout.p() == 0.0 {
            return Ok(x);
        }
        let first = self.format.to_channels_first(&x)?;
        let kept = self.dropout.forward(&first, mode)?;
        self.format.from_channels_first(&kept)
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let activated = self.bn1.forward_relu(x, mode)?;
        let inner = self.conv1.forward(&activated)?;
        let inner = self.bn2.forward_relu(&inner, mode)?;
        let inner = self.drop(inner, mode)?;
        let inner = self.conv2.forward(&inner)?;
        match &self.shortcut {
            Some(conv) => add(&inner, &conv.forward(&activated)?),
            None => add(&inner, x),
        }
    }
}
