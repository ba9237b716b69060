//! Vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929).
//!
//! An image is cut into patches, each of which a linear layer makes a token; a learnt token stands before
//! them, and its features are classified in the end.

use candle_core::{Module, Result, Tensor};
use candle_nn::{Init, VarBuilder};

use super::{
    activation::Activation,
    bert::first,
    encoder::{EncoderLayer, Names, NormPlace, Settings},
    parts::{check_heads, dropout, linear},
};
use crate::{
    Error, Mode, Network, Rng,
    error::{check_positive, check_probability, check_sizes},
    kernels::{
        graph::reshaped,
        parts::{broadcast_sum, prepend},
    },
    network::check_same_dtype,
    ops::{Conv2d, Conv2dConfig, Dropout, ImageFormat, LayerNorm, Linear},
};

const CONFIG: &str = "VitConfig";

const NAMES: Names = Names {
    query: "attention.attention.query",
    key: "attention.attention.key",
    value: "attention.attention.value",
    output: "attention.output.dense",
    attention_norm: "layernorm_before",
    inner: "intermediate.dense",
    outer: "output.dense",
    output_norm: "layernorm_after",
};

/// The sizes and settings of a [`Vit`], called as in its published `config.json`.
///
/// The default is `vit-base-patch16-224`.
///
/// ```
/// use sala_models::transformer::VitConfig;
///
/// let tiny = VitConfig {
///     image_size: 32,
///     patch_size: 4,
///     hidden_size: 192,
///     num_attention_heads: 3,
///     intermediate_size: 768,
///     num_labels: 10,
///     ..Default::default()
/// };
/// assert!(tiny.validate().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct VitConfig {
    /// Height and width of an image, in pixels.
    pub image_size: usize,
    /// Height and width of a patch, a divisor of `image_size`.
    pub patch_size: usize,
    /// Channels of an image: 1 for grey, 3 for colour.
    pub num_channels: usize,
    /// Features of a token.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Heads of attention, a divisor of `hidden_size`.
    pub num_attention_heads: usize,
    /// Width of the feed-forward parts.
    pub intermediate_size: usize,
    /// Between the layers of a feed-forward part.
    pub hidden_act: Activation,
    /// Whether the projections to queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Added to the variance in norms.
    pub layer_norm_eps: f64,
    /// Dropout of the embeddings and after each part of a layer, in `[0, 1)`.
    pub hidden_dropout_prob: f64,
    /// Dropout of the attention's shares, in `[0, 1)`.
    pub attention_probs_dropout_prob: f64,
    /// Standard deviation of initial weights.
    pub initializer_range: f64,
    /// Number of outputs.
    pub num_labels: usize,
}

impl Default for VitConfig {
    fn default() -> Self {
        Self {
            image_size: 224,
            patch_size: 16,
            num_channels: 3,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: Activation::Gelu,
            qkv_bias: true,
            layer_norm_eps: 1e-12,
            hidden_dropout_prob: 0.0,
            attention_probs_dropout_prob: 0.0,
            initializer_range: 0.02,
            num_labels: 1000,
        }
    }
}

impl VitConfig {
    /// Checks that sizes are at least one, patches divide the image and heads the hidden size,
    /// probabilities lie in `[0, 1)`, and the other numbers are positive and finite.
    ///
    /// # Errors
    /// [`Error::Config`], naming the field.
    ///
    /// ```
    /// use sala_models::transformer::VitConfig;
    ///
    /// let bad = VitConfig { patch_size: 15, ..Default::default() };
    /// assert!(bad.validate().unwrap_err().to_string().contains("patch_size"));
    /// ```
    pub fn validate(&self) -> crate::Result<()> {
        let sizes = [
            ("image_size", self.image_size),
            ("patch_size", self.patch_size),
            ("num_channels", self.num_channels),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("intermediate_size", self.intermediate_size),
            ("num_labels", self.num_labels),
        ];
        check_sizes(CONFIG, sizes)?;
        if !self.image_size.is_multiple_of(self.patch_size) {
            return Err(Error::Config {
                config: CONFIG,
                field: "patch_size",
                wanted: "a divisor of image_size",
                got: format!("{} for {}", self.patch_size, self.image_size),
            });
        }
        let (hidden, heads) = (self.hidden_size, self.num_attention_heads);
        check_heads(CONFIG, "num_attention_heads", hidden, heads)?;
        for (field, p) in [
            ("hidden_dropout_prob", self.hidden_dropout_prob),
            (
                "attention_probs_dropout_prob",
                self.attention_probs_dropout_prob,
            ),
        ] {
            check_probability(CONFIG, field, p)?;
        }
        check_positive(CONFIG, "layer_norm_eps", self.layer_norm_eps)?;
        check_positive(CONFIG, "initializer_range", self.initializer_range)
    }

    /// The number of patches.
    const fn patches(&self) -> usize {
        let side = self.image_size / self.patch_size;
        side * side
    }

    fn layer(&self) -> Settings {
        let hidden = self.hidden_dropout_prob;
        Settings {
            hidden: self.hidden_size,
            heads: self.num_attention_heads,
            inner: self.intermediate_size,
            activation: self.hidden_act,
            norm: NormPlace::Before,
            eps: self.layer_norm_eps,
            bias: self.qkv_bias,
            deviation: self.initializer_range,
            dropout: [self.attention_probs_dropout_prob, hidden, hidden],
        }
    }
}

/// A vision transformer for classification.
///
/// From images `(N, num_channels, image_size, image_size)` to `(N, num_labels)`. Parameters are
/// `vit.embeddings.cls_token`, `position_embeddings` and `patch_embeddings.projection`; in layer `i`
/// `vit.encoder.layer.{i}.layernorm_before`, `attention.attention.query` (`key`, `value`),
/// `attention.output.dense`, `layernorm_after`, `intermediate.dense` and `output.dense`; `vit.layernorm`
/// and `classifier`.
#[derive(Debug, Clone)]
pub struct Vit {
    projection: Conv2d,
    cls_token: Tensor,
    positions: Tensor,
    dropout: Dropout,
    layers: Vec<EncoderLayer>,
    norm: LayerNorm,
    classifier: Linear,
    input: [usize; 3],
    format: ImageFormat,
}

impl Vit {
    /// A network with parameters under the builder's prefix. `rng` seeds the dropout masks only.
    ///
    /// # Errors
    /// When the configuration is not valid, or the store holds one of the names with another shape.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use sala_models::{Mode, Network, Rng, VarStore, transformer::{Vit, VitConfig}};
    ///
    /// let config = VitConfig { image_size: 8, patch_size: 4, hidden_size: 24, num_hidden_layers: 1, ..Default::default() };
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// let network = Vit::new(&config, store.builder(), Rng::new(0))?;
    /// let images = Tensor::ones((2, 3, 8, 8), DType::F32, &Device::Cpu)?;
    /// assert_eq!(network.forward(&images, Mode::eval())?.dims(), [2, 1000]);
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    #[expect(
        clippy::needless_pass_by_value,
        reason = "candle's layers take the builder by value"
    )]
    pub fn new(config: &VitConfig, vb: VarBuilder, rng: Rng) -> crate::Result<Self> {
        config.validate()?;
        let format = ImageFormat::fastest(vb.dtype(), vb.device())?;
        let size = config.hidden_size;
        let normal = Init::Randn {
            mean: 0.0,
            stdev: config.initializer_range,
        };
        let below = vb.pp("vit.embeddings");
        let settings = config.layer();
        let layer = |i| {
            let vb = vb.pp("vit.encoder.layer").pp(i);
            EncoderLayer::new(&settings, &NAMES, vb, rng)
        };
        let layers = (0..config.num_hidden_layers).map(layer);
        let places = (1, config.patches() + 1, size);
        let head = vb.pp("classifier");
        let sizes = (size, config.num_labels);
        Ok(Self {
            projection: projection(config, format, normal, &below)?,
            cls_token: below.get_with_hints((1, 1, size), "cls_token", normal)?,
            positions: below.get_with_hints(places, "position_embeddings", normal)?,
            dropout: dropout(config.hidden_dropout_prob, "output", &below, rng)?,
            layers: layers.collect::<crate::Result<_>>()?,
            norm: LayerNorm::new(size, config.layer_norm_eps, vb.pp("vit.layernorm"))?,
            classifier: linear(sizes, true, config.initializer_range, head)?,
            input: [config.num_channels, config.image_size, config.image_size],
            format,
        })
    }

    /// Images of the format within to tokens `(N, patches + 1, hidden_size)`.
    fn tokens(&self, images: &Tensor) -> Result<Tensor> {
        let patches = self.projection.forward(images)?;
        let patches = match self.format {
            ImageFormat::ChannelsFirst => patches.flatten_from(2)?.transpose(1, 2)?,
            ImageFormat::ChannelsLast => {
                let (batch, rows, columns, size) = patches.dims4()?;
                reshaped(&patches, (batch, rows * columns, size))?
            }
        };
        let tokens = prepend(&self.cls_token, &patches)?;
        broadcast_sum(&[&tokens, &self.positions])
    }
}

/// The layer that makes a patch a token, as a convolution whose windows lie side by side.
fn projection(
    config: &VitConfig,
    format: ImageFormat,
    init: Init,
    vb: &VarBuilder,
) -> crate::Result<Conv2d> {
    let (inputs, outputs, patch) = (config.num_channels, config.hidden_size, config.patch_size);
    let vb = vb.pp("patch_embeddings.projection");
    let windows = Conv2dConfig {
        stride: (patch, patch),
        ..Conv2dConfig::default()
    };
    let (sizes, windows) = ((inputs, outputs, patch), windows.with_format(format));
    Conv2d::with_init(sizes, windows, init, Some(Init::Const(0.0)), vb)
}

impl Network for Vit {
    /// `x` is `(N, num_channels, image_size, image_size)`.
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        if x.rank() != 4 || x.dims().iter().skip(1).ne(&self.input) {
            return Err(Error::Argument {
                op: "Vit",
                argument: "x",
                wanted: format!("of shape (N, {:?})", self.input),
                got: format!("shape {:?}", x.dims()),
            }
            .into());
        }
        check_same_dtype("Vit", x, self.projection.weight())?;
        let images = self.format.from_channels_first(x)?;
        let mut x = self.dropout.forward(&self.tokens(&images)?, mode)?;
        for layer in &self.layers {
            x = layer.forward(&x, None, mode)?;
        }
        // Each token is normalised by itself, so the others need not be.
        self.classifier.forward(&self.norm.forward(&first(&x)?)?)
    }
}
