//! DistilBERT (Sanh et al. 2019, arXiv:1910.01108): BERT's layers without segments, under names of its
//! own, and with a head of its own.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::{
    activation::Activation,
    bert::Pooling,
    encoder::{EncoderLayer, Names, NormPlace, Settings},
    parts::{check_heads, dropout, embedding, linear},
    tokens::{TokenNetwork, Tokens},
};
use crate::{
    Mode, Network, Rng,
    error::{check_positive, check_probability, check_sizes},
    kernels::parts::broadcast_sum,
    ops::{Dropout, Embedding, LayerNorm, Linear, relu},
};

const CONFIG: &str = "DistilBertConfig";

/// Not a setting of the published configurations.
const EPS: f64 = 1e-12;

const NAMES: Names = Names {
    query: "attention.q_lin",
    key: "attention.k_lin",
    value: "attention.v_lin",
    output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    inner: "ffn.lin1",
    outer: "ffn.lin2",
    output_norm: "output_layer_norm",
};

/// The sizes and settings of a [`DistilBertClassifier`], called as in its published `config.json`.
///
/// The default is `distilbert-base-uncased`.
///
/// ```
/// use sala_models::transformer::DistilBertConfig;
/// assert!(DistilBertConfig::default().validate().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct DistilBertConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Features of a token.
    pub dim: usize,
    /// Number of layers.
    pub n_layers: usize,
    /// Heads of attention, a divisor of `dim`.
    pub n_heads: usize,
    /// Width of the feed-forward parts.
    pub hidden_dim: usize,
    /// Between the layers of a feed-forward part.
    pub activation: Activation,
    /// The longest text.
    pub max_position_embeddings: usize,
    /// Dropout of the embeddings and after feed-forward parts, in `[0, 1)`.
    pub dropout: f64,
    /// Dropout of the attention's shares, in `[0, 1)`.
    pub attention_dropout: f64,
    /// Dropout before the classifier, in `[0, 1)`.
    pub seq_classif_dropout: f64,
    /// Standard deviation of initial weights.
    pub initializer_range: f64,
    /// Outputs of the classifier.
    pub num_labels: usize,
    /// How a classifier makes one vector of a text.
    pub pooling: Pooling,
}

impl Default for DistilBertConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30_522,
            dim: 768,
            n_layers: 6,
            n_heads: 12,
            hidden_dim: 3072,
            activation: Activation::Gelu,
            max_position_embeddings: 512,
            dropout: 0.1,
            attention_dropout: 0.1,
            seq_classif_dropout: 0.2,
            initializer_range: 0.02,
            num_labels: 2,
            pooling: Pooling::First,
        }
    }
}

impl DistilBertConfig {
    /// Checks that sizes are at least one, heads divide `dim`, probabilities lie in `[0, 1)`, and the
    /// deviation is positive and finite.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config), naming the field.
    ///
    /// ```
    /// use sala_models::transformer::DistilBertConfig;
    ///
    /// let bad = DistilBertConfig { dropout: 1.0, ..Default::default() };
    /// assert!(bad.validate().unwrap_err().to_string().contains("dropout"));
    /// ```
    pub fn validate(&self) -> crate::Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("dim", self.dim),
            ("n_layers", self.n_layers),
            ("hidden_dim", self.hidden_dim),
            ("max_position_embeddings", self.max_position_embeddings),
            ("num_labels", self.num_labels),
        ];
        check_sizes(CONFIG, sizes)?;
        check_heads(CONFIG, "n_heads", self.dim, self.n_heads)?;
        for (field, p) in [
            ("dropout", self.dropout),
            ("attention_dropout", self.attention_dropout),
            ("seq_classif_dropout", self.seq_classif_dropout),
        ] {
            check_probability(CONFIG, field, p)?;
        }
        check_positive(CONFIG, "initializer_range", self.initializer_range)
    }

    fn layer(&self) -> Settings {
        Settings {
            hidden: self.dim,
            heads: self.n_heads,
            inner: self.hidden_dim,
            activation: self.activation,
            norm: NormPlace::After,
            eps: EPS,
            bias: true,
            deviation: self.initializer_range,
            dropout: [self.attention_dropout, 0.0, self.dropout],
        }
    }
}

/// DistilBERT's encoder: from tokens `(B, T)` to features `(B, T, dim)`.
///
/// Parameters are `embeddings.word_embeddings`, `position_embeddings` and `LayerNorm`, and in layer `i`
/// `transformer.layer.{i}.attention.q_lin` (`k_lin`, `v_lin`, `out_lin`), `sa_layer_norm`, `ffn.lin1`,
/// `ffn.lin2` and `output_layer_norm`. A published model has them at the root or under `distilbert`.
#[derive(Debug, Clone)]
pub(super) struct DistilBert {
    words: Embedding,
    positions: Embedding,
    norm: LayerNorm,
    dropout: Dropout,
    layers: Vec<EncoderLayer>,
    longest: usize,
}

impl DistilBert {
    /// An encoder with parameters under the builder's prefix.
    pub(super) fn new(config: &DistilBertConfig, vb: VarBuilder, rng: Rng) -> crate::Result<Self> {
        config.validate()?;
        let (size, deviation) = (config.dim, config.initializer_range);
        let below = vb.pp("embeddings");
        let table = |entries, name: &str| embedding(entries, size, deviation, below.pp(name));
        let settings = config.layer();
        let layer = |i| {
            let vb = vb.pp("transformer.layer").pp(i);
            EncoderLayer::new(&settings, &NAMES, vb, rng)
        };
        let layers = (0..config.n_layers).map(layer);
        Ok(Self {
            words: table(config.vocab_size, "word_embeddings")?,
            positions: table(config.max_position_embeddings, "position_embeddings")?,
            norm: LayerNorm::new(size, EPS, below.pp("LayerNorm"))?,
            dropout: dropout(config.dropout, "output", &below, rng)?,
            layers: layers.collect::<crate::Result<_>>()?,
            longest: config.max_position_embeddings,
        })
    }

    /// The features of every token, `(B, T, dim)`; those of padding mean nothing.
    pub(super) fn forward(&self, tokens: &Tokens, mode: Mode) -> Result<Tensor> {
        tokens.check("DistilBert", self.longest)?;
        let words = self.words.forward(&tokens.ids)?;
        let length = tokens.ids.dim(1)?;
        let positions = self.positions.weight().narrow(0, 0, length)?;
        let sum = broadcast_sum(&[&words, &positions])?;
        let mut x = self.dropout.forward(&self.norm.forward(&sum)?, mode)?;
        let mask = tokens.key_mask()?;
        for layer in &self.layers {
            x = layer.forward(&x, mask.as_ref(), mode)?;
        }
        Ok(x)
    }
}

/// DistilBERT for classifying texts: from tokens `(B, T)` to `(B, num_labels)`.
///
/// Parameters are `distilbert.embeddings.word_embeddings`, `position_embeddings` and `LayerNorm`; in layer
/// `i` `distilbert.transformer.layer.{i}.attention.q_lin` (`k_lin`, `v_lin`, `out_lin`), `sa_layer_norm`,
/// `ffn.lin1`, `ffn.lin2` and `output_layer_norm`; `pre_classifier` and `classifier`.
#[derive(Debug, Clone)]
pub struct DistilBertClassifier {
    encoder: DistilBert,
    pooling: Pooling,
    pre_classifier: Linear,
    dropout: Dropout,
    classifier: Linear,
}

impl DistilBertClassifier {
    /// A classifier with parameters under the builder's prefix. `rng` seeds the dropout masks only.
    ///
    /// # Errors
    /// When the configuration is not valid, or the store holds one of the names with another shape.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use sala_models::{Mode, Network, Rng, VarStore};
    /// use sala_models::transformer::{DistilBertClassifier, DistilBertConfig};
    ///
    /// let config = DistilBertConfig { dim: 24, n_layers: 1, vocab_size: 30, ..Default::default() };
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// let network = DistilBertClassifier::new(&config, store.builder(), Rng::new(0))?;
    /// let ids = Tensor::new(&[[2u32, 7, 5]], &Device::Cpu)?;
    /// assert_eq!(network.forward(&ids, Mode::eval())?.dims(), [1, 2]);
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    #[expect(
        clippy::needless_pass_by_value,
        reason = "candle's layers take the builder by value"
    )]
    pub fn new(config: &DistilBertConfig, vb: VarBuilder, rng: Rng) -> crate::Result<Self> {
        let (size, deviation) = (config.dim, config.initializer_range);
        let encoder = DistilBert::new(config, vb.pp("distilbert"), rng)?;
        let head = |outputs, name: &str| linear((size, outputs), true, deviation, vb.pp(name));
        Ok(Self {
            encoder,
            pooling: config.pooling,
            pre_classifier: head(size, "pre_classifier")?,
            dropout: dropout(config.seq_classif_dropout, "classifier", &vb, rng)?,
            classifier: head(config.num_labels, "classifier")?,
        })
    }
}

impl TokenNetwork for DistilBertClassifier {
    fn forward_tokens(&self, tokens: &Tokens, mode: Mode) -> Result<Tensor> {
        let hidden = self.encoder.forward(tokens, mode)?;
        let pooled = self.pooling.of(&hidden, tokens)?;
        let features = relu(&self.pre_classifier.forward(&pooled)?)?;
        self.classifier
            .forward(&self.dropout.forward(&features, mode)?)
    }
}

impl Network for DistilBertClassifier {
    /// `x` are token ids `(B, T)` without padding.
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        self.forward_tokens(&Tokens::new(x.clone()), mode)
    }
}
