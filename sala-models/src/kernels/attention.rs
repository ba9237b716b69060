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

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the chosen instruction set"
)]

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use candle_core::{CpuStorage, DType, Result, Shape, Tensor, bail};

use super::{
    access, dropout,
    functions::Functions,
    graph::{self, Input, Operation},
    matmul::{self, Outer, Panels, Place, Product},
    pieces::{self, Kernel},
    rows::{dot, max, powers},
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

    fn forward(&self, inputs: &[&Tensor]) -> Result<(CpuStorage, Shape)> {
        let views = [
            access::view::<T>(inputs[0])?,
            access::view(inputs[1])?,
            access::view(inputs[2])?,
        ];
        let [q, k, v] = views.each_ref().map(|view| &**view);
        let inputs = Inputs { q, k, v };
        let (y, log_sums) = self.with_mask(|mask| Ok(self.settings.forward(inputs, mask)))?;
        *self.log_sums.lock().unwrap_or_else(PoisonError::into_inner) = log_sums;
        Ok(access::result(y, self.settings.result()))
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

#[derive(Clone, Copy)]
struct Mask<'a, T> {
    entries: Entries<'a, T>,
    strides: [usize; 4],
}

#[derive(Clone, Copy)]
enum Entries<'a, T> {
    /// Not zero where a query sees a key.
    Visible(&'a [u8]),
    /// Added to the scores.
    Added(&'a [T]),
}

impl<T: Functions> Mask<'_, T> {
    /// Masks the scores of one query.
    fn apply(&self, batch: usize, head: usize, query: usize, scores: &mut [T]) {
        let [b, h, q, k] = self.strides;
        let start = batch * b + head * h + query * q;
        let hidden = T::of(f64::NEG_INFINITY);
        let place = |key: usize| start + key * k;
        match self.entries {
            Entries::Visible(seen) => {
                for (key, score) in scores.iter_mut().enumerate() {
                    if seen[place(key)] == 0 {
                        *score = hidden;
                    }
                }
            }
            Entries::Added(added) => {
                for (key, score) in scores.iter_mut().enumerate() {
                    *score += added[place(key)];
                }
            }
        }
    }
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

    fn backward<T: Functions>(
        &self,
        inputs: Inputs<T>,
        result: &Backward<T>,
        mask: Option<Mask<T>>,
    ) -> Gradients<T> {
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
        let zeros = |len: usize| vec![T::default(); len];
        let mut of_q = zeros(batch * heads * queries * features);
        let mut of_k = zeros(batch * groups * keys * features);
        let mut of_v = zeros(batch * groups * keys * values);
        // As forward, but heads that share keys stay together.
        let in_task = if self.packed { groups } else { 1 };
        let with_queries = in_task * self.together();
        pieces::each_of_three(
            (&mut of_q, with_queries * queries * features),
            (&mut of_k, in_task * keys * features),
            (&mut of_v, in_task * keys * values),
            |task, of_q, of_k, of_v| {
                for i in 0..in_task {
                    let group = Group {
                        attention: self,
                        inputs,
                        result,
                        mask,
                        example: task * in_task / groups,
                        number: task * in_task % groups + i,
                        in_task: (i, in_task),
                    };
                    group.backward(of_q, of_k, of_v);
                }
            },
        );
        Gradients {
            q: of_q,
            k: of_k,
            v: of_v,
        }
    }
}

/// Where the rows of a matrix are.
#[derive(Debug, Clone, Copy)]
struct Rows {
    start: usize,
    stride: usize,
    len: usize,
}

impl Rows {
    const fn plain(len: usize) -> Self {
        Self {
            start: 0,
            stride: len,
            len,
        }
    }

    const fn at(&self, row: usize) -> usize {
        self.start + row * self.stride
    }

    /// Row `row` of a matrix.
    fn of<'a, T>(&self, matrix: &'a [T], row: usize) -> &'a [T] {
        &matrix[self.at(row)..][..self.len]
    }

    /// The matrix, of `depth` rows, packed to be multiplied with from the left.
    fn packed<T: Functions>(&self, matrix: &[T], depth: usize) -> Panels<T> {
        Panels::pack(depth, self.len, &matrix[self.start..], (self.stride, 1))
    }

    /// The transposed matrix, of `columns` rows, packed to be multiplied with from the left.
    fn transposed<T: Functions>(&self, matrix: &[T], columns: usize) -> Panels<T> {
        Panels::pack(self.len, columns, &matrix[self.start..], (1, self.stride))
    }
}

/// The heads of one example that share keys.
struct Group<'a, T> {
    attention: &'a Attention,
    inputs: Inputs<'a, T>,
    result: &'a Backward<'a, T>,
    mask: Option<Mask<'a, T>>,
    example: usize,
    number: usize,
    /// Its number in its task, and how many the task has.
    in_task: (usize, usize),
}

impl<T: Functions> Group<'_, T> {
    fn backward(&self, of_q: &mut [T], of_k: &mut [T], of_v: &mut [T]) {
        let attention = self.attention;
        let Attention {
            heads,
            groups,
            queries,
            keys,
            features,
            values,
            scale,
            ..
        } = *attention;
        let k = &self.inputs.k[self.example * groups * keys * features..];
        let v = &self.inputs.v[self.example * groups * keys * values..];
        let k_rows = attention.rows_of(self.number, groups, keys, features);
        let by_keys = k_rows.transposed(k, keys);
        let from_keys = k_rows.packed(k, keys);
        let by_values = (attention.rows_of(self.number, groups, keys, values)).transposed(v, keys);
        let q = &self.inputs.q[self.example * heads * queries * features..];
        let y = &self.result.y[self.example * heads * queries * values..];
        let g = &self.result.g[self.example * heads * queries * values..];
        let len = attention.block() * keys;
        let (mut shares, mut slopes) = (Scratch::<T>::new(len), Scratch::<T>::new(len));
        let mut for_k = Sums::new(keys, features);
        let mut for_v = Sums::new(keys, values);
        let together = attention.together();
        let (i, in_task) = self.in_task;
        for h in 0..together {
            let head = self.number * together + h;
            let log_sums = &self.result.log_sums[(self.example * heads + head) * queries..];
            let q_rows = attention.rows_of(head, heads, queries, features);
            let y_rows = attention.rows_of(head, heads, queries, values);
            let of_q_rows =
                attention.rows_of(i * together + h, in_task * together, queries, features);
            for rows in attention.blocks() {
                let count = rows.len();
                let plain = Rows::plain(keys);
                let (shares, slopes) = (&mut shares[..count * keys], &mut slopes[..count * keys]);
                multiply(
                    (q, q_rows),
                    rows.clone(),
                    &by_keys,
                    (&mut *shares, plain),
                    0,
                );
                attention.hide((self.example, head), rows.clone(), self.mask, shares);
                multiply(
                    (g, y_rows),
                    rows.clone(),
                    &by_values,
                    (&mut *slopes, plain),
                    0,
                );
                let kept = attention.kept((self.example, head), &rows);
                if let Some(kept) = &kept {
                    pieces::compiled(Scale, (&mut *slopes, &**kept));
                }
                let arguments = SlopesOf {
                    shares: &mut *shares,
                    slopes: &mut *slopes,
                    log_sums: &log_sums[rows.clone()],
                    y,
                    g,
                    rows: y_rows,
                    first: rows.start,
                    keys,
                    scale: T::of(scale),
                };
                pieces::compiled(Slopes, arguments);
                if let Some(kept) = &kept {
                    pieces::compiled(Scale, (&mut *shares, &**kept));
                }
                for_v.add(shares, (g, y_rows), rows.clone());
                for_k.add(slopes, (q, q_rows), rows.clone());
                let to = (&mut *of_q, of_q_rows);
                multiply((&*slopes, plain), 0..count, &from_keys, to, rows.start);
            }
        }
        for_k.write(of_k, attention.rows_of(i, in_task, keys, features));
        for_v.write(of_v, attention.rows_of(i, in_task, keys, values));
    }
}

/// Rows `rows` of a matrix times a packed one, into the rows of another from `first` on.
fn multiply<T: Functions>(
    (left, left_rows): (&[T], Rows),
    rows: Range<usize>,
    right: &Panels<T>,
    (out, out_rows): (&mut [T], Rows),
    first: usize,
) {
    let place = |(i, row)| Place {
        base: left_rows.at(row),
        out: out_rows.at(first + i),
    };
    let product = Product {
        left,
        places: &rows.enumerate().map(place).collect::<Vec<_>>(),
        runs: &[matmul::plain_run(left_rows.len)],
        right,
        bias: None,
    };
    product.write(out);
}

/// Sums over queries of products of a row of shares and a row of `columns` values: `(keys, columns)`, in
/// blocks of columns.
struct Sums<T: Functions> {
    values: Scratch<T>,
    keys: usize,
    columns: usize,
    width: usize,
}

impl<T: Functions> Sums<T> {
    fn new(keys: usize, columns: usize) -> Self {
        let width = matmul::width::<T>();
        Self {
            values: Scratch::zeros(keys * columns.div_ceil(width) * width),
            keys,
            columns,
            width,
        }
    }

    /// Adds the products of the rows of `left`, `(rows, keys)`, and some rows of `right`.
    fn add(&mut self, left: &[T], (right, right_rows): (&[T], Rows), rows: Range<usize>) {
        let (keys, width) = (self.keys, self.width);
        let count = rows.len();
        let outer = Outer {
            left,
            bases: |rows: Range<usize>| rows.map(|row| row * keys).collect(),
            runs: &[matmul::plain_run(keys)],
            right: &right[right_rows.at(rows.start)..],
            stride: right_rows.stride,
            rows: count,
            columns: self.columns,
        };
        let blocks = self.values.chunks_exact_mut(keys * width);
        for (block, sums) in blocks.enumerate() {
            outer.accumulate(0..count, block * width, sums);
        }
    }

    fn write(&self, out: &mut [T], rows: Rows) {
        for key in 0..self.keys {
            let row = &mut out[rows.at(key)..][..self.columns];
            for (block, row) in row.chunks_mut(self.width).enumerate() {
                let from = &self.values[(block * self.keys + key) * self.width..];
                row.copy_from_slice(&from[..row.len()]);
            }
        }
    }
}

/// y ← y factor.
struct Scale;

impl<T: Functions> Kernel<(&mut [T], &[T])> for Scale {
    #[inline(always)]
    fn run(self, (y, factors): (&mut [T], &[T])) {
        for (y, &factor) in y.iter_mut().zip(factors) {
            *y *= factor;
        }
    }
}

/// Rows of scores become shares; a row of which nothing is left becomes zeros, and its sum counts as
/// infinite.
struct Shares;

impl<T: Functions> Kernel<(&mut [T], usize, &mut [T])> for Shares {
    #[inline(always)]
    fn run(self, (scores, keys, log_sums): (&mut [T], usize, &mut [T])) {
        let mut powers_of_row = vec![T::default(); keys];
        for (row, log_sum) in scores.chunks_exact_mut(keys).zip(log_sums) {
            let largest = max(row);
            if largest == T::of(f64::NEG_INFINITY) && row.iter().all(|&x| x == largest) {
                row.fill(T::default());
                *log_sum = T::of(f64::INFINITY);
                continue;
            }
            let sum = powers(&mut powers_of_row, row, largest);
            let factor = T::of(1.0) / sum;
            for (share, &power) in row.iter_mut().zip(&powers_of_row) {
                *share = power * factor;
            }
            *log_sum = largest + sum.ln();
        }
    }
}

/// What [`Slopes`] works on: rows of scores, which become shares; rows of `G Vᵀ`, which become the
/// gradient of the products of queries and keys.
struct SlopesOf<'a, T> {
    shares: &'a mut [T],
    slopes: &'a mut [T],
    log_sums: &'a [T],
    y: &'a [T],
    g: &'a [T],
    /// The head's rows in both, and the first of them.
    rows: Rows,
    first: usize,
    keys: usize,
    scale: T,
}

/// ∂L/∂(Q Kᵀ) of a block of rows.
struct Slopes;

impl<T: Functions> Kernel<SlopesOf<'_, T>> for Slopes {
    #[inline(always)]
    fn run(self, arguments: SlopesOf<T>) {
        let SlopesOf {
            shares,
            slopes,
            log_sums,
            y,
            g,
            rows,
            first,
            keys,
            scale,
        } = arguments;
        let scores = shares
            .chunks_exact_mut(keys)
            .zip(slopes.chunks_exact_mut(keys));
        for ((i, (shares, slopes)), &log_sum) in scores.enumerate().zip(log_sums) {
            let mean = dot(rows.of(y, first + i), rows.of(g, first + i));
            for (share, slope) in shares.iter_mut().zip(slopes) {
                *share = Functions::exp(*share - log_sum);
                *slope = *share * (*slope - mean) * scale;
            }
        }
    }
}
