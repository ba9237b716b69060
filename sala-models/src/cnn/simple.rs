//! A small convolutional classifier for images of 28 × 28 or 32 × 32.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::parts::{conv, norm};
use crate::{
    Error, Mode, Network, Rng,
    error::{check_probability, check_sizes},
    kernels::graph::reshaped,
    network::check_dtype,
    ops::{BatchNorm, Conv2d, Dropout, ImageFormat, Linear, Pool2d},
};

/// The sizes of a [`SimpleCnn`].
///
/// The default has two blocks, of 16 and 32 channels, for 28 × 28 grey images in ten classes.
///
/// ```
/// use sala_models::SimpleCnnConfig;
///
/// let colour = SimpleCnnConfig {
///     in_channels: 3,
///     image_size: 32,
///     widths: vec![32, 64, 128],
///     ..Default::default()
/// };
/// assert!(colour.validate().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct SimpleCnnConfig {
    /// Channels of an image: 1 for grey, 3 for colour.
    pub in_channels: usize,
    /// Height and width of an image, in pixels.
    pub image_size: usize,
    /// Number of outputs.
    pub classes: usize,
    /// Channels of each block. Every block halves the image (rounding down).
    pub widths: Vec<usize>,
    /// Probability of dropping an input of the last layer, in `[0, 1)`.
    pub dropout: f64,
}

impl Default for SimpleCnnConfig {
    fn default() -> Self {
        Self {
            in_channels: 1,
            image_size: 28,
            classes: 10,
            widths: vec![16, 32],
            dropout: 0.0,
        }
    }
}

impl SimpleCnnConfig {
    /// Checks that all sizes are at least one, that some of the image is left after the last block,
    /// and that the probability lies in `[0, 1)`.
    ///
    /// # Errors
    /// [`Error::Config`], naming the field.
    ///
    /// ```
    /// use sala_models::SimpleCnnConfig;
    ///
    /// let bad = SimpleCnnConfig { image_size: 3, ..Default::default() };
    /// assert!(bad.validate().unwrap_err().to_string().contains("image_size"));
    /// ```
    pub fn validate(&self) -> crate::Result<()> {
        let ends = [("in_channels", self.in_channels), ("classes", self.classes)];
        let widths = self.widths.iter().map(|&width| ("widths", width));
        check_sizes("SimpleCnnConfig", ends.into_iter().chain(widths))?;
        if self.final_size() == 0 {
            return Err(Error::Config {
                config: "SimpleCnnConfig",
                field: "image_size",
                wanted: "at least 2 to the power of the number of blocks",
                got: format!("{} for {} blocks", self.image_size, self.widths.len()),
            });
        }
        check_probability("SimpleCnnConfig", "dropout", self.dropout)
    }

    /// Height and width after the last block.
    fn final_size(&self) -> usize {
        self.widths.iter().fold(self.image_size, |size, _| size / 2)
    }
}

/// Blocks of 3 × 3 convolution, batch norm, relu and 2 × 2 max pooling, then a linear layer.
///
/// From `(N, in_channels, image_size, image_size)` to `(N, classes)`. Block `i` has
/// `features.{i}.conv.weight` and `features.{i}.norm.{weight, bias, running_mean, running_var}`, the
/// last layer `classifier.{weight, bias}`.
#[derive(Debug, Clone)]
pub struct SimpleCnn {
    features: Vec<(Conv2d, BatchNorm)>,
    dropout: Dropout,
    classifier: Linear,
    input: [usize; 3],
    format: ImageFormat,
}

impl SimpleCnn {
    /// A network with parameters under the builder's prefix. `rng` seeds the dropout masks only;
    /// the initial values come from the store behind `vb`.
    ///
    /// # Errors
    /// When the configuration is not valid, or the store holds one of the names with another shape.
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use sala_models::{Rng, SimpleCnn, SimpleCnnConfig, VarStore};
    ///
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// SimpleCnn::new(&SimpleCnnConfig::default(), store.builder(), Rng::new(0))?;
    /// assert!(store.get("features.0.conv.weight").is_some());
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    #[expect(
        clippy::needless_pass_by_value,
        reason = "candle's layers take the builder by value"
    )]
    pub fn new(config: &SimpleCnnConfig, vb: VarBuilder, rng: Rng) -> crate::Result<Self> {
        config.validate()?;
        let format = ImageFormat::fastest(vb.dtype(), vb.device())?;
        let mut channels = config.in_channels;
        let mut features = Vec::with_capacity(config.widths.len());
        for (i, &width) in config.widths.iter().enumerate() {
            let vb = vb.pp("features").pp(i);
            let conv = conv((channels, width), 3, 1, format, vb.pp("conv"))?;
            features.push((conv, norm(width, format, vb.pp("norm"))?));
            channels = width;
        }
        let vb = vb.pp("classifier");
        let masks = rng.stream(&format!("dropout/{}", vb.prefix()));
        let pixels = config.final_size().pow(2);
        Ok(Self {
            features,
            dropout: Dropout::new(config.dropout, masks)?,
            classifier: Linear::new(channels * pixels, config.classes, vb)?,
            input: [config.in_channels, config.image_size, config.image_size],
            format,
        })
    }
}

impl Network for SimpleCnn {
    /// `x` is `(N, in_channels, image_size, image_size)`.
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        if x.rank() != 4 || x.dims().iter().skip(1).ne(&self.input) {
            return Err(Error::Argument {
                op: "SimpleCnn",
                argument: "x",
                wanted: format!("of shape (N, {:?})", self.input),
                got: format!("shape {:?}", x.dims()),
            }
            .into());
        }
        let first = self.features.first().map(|(conv, _)| conv.weight());
        check_dtype("SimpleCnn", x, first.unwrap_or(self.classifier.weight()))?;
        let pool = Pool2d::square(2).with_format(self.format);
        let mut x = self.format.from_channels_first(x)?;
        for (conv, norm) in &self.features {
            let activated = norm.forward_relu(&conv.forward(&x)?, mode)?;
            x = pool.max(&activated)?;
        }
        // The classifier's weights, and dropout's masks, are in the order (C, H, W).
        let first = self.format.to_channels_first(&x)?;
        let flat = reshaped(&first, (first.dim(0)?, self.classifier.weight().dim(1)?))?;
        let features = self.dropout.forward(&flat, mode)?;
        self.classifier.forward(&features)
    }
}
