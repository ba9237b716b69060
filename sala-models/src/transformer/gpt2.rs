//! GPT-2 (Radford et al. 2019): a causal language model with norms before its parts and learnt positions.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::{
    activation::Activation,
    heads::Heads,
    parts::{check_heads, dropout, embedding, transposed_linear},
    tokens::{TokenNetwork, Tokens},
};
use crate::{
    Mode, Network, Rng,
    error::{check_positive, check_probability, check_sizes},
    kernels::parts::{broadcast_sum, narrow},
    ops::{Dropout, Embedding, LayerNorm, Linear, add},
};

const CONFIG: &str = "Gpt2Config";

/// The sizes and settings of a [`Gpt2`], called as in its published `config.json`.
///
/// The default is `gpt2`.
///
/// ```
/// use sala_models::transformer::Gpt2Config;
/// assert!(Gpt2Config::default().validate().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Gpt2Config {
    /// Number of token ids.
    pub vocab_size: usize,
    /// The longest text.
    pub n_positions: usize,
    /// Features of a token.
    pub n_embd: usize,
    /// Number of layers.
    pub n_layer: usize,
    /// Heads of attention, a divisor of `n_embd`.
    pub n_head: usize,
    /// Width of the feed-forward parts; `4 n_embd` when it is not given.
    pub n_inner: Option<usize>,
    /// Between the layers of a feed-forward part.
    pub activation_function: Activation,
    /// Added to the variance in norms.
    pub layer_norm_epsilon: f64,
    /// Dropout of the embeddings, in `[0, 1)`.
    pub embd_pdrop: f64,
    /// Dropout after each part of a layer, in `[0, 1)`.
    pub resid_pdrop: f64,
    /// Dropout of the attention's shares, in `[0, 1)`.
    pub attn_pdrop: f64,
    /// Standard deviation of initial weights.
    pub initializer_range: f64,
}

impl Default for Gpt2Config {
    fn default() -> Self {
        Self {
            vocab_size: 50_257,
            n_positions: 1024,
            n_embd: 768,
            n_layer: 12,
            n_head: 12,
            n_inner: None,
            activation_function: Activation::GeluTanh,
            layer_norm_epsilon: 1e-5,
            embd_pdrop: 0.1,
            resid_pdrop: 0.1,
            attn_pdrop: 0.1,
            initializer_range: 0.02,
        }
    }
}

impl Gpt2Config {
    /// Checks that sizes are at least one, heads divide `n_embd`, probabilities lie in `[0, 1)`, and the
    /// other numbers are positive and finite.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config), naming the field.
    ///
    /// ```
    /// use sala_models::transformer::Gpt2Config;
    ///
    /// let bad = Gpt2Config { n_head: 5, ..Default::default() };
    /// assert!(bad.validate().unwrap_err().to_string().contains("n_head"));
    /// ```
    pub fn validate(&self) -> crate::Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("n_positions", self.n_positions),
            ("n_embd", self.n_embd),
            ("n_layer", self.n_layer),
            ("n_inner", self.inner()),
        ];
        check_sizes(CONFIG, sizes)?;
        check_heads(CONFIG, "n_head", self.n_embd, self.n_head)?;
        for (field, p) in [
            ("embd_pdrop", self.embd_pdrop),
            ("resid_pdrop", self.resid_pdrop),
            ("attn_pdrop", self.attn_pdrop),
        ] {
            check_probability(CONFIG, field, p)?;
        }
        check_positive(CONFIG, "layer_norm_epsilon", self.layer_norm_epsilon)?;
        check_positive(CONFIG, "initializer_range", self.initializer_range)
    }

    fn inner(&self) -> usize {
        self.n_inner.unwrap_or(4 * self.n_embd)
    }
}

/// GPT-2 with its head: from tokens `(B, T)` to logits of the next ones, `(B, T, vocab_size)`.
///
/// Parameters are `transformer.wte` (which is the head's weight too) and `wpe`; in layer `i`
/// `transformer.h.{i}.ln_1`, `attn.c_attn`, `attn.c_proj`, `ln_2`, `mlp.c_fc` and `mlp.c_proj`, whose
/// weights are stored as `(inputs, outputs)`; and `transformer.ln_f`.
#[derive(Debug, Clone)]
pub struct Gpt2 {
    words: Embedding,
    positions: Embedding,
    dropout: Dropout,
    layers: Vec<Layer>,
    norm: LayerNorm,
    head: Linear,
    longest: usize,
}

impl Gpt2 {
    /// A model with parameters under the builder's prefix. `rng` seeds the dropout masks only.
    ///
    /// # Errors
    /// When the configuration is not valid, or the store holds one of the names with another shape.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use sala_models::{Mode, Network, Rng, VarStore, transformer::{Gpt2, Gpt2Config}};
    ///
    /// let config = Gpt2Config { n_embd: 24, n_layer: 1, vocab_size: 30, ..Default::default() };
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// let network = Gpt2::new(&config, store.builder(), Rng::new(0))?;
    /// let ids = Tensor::new(&[[2u32, 7, 5]], &Device::Cpu)?;
    /// assert_eq!(network.forward(&ids, Mode::eval())?.dims(), [1, 3, 30]);
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    #[expect(
        clippy::needless_pass_by_value,
        reason = "candle's layers take the builder by value"
    )]
    pub fn new(config: &Gpt2Config, vb: VarBuilder, rng: Rng) -> crate::Result<Self> {
        config.validate()?;
        let vb = vb.pp("transformer");
        let (size, deviation) = (config.n_embd, config.initializer_range);
        let words = embedding(config.vocab_size, size, deviation, vb.pp("wte"))?;
        let layers = (0..config.n_layer).map(|i| Layer::new(config, vb.pp("h").pp(i), rng));
        Ok(Self {
            head: Linear::from_parts(words.weight().clone(), None),
            words,
            positions: embedding(config.n_positions, size, deviation, vb.pp("wpe"))?,
            dropout: dropout(config.embd_pdrop, "embeddings", &vb, rng)?,
            layers: layers.collect::<crate::Result<_>>()?,
            norm: LayerNorm::new(size, config.layer_norm_epsilon, vb.pp("ln_f"))?,
            longest: config.n_positions,
        })
    }
}

impl TokenNetwork for Gpt2 {
    /// Segments are not looked at. Positions count from the first place, padding or not, so texts are
    /// filled up behind their end.
    fn forward_tokens(&self, tokens: &Tokens, mode: Mode) -> Result<Tensor> {
        tokens.check("Gpt2", self.longest)?;
        let words = self.words.forward(&tokens.ids)?;
        let length = tokens.ids.dim(1)?;
        let positions = self.positions.weight().narrow(0, 0, length)?;
        let sum = broadcast_sum(&[&words, &positions])?;
        let mut x = self.dropout.forward(&sum, mode)?;
        let mask = tokens.key_mask()?;
        for layer in &self.layers {
            x = layer.forward(&x, mask.as_ref(), mode)?;
        }
        self.head.forward(&self.norm.forward(&x)?)
    }
}

impl Network for Gpt2 {
    /// `x` are token ids `(B, T)`.
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        self.forward_tokens(&Tokens::new(x.clone()), mode)
    }
}

#[derive(Debug, Clone)]
struct Layer {
    attention_norm: LayerNorm,
    attention: Linear,
    heads: Heads,
    projection: Linear,
    attention_dropout: Dropout,
    norm: LayerNorm,
    inner: Linear,
    activation: Activation,
    outer: Linear,
    dropout: Dropout,
    size: usize,
}

impl Layer {
    fn new(config: &Gpt2Config, vb: VarBuilder, rng: Rng) -> crate::Result<Self> {
        let (size, inner) = (config.n_embd, config.inner());
        let deviation = config.initializer_range;
        // What is added to the residual stream starts smaller, so that its size does not grow with depth.
        let added = deviation / (2.0 * config.n_layer as f64).sqrt();
        let norm = |name: &str| LayerNorm::new(size, config.layer_norm_epsilon, vb.pp(name));
        let layer = |sizes, deviation, name: &str| transposed_linear(sizes, deviation, vb.pp(name));
        let heads = Heads {
            queries: config.n_head,
            keys: config.n_head,
            size: size / config.n_head,
            causal: true,
            rope: None,
            dropout: dropout(config.attn_pdrop, "shares", &vb, rng)?,
        };
        Ok(Self {
            attention_norm: norm("ln_1")?,
            attention: layer((size, 3 * size), deviation, "attn.c_attn")?,
            heads,
            projection: layer((size, size), added, "attn.c_proj")?,
            attention_dropout: dropout(config.resid_pdrop, "attention", &vb, rng)?,
            norm: norm("ln_2")?,
            inner: layer((size, inner), deviation, "mlp.c_fc")?,
            activation: config.activation_function,
            outer: layer((inner, size), added, "mlp.c_proj")?,
            dropout: dropout(config.resid_pdrop, "output", &vb, rng)?,
            size,
        })
    }

    fn forward(&self, x: &Tensor, mask: Option<&Tensor>, mode: Mode) -> Result<Tensor> {
        let normed = self.attention_norm.forward(x)?;
        let all = self.attention.forward(&normed)?;
        let part = |i| narrow(&all, 2, i * self.size, self.size);
        let y = (self.heads).attend(&part(0)?, &part(1)?, &part(2)?, mask, mode)?;
        let y = self.projection.forward(&y)?;
        let x = add(x, &self.attention_dropout.forward(&y, mode)?)?;
        let inner = self.inner.forward(&self.norm.forward(&x)?)?;
        let y = self.outer.forward(&self.activation.apply(&inner)?)?;
        add(&x, &self.dropout.forward(&y, mode)?)
    }
}
