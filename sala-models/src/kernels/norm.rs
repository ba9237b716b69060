//! Layer and RMS norm of rows.
//!
//! With `x̂ = (x − μ) r` and `r = 1 / √(σ² + ε)`, or `x̂ = x r` and `r = 1 / √(Σ x² / n + ε)` for the RMS
//! norm, and `g = γ dy`:
//!
//! ```text
//! dx = r (g − x̂ mean(g x̂) − mean(g))        the last term for the layer norm only
//! dγ = Σ_rows dy x̂        dβ = Σ_rows dy
//! ```
//!
//! `μ` and `r` of each row are kept from the forward. The backward goes once over the rows; each is in the
//! first-level cache for its two loops, so it moves 3 elements per element, the forward 2. Each piece of
//! rows sums its part of dγ and dβ, and the parts are added in the order of the pieces.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the chosen instruction set"
)]

use std::{marker::PhantomData, sync::OnceLock};

use candle_core::{DType, Result, Tensor, bail};

use super::{
    access,
    functions::Functions,
    graph::{self, Input, Operation},
    pieces::{self, Kernel},
    rows::{self, LANES, total},
};

/// The layer norm of a contiguous f32 or f64 tensor; parameters have its dtype.
pub(crate) fn layer_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    let (weight, bias) = (
        &weight.contiguous()?,
        bias.map(Tensor::contiguous).transpose()?,
    );
    let inputs: Vec<&Tensor> = [x, weight].into_iter().chain(&bias).collect();
    match x.dtype() {
        DType::F64 => graph::apply(Norm::<f64>::new("layer_norm", eps, true), &inputs),
        _ => graph::apply(Norm::<f32>::new("layer_norm", eps, true), &inputs),
    }
}

/// The RMS norm of a contiguous f32 or f64 tensor; the weight has its dtype.
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let weight = &weight.contiguous()?;
    match x.dtype() {
        DType::F64 => graph::apply(Norm::<f64>::new("rms_norm", eps, false), &[x, weight]),
        _ => graph::apply(Norm::<f32>::new("rms_norm", eps, false), &[x, weight]),
    }
}

struct Norm<T> {
    name: &'static str,
    eps: f64,
    /// Whether the mean is subtracted.
    centred: bool,
    /// μ and r of each row.
    stats: OnceLock<Vec<[T; 2]>>,
    element: PhantomData<T>,
}

impl<T: Functions> Norm<T> {
    const fn new(name: &'static str, eps: f64, centred: bool) -> Self {
        Self {
            name,
            eps,
            centred,
            stats: OnceLock::new(),
            element: PhantomData,
        }
    }

    /// An empty `bias` stands for none.
    fn rows(&self, x: &[T], weight: &[T], bias: &[T]) -> Vec<T> {
        let size = weight.len();
        let rows = rows::per_piece(size);
        let mut stats = vec![[T::default(); 2]; x.len() / size];
        let eps = T::of(self.eps);
        let y = pieces::filled_beside(x.len(), rows * size, &mut stats, rows, |i, y, stats| {
            let x = &x[i * rows * size..];
            let arguments = (y, x, weight, bias, stats, (eps, self.centred));
            pieces::compiled(Normalise, arguments);
        });
        // Set once: an operation runs forward once.
        self.stats.get_or_init(|| stats);
        y
    }

    /// dx, and dγ followed by dβ.
    fn slopes(&self, x: &[T], weight: &[T], dy: &[T]) -> Result<(Vec<T>, Vec<T>)> {
        let Some(stats) = self.stats.get() else {
            bail!("{}: backward before forward", self.name);
        };
        let size = weight.len();
        // At least a few rows, or the partial sums would be as many as the elements.
        let rows = rows::per_piece(size).max(8);
        let pieces = stats.len().div_ceil(rows);
        let mut parts = vec![T::default(); pieces * 2 * size];
        let dx = pieces::filled_beside(
            x.len(),
            rows * size,
            &mut parts,
            2 * size,
            |i, dx, parts| {
                let (start, centred) = (i * rows * size, self.centred);
                let (dweight, dbias) = parts.split_at_mut(size);
                let data = (dx, &x[start..], &dy[start..]);
                let rest = (weight, &stats[i * rows..], dweight, dbias, centred);
                pieces::compiled(Differentiate, (data, rest));
            },
        );
        let (sums, others) = parts.split_at_mut(2 * size);
        for part in others.chunks(2 * size) {
            for (sum, &part) in sums.iter_mut().zip(part) {
                *sum += part;
            }
        }
        parts.truncate(2 * size);
        Ok((dx, parts))
    }
}

impl<T: Functions> Operation for Norm<T> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let (x, weight) = (access::view::<T>(inputs[0])?, access::view::<T>(inputs[1])?);
        let y = match inputs.get(2) {
            Some(bias) => self.rows(&x, &weight, &access::view::<T>(bias)?),
            None => self.rows(&x, &weight, &[]),
        };
        access::tensor(y, inputs[0].shape())
    }

    fn backward(&self, inputs: &[Input], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let (x, weight) = (&inputs[0].value, &inputs[1].value);
        let values = (access::view::<T>(x)?, access::view::<T>(weight)?);
        let (dx, mut dweight) = self.slopes(&values.0, &values.1, &access::view::<T>(dy)?)?;
        let dbias = dweight.split_off(values.1.len());
        Ok(vec![
            Some(access::tensor(dx, x.shape())?),
            Some(access::tensor(dweight, weight.shape())?),
            Some(access::tensor(dbias, weight.shape())?),
        ])
    }
}

/// y, x, γ, β or nothing, the rows' μ and r, and ε and whether to centre.
type Forward<'a, T> = (
    &'a mut [T],
    &'a [T],
    &'a [T],
    &'a [T],
    &'a mut [[T; 2]],
    (T, bool),
);

/// y, and what is kept of each row.
struct Normalise;

impl<T: Functions> Kernel<Forward<'_, T>> for Normalise {
    #[inline(always)]
    fn run(self, (y, x, weight, bias, stats, (eps, centred)): Forward<T>) {
        let size = weight.len();
        let count = T::of(size as f64);
        for ((y, x), stats) in y
            .chunks_exact_mut(size)
            .zip(x.chunks_exact(size))
            .zip(stats)
        {
            let mean = if centred {
                rows::sum(x) / count
            } else {
                T::default()
            };
            let square = |x: T| (x - mean) * (x - mean);
            let variance = rows::sum_by(x, square) / count;
            let inverse = T::of(1.0) / (variance + eps).sqrt();
            *stats = [mean, inverse];
            if bias.is_empty() {
                for ((y, &x), &weight) in y.iter_mut().zip(x).zip(weight) {
                    *y = (x - mean) * inverse * weight;
                }
            } else {
                for (((y, &x), &weight), &bias) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                    *y = (x - mean) * inverse * weight + bias;
                }
            }
        }
    }
}

/// dx, x, dy.
type Data<'a, T> = (&'a mut [T], &'a [T], &'a [T]);

/// γ, the rows' μ and r, dγ, dβ, and whether the mean was subtracted.
type Rest<'a, T> = (&'a [T], &'a [[T; 2]], &'a mut [T], &'a mut [T], bool);

/// dx, and this piece's part of dγ and dβ.
struct Differentiate;

impl<T: Functions> Kernel<(Data<'_, T>, Rest<'_, T>)> for Differentiate {
    #[inline(always)]
    fn run(self, ((dx, x, dy), (weight, stats, dweight, dbias, centred)): (Data<T>, Rest<T>)) {
        let size = weight.len();
        let count = T::of(size as f64);
        for (((dx, x), dy), &[mean, inverse]) in dx
            .chunks_exact_mut(size)
            .zip(x.chunks_exact(size))
            .zip(dy.chunks_exact(size))
            .zip(stats)
        {
            let row = Row { mean, inverse };
            let (mut sums, mut rest) = ([[T::default(); LANES]; 2], [[T::default()]; 2]);
            {
                let (x, x_rest) = x.as_chunks::<LANES>();
                let (dy, dy_rest) = dy.as_chunks::<LANES>();
                let (weight, weight_rest) = weight.as_chunks::<LANES>();
                let (dweight, dweight_rest) = dweight.as_chunks_mut::<LANES>();
                let (dbias, dbias_rest) = dbias.as_chunks_mut::<LANES>();
                let parameters = weight.iter().zip(dweight).zip(dbias);
                for ((x, dy), ((weight, dweight), dbias)) in x.iter().zip(dy).zip(parameters) {
                    (*dweight, *dbias) =
                        row.add_sums(&mut sums, *x, *dy, *weight, (*dweight, *dbias));
                }
                let parameters = weight_rest.iter().zip(dweight_rest).zip(dbias_rest);
                for ((x, dy), ((weight, dweight), dbias)) in
                    x_rest.iter().zip(dy_rest).zip(parameters)
                {
                    ([*dweight], [*dbias]) =
                        row.add_sums(&mut rest, [*x], [*dy], [*weight], ([*dweight], [*dbias]));
                }
            }
            let mean_of = |i: usize| (total(&sums[i]) + rest[i][0]) / count;
            let (of_g, of_products) = (mean_of(0), mean_of(1));
            let of_g = if centred { of_g } else { T::default() };
            for (((dx, &x), &dy), &weight) in dx.iter_mut().zip(x).zip(dy).zip(weight) {
                let normal = (x - mean) * inverse;
                *dx = inverse * (dy * weight - of_g - normal * of_products);
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Row<T> {
    mean: T,
    inverse: T,
}

impl<T: Functions> Row<T> {
    /// Adds to Σ g and Σ g x̂; yields dγ and dβ with what this row adds. Chunks by value: between slices
    /// the compiler would have to allow for overlap, and not vectorise.
    #[inline(always)]
    fn add_sums<const N: usize>(
        self,
        sums: &mut [[T; N]; 2],
        x: [T; N],
        dy: [T; N],
        weight: [T; N],
        (mut dweight, mut dbias): ([T; N], [T; N]),
    ) -> ([T; N], [T; N]) {
        for i in 0..N {
            let normal = (x[i] - self.mean) * self.inverse;
            let scaled = dy[i] * weight[i];
            sums[0][i] += scaled;
            sums[1][i] += scaled * normal;
            dweight[i] += dy[i] * normal;
            dbias[i] += dy[i];
        }
        (dweight, dbias)
    }
}
