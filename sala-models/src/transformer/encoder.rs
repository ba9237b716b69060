//! The layer of encoders: attention among all tokens, then a feed-forward part on each.
//!
//! ```text
//! norm after:   h = norm1(x + attention(x))         y = norm2(h + outer(act(inner h)))
//! norm before:  h = x + attention(norm1(x))         y = h + outer(act(inner(norm2 h)))
//! ```
//!
//! The first is the original (Vaswani et al. 2017, arXiv:1706.03762), the second trains without warm-up
//! (Xiong et al. 2020, arXiv:2002.04745). Dropout follows each part.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::{
    activation::Activation,
    heads::Heads,
    parts::{dropout, linear},
};
use crate::{
    Mode, Rng,
    ops::{Dropout, LayerNorm, Linear, add},
};

/// What a network calls the parts of its layers.
pub(super) struct Names {
    pub(super) query: &'static str,
    pub(super) key: &'static str,
    pub(super) value: &'static str,
    pub(super) output: &'static str,
    pub(super) attention_norm: &'static str,
    pub(super) inner: &'static str,
    pub(super) outer: &'static str,
    pub(super) output_norm: &'static str,
}

/// Where the norms stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NormPlace {
    Before,
    After,
}

/// The sizes and settings of a layer.
pub(super) struct Settings {
    pub(super) hidden: usize,
    pub(super) heads: usize,
    pub(super) inner: usize,
    pub(super) activation: Activation,
    pub(super) norm: NormPlace,
    pub(super) eps: f64,
    /// Whether the projections to queries, keys and values have a bias.
    pub(super) bias: bool,
    /// The standard deviation of initial weights.
    pub(super) deviation: f64,
    /// Dropout of the attention's shares, after the attention, and after the feed-forward part.
    pub(super) dropout: [f64; 3],
}

#[derive(Debug, Clone)]
pub(super) struct EncoderLayer {
    query: Linear,
    key: Linear,
    value: Linear,
    heads: Heads,
    output: Linear,
    attention_dropout: Dropout,
    attention_norm: LayerNorm,
    inner: Linear,
    activation: Activation,
    outer: Linear,
    output_dropout: Dropout,
    output_norm: LayerNorm,
    norm: NormPlace,
}

impl EncoderLayer {
    pub(super) fn new(
        settings: &Settings,
        names: &Names,
        vb: VarBuilder,
        rng: Rng,
    ) -> crate::Result<Self> {
        let Settings {
            hidden,
            inner,
            eps,
            bias,
            deviation,
            ..
        } = *settings;
        let layer = |sizes, bias, name: &str| linear(sizes, bias, deviation, vb.pp(name));
        let [share, attention, output] = settings.dropout;
        let heads = Heads {
            queries: settings.heads,
            keys: settings.heads,
            size: hidden / settings.heads,
            causal: false,
            rope: None,
            dropout: dropout(share, "shares", &vb, rng)?,
        };
        Ok(Self {
            query: layer((hidden, hidden), bias, names.query)?,
            key: layer((hidden, hidden), bias, names.key)?,
            value: layer((hidden, hidden), bias, names.value)?,
            heads,
            output: layer((hidden, hidden), true, names.output)?,
            attention_dropout: dropout(attention, "attention", &vb, rng)?,
            attention_norm: LayerNorm::new(hidden, eps, vb.pp(names.attention_norm))?,
            inner: layer((hidden, inner), true, names.inner)?,
            activation: settings.activation,
            outer: layer((inner, hidden), true, names.outer)?,
            output_dropout: dropout(output, "output", &vb, rng)?,
            output_norm: LayerNorm::new(hidden, eps, vb.pp(names.output_norm))?,
            norm: settings.norm,
        })
    }

    /// `x (B, T, hidden)` to the same; `mask` is `(B, 1, 1, T)` of u8.
    pub(super) fn forward(&self, x: &Tensor, mask: Option<&Tensor>, mode: Mode) -> Result<Tensor> {
        match self.norm {
            NormPlace::After => {
                let sum = add(x, &self.attention(x, mask, mode)?)?;
                let x = self.attention_norm.forward(&sum)?;
                let sum = add(&x, &self.feed_forward(&x, mode)?)?;
                self.output_norm.forward(&sum)
            }
            NormPlace::Before => {
                let normed = self.attention_norm.forward(x)?;
                let x = add(x, &self.attention(&normed, mask, mode)?)?;
                let normed = self.output_norm.forward(&x)?;
                add(&x, &self.feed_forward(&normed, mode)?)
            }
        }
    }

    fn attention(&self, x: &Tensor, mask: Option<&Tensor>, mode: Mode) -> Result<Tensor> {
        let (q, k, v) = (
            self.query.forward(x)?,
            self.key.forward(x)?,
            self.value.forward(x)?,
        );
        let y = self.heads.attend(&q, &k, &v, mask, mode)?;
        self.attention_dropout
            .forward(&self.output.forward(&y)?, mode)
    }

    fn feed_forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let inner = self.activation.apply(&self.inner.forward(x)?)?;
        self.output_dropout
            .forward(&self.outer.forward(&inner)?, mode)
    }
}
