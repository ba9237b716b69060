//! Attention between projected tokens, head by head.

use candle_core::{Result, Tensor};

use crate::{
    Mode,
    kernels::parts::{join_heads, split_heads},
    ops::{Attention, Dropout, Rope},
};

/// Cuts queries, keys and values into heads, attends, and puts the heads together again.
#[derive(Debug, Clone)]
pub(super) struct Heads {
    /// Heads of queries.
    pub(super) queries: usize,
    /// Heads of keys and values, a divisor of those of queries.
    pub(super) keys: usize,
    /// Features of a head.
    pub(super) size: usize,
    /// Whether a token sees only itself and earlier ones.
    pub(super) causal: bool,
    /// Turns queries and keys by their positions.
    pub(super) rope: Option<Rope>,
    /// Drops shares of keys.
    pub(super) dropout: Dropout,
}

impl Heads {
    /// From `q (B, T, queries · size)` and `k`, `v (B, T, keys · size)` to `(B, T, queries · size)`;
    /// `mask` is `(B, 1, 1, T)` of u8.
    pub(super) fn attend(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        mask: Option<&Tensor>,
        mode: Mode,
    ) -> Result<Tensor> {
        let attention = Attention {
            causal: self.causal,
            scale: None,
            dropout: self.dropout.mask(mode),
        };
        let Some(rope) = &self.rope else {
            return attention.forward_packed(q, k, v, (self.queries, self.keys), mask);
        };
        let q = rope.forward(&split_heads(q, self.queries)?, 0)?;
        let k = rope.forward(&split_heads(k, self.keys)?, 0)?;
        let v = split_heads(v, self.keys)?;
        join_heads(&attention.forward(&q, &k, &v, mask)?)
    }
}
