//! Attention whose scores live for a few rows at a time.
//!
//! Forward, a block of queries is multiplied with all keys, turned into shares while it is in the cache, and
//! multiplied with all values. Of the shares only the logarithm of each row's sum is kept,
//!
//! ```text
//! P = exp(s Q Kᵀ + mask − l)        lᵢ = log Σⱼ exp(s Q Kᵀ + mask)ᵢⱼ        Y = P V
//! ```
//!
//! and backward they are computed again, block by block (Dao et al. 2022, arXiv:2205.14135):
//!
//! ```text
//! ∂L/∂V = Pᵀ G        D = P ∘ (G Vᵀ − rowsum(G ∘ Y))        ∂L/∂Q = s D K        ∂L/∂K = s Dᵀ Q
//! ```
//!
//! Dropout multiplies P with a mask M on its way to V: then `Y = (P ∘ M) V`, `∂L/∂V = (P ∘ M)ᵀ G`,
//! `D = P ∘ (M ∘ G Vᵀ − rowsum(G ∘ Y))`, and M is drawn again in the backward.
//!
//! Memory holds nothing of the size of the scores. Heads are shared among threads; those that share keys
//! stay on one thread backward, which adds up what the keys receive in order.

mod backward;
mod loops;
mod mask;
mod rows;

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use candle_core::{DType, Result, Shape, Tensor, bail};

use self::{
    loops::{Scale, Shares},
    mask::{Entries, Mask},
    rows::{Rows, multiply},
};
use super::{
    access, dropout,
    functions::Functions,
    graph::{self, Input, Operation},
    pieces,
    scratch::Scratch,
};
use crate::ops::DropoutMask;

/// Scores of a block of queries: they fit a second-level cache together with the keys.
const SCORES: usize = 16 * 1024;

/// The sizes and settings of one attention.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attention {
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    pub(crate) groups: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) features: usize,
    pub(crate) values: usize,
    pub(crate) scale: f64,
    pub(crate) causal: bool,
    /// Whether the heads of a token lie side by side, `(B, T, H, D)`; else `(B, H, T, D)`.
    pub(crate) packed: bool,
    /// Drops entries of P, `(B, H, T, S)`, before they weigh the values.
    pub(crate) dropout: Option<DropoutMask>,
}

/// Attends with contiguous tensors of one dtype. `mask` is of that dtype or u8, of the shape of the scores
/// with any strides, and constant.
pub(crate) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
    settings: Attention,
) -> Result<Tensor> {
    let mask = mask.map(Tensor::detach);
    match q.dtype() {
        DType::F64 => graph::apply(Op::<f64>::new(settings, mask), &[q, k, v]),
        _ => graph::apply(Op::<f32>::new(settings, mask), &[q, k, v]),
    }
}

struct Op<T> {
    settings: Attention,
    mask: Option<Tensor>,
    /// The logarithm of each row's sum, `(B, H, T)`, left by the forward pass.
    log_sums: Mutex<Vec<T>>,
}

impl<T: Functions> Operation for Op<T> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let views = [
            access::view::<T>(inputs[0])?,
            access::view(inputs[1])?,
            access::view(inputs[2])?,
        ];
        let [q, k, v] = views.each_ref().map(|view| &**view);
        let inputs = Inputs { q, k, v };
        let (y, log_sums) = self.with_mask(|mask| Ok(self.settings.forward(inputs, mask)))?;
        *self.log_sums.lock().unwrap_or_else(PoisonError::into_inner) = log_sums;
        access::tensor(y, self.settings.result())
    }

    fn backward(
        &self,
        inputs: &[Input],
        y: &Tensor,
        gradient: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let log_sums = self.log_sums.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |i: usize| access::view::<T>(&inputs[i].value);
        let views = [of(0)?, of(1)?, of(2)?];
        let [q, k, v] = views.each_ref().map(|view| &**view);
        let (y, g) = (access::view(y)?, access::view(gradient)?);
        let result = Backward {
            y: &y,
            g: &g,
            log_sums: &log_sums,
        };
        let values = Inputs { q, k, v };
        let found = self.with_mask(|mask| Ok(self.settings.backward(values, &result, mask)))?;
        let gradients = [found.q, found.k, found.v].into_iter();
        (gradients.zip(inputs))
            .map(|(values, input)| access::tensor(values, input.value.shape()).map(Some))
            .collect()
    }
}

impl<T: Functions> Op<T> {
    const fn new(settings: Attention, mask: Option<Tensor>) -> Self {
        Self {
            settings,
            mask,
            log_sums: Mutex::new(vec![]),
        }
    }

    fn with_mask<R>(&self, work: impl FnOnce(Option<Mask<T>>) -> Result<R>) -> Result<R> {
        let Some(mask) = &self.mask else {
            return work(None);
        };
        let layout = mask.layout();
        let &[batch, head, query, key] = layout.stride() else {
            bail!("attention: a mask of rank {}", layout.dims().len());
        };
        let strides = [batch, head, query, key];
        if mask.dtype() == DType::U8 {
            let entries = Entries::Visible(&access::view_strided(mask)?);
            return work(Some(Mask { entries, strides }));
        }
        let entries = Entries::Added(&access::view_strided(mask)?);
        work(Some(Mask { entries, strides }))
    }
}

#[derive(Clone, Copy)]
struct Inputs<'a, T> {
    q: &'a [T],
    k: &'a [T],
    v: &'a [T],
}

/// What the backward pass knows of the result.
struct Backward<'a, T> {
    y: &'a [T],
    g: &'a [T],
    log_sums: &'a [T],
}

struct Gradients<T> {
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
}

impl Attention {
    /// Queries of a block.
    fn block(&self) -> usize {
        (SCORES / self.keys).clamp(12, 240).min(self.queries)
    }

    /// The blocks of queries.
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> {
        let (block, queries) = (self.block(), self.queries);
        (0..queries)
            .step_by(block)
            .map(move |start| start..queries.min(start + block))
    }

    /// Keys that a query sees of those that are not masked otherwise.
    const fn seen(&self, query: usize) -> usize {
        if self.causal {
            self.keys - self.queries + query + 1
        } else {
            self.keys
        }
    }

    fn result(&self) -> Shape {
        let Self {
            batch,
            heads,
            queries,
            values,
            ..
        } = *self;
        if self.packed {
            (batch, queries, heads * values).into()
        } else {
            (batch, heads, queries, values).into()
        }
    }

    /// One head's rows, of `size` elements, among `heads` heads of an example.
    const fn rows_of(&self, head: usize, heads: usize, rows: usize, size: usize) -> Rows {
        if self.packed {
            Rows {
                start: head * size,
                stride: heads * size,
                len: size,
            }
        } else {
            Rows {
                start: head * rows * size,
                stride: size,
                len: size,
            }
        }
    }

    /// Heads of queries that share keys.
    const fn together(&self) -> usize {
        self.heads / self.groups
    }

    fn forward<T: Functions>(&self, inputs: Inputs<T>, mask: Option<Mask<T>>) -> (Vec<T>, Vec<T>) {
        let Self {
            batch,
            heads,
            groups,
            queries,
            keys,
            features,
            values,
            ..
        } = *self;
        // What a task writes has to be in one stretch: a head, or all heads of an example.
        let in_task = if self.packed { heads } else { 1 };
        let mut log_sums = vec![T::default(); batch * heads * queries];
        let work = |task: usize, y: &mut [T], log_sums: &mut [T]| {
            let example = task * in_task / heads;
            let q = &inputs.q[example * heads * queries * features..];
            let k = &inputs.k[example * groups * keys * features..];
            let v = &inputs.v[example * groups * keys * values..];
            let mut shares = Scratch::<T>::new(self.block() * keys);
            for (i, log_sums) in log_sums.chunks_exact_mut(queries).enumerate() {
                let head = task * in_task % heads + i;
                let group = head / self.together();
                let by_keys = self
                    .rows_of(group, groups, keys, features)
                    .transposed(k, keys);
                let by_values = self.rows_of(group, groups, keys, values).packed(v, keys);
                let q_rows = self.rows_of(head, heads, queries, features);
                let y_rows = self.rows_of(i, in_task, queries, values);
                for rows in self.blocks() {
                    let plain = Rows::plain(keys);
                    let shares = &mut shares[..rows.len() * keys];
                    multiply(
                        (q, q_rows),
                        rows.clone(),
                        &by_keys,
                        (&mut *shares, plain),
                        0,
                    );
                    self.hide((example, head), rows.clone(), mask, shares);
                    let log_sums = &mut log_sums[rows.clone()];
                    pieces::compiled(Shares, (&mut *shares, keys, log_sums));
                    if let Some(kept) = self.kept((example, head), &rows) {
                        pieces::compiled(Scale, (&mut *shares, &*kept));
                    }
                    let all = 0..rows.len();
                    multiply(
                        (&*shares, plain),
                        all,
                        &by_values,
                        (&mut *y, y_rows),
                        rows.start,
                    );
                }
            }
        };
        let y = pieces::filled_beside(
            batch * heads * queries * values,
            in_task * queries * values,
            &mut log_sums,
            in_task * queries,
            work,
        );
        (y, log_sums)
    }

    /// Scales the products of some queries with the keys, and hides what they do not see.
    fn hide<T: Functions>(
        &self,
        (batch, head): (usize, usize),
        queries: Range<usize>,
        mask: Option<Mask<T>>,
        scores: &mut [T],
    ) {
        let scale = T::of(self.scale);
        for (scores, query) in scores.chunks_exact_mut(self.keys).zip(queries) {
            for score in &mut *scores {
                *score *= scale;
            }
            if let Some(mask) = mask {
                mask.apply(batch, head, query, scores);
            }
            scores[self.seen(query)..].fill(T::of(f64::NEG_INFINITY));
        }
    }

    /// What dropout multiplies the shares of some queries with.
    fn kept<T: Functions>(
        &self,
        (batch, head): (usize, usize),
        queries: &Range<usize>,
    ) -> Option<Scratch<T>> {
        let mask = self.dropout?;
        let first = (batch * self.heads + head) * self.queries + queries.start;
        let mut kept = Scratch::new(queries.len() * self.keys);
        dropout::factors(mask, first * self.keys, &mut kept);
        Some(kept)
    }
}
