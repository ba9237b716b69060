//! Llama (Touvron et al. 2023, arXiv:2302.13971): a causal language model with root-mean-square norms
//! before its parts, rotary positions, gated feed-forward parts and, in later ones, fewer heads of keys
//! than of queries.
//!
//! ```text
//! h = x + attention(norm x)        y = h + down(act(gate(norm h)) · up(norm h))
//! ```

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::{
    activation::Activation,
    heads::Heads,
    parts::{check_heads, dropout, embedding, linear},
    rope_scaling::RopeScaling,
    tokens::{TokenNetwork, Tokens},
};
use crate::{
    Error, Mode, Network, Rng,
    error::{check_positive, check_probability, check_sizes},
    kernels::parts::product,
    ops::{Embedding, Linear, RmsNorm, Rope, RopePairs, add},
};

const CONFIG: &str = "LlamaConfig";

/// The sizes and settings of a [`Llama`], called as in its published `config.json`.
///
/// The default is Llama 2 with seven thousand million parameters.
///
/// ```
/// use sala_models::transformer::LlamaConfig;
/// assert!(LlamaConfig::default().validate().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Features of a token.
    pub hidden_size: usize,
    /// Width of the feed-forward parts.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Heads of queries.
    pub num_attention_heads: usize,
    /// Heads of keys and values, a divisor of `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Features of a head, an even number; `hidden_size / num_attention_heads` when it is not given.
    pub head_dim: Option<usize>,
    /// The gate's.
    pub hidden_act: Activation,
    /// The longest text.
    pub max_position_embeddings: usize,
    /// Added to the mean square in norms.
    pub rms_norm_eps: f64,
    /// Base of the angles.
    pub rope_theta: f64,
    /// How the angles are stretched.
    pub rope_scaling: RopeScaling,
    /// Whether the projections of the attention have a bias.
    pub attention_bias: bool,
    /// Dropout of the attention's shares, in `[0, 1)`.
    pub attention_dropout: f64,
    /// Whether the layers of feed-forward parts have a bias.
    pub mlp_bias: bool,
    /// Whether the head's weight is the embedding's.
    pub tie_word_embeddings: bool,
    /// Standard deviation of initial weights.
    pub initializer_range: f64,
}

impl Default for LlamaConfig {
    fn default() -> Self {
        Self {
            vocab_size: 32_000,
            hidden_size: 4096,
            intermediate_size: 11_008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: 32,
            head_dim: None,
            hidden_act: Activation::Silu,
            max_position_embeddings: 4096,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::None,
            attention_bias: false,
            attention_dropout: 0.0,
            mlp_bias: false,
            tie_word_embeddings: false,
            initializer_range: 0.02,
        }
    }
}

impl LlamaConfig {
    /// Checks that sizes are at least one, heads fit each other and the hidden size, the size of a head is
    /// even, the probability lies in `[0, 1)`, and the other numbers are positive and finite.
    ///
    /// # Errors
    /// [`Error::Config`], naming the field.
    ///
    /// ```
    /// use sala_models::transformer::LlamaConfig;
    ///
    /// let bad = LlamaConfig { num_key_value_heads: 5, ..Default::default() };
    /// assert!(bad.validate().unwrap_err().to_string().contains("num_key_value_heads"));
    /// ```
    pub fn validate(&self) -> crate::Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_key_value_heads", self.num_key_value_heads),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        check_sizes(CONFIG, sizes)?;
        let (hidden, heads) = (self.hidden_size, self.num_attention_heads);
        if self.head_dim.is_some() {
            check_sizes(CONFIG, [("num_attention_heads", heads)])?;
        } else {
            check_heads(CONFIG, "num_attention_heads", hidden, heads)?;
        }
        let refuse = |field, wanted, got| Error::Config {
            config: CONFIG,
            field,
            wanted,
            got,
        };
        if !heads.is_multiple_of(self.num_key_value_heads) {
            let got = format!("{} for {heads}", self.num_key_value_heads);
            let wanted = "a divisor of num_attention_heads";
            return Err(refuse("num_key_value_heads", wanted, got));
        }
        let size = self.head_size();
        if size == 0 || size % 2 == 1 {
            let wanted = "even and at least 2";
            return Err(refuse("head_dim", wanted, size.to_string()));
        }
        check_probability(CONFIG, "attention_dropout", self.attention_dropout)?;
        check_positive(CONFIG, "rms_norm_eps", self.rms_norm_eps)?;
        check_positive(CONFIG, "rope_theta", self.rope_theta)?;
        self.rope_scaling.validate()?;
        check_positive(CONFIG, "initializer_range", self.initializer_range)
    }

    fn head_size(&self) -> usize {
        let even = || self.hidden_size / self.num_attention_heads;
        self.head_dim.unwrap_or_else(even)
    }
}

/// Llama with its head: from tokens `(B, T)` to logits of the next ones, `(B, T, vocab_size)`.
///
/// Parameters are `model.embed_tokens`; in layer `i` `model.layers.{i}.input_layernorm`,
/// `self_attn.q_proj` (`k_proj`, `v_proj`, `o_proj`), `post_attention_layernorm`, `mlp.gate_proj`
/// (`up_proj`, `down_proj`); `model.norm`; and `lm_head` unless it is tied.
#[derive(Debug, Clone)]
pub struct Llama {
    words: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    head: Linear,
    longest: usize,
}

impl Llama {
    /// A model with parameters under the builder's prefix. `rng` seeds the dropout masks only.
    ///
    /// # Errors
    /// When the configuration is not valid, or the store holds one of the names with another shape.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use sala_models::{Mode, Network, Rng, VarStore, transformer::{Llama, LlamaConfig}};
    ///
    /// let config = LlamaConfig {
    ///     vocab_size: 30, hidden_size: 24, intermediate_size: 40, num_hidden_layers: 1,
    ///     num_attention_heads: 6, num_key_value_heads: 2, ..Default::default()
    /// };
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// let network = Llama::new(&config, store.builder(), Rng::new(0))?;
    /// let ids = Tensor::new(&[[2u32, 7, 5]], &Device::Cpu)?;
    /// assert_eq!(network.forward(&ids, Mode::eval())?.dims(), [1, 3, 30]);
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    #[expect(
        clippy::needless_pass_by_value,
        reason = "candle's layers take the builder by value"
    )]
    pub fn new(config: &LlamaConfig, vb: VarBuilder, rng: Rng) -> crate::Result<Self> {
        config.validate()?;
        let (size, deviation) = (config.hidden_size, config.initializer_range);
        let below = vb.pp("model");
        let table = below.pp("embed_tokens");
        let words = embedding(config.vocab_size, size, deviation, table)?;
        let head = if config.tie_word_embeddings {
            Linear::from_parts(words.weight().clone(), None)
        } else {
            let sizes = (size, config.vocab_size);
            linear(sizes, false, deviation, vb.pp("lm_head"))?
        };
        // One pair of tables, which all layers share.
        let (speeds, scale) = (config.rope_scaling).speeds(config.head_size(), config.rope_theta);
        let rope = Rope::with_speeds(
            &speeds,
            scale,
            config.max_position_embeddings,
            RopePairs::Halves,
            vb.dtype(),
            vb.device(),
        )?;
        let layer = |i| Layer::new(config, rope.clone(), below.pp("layers").pp(i), rng);
        let layers = (0..config.num_hidden_layers).map(layer);
        Ok(Self {
            words,
            layers: layers.collect::<crate::Result<_>>()?,
            norm: RmsNorm::new(size, config.rms_norm_eps, below.pp("norm"))?,
            head,
            longest: config.max_position_embeddings,
        })
    }
}

impl TokenNetwork for Llama {
    /// Segments are not looked at. Positions count from the first place, padding or not, so texts are
    /// filled up behind their end.
    fn forward_tokens(&self, tokens: &Tokens, mode: Mode) -> Result<Tensor> {
        tokens.check("Llama", self.longest)?;
        let mut x = self.words.forward(&tokens.ids)?;
        let mask = tokens.key_mask()?;
        for layer in &self.layers {
            x = layer.forward(&x, mask.as_ref(), mode)?;
        }
        self.head.forward(&self.norm.forward(&x)?)
    }
}

impl Network for Llama {
    /// `x` are token ids `(B, T)`.
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        self.forward_tokens(&Tokens::new(x.clone()), mode)
    }
}

#[derive(Debug, Clone)]
struct Layer {
    attention_norm: RmsNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    heads: Heads,
    output: Linear,
    norm: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl Layer {
    fn new(config: &LlamaConfig, rope: Rope, vb: VarBuilder, rng: Rng) -> crate::Result<Self> {
        let (size, inner) = (config.hidden_size, config.intermediate_size);
        let heads = Heads {
            queries: config.num_attention_heads,
            keys: config.num_key_value_heads,
            size: config.head_size(),
            causal: true,
            rope: Some(rope),
            dropout: dropout(config.attention_dropout, "shares", &vb, rng)?,
        };
        let (queries, keys) = (heads.queries * heads.size, heads.keys * heads.size);
        let norm = |name: &str| RmsNorm::new(size, config.rms_norm_eps, vb.pp(name));
        let layer = |sizes, bias, place: &str, name: &str| {
            let vb = vb.pp(place).pp(name);
            linear(sizes, bias, config.initializer_range, vb)
        };
        let attention = |sizes, name| layer(sizes, config.attention_bias, "self_attn", name);
        let feed_forward = |sizes, name| layer(sizes, config.mlp_bias, "mlp", name);
        Ok(Self {
            attention_norm: norm("input_layernorm")?,
            query: attention((size, queries), "q_proj")?,
            key: attention((size, keys), "k_proj")?,
            value: attention((size, keys), "v_proj")?,
            heads,
            output: attention((queries, size), "o_proj")?,
            norm: norm("post_attention_layernorm")?,
            gate: feed_forward((size, inner), "gate_proj")?,
            up: feed_forward((size, inner), "up_proj")?,
            down: feed_forward((inner, size), "down_proj")?,
            activation: config.hidden_act,
        })
    }

    fn forward(&self, x: &Tensor, mask: Option<&Tensor>, mode: Mode) -> Result<Tensor> {
        let normed = self.attention_norm.forward(x)?;
        let (q, k, v) = (
            self.query.forward(&normed)?,
            self.key.forward(&normed)?,
            self.value.forward(&normed)?,
        );
        let y = self.heads.attend(&q, &k, &v, mask, mode)?;
        let x = add(x, &self.output.forward(&y)?)?;
        let normed = self.norm.forward(&x)?;
        let gate = self.activation.apply(&self.gate.forward(&normed)?)?;
        let inner = product(&gate, &self.up.forward(&normed)?)?;
        add(&x, &self.down.forward(&inner)?)
    }
}
