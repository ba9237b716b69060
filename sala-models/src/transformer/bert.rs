//! BERT (Devlin et al. 2019, arXiv:1810.04805), and what has its shape, such as MiniLM.
//!
//! The sum of a word's, its position's and its segment's embedding is normalised and goes through layers
//! of attention and feed-forward parts, each followed by its norm.

use candle_core::{DType, Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::{
    activation::Activation,
    encoder::{EncoderLayer, Names, NormPlace, Settings},
    parts::{check_heads, dropout, embedding, linear},
    tokens::{TokenNetwork, Tokens},
};
use crate::{
    Mode, Network, Rng,
    error::{check_positive, check_probability, check_sizes},
    kernels::{
        graph::{composed, reshaped},
        parts::{broadcast_sum, narrow},
    },
    ops::{Dropout, Embedding, LayerNorm, Linear},
};

const CONFIG: &str = "BertConfig";

const NAMES: Names = Names {
    query: "attention.self.query",
    key: "attention.self.key",
    value: "attention.self.value",
    output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    inner: "intermediate.dense",
    outer: "output.dense",
    output_norm: "output.LayerNorm",
};

/// How a classifier makes one vector of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pooling {
    /// The first token's, in BERT through a layer with tanh.
    #[default]
    First,
    /// The mean over all tokens that are not padding, as sentence embeddings have it.
    Mean,
}

impl Pooling {
    /// Features of tokens `(B, T, H)` to features of texts `(B, H)`.
    pub(super) fn of(self, hidden: &Tensor, tokens: &Tokens) -> Result<Tensor> {
        match self {
            Self::First => first(hidden),
            Self::Mean => tokens.mean(hidden),
        }
    }
}

/// The sizes and settings of a [`Bert`], called as in its published `config.json`.
///
/// The default is `bert-base-uncased`.
///
/// ```
/// use sala_models::transformer::BertConfig;
///
/// let mini_lm = BertConfig {
///     hidden_size: 384,
///     num_hidden_layers: 6,
///     intermediate_size: 1536,
///     ..Default::default()
/// };
/// assert!(mini_lm.validate().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct BertConfig {
    /// Number of token ids.
    pub vocab_size: usize,
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
    /// The longest text.
    pub max_position_embeddings: usize,
    /// Number of segments.
    pub type_vocab_size: usize,
    /// Added to the variance in norms.
    pub layer_norm_eps: f64,
    /// Dropout of the embeddings and after each part of a layer, in `[0, 1)`.
    pub hidden_dropout_prob: f64,
    /// Dropout of the attention's shares, in `[0, 1)`.
    pub attention_probs_dropout_prob: f64,
    /// Dropout before the classifier; `hidden_dropout_prob` when it is not given.
    pub classifier_dropout: Option<f64>,
    /// Standard deviation of initial weights.
    pub initializer_range: f64,
    /// Outputs of a classifier.
    pub num_labels: usize,
    /// How a classifier makes one vector of a text.
    pub pooling: Pooling,
}

impl Default for BertConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30_522,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: Activation::Gelu,
            max_position_embeddings: 512,
            type_vocab_size: 2,
            layer_norm_eps: 1e-12,
            hidden_dropout_prob: 0.1,
            attention_probs_dropout_prob: 0.1,
            classifier_dropout: None,
            initializer_range: 0.02,
            num_labels: 2,
            pooling: Pooling::First,
        }
    }
}

impl BertConfig {
    /// Checks that sizes are at least one, heads divide the hidden size, probabilities lie in `[0, 1)`,
    /// and the other numbers are positive and finite.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config), naming the field.
    ///
    /// ```
    /// use sala_models::transformer::BertConfig;
    ///
    /// let bad = BertConfig { num_attention_heads: 7, ..Default::default() };
    /// assert!(bad.validate().unwrap_err().to_string().contains("num_attention_heads"));
    /// ```
    pub fn validate(&self) -> crate::Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("type_vocab_size", self.type_vocab_size),
            ("num_labels", self.num_labels),
        ];
        check_sizes(CONFIG, sizes)?;
        let (hidden, heads) = (self.hidden_size, self.num_attention_heads);
        check_heads(CONFIG, "num_attention_heads", hidden, heads)?;
        for (field, p) in [
            ("hidden_dropout_prob", self.hidden_dropout_prob),
            (
                "attention_probs_dropout_prob",
                self.attention_probs_dropout_prob,
            ),
            ("classifier_dropout", self.head_dropout()),
        ] {
            check_probability(CONFIG, field, p)?;
        }
        check_positive(CONFIG, "layer_norm_eps", self.layer_norm_eps)?;
        check_positive(CONFIG, "initializer_range", self.initializer_range)
    }

    /// Dropout before the classifier.
    pub(super) fn head_dropout(&self) -> f64 {
        self.classifier_dropout.unwrap_or(self.hidden_dropout_prob)
    }

    fn layer(&self) -> Settings {
        let hidden = self.hidden_dropout_prob;
        Settings {
            hidden: self.hidden_size,
            heads: self.num_attention_heads,
            inner: self.intermediate_size,
            activation: self.hidden_act,
            norm: NormPlace::After,
            eps: self.layer_norm_eps,
            bias: true,
            deviation: self.initializer_range,
            dropout: [self.attention_probs_dropout_prob, hidden, hidden],
        }
    }
}

/// Which rows of the position table tokens take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Positions {
    /// 0, 1, 2, …
    FromZero,
    /// Behind the row of the padding token's id, which padding takes: RoBERTa's.
    AfterPadding(u32),
}

/// BERT's encoder: from tokens `(B, T)` to features `(B, T, hidden_size)`.
///
/// Parameters are `embeddings.word_embeddings`, `position_embeddings`, `token_type_embeddings` and
/// `LayerNorm`, and in layer `i` `encoder.layer.{i}.attention.self.query` (`key`, `value`),
/// `attention.output.dense`, `attention.output.LayerNorm`, `intermediate.dense`, `output.dense` and
/// `output.LayerNorm`. A published model has them at the root or under `bert`: choose by the builder's
/// prefix.
#[derive(Debug, Clone)]
pub struct Bert {
    embeddings: Embeddings,
    layers: Vec<EncoderLayer>,
}

impl Bert {
    /// An encoder with parameters under the builder's prefix. `rng` seeds the dropout masks only.
    ///
    /// # Errors
    /// When the configuration is not valid, or the store holds one of the names with another shape.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use sala_models::{Mode, Rng, VarStore, transformer::{Bert, BertConfig, Tokens}};
    ///
    /// let config = BertConfig { hidden_size: 24, num_hidden_layers: 1, vocab_size: 30, ..Default::default() };
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// let bert = Bert::new(&config, store.builder(), Rng::new(0))?;
    /// let ids = Tensor::new(&[[2u32, 7, 5], [2, 5, 0]], &Device::Cpu)?;
    /// let mask = Tensor::new(&[[1u32, 1, 1], [1, 1, 0]], &Device::Cpu)?;
    /// let tokens = Tokens::new(ids).with_mask(mask);
    /// assert_eq!(bert.forward(&tokens, Mode::eval())?.dims(), [2, 3, 24]);
    /// assert_eq!(bert.sentences(&tokens, Mode::eval())?.dims(), [2, 24]);
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    pub fn new(config: &BertConfig, vb: VarBuilder, rng: Rng) -> crate::Result<Self> {
        config.validate()?;
        Self::with_positions(config, Positions::FromZero, vb, rng)
    }

    pub(super) fn with_positions(
        config: &BertConfig,
        positions: Positions,
        vb: VarBuilder,
        rng: Rng,
    ) -> crate::Result<Self> {
        let settings = config.layer();
        let layer = |i| {
            let vb = vb.pp("encoder.layer").pp(i);
            EncoderLayer::new(&settings, &NAMES, vb, rng)
        };
        let layers = (0..config.num_hidden_layers).map(layer);
        Ok(Self {
            layers: layers.collect::<crate::Result<_>>()?,
            embeddings: Embeddings::new(config, positions, vb.pp("embeddings"), rng)?,
        })
    }

    /// The features of every token, `(B, T, hidden_size)`; those of padding mean nothing.
    ///
    /// # Errors
    /// As for [`TokenNetwork::forward_tokens`].
    pub fn forward(&self, tokens: &Tokens, mode: Mode) -> Result<Tensor> {
        let mut x = self.embeddings.forward(tokens, mode)?;
        let mask = tokens.key_mask()?;
        for layer in &self.layers {
            x = layer.forward(&x, mask.as_ref(), mode)?;
        }
        Ok(x)
    }

    /// The mean of the features of each text's tokens, `(B, hidden_size)`.
    ///
    /// # Errors
    /// As for [`TokenNetwork::forward_tokens`].
    pub fn sentences(&self, tokens: &Tokens, mode: Mode) -> Result<Tensor> {
        tokens.mean(&self.forward(tokens, mode)?)
    }
}

#[derive(Debug, Clone)]
struct Embeddings {
    words: Embedding,
    positions: Embedding,
    types: Embedding,
    norm: LayerNorm,
    dropout: Dropout,
    rows: Positions,
    longest: usize,
}

impl Embeddings {
    fn new(config: &BertConfig, rows: Positions, vb: VarBuilder, rng: Rng) -> crate::Result<Self> {
        let (size, deviation) = (config.hidden_size, config.initializer_range);
        let table = |entries, name: &str| embedding(entries, size, deviation, vb.pp(name));
        let taken = match rows {
            Positions::FromZero => 0,
            Positions::AfterPadding(id) => id as usize + 1,
        };
        Ok(Self {
            words: table(config.vocab_size, "word_embeddings")?,
            positions: table(config.max_position_embeddings, "position_embeddings")?,
            types: table(config.type_vocab_size, "token_type_embeddings")?,
            norm: LayerNorm::new(size, config.layer_norm_eps, vb.pp("LayerNorm"))?,
            dropout: dropout(config.hidden_dropout_prob, "output", &vb, rng)?,
            rows,
            longest: config.max_position_embeddings.saturating_sub(taken),
        })
    }

    fn forward(&self, tokens: &Tokens, mode: Mode) -> Result<Tensor> {
        tokens.check("Bert", self.longest)?;
        let words = self.words.forward(&tokens.ids)?;
        let positions = match self.rows {
            Positions::FromZero => {
                let length = tokens.ids.dim(1)?;
                self.positions.weight().narrow(0, 0, length)?
            }
            Positions::AfterPadding(id) => self.positions.forward(&rows_after(id, &tokens.ids)?)?,
        };
        let types = match &tokens.types {
            Some(types) => self.types.forward(types)?,
            None => self.types.weight().narrow(0, 0, 1)?,
        };
        let places = broadcast_sum(&[&positions, &types])?;
        let sum = broadcast_sum(&[&words, &places])?;
        self.dropout.forward(&self.norm.forward(&sum)?, mode)
    }
}

/// `padding + 1, padding + 2, …` over the tokens of each text, `padding` where there is none.
fn rows_after(padding: u32, ids: &Tensor) -> Result<Tensor> {
    // Sums in f32 count exactly up to 2²⁴.
    let real = ids.ne(padding)?.to_dtype(DType::F32)?;
    (real.cumsum(1)? * real)?
        .affine(1.0, f64::from(padding))?
        .to_dtype(DType::U32)
}

/// BERT for classifying texts: from tokens `(B, T)` to `(B, num_labels)`.
///
/// Parameters are [`Bert`]'s under `bert`, with [`Pooling::First`] also `bert.pooler.dense`, and
/// `classifier`.
#[derive(Debug, Clone)]
pub struct BertClassifier {
    bert: Bert,
    pooling: Pooling,
    pooler: Option<Linear>,
    dropout: Dropout,
    classifier: Linear,
}

impl BertClassifier {
    /// A classifier with parameters under the builder's prefix. `rng` seeds the dropout masks only.
    ///
    /// # Errors
    /// When the configuration is not valid, or the store holds one of the names with another shape.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use sala_models::{Mode, Network, Rng, VarStore, transformer::{BertClassifier, BertConfig}};
    ///
    /// let config = BertConfig { hidden_size: 24, num_hidden_layers: 1, vocab_size: 30, ..Default::default() };
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// let network = BertClassifier::new(&config, store.builder(), Rng::new(0))?;
    /// let ids = Tensor::new(&[[2u32, 7, 5]], &Device::Cpu)?;
    /// assert_eq!(network.forward(&ids, Mode::eval())?.dims(), [1, 2]);
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    #[expect(
        clippy::needless_pass_by_value,
        reason = "candle's layers take the builder by value"
    )]
    pub fn new(config: &BertConfig, vb: VarBuilder, rng: Rng) -> crate::Result<Self> {
        let (size, deviation) = (config.hidden_size, config.initializer_range);
        let bert = Bert::new(config, vb.pp("bert"), rng)?;
        let pooler = match config.pooling {
            Pooling::First => {
                let vb = vb.pp("bert.pooler.dense");
                Some(linear((size, size), true, deviation, vb)?)
            }
            Pooling::Mean => None,
        };
        let sizes = (size, config.num_labels);
        Ok(Self {
            bert,
            pooling: config.pooling,
            pooler,
            dropout: dropout(config.head_dropout(), "classifier", &vb, rng)?,
            classifier: linear(sizes, true, deviation, vb.pp("classifier"))?,
        })
    }
}

impl TokenNetwork for BertClassifier {
    fn forward_tokens(&self, tokens: &Tokens, mode: Mode) -> Result<Tensor> {
        let hidden = self.bert.forward(tokens, mode)?;
        let pooled = self.pooling.of(&hidden, tokens)?;
        let pooled = match &self.pooler {
            Some(pooler) => tanh(&pooler.forward(&pooled)?)?,
            None => pooled,
        };
        self.classifier
            .forward(&self.dropout.forward(&pooled, mode)?)
    }
}

impl Network for BertClassifier {
    /// `x` are token ids `(B, T)` without padding, in one segment.
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        self.forward_tokens(&Tokens::new(x.clone()), mode)
    }
}

/// The first token's features, `(B, T, H)` to `(B, H)`.
pub(super) fn first(hidden: &Tensor) -> Result<Tensor> {
    let (batch, _, size) = hidden.dims3()?;
    reshaped(&narrow(hidden, 1, 0, 1)?, (batch, size))
}

/// Of the features that a classifier looks at.
pub(super) fn tanh(x: &Tensor) -> Result<Tensor> {
    composed("tanh", &[x], |x| x[0].tanh())
}
