//! Residual networks (He et al. 2016, arXiv:1512.03385).
//!
//! A block adds what its layers compute to what it was given:
//!
//! ```text
//! basic:       y = relu(bn(conv 3×3 (relu(bn(conv 3×3 x)))) + s(x))
//! bottleneck:  y = relu(bn(conv 1×1 (relu(bn(conv 3×3 (relu(bn(conv 1×1 x))))))) + s(x))
//! ```
//!
//! where `s(x)` is `x`, or `bn(conv 1×1 x)` where the stride or the number of channels changes. Stages
//! 2 to 4 begin with a stride of 2, in the 3 × 3 convolution of a bottleneck: the paper has it in the
//! first 1 × 1 convolution, `PyTorch`'s networks have it here, where no pixel is passed over. Both can be
//! chosen.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::parts::{conv, images, norm};
use crate::{
    Mode, Network,
    error::check_sizes,
    ops::{BatchNorm, Conv2d, ImageFormat, Linear, Pool2d, global_avg_pool2d},
};

const CONFIG: &str = "ResNetConfig";

/// The kind of a [`ResNet`]'s blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResNetBlock {
    /// Two 3 × 3 convolutions.
    Basic,
    /// 1 × 1, 3 × 3 and 1 × 1, the last with four times the channels.
    Bottleneck,
}

impl ResNetBlock {
    /// A block's output channels over its width.
    pub(crate) const fn expansion(self) -> usize {
        match self {
            Self::Basic => 1,
            Self::Bottleneck => 4,
        }
    }
}

/// How a [`ResNet`] begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResNetStem {
    /// For images of about 32 pixels: a 3 × 3 convolution that keeps their size.
    Cifar,
    /// For images of about 224 pixels: a 7 × 7 convolution and a 3 × 3 max pooling, both with a
    /// stride of 2.
    ImageNet,
}

/// The sizes of a [`ResNet`].
///
/// The default is [`ResNetConfig::resnet18`].
///
/// ```
/// use sala_models::cnn::{ResNetConfig, ResNetStem};
///
/// let config = ResNetConfig {
///     classes: 1000,
///     stem: ResNetStem::ImageNet,
///     ..ResNetConfig::resnet50()
/// };
/// assert!(config.validate().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResNetConfig {
    /// Channels of an image: 1 for grey, 3 for colour.
    pub in_channels: usize,
    /// Number of outputs.
    pub classes: usize,
    /// How it begins.
    pub stem: ResNetStem,
    /// The kind of its blocks.
    pub block: ResNetBlock,
    /// The number of blocks of each stage.
    pub depths: [usize; 4],
    /// Channels of the first convolution.
    pub stem_width: usize,
    /// The width of each stage's blocks: their 3 × 3 convolutions' channels. A bottleneck has four times
    /// as many outputs.
    pub widths: [usize; 4],
    /// Whether stage 1 begins with a stride of 2 as well.
    pub downsample_in_first_stage: bool,
    /// Whether bottlenecks have their stride in the first 1 × 1 convolution.
    pub downsample_in_bottleneck: bool,
}

impl Default for ResNetConfig {
    fn default() -> Self {
        Self::resnet18()
    }
}

impl ResNetConfig {
    /// ResNet-18 for small colour images in ten classes.
    ///
    /// ```
    /// # use sala_models::cnn::ResNetConfig;
    /// assert_eq!(ResNetConfig::resnet18().depths, [2, 2, 2, 2]);
    /// ```
    pub const fn resnet18() -> Self {
        Self::of(ResNetBlock::Basic, [2, 2, 2, 2])
    }

    /// ResNet-34, likewise.
    ///
    /// ```
    /// # use sala_models::cnn::ResNetConfig;
    /// assert_eq!(ResNetConfig::resnet34().depths, [3, 4, 6, 3]);
    /// ```
    pub const fn resnet34() -> Self {
        Self::of(ResNetBlock::Basic, [3, 4, 6, 3])
    }

    /// ResNet-50, likewise.
    ///
    /// ```
    /// # use sala_models::cnn::{ResNetBlock, ResNetConfig};
    /// assert_eq!(ResNetConfig::resnet50().block, ResNetBlock::Bottleneck);
    /// ```
    pub const fn resnet50() -> Self {
        Self::of(ResNetBlock::Bottleneck, [3, 4, 6, 3])
    }

    /// ResNet-101, likewise.
    ///
    /// ```
    /// # use sala_models::cnn::ResNetConfig;
    /// assert_eq!(ResNetConfig::resnet101().depths, [3, 4, 23, 3]);
    /// ```
    pub const fn resnet101() -> Self {
        Self::of(ResNetBlock::Bottleneck, [3, 4, 23, 3])
    }

    const fn of(block: ResNetBlock, depths: [usize; 4]) -> Self {
        Self {
            in_channels: 3,
            classes: 10,
            stem: ResNetStem::Cifar,
            block,
            depths,
            stem_width: 64,
            widths: [64, 128, 256, 512],
            downsample_in_first_stage: false,
            downsample_in_bottleneck: false,
        }
    }

    /// Checks that all sizes are at least one.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config), naming the field.
    ///
    /// ```
    /// use sala_models::cnn::ResNetConfig;
    ///
    /// let bad = ResNetConfig { depths: [2, 2, 0, 2], ..Default::default() };
    /// assert!(bad.validate().unwrap_err().to_string().contains("ResNetConfig.depths"));
    /// ```
    pub fn validate(&self) -> crate::Result<()> {
        let sizes = [
            ("in_channels", self.in_channels),
            ("classes", self.classes),
            ("stem_width", self.stem_width),
        ];
        let depths = self.depths.iter().map(|&depth| ("depths", depth));
        let widths = self.widths.iter().map(|&width| ("widths", width));
        check_sizes(CONFIG, sizes.into_iter().chain(depths).chain(widths))
    }
}

/// A residual network for classification.
///
/// From images `(N, in_channels, H, W)` of any size to `(N, classes)`: what the last stage leaves is
/// averaged over all pixels. Parameters are `conv1` and `bn1`; in block `j` of stage `i`
/// `layer{i}.{j}.conv1`, `bn1`, `conv2`, `bn2` (and `conv3`, `bn3` of a bottleneck), and where the
/// shortcut is not the identity `shortcut.0` (the convolution) and `shortcut.1` (its norm); and
/// `linear`. Weights start as `PyTorch`'s layers do. [`resnet_hub_name`](super::resnet_hub_name) says what
/// Hugging Face calls them.
#[derive(Debug, Clone)]
pub struct ResNet {
    stem: (Conv2d, BatchNorm),
    pool: Option<Pool2d>,
    blocks: Vec<Block>,
    linear: Linear,
    format: ImageFormat,
}

impl ResNet {
    /// A network with parameters under the builder's prefix.
    ///
    /// # Errors
    /// When the configuration is not valid, or the store holds one of the names with another shape.
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use sala_models::{VarStore, cnn::{ResNet, ResNetConfig}};
    ///
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// let small = ResNetConfig { widths: [8, 8, 16, 16], ..ResNetConfig::resnet18() };
    /// ResNet::new(&small, store.builder())?;
    /// assert!(store.get("layer2.0.shortcut.0.weight").is_some());
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    #[expect(
        clippy::needless_pass_by_value,
        reason = "candle's layers take the builder by value"
    )]
    pub fn new(config: &ResNetConfig, vb: VarBuilder) -> crate::Result<Self> {
        config.validate()?;
        let format = ImageFormat::fastest(vb.dtype(), vb.device())?;
        let (kernel, stride) = match config.stem {
            ResNetStem::Cifar => (3, 1),
            ResNetStem::ImageNet => (7, 2),
        };
        let mut channels = config.stem_width;
        let sizes = (config.in_channels, channels);
        let stem = (
            conv(sizes, kernel, stride, format, vb.pp("conv1"))?,
            norm(channels, format, vb.pp("bn1"))?,
        );
        let mut blocks = Vec::with_capacity(config.depths.iter().sum());
        for (stage, (&depth, &width)) in config.depths.iter().zip(&config.widths).enumerate() {
            let vb = vb.pp(format!("layer{}", stage + 1));
            for number in 0..depth {
                let downsample = stage > 0 || config.downsample_in_first_stage;
                let shape = Shape {
                    kind: config.block,
                    inputs: channels,
                    width,
                    stride: if downsample && number == 0 { 2 } else { 1 },
                    early_stride: config.downsample_in_bottleneck,
                };
                blocks.push(Block::new(shape, format, vb.pp(number))?);
                channels = shape.outputs();
            }
        }
        Ok(Self {
            stem,
            pool: (config.stem == ResNetStem::ImageNet).then(|| stem_pool(format)),
            blocks,
            linear: Linear::new(channels, config.classes, vb.pp("linear"))?,
            format,
        })
    }
}

impl Network for ResNet {
    /// `x` is `(N, in_channels, H, W)`.
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let x = images("ResNet", x, &self.stem.0)?;
        let (conv, norm) = &self.stem;
        let mut x = norm.forward_relu(&conv.forward(&x)?, mode)?;
        if let Some(pool) = &self.pool {
            x = pool.max(&x)?;
        }
        for block in &self.blocks {
            x = block.forward(&x, mode)?;
        }
        let features = global_avg_pool2d(&x, self.format)?;
        self.linear.forward(&features)
    }
}

/// The max pooling after the stem for large images.
fn stem_pool(format: ImageFormat) -> Pool2d {
    let windows = Pool2d {
        stride: (2, 2),
        padding: (1, 1),
        ..Pool2d::square(3)
    };
    windows.with_format(format)
}

/// The sizes of a block.
#[derive(Clone, Copy)]
struct Shape {
    kind: ResNetBlock,
    inputs: usize,
    width: usize,
    stride: usize,
    /// Whether a bottleneck has it in its first convolution.
    early_stride: bool,
}

impl Shape {
    const fn outputs(self) -> usize {
        self.width * self.kind.expansion()
    }
}

#[derive(Debug, Clone)]
struct Block {
    /// Convolution, norm and relu, all but the last.
    inner: Vec<(Conv2d, BatchNorm)>,
    /// Convolution and norm, before the sum.
    last: (Conv2d, BatchNorm),
    shortcut: Option<(Conv2d, BatchNorm)>,
}

impl Block {
    fn new(shape: Shape, format: ImageFormat, vb: VarBuilder) -> crate::Result<Self> {
        let Shape {
            inputs,
            width,
            stride,
            ..
        } = shape;
        let outputs = shape.outputs();
        let layer = |number: usize, sizes: (usize, usize), kernel, stride| {
            let conv_vb = vb.pp(format!("conv{number}"));
            let norm_vb = vb.pp(format!("bn{number}"));
            Ok::<_, crate::Error>((
                conv(sizes, kernel, stride, format, conv_vb)?,
                norm(sizes.1, format, norm_vb)?,
            ))
        };
        let (inner, last) = match shape.kind {
            ResNetBlock::Basic => (
                vec![layer(1, (inputs, width), 3, stride)?],
                layer(2, (width, outputs), 3, 1)?,
            ),
            ResNetBlock::Bottleneck => {
                let (first, second) = if shape.early_stride {
                    (stride, 1)
                } else {
                    (1, stride)
                };
                let inner = vec![
                    layer(1, (inputs, width), 1, first)?,
                    layer(2, (width, width), 3, second)?,
                ];
                (inner, layer(3, (width, outputs), 1, 1)?)
            }
        };
        let shortcut = if stride == 1 && inputs == outputs {
            None
        } else {
            let vb = vb.pp("shortcut");
            Some((
                conv((inputs, outputs), 1, stride, format, vb.pp(0))?,
                norm(outputs, format, vb.pp(1))?,
            ))
        };
        Ok(Self {
            inner,
            last,
            shortcut,
        })
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let mut y = x.clone();
        for (conv, norm) in &self.inner {
            y = norm.forward_relu(&conv.forward(&y)?, mode)?;
        }
        let residual = match &self.shortcut {
            Some((conv, norm)) => norm.forward(&conv.forward(x)?, mode)?,
            None => x.clone(),
        };
        let (conv, norm) = &self.last;
        norm.forward_add_relu(&conv.forward(&y)?, &residual, mode)
    }
}
