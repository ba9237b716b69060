//! Scaled dot-product attention, with as many heads of keys as of queries or fewer.
//!
//! For each head, with queries `Q (T, D)`, keys `K (S, D)` and values `V (S, E)` (Vaswani et al.
//! 2017, arXiv:1706.03762):
//!
//! ```text
//! Y = softmax(s Q Kᵀ + mask) V        s = 1/√D unless set
//! ```
//!
//! With fewer heads of keys and values than of queries (grouped-query attention, Ainslie et al.
//! 2023, arXiv:2305.13245), each serves as many neighbouring heads of queries: head `h` of `H`
//! takes number `⌊h G / H⌋` of `G`.
//!
//! This is `torch.nn.functional.scaled_dot_product_attention` but for `causal` with fewer queries
//! than keys: there the queries are taken for the last positions, so that the last one sees every
//! key, as decoding with cached keys needs it. `PyTorch` takes them for the first positions. The
//! composed form and that for graphics cards keep the shares of all pairs for the gradient, `B H T S`
//! entries; the fast form on the CPU computes them again (unless the mask itself wants a gradient, which
//! takes the composed form). On a graphics card scores and shares of half-precision tensors are of half
//! precision, the scores before they are scaled.

use candle_core::{D, DType, Device, Result, Tensor};

use super::{
    DropoutMask,
    checks::{accumulator, check_companion, check_positive, check_values, refuse, refuse_shape},
    softmax::{masked_softmax, softmax},
};

use crate::kernels::{self, card};

const OP: &str = "attention";

/// Settings of the attention; the default sees every key, with the scale `1/√D`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Attention {
    /// Whether a position sees only itself and earlier ones.
    pub causal: bool,
    /// What scores are multiplied by, when it is not `1/√D`.
    pub scale: Option<f64>,
    /// Drops shares of keys on their way to the values, as in training
    /// ([`Dropout::mask`](super::Dropout::mask)).
    pub dropout: Option<DropoutMask>,
}

impl Attention {
    /// Attends from `q (B, H, T, D)` to `k (B, G, S, D)` and `v (B, G, S, E)`, where `G` divides
    /// `H`. The result is `(B, H, T, E)` of `q`'s dtype; half precision is computed in f32, on a graphics
    /// card product by product, and with keys and values of f32 rounded to a `q` of half precision first.
    ///
    /// `mask` broadcasts to `(B, H, T, S)` and is one of [`masked_softmax`]: u8, not zero where a
    /// query sees a key (padding of the keys: `(B, 1, 1, S)`), or floats that are added to the scaled
    /// scores. It comes on top of `causal`. A query that sees no key gets zeros and no gradient.
    ///
    /// # Errors
    /// When a tensor is empty, not of floats, of another dtype or does not fit the others, `causal`
    /// is set with more queries than keys, the scale is not positive and finite, or candle fails.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use sala_models::ops::Attention;
    ///
    /// let q = Tensor::zeros((1, 4, 3, 8), DType::F64, &Device::Cpu)?;
    /// let k = Tensor::zeros((1, 2, 3, 8), DType::F64, &Device::Cpu)?;
    /// let v = Tensor::arange(0f64, 6., &Device::Cpu)?.reshape((1, 2, 3, 1))?;
    /// let causal = Attention { causal: true, ..Default::default() };
    /// let y = causal.forward(&q, &k, &v, None)?.flatten_from(2)?.get(0)?.to_vec2::<f64>()?;
    /// let near = |got: &[f64], wanted: [f64; 3]| got.iter().zip(wanted).all(|(g, w)| (g - w).abs() < 1e-12);
    /// assert!(near(&y[1], [0., 0.5, 1.])); // equal scores: the mean of what a position sees
    /// assert!(near(&y[2], [3., 3.5, 4.]));
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn forward(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        mask: Option<&Tensor>,
    ) -> Result<Tensor> {
        self.attend([q, k, v], None, mask)
    }

    /// As [`Attention::forward`], with the heads of a token side by side, as projections leave them:
    /// `q (B, T, H·D)`, `k (B, S, G·D)`, `v (B, S, G·E)` and `heads = (H, G)`, to `(B, T, H·E)`. The fast
    /// form moves nothing to part them.
    ///
    /// # Errors
    /// As for [`Attention::forward`], and when heads do not divide the features.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use sala_models::ops::Attention;
    ///
    /// let x = Tensor::ones((2, 5, 12), DType::F32, &Device::Cpu)?;
    /// let y = Attention::default().forward_packed(&x, &x, &x, (4, 4), None)?;
    /// assert_eq!(y.dims(), [2, 5, 12]);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn forward_packed(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        heads: (usize, usize),
        mask: Option<&Tensor>,
    ) -> Result<Tensor> {
        let parted = [
            part("q", q, heads.0)?,
            part("k", k, heads.1)?,
            part("v", v, heads.1)?,
        ];
        self.attend(parted.each_ref(), Some([q, k, v]), mask)
    }

    /// Attends from `(B, H, T, D)`, or where there are some, from the same as `(B, T, H·D)`.
    fn attend(
        &self,
        parted: [&Tensor; 3],
        packed: Option<[&Tensor; 3]>,
        mask: Option<&Tensor>,
    ) -> Result<Tensor> {
        let [q, k, v] = parted;
        let sizes = Sizes::of(q, k, v)?;
        let scale = self.scale.unwrap_or(1.0 / (sizes.features as f64).sqrt());
        check_positive(OP, "scale", scale)?;
        if self.causal {
            sizes.check_causal()?;
        }
        // An added mask that is to be differentiated is left to candle.
        let constant = mask.is_none_or(|mask| !mask.track_op());
        if let Some(card) = card::serving(q)?.filter(|_| constant) {
            if let Some(mask) = mask {
                check_dtype_of_mask(mask, q)?;
                sizes.of_scores(mask)?;
            }
            let inputs = packed.unwrap_or(parted);
            let fitting = |t: &Tensor| t.to_dtype(q.dtype())?.contiguous();
            let [q, k, v] = [
                fitting(inputs[0])?,
                fitting(inputs[1])?,
                fitting(inputs[2])?,
            ];
            let settings = self.settings(&q, &sizes, scale);
            return card::attention::attention(card, &q, &k, &v, mask, settings);
        }
        let mask = mask.map(|mask| in_dtype_of_scores(mask, q)).transpose()?;
        let mask = mask.as_ref();
        let wide = |[q, k, v]: [&Tensor; 3]| -> Result<[Tensor; 3]> {
            let wide = |t: &Tensor| t.to_dtype(accumulator(t.dtype()));
            Ok([wide(q)?, wide(k)?, wide(v)?])
        };
        let fast = kernels::fast(&q.to_dtype(accumulator(q.dtype()))?)?;
        let y = if fast && constant {
            let inputs = wide(packed.unwrap_or(parted))?;
            self.fast(inputs.each_ref(), mask, &sizes, scale)?
        } else {
            let y = self.composed(wide(parted)?.each_ref(), mask, &sizes, scale)?;
            match packed {
                Some(_) => y.transpose(1, 2)?.flatten_from(2)?,
                None => y,
            }
        };
        y.to_dtype(q.dtype())
    }

    /// The fast form, for a mask that needs no gradient.
    fn fast(
        &self,
        [q, k, v]: [&Tensor; 3],
        mask: Option<&Tensor>,
        sizes: &Sizes,
        scale: f64,
    ) -> Result<Tensor> {
        let settings = self.settings(q, sizes, scale);
        let mask = mask.map(|mask| sizes.of_scores(mask)).transpose()?;
        let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
        kernels::attention::attention(&q, &k, &v, mask.as_ref(), settings)
    }

    /// What fast forms are told.
    fn settings(&self, q: &Tensor, sizes: &Sizes, scale: f64) -> kernels::attention::Attention {
        kernels::attention::Attention {
            batch: sizes.batch,
            heads: sizes.heads,
            groups: sizes.groups,
            queries: sizes.queries,
            keys: sizes.keys,
            features: sizes.features,
            values: sizes.values,
            scale,
            causal: self.causal,
            packed: q.rank() == 3,
            dropout: self.dropout,
        }
    }

    fn composed(
        &self,
        [q, k, v]: [&Tensor; 3],
        mask: Option<&Tensor>,
        sizes: &Sizes,
        scale: f64,
    ) -> Result<Tensor> {
        // The queries of all heads that share keys stand one below the other, so keys are not copied.
        let grouped =
            q.affine(scale, 0.0)?
                .reshape((sizes.batch, sizes.groups, (), sizes.features))?;
        let keys = k.contiguous()?;
        let scores = grouped
            .matmul(&keys.transpose(D::Minus1, D::Minus2)?.contiguous()?)?
            .reshape(sizes.scores())?;
        let mut shares = self.shares(&scores, sizes, mask)?;
        if let Some(dropout) = self.dropout {
            shares = dropout.apply(&shares)?;
        }
        let shares = shares.reshape((sizes.batch, sizes.groups, (), sizes.keys))?;
        shares.matmul(&v.contiguous()?)?.reshape((
            sizes.batch,
            sizes.heads,
            sizes.queries,
            sizes.values,
        ))
    }

    /// The share of each key in each query's result, `(B, H, T, S)`.
    fn shares(&self, scores: &Tensor, sizes: &Sizes, mask: Option<&Tensor>) -> Result<Tensor> {
        let past = self
            .causal
            .then(|| sizes.past(scores.device()))
            .transpose()?;
        let Some(mask) = mask else {
            return match past {
                Some(past) => masked_softmax(scores, &past, D::Minus1),
                None => softmax(scores, D::Minus1),
            };
        };
        let whole = sizes.of_scores(mask)?;
        let Some(past) = past else {
            return masked_softmax(scores, mask, D::Minus1);
        };
        let past = past.broadcast_as(scores.shape())?;
        if mask.dtype() == DType::U8 {
            // The causal one is 0 or 1, so whatever number the other says yes with stays.
            let both = (past * whole)?;
            return masked_softmax(scores, &both, D::Minus1);
        }
        masked_softmax(&(scores + whole)?, &past, D::Minus1)
    }
}

/// `(B, T, heads · D)` as `(B, heads, T, D)`.
fn part(argument: &'static str, x: &Tensor, heads: usize) -> Result<Tensor> {
    match *x.dims() {
        [batch, length, features] if heads > 0 && features.is_multiple_of(heads) => x
            .reshape((batch, length, heads, features / heads))?
            .transpose(1, 2),
        _ => {
            let wanted = format!("of shape (B, T, {heads} D)");
            Err(refuse_shape(OP, argument, wanted, x))
        }
    }
}

/// Refuses a mask of another dtype than scores of `q` can be masked with.
fn check_dtype_of_mask(mask: &Tensor, q: &Tensor) -> Result<()> {
    match mask.dtype() {
        DType::U8 => Ok(()),
        _ => check_companion(OP, "mask", mask, q),
    }
}

/// A mask of floats in the dtype that `q` is computed in; a boolean one as it is.
fn in_dtype_of_scores(mask: &Tensor, q: &Tensor) -> Result<Tensor> {
    check_dtype_of_mask(mask, q)?;
    if mask.dtype() == DType::U8 {
        return Ok(mask.clone());
    }
    mask.to_dtype(accumulator(q.dtype()))
}

/// The sizes of an attention, as its documentation names them.
struct Sizes {
    batch: usize,
    heads: usize,
    groups: usize,
    queries: usize,
    keys: usize,
    features: usize,
    values: usize,
}

impl Sizes {
    fn of(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Self> {
        for (argument, t) in [("q", q), ("k", k), ("v", v)] {
            check_values(OP, argument, t)?;
            check_companion(OP, argument, t, q)?;
        }
        let &[batch, heads, queries, features] = q.dims() else {
            return Err(refuse_shape(OP, "q", "of shape (B, H, T, D)", q));
        };
        let &[_, groups, keys, _] = k.dims() else {
            return Err(refuse_shape(OP, "k", "of shape (B, G, S, D)", k));
        };
        if k.dims() != [batch, groups, keys, features] || !heads.is_multiple_of(groups) {
            let wanted = format!("of shape ({batch}, G, S, {features}) where G divides {heads}");
            return Err(refuse_shape(OP, "k", wanted, k));
        }
        let values = match *v.dims() {
            [b, g, s, values] if [b, g, s] == [batch, groups, keys] => values,
            _ => {
                let wanted = format!("of shape ({batch}, {groups}, {keys}, E)");
                return Err(refuse_shape(OP, "v", wanted, v));
            }
        };
        Ok(Self {
            batch,
            heads,
            groups,
            queries,
            keys,
            features,
            values,
        })
    }

    /// The mask with the shape of the scores.
    fn of_scores(&self, mask: &Tensor) -> Result<Tensor> {
        mask.broadcast_as(self.scores()).map_err(|_| {
            let (b, h, t, s) = self.scores();
            let wanted = format!("a shape that broadcasts to {:?}", [b, h, t, s]);
            refuse_shape(OP, "mask", wanted, mask)
        })
    }

    const fn scores(&self) -> (usize, usize, usize, usize) {
        (self.batch, self.heads, self.queries, self.keys)
    }

    fn check_causal(&self) -> Result<()> {
        if self.queries <= self.keys {
            return Ok(());
        }
        let wanted = format!("at most {} long, as the keys are, when causal", self.keys);
        Err(refuse(OP, "q", wanted, self.queries.to_string()))
    }

    /// Which keys are not in a query's future, `(T, S)`; the last query stands at the last key.
    fn past(&self, device: &Device) -> Result<Tensor> {
        let before = self.keys - self.queries;
        let sees = |(query, key)| u8::from(key <= before + query);
        let pairs = (0..self.queries).flat_map(|query| (0..self.keys).map(move |key| (query, key)));
        let seen: Vec<u8> = pairs.map(sees).collect();
        Tensor::from_vec(seen, (self.queries, self.keys), device)
    }
}
