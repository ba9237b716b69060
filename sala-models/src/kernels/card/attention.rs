//! Attention that keeps the shares of all pairs; [`kernels::attention`](crate::kernels::attention) has the equations.
//!
//! Scores, shares and their slopes are stored in the type of the tensors. What is between two products is one kernel: scale,
//! masks, softmax and dropout forward, the same backward. Dropout is drawn again in the backward.

use std::sync::OnceLock;

use candle_core::{D, Result, Shape, Tensor, bail};

use super::{
    Card,
    product::product,
    rows::swap_rows,
    softmax::{Mask, Settings},
};
use crate::kernels::{
    attention::Attention,
    graph::{self, Input, Operation},
};

/// Attends with contiguous tensors of one dtype. `mask` is one of [`masked_softmax`](super::softmax::masked_softmax).
pub(crate) fn attention(
    card: Card,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
    settings: Attention,
) -> Result<Tensor> {
    let scores = Shape::from((
        settings.batch,
        settings.heads,
        settings.queries,
        settings.keys,
    ));
    let mask = (mask.map(|mask| Mask::new(mask, &scores, q.dtype()))).transpose()?;
    let op = Op {
        card,
        settings,
        mask,
        kept: OnceLock::new(),
    };
    graph::apply(op, &[q, k, v])
}

struct Op {
    card: Card,
    settings: Attention,
    mask: Option<Mask>,
    kept: OnceLock<Kept>,
}

/// What the forward pass leaves: q, k and v as stacks of matrices, and the shares before dropout.
struct Kept {
    inputs: [Tensor; 3],
    shares: Tensor,
}

impl Op {
    /// A tensor of `heads` heads as a stack of matrices, one for all heads that share keys, in which the queries of those
    /// stand one below the other.
    fn stacked(&self, x: &Tensor, heads: usize) -> Result<Tensor> {
        let Attention {
            batch,
            groups,
            packed,
            ..
        } = self.settings;
        let stacks = batch * groups;
        if !packed {
            return x.reshape((stacks, (), x.dim(D::Minus1)?));
        }
        let size = x.dim(2)? / heads;
        let parted = swap_rows(&self.card, x, [batch, x.dim(1)?, heads, size])?;
        parted.reshape((stacks, (), size))
    }

    /// The other way round, in the shape of `like`.
    fn unstacked(&self, x: &Tensor, heads: usize, like: &Shape) -> Result<Tensor> {
        if !self.settings.packed {
            return x.reshape(like);
        }
        let length = like.dims()[1];
        let size = x.dim(2)?;
        swap_rows(&self.card, x, [self.settings.batch, heads, length, size])?.reshape(like)
    }

    fn between(&self) -> Settings<'_> {
        let Attention {
            scale,
            causal,
            queries,
            dropout,
            ..
        } = self.settings;
        Settings {
            scale,
            mask: self.mask.as_ref(),
            causal: causal.then_some(queries),
            dropout,
        }
    }

    /// The shares of scores, and what dropout leaves of them.
    fn shares(&self, scores: &Tensor) -> Result<[Tensor; 2]> {
        let between = self.between();
        let shares = self.card.empty_like(scores)?;
        let dropped = (between.dropout)
            .map(|_| self.card.empty_like(scores))
            .transpose()?;
        let entries = between.entries();
        let tensors = [Some(scores), entries, Some(&shares), None, dropped.as_ref()];
        between.each_row(&self.card, "softmax", scores, &tensors)?;
        let dropped = dropped.unwrap_or_else(|| shares.clone());
        Ok([shares, dropped])
    }

    /// Turns slopes of what weighs the values into those of the unscaled scores. Yields what weighed the values.
    fn differentiate(&self, shares: &Tensor, slopes: &Tensor) -> Result<Tensor> {
        let between = self.between();
        let dropped = (between.dropout)
            .map(|_| self.card.empty_like(shares))
            .transpose()?;
        let tensors = [Some(shares), Some(slopes), dropped.as_ref()];
        between.each_row(&self.card, "shares_back", shares, &tensors)?;
        Ok(dropped.unwrap_or_else(|| shares.clone()))
    }

    fn result(&self) -> Shape {
        let Attention {
            batch,
            heads,
            queries,
            values,
            packed,
            ..
        } = self.settings;
        if packed {
            (batch, queries, heads * values).into()
        } else {
            (batch, heads, queries, values).into()
        }
    }
}

fn transposed(x: &Tensor) -> Result<Tensor> {
    x.transpose(D::Minus1, D::Minus2)
}

impl Operation for Op {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let Attention { heads, groups, .. } = self.settings;
        let q = self.stacked(inputs[0], heads)?;
        let (k, v) = (
            self.stacked(inputs[1], groups)?,
            self.stacked(inputs[2], groups)?,
        );
        let scores = product(&q, &transposed(&k)?)?;
        let [shares, dropped] = self.shares(&scores)?;
        let y = product(&dropped, &v)?;
        // Set once: there is one forward pass.
        let _ = self.kept.set(Kept {
            inputs: [q, k, v],
            shares,
        });
        self.unstacked(&y, heads, &self.result())
    }

    fn backward(&self, inputs: &[Input], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let Some(Kept {
            inputs: kept,
            shares,
        }) = self.kept.get()
        else {
            bail!("attention: backward before forward");
        };
        let [q, k, v] = kept;
        let Attention { heads, groups, .. } = self.settings;
        let dy = self.stacked(dy, heads)?;
        let slopes = product(&dy, &transposed(v)?)?;
        let weights = self.differentiate(shares, &slopes)?;
        let gradient = |i: usize, heads: usize, of: &dyn Fn() -> Result<Tensor>| {
            (inputs[i].tracked)
                .then(|| self.unstacked(&of()?, heads, inputs[i].value.shape()))
                .transpose()
        };
        Ok(vec![
            gradient(0, heads, &|| product(&slopes, k))?,
            gradient(1, groups, &|| product(&transposed(&slopes)?, q))?,
            gradient(2, groups, &|| product(&transposed(&weights)?, &dy))?,
        ])
    }
}
