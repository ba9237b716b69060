//! Softmax and its logarithm over the last dimension, with and without a mask.
//!
//! ```text
//! y = softmax(x)         dx = y (dy − Σ y dy)
//! y = log softmax(x)     dx = dy − exp(y) Σ dy
//! ```
//!
//! where hidden entries have y = 0, and so no gradient; an added mask has the gradient of `x`. A row is in
//! cache for all its loops, so the forward moves 2 elements per element and the backward 3, a mask
//! besides. A mask is read where it lies: broadcast, it is never written out.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the chosen instruction set"
)]

use std::marker::PhantomData;

use candle_core::{DType, Layout, Result, Tensor, WithDType, bail};

use super::{
    access,
    functions::Functions,
    graph::{self, Input, Operation},
    pieces::{self, Kernel},
    rows::{self, dot, max, powers, sum},
};

/// The softmax over the last dimension of a contiguous f32 or f64 tensor.
pub(crate) fn softmax(x: &Tensor) -> Result<Tensor> {
    match x.dtype() {
        DType::F64 => graph::apply(Softmax::<f64>::new(x, false)?, &[x]),
        _ => graph::apply(Softmax::<f32>::new(x, false)?, &[x]),
    }
}

/// The logarithm of [`softmax`].
pub(crate) fn log_softmax(x: &Tensor) -> Result<Tensor> {
    match x.dtype() {
        DType::F64 => graph::apply(Softmax::<f64>::new(x, true)?, &[x]),
        _ => graph::apply(Softmax::<f32>::new(x, true)?, &[x]),
    }
}

/// The softmax of what a mask leaves. It is of u8 or of `x`'s dtype, and broadcasts to `x`'s shape.
pub(crate) fn masked_softmax(x: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let mask = mask.contiguous()?.broadcast_as(x.shape())?;
    match x.dtype() {
        DType::F64 => graph::apply(Masked(Softmax::<f64>::new(x, false)?), &[x, &mask]),
        _ => graph::apply(Masked(Softmax::<f32>::new(x, false)?), &[x, &mask]),
    }
}

struct Softmax<T> {
    size: usize,
    logarithm: bool,
    element: PhantomData<T>,
}

impl<T: Functions> Softmax<T> {
    fn new(x: &Tensor, logarithm: bool) -> Result<Self> {
        Ok(Self {
            size: x.dim(candle_core::D::Minus1)?,
            logarithm,
            element: PhantomData,
        })
    }

    fn gradient(&self, y: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let (rows, size, shape) = (rows::per_piece(self.size), self.size, y.shape());
        let (y, dy) = (access::view::<T>(y)?, access::view::<T>(dy)?);
        let dx = pieces::filled(y.len(), rows * size, |i, dx| {
            let start = i * rows * size;
            let arguments = (dx, &y[start..], &dy[start..], size);
            if self.logarithm {
                pieces::compiled(LogGradients, arguments);
            } else {
                pieces::compiled(Gradients, arguments);
            }
        });
        access::tensor(dx, shape)
    }
}

impl<T: Functions> Operation for Softmax<T> {
    fn name(&self) -> &'static str {
        if self.logarithm {
            "log_softmax"
        } else {
            "softmax"
        }
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let x = access::view::<T>(inputs[0])?;
        let (rows, size) = (rows::per_piece(self.size), self.size);
        let y = pieces::filled(x.len(), rows * size, |i, y| {
            let arguments = (y, &x[i * rows * size..], size);
            if self.logarithm {
                pieces::compiled(LogValues, arguments);
            } else {
                pieces::compiled(Values, arguments);
            }
        });
        access::tensor(y, inputs[0].shape())
    }

    fn backward(&self, _: &[Input], y: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(self.gradient(y, dy)?)])
    }
}

struct Masked<T>(Softmax<T>);

impl<T: Functions> Masked<T> {
    fn values<M: Hides<T>>(&self, x: &[T], mask: Rows<M>) -> Vec<T> {
        let (rows, size) = (rows::per_piece(self.0.size), self.0.size);
        pieces::filled(x.len(), rows * size, |i, y| {
            pieces::compiled(
                MaskedValues,
                (y, &x[i * rows * size..], &mask, i * rows, size),
            );
        })
    }
}

impl<T: Functions> Operation for Masked<T> {
    fn name(&self) -> &'static str {
        "masked_softmax"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let (x, mask) = (access::view::<T>(inputs[0])?, inputs[1]);
        let y = if mask.dtype() == DType::U8 {
            let entries = access::view_strided::<u8>(mask)?;
            self.values(&x, Rows::new(&entries, mask.layout())?)
        } else {
            let entries = access::view_strided::<T>(mask)?;
            self.values(&x, Rows::new(&entries, mask.layout())?)
        };
        access::tensor(y, inputs[0].shape())
    }

    fn backward(&self, inputs: &[Input], y: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let dx = self.0.gradient(y, dy)?;
        inputs
            .iter()
            .map(|input| input.share(&dx).map(Some))
            .collect()
    }
}

/// What an entry of a mask makes of one of `x`.
trait Hides<T>: WithDType {
    fn hide(self, x: T) -> T;
}

impl<T: Functions> Hides<T> for u8 {
    #[inline(always)]
    fn hide(self, x: T) -> T {
        if self == 0 {
            T::of(f64::NEG_INFINITY)
        } else {
            x
        }
    }
}

impl<T: Functions> Hides<T> for T {
    #[inline(always)]
    fn hide(self, x: T) -> T {
        x + self
    }
}

/// The rows of a broadcast mask.
struct Rows<'a, M> {
    mask: &'a [M],
    /// Sizes and strides of the leading dimensions, the last first.
    leading: Vec<(usize, usize)>,
    size: usize,
    /// Whether one entry stands for the whole row.
    constant: bool,
}

impl<'a, M> Rows<'a, M> {
    /// `mask` begins where the layout does.
    fn new(mask: &'a [M], layout: &Layout) -> Result<Self> {
        let (Some((&size, leading)), Some((&stride, strides))) =
            (layout.dims().split_last(), layout.stride().split_last())
        else {
            bail!("masked_softmax: a mask of rank 0");
        };
        if stride > 1 && size > 1 {
            bail!("masked_softmax: a mask with strided rows");
        }
        let mut merged: Vec<(usize, usize)> = vec![];
        for (&size, &stride) in leading.iter().zip(strides).rev() {
            match merged.last_mut() {
                // A dimension that goes on where the one within it ends: a division less per row.
                Some((inner, step)) if stride == *inner * *step => *inner *= size,
                _ => merged.push((size, stride)),
            }
        }
        Ok(Self {
            mask,
            leading: merged,
            size,
            constant: stride == 0,
        })
    }

    /// The mask's entries for a row: all, or the one for all.
    #[inline(always)]
    fn row(&self, mut row: usize) -> &'a [M] {
        let mut start = 0;
        for &(size, stride) in &self.leading {
            start += row % size * stride;
            row /= size;
        }
        let end = if self.constant { 1 } else { self.size };
        &self.mask[start..start + end]
    }
}

/// The softmax of each row.
struct Values;

impl<T: Functions> Kernel<(&mut [T], &[T], usize)> for Values {
    #[inline(always)]
    fn run(self, (y, x, size): (&mut [T], &[T], usize)) {
        for (y, x) in y.chunks_exact_mut(size).zip(x.chunks_exact(size)) {
            let sum = powers(y, x, max(x));
            scale(y, T::of(1.0) / sum);
        }
    }
}

#[inline(always)]
fn scale<T: Functions>(y: &mut [T], factor: T) {
    for y in y {
        *y *= factor;
    }
}

/// The logarithm of the softmax of each row.
struct LogValues;

impl<T: Functions> Kernel<(&mut [T], &[T], usize)> for LogValues {
    #[inline(always)]
    fn run(self, (y, x, size): (&mut [T], &[T], usize)) {
        for (y, x) in y.chunks_exact_mut(size).zip(x.chunks_exact(size)) {
            let max = max(x);
            let log_sum = powers(y, x, max).ln();
            for (y, &x) in y.iter_mut().zip(x) {
                *y = x - max - log_sum;
            }
        }
    }
}

/// The softmax of what is left of each row.
struct MaskedValues;

impl<T: Functions, M: Hides<T>> Kernel<(&mut [T], &[T], &Rows<'_, M>, usize, usize)>
    for MaskedValues
{
    #[inline(always)]
    fn run(self, (y, x, mask, first, size): (&mut [T], &[T], &Rows<M>, usize, usize)) {
        let rows = y.chunks_exact_mut(size).zip(x.chunks_exact(size));
        for ((y, x), row) in rows.zip(first..) {
            let mask = mask.row(row);
            if let [one] = mask {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = one.hide(x);
                }
            } else {
                for ((y, &x), mask) in y.iter_mut().zip(x).zip(mask) {
                    *y = mask.hide(x);
                }
            }
            let max = max(y);
            let nothing_left = max == T::of(f64::NEG_INFINITY);
            // −∞ − (−∞) would be NaN.
            let shift = if nothing_left { T::default() } else { max };
            for y in &mut *y {
                *y = Functions::exp(*y - shift);
            }
            // All powers of such a row are 0, and so is what is wanted.
            let sum = sum(y);
            let whole = if nothing_left { sum + T::of(1.0) } else { sum };
            scale(y, T::of(1.0) / whole);
        }
    }
}

/// dx, y, dy and the size of a row.
type Back<'a, T> = (&'a mut [T], &'a [T], &'a [T], usize);

/// dx of the softmax.
struct Gradients;

impl<T: Functions> Kernel<Back<'_, T>> for Gradients {
    #[inline(always)]
    fn run(self, (dx, y, dy, size): Back<T>) {
        let rows = y.chunks_exact(size).zip(dy.chunks_exact(size));
        for (dx, (y, dy)) in dx.chunks_exact_mut(size).zip(rows) {
            let product = dot(y, dy);
            for ((dx, &y), &dy) in dx.iter_mut().zip(y).zip(dy) {
                *dx = y * (dy - product);
            }
        }
    }
}

/// dx of the logarithm.
struct LogGradients;

impl<T: Functions> Kernel<Back<'_, T>> for LogGradients {
    #[inline(always)]
    fn run(self, (dx, y, dy, size): Back<T>) {
        let rows = y.chunks_exact(size).zip(dy.chunks_exact(size));
        for (dx, (y, dy)) in dx.chunks_exact_mut(size).zip(rows) {
            let total = sum(dy);
            for ((dx, &y), &dy) in dx.iter_mut().zip(y).zip(dy) {
                *dx = dy - Functions::exp(y) * total;
            }
        }
    }
}
