//! Attention between projected tokens, head by head.

use candle_core::{D, DType, Result, Tensor};

use crate::{
    Mode,
    ops::{Attention, Dropout, Rope, masked_softmax, softmax},
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
        };
        let drops = mode.train && self.dropout.p() > 0.0;
        if self.rope.is_none() && !drops {
            return attention.forward_packed(q, k, v, (self.queries, self.keys), mask);
        }
        let mut q = self.cut(q, self.queries)?;
        let mut k = self.cut(k, self.keys)?;
        let v = self.cut(v, self.keys)?;
        if let Some(rope) = &self.rope {
            (q, k) = (rope.forward(&q, 0)?, rope.forward(&k, 0)?);
        }
        let y = if drops {
            self.with_dropout(&q, &k, &v, mask, mode)?
        } else {
            attention.forward(&q, &k, &v, mask)?
        };
        y.transpose(1, 2)?.flatten_from(2)
    }

    /// `(B, T, heads · size)` to `(B, heads, T, size)`.
    fn cut(&self, x: &Tensor, heads: usize) -> Result<Tensor> {
        let (batch, length, _) = x.dims3()?;
        x.reshape((batch, length, heads, self.size))?
            .transpose(1, 2)
    }

    /// As [`Attention`], in plain operations: it has no dropout between its shares and its values.
    fn with_dropout(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        mask: Option<&Tensor>,
        mode: Mode,
    ) -> Result<Tensor> {
        let dtype = match q.dtype() {
            DType::F16 | DType::BF16 => DType::F32,
            other => other,
        };
        let scale = 1.0 / (self.size as f64).sqrt();
        let keys = self.for_each_query(&k.to_dtype(dtype)?)?;
        let scores = q
            .to_dtype(dtype)?
            .affine(scale, 0.0)?
            .matmul(&keys.transpose(2, 3)?.contiguous()?)?;
        let shares = match self.seen(q, mask)? {
            Some(seen) => masked_softmax(&scores, &seen, D::Minus1)?,
            None => softmax(&scores, D::Minus1)?,
        };
        let values = self.for_each_query(&v.to_dtype(dtype)?)?;
        let kept = self.dropout.forward(&shares, mode)?;
        kept.matmul(&values)?.to_dtype(q.dtype())
    }

    /// Each head of `x (B, keys, T, size)` as often as there are heads of queries for it.
    fn for_each_query(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, groups, length, size) = x.dims4()?;
        if groups == self.queries {
            return x.contiguous();
        }
        x.unsqueeze(2)?
            .broadcast_as((batch, groups, self.queries / groups, length, size))?
            .reshape((batch, self.queries, length, size))
    }

    /// Which keys a query sees, where it does not see all.
    fn seen(&self, q: &Tensor, mask: Option<&Tensor>) -> Result<Option<Tensor>> {
        if !self.causal {
            return Ok(mask.cloned());
        }
        let past = Tensor::tril2(q.dim(2)?, DType::U8, q.device())?;
        match mask {
            Some(mask) => Ok(Some(mask.broadcast_mul(&past)?)),
            None => Ok(Some(past)),
        }
    }
}
