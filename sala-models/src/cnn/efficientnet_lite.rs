//! EfficientNet-Lite (Tan and Le 2019, arXiv:1905.11946; Google released the Lite family in 2020): without
//! squeeze-and-excitation and with relu6, made for small processors.
//!
//! A block widens its input, filters each channel by itself, and narrows it again:
//!
//! ```text
//! y = bn(conv 1×1 (act(bn(depthwise k×k (act(bn(conv 1×1 x))))))) + x        act = relu6
//! ```
//!
//! without the first convolution where it would not widen, and without the sum where the stride or the number
//! of channels changes. In training whole blocks are dropped from the sum, later ones more often
//! (stochastic depth, Huang et al. 2016, arXiv:1603.09382).
//!
//! Convolutions leave `⌈size / stride⌉` rows and columns, padded as TensorFlow does it: where an odd number
//! of zeros is needed, the end gets one more than the beginning. Norms have `ε = 1e-3`; the published momentum of their statistics is
//! 0.01, here it is 0.1 as everywhere, which suits runs of less than a thousand steps too.

mod block;

use candle_core::{Module, Result, Tensor};
use candle_nn::{Init, VarBuilder};

use self::block::{Block, Filter, Layer, Shape};
use super::parts::images;
use crate::{
    Error, Mode, Network, Rng,
    error::{check_positive, check_probability, check_sizes},
    ops::{Dropout, ImageFormat, Linear, global_avg_pool2d, relu6},
};

const CONFIG: &str = "EfficientNetLiteConfig";
/// Channels of the first convolution, which no width changes.
const STEM: usize = 32;
/// Channels of the last convolution, likewise.
const HEAD: usize = 1280;

/// Blocks, kernel, stride of the first block, how many times wider inside, and channels.
type Stage = (usize, usize, usize, usize, usize);

/// Of EfficientNet-Lite0.
const STAGES: [Stage; 7] = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
];

/// The sizes of an [`EfficientNetLite`].
///
/// The default is EfficientNet-Lite0 for colour images in a thousand classes.
///
/// ```
/// use sala_models::cnn::EfficientNetLiteConfig;
///
/// let config = EfficientNetLiteConfig { classes: 10, ..EfficientNetLiteConfig::lite2() };
/// assert!(config.validate().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct EfficientNetLiteConfig {
    /// Channels of an image: 1 for grey, 3 for colour.
    pub in_channels: usize,
    /// Number of outputs.
    pub classes: usize,
    /// How many times more channels than Lite0, rounded to multiples of 8.
    pub width: f64,
    /// How many times more blocks than Lite0, rounded up; the first and the last stage keep their one.
    pub depth: f64,
    /// Dropout before the classifier, in `[0, 1)`.
    pub dropout: f64,
    /// The probability, in `[0, 1)`, that grows from block to block and with which they are dropped.
    pub drop_path: f64,
}

impl Default for EfficientNetLiteConfig {
    fn default() -> Self {
        Self::lite0()
    }
}

impl EfficientNetLiteConfig {
    /// EfficientNet-Lite0, made for images of 224 × 224.
    ///
    /// ```
    /// # use sala_models::cnn::EfficientNetLiteConfig;
    /// assert_eq!(EfficientNetLiteConfig::lite0().width, 1.0);
    /// ```
    pub const fn lite0() -> Self {
        Self::of(1.0, 1.0, 0.2)
    }

    /// EfficientNet-Lite1, made for 240 × 240.
    ///
    /// ```
    /// # use sala_models::cnn::EfficientNetLiteConfig;
    /// assert_eq!(EfficientNetLiteConfig::lite1().depth, 1.1);
    /// ```
    pub const fn lite1() -> Self {
        Self::of(1.0, 1.1, 0.2)
    }

    /// EfficientNet-Lite2, made for 260 × 260.
    ///
    /// ```
    /// # use sala_models::cnn::EfficientNetLiteConfig;
    /// assert_eq!(EfficientNetLiteConfig::lite2().depth, 1.2);
    /// ```
    pub const fn lite2() -> Self {
        Self::of(1.1, 1.2, 0.3)
    }

    /// EfficientNet-Lite3, made for 280 × 280.
    ///
    /// ```
    /// # use sala_models::cnn::EfficientNetLiteConfig;
    /// assert_eq!(EfficientNetLiteConfig::lite3().depth, 1.4);
    /// ```
    pub const fn lite3() -> Self {
        Self::of(1.2, 1.4, 0.3)
    }

    /// EfficientNet-Lite4, made for 300 × 300.
    ///
    /// ```
    /// # use sala_models::cnn::EfficientNetLiteConfig;
    /// assert_eq!(EfficientNetLiteConfig::lite4().depth, 1.8);
    /// ```
    pub const fn lite4() -> Self {
        Self::of(1.4, 1.8, 0.3)
    }

    const fn of(width: f64, depth: f64, dropout: f64) -> Self {
        Self {
            in_channels: 3,
            classes: 1000,
            width,
            depth,
            dropout,
            drop_path: 0.2,
        }
    }

    /// Checks that sizes are at least one, factors are positive and finite, and probabilities lie in
    /// `[0, 1)`.
    ///
    /// # Errors
    /// [`Error::Config`], naming the field.
    ///
    /// ```
    /// use sala_models::cnn::EfficientNetLiteConfig;
    ///
    /// let bad = EfficientNetLiteConfig { width: 0.0, ..Default::default() };
    /// assert!(bad.validate().unwrap_err().to_string().contains("EfficientNetLiteConfig.width"));
    /// ```
    pub fn validate(&self) -> crate::Result<()> {
        check_sizes(
            CONFIG,
            [("in_channels", self.in_channels), ("classes", self.classes)],
        )?;
        for (field, factor) in [("width", self.width), ("depth", self.depth)] {
            check_positive(CONFIG, field, factor)?;
            if factor > LARGEST {
                return Err(Error::Config {
                    config: CONFIG,
                    field,
                    wanted: "at most 1000",
                    got: factor.to_string(),
                });
            }
        }
        check_probability(CONFIG, "dropout", self.dropout)?;
        check_probability(CONFIG, "drop_path", self.drop_path)
    }

    /// Channels times the width, as the nearest multiple of 8, or the next when that is less than nine
    /// tenths.
    fn channels(&self, of_lite0: usize) -> usize {
        let wanted = of_lite0 as f64 * self.width;
        let nearest = whole((wanted + 4.0) / 8.0).max(1) * 8;
        if (nearest as f64) < 0.9 * wanted {
            nearest + 8
        } else {
            nearest
        }
    }

    /// The sizes of every block, stage by stage.
    fn stages(&self) -> Vec<Vec<Shape>> {
        let mut inputs = STEM;
        let last = STAGES.len() - 1;
        let blocks = |(i, (blocks, kernel, stride, expansion, width)): (usize, Stage)| {
            let fixed = i == 0 || i == last;
            let blocks = if fixed {
                blocks
            } else {
                whole((blocks as f64 * self.depth).ceil())
            };
            let outputs = self.channels(width);
            let shape = |number| {
                let shape = Shape {
                    inputs,
                    outputs,
                    kernel,
                    stride: if number == 0 { stride } else { 1 },
                    expansion,
                };
                inputs = outputs;
                shape
            };
            (0..blocks).map(shape).collect()
        };
        STAGES.into_iter().enumerate().map(blocks).collect()
    }
}

/// Keeps numbers of channels and blocks far from the largest integers.
const LARGEST: f64 = 1000.0;

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "positive, and the factors are bounded"
)]
fn whole(x: f64) -> usize {
    x as usize
}

/// An EfficientNet-Lite for classification.
///
/// From images `(N, in_channels, H, W)` of any size to `(N, classes)`: what the last convolution leaves, a
/// 32nd of the sides, is averaged over all pixels. Parameters have the names of `timm`'s
/// `tf_efficientnet_lite0`: `conv_stem`, `bn1`; in block `j` of stage `i` `blocks.{i}.{j}.conv_pw`, `bn1`,
/// `conv_dw`, `bn2`, `conv_pwl`, `bn3`, in the first stage `conv_dw`, `bn1`, `conv_pw`, `bn2`; `conv_head`,
/// `bn2`; and `classifier`. Convolutions start from He's normal law over the outputs that an input has, the
/// classifier from a uniform law over its outputs and a bias of zero.
#[derive(Debug, Clone)]
pub struct EfficientNetLite {
    stem: Layer,
    blocks: Vec<Block>,
    head: Layer,
    dropout: Dropout,
    classifier: Linear,
    format: ImageFormat,
}

impl EfficientNetLite {
    /// A network with parameters under the builder's prefix. `rng` seeds what is dropped only; the initial
    /// values come from the store behind `vb`.
    ///
    /// # Errors
    /// When the configuration is not valid, or the store holds one of the names with another shape.
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use sala_models::{Rng, VarStore, cnn::{EfficientNetLite, EfficientNetLiteConfig}};
    ///
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// let config = EfficientNetLiteConfig { width: 0.25, depth: 0.3, ..Default::default() };
    /// EfficientNetLite::new(&config, store.builder(), Rng::new(0))?;
    /// assert!(store.get("blocks.5.0.conv_dw.weight").is_some());
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    #[expect(
        clippy::needless_pass_by_value,
        reason = "candle's layers take the builder by value"
    )]
    pub fn new(config: &EfficientNetLiteConfig, vb: VarBuilder, rng: Rng) -> crate::Result<Self> {
        config.validate()?;
        let format = ImageFormat::fastest(vb.dtype(), vb.device())?;
        let stages = config.stages();
        let total: usize = stages.iter().map(Vec::len).sum();
        let channels = config.channels(STAGES[STAGES.len() - 1].4);
        let mut blocks = Vec::with_capacity(total);
        for (stage, shapes) in stages.into_iter().enumerate() {
            for (number, shape) in shapes.into_iter().enumerate() {
                let vb = vb.pp("blocks").pp(stage).pp(number);
                let p = config.drop_path * blocks.len() as f64 / total as f64;
                let masks = rng.stream(&format!("drop_path/{}", vb.prefix()));
                blocks.push(Block::new(shape, Dropout::new(p, masks)?, format, &vb)?);
            }
        }
        let sizes = (config.in_channels, STEM);
        let masks = rng.stream(&format!("dropout/{}", vb.pp("classifier").prefix()));
        Ok(Self {
            stem: Layer::new(
                Filter::dense(sizes, 3, 2),
                ("conv_stem", "bn1"),
                format,
                &vb,
            )?,
            blocks,
            head: Layer::new(
                Filter::dense((channels, HEAD), 1, 1),
                ("conv_head", "bn2"),
                format,
                &vb,
            )?,
            dropout: Dropout::new(config.dropout, masks)?,
            classifier: classifier(config.classes, vb.pp("classifier"))?,
            format,
        })
    }
}

/// The last layer, with the initial values of the published ones.
fn classifier(classes: usize, vb: VarBuilder) -> crate::Result<Linear> {
    let bound = 1.0 / (classes as f64).sqrt();
    let uniform = Init::Uniform {
        lo: -bound,
        up: bound,
    };
    Linear::with_init(HEAD, classes, uniform, Some(Init::Const(0.0)), vb)
}

impl Network for EfficientNetLite {
    /// `x` is `(N, in_channels, H, W)`.
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let x = images("EfficientNetLite", x, self.stem.conv())?;
        let mut x = relu6(&self.stem.forward(&x, mode)?)?;
        for block in &self.blocks {
            x = block.forward(&x, mode)?;
        }
        let x = relu6(&self.head.forward(&x, mode)?)?;
        let features = global_avg_pool2d(&x, self.format)?;
        self.classifier
            .forward(&self.dropout.forward(&features, mode)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_family_is_the_published_one() {
        // Channels and blocks of each stage, as in the table of the release.
        let of = |config: EfficientNetLiteConfig| {
            let stages = config.stages();
            let sizes = stages.iter().map(|s| (s[0].outputs, s.len()));
            sizes.collect::<Vec<_>>()
        };
        let lite0 = [
            (16, 1),
            (24, 2),
            (40, 2),
            (80, 3),
            (112, 3),
            (192, 4),
            (320, 1),
        ];
        assert_eq!(of(EfficientNetLiteConfig::lite0()), lite0);
        let lite2 = [
            (16, 1),
            (24, 3),
            (48, 3),
            (88, 4),
            (120, 4),
            (208, 5),
            (352, 1),
        ];
        assert_eq!(of(EfficientNetLiteConfig::lite2()), lite2);
        let lite4 = [
            (24, 1),
            (32, 4),
            (56, 4),
            (112, 6),
            (160, 6),
            (272, 8),
            (448, 1),
        ];
        assert_eq!(of(EfficientNetLiteConfig::lite4()), lite4);
    }
}
