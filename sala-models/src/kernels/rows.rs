//! Sums and maxima of a row, and how many rows make a piece.
//!
//! A sum runs in [`LANES`] lanes whatever the width of the registers, so that the processor need not wait
//! for each addition, and the instruction set does not show in the result.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the chosen instruction set"
)]

use super::{element::Element, functions::Functions, pieces::PIECE};

/// Partial sums that a loop keeps side by side.
pub(crate) const LANES: usize = 16;

/// Rows of `size` elements that make a piece.
pub(crate) fn per_piece(size: usize) -> usize {
    (PIECE / size.max(1)).max(1)
}

/// Σ xᵢ.
#[inline(always)]
pub(crate) fn sum<T: Element>(x: &[T]) -> T {
    sum_by(x, |x| x)
}

/// Σ f(xᵢ).
#[inline(always)]
pub(crate) fn sum_by<T: Element>(x: &[T], f: impl Fn(T) -> T) -> T {
    let mut lanes = [T::default(); LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        add(&mut lanes, *chunk, &f);
    }
    for &x in rest {
        add(&mut lanes, [x], &f);
    }
    total(lanes)
}

#[inline(always)]
fn add<T: Element, const N: usize>(lanes: &mut [T; LANES], x: [T; N], f: impl Fn(T) -> T) {
    for i in 0..N {
        lanes[i] += f(x[i]);
    }
}

/// Σ xᵢ yᵢ.
#[inline(always)]
pub(crate) fn dot<T: Element>(x: &[T], y: &[T]) -> T {
    let mut lanes = [T::default(); LANES];
    let (x, x_rest) = x.as_chunks::<LANES>();
    let (y, y_rest) = y.as_chunks::<LANES>();
    for (x, y) in x.iter().zip(y) {
        add_products(&mut lanes, *x, *y);
    }
    for (&x, &y) in x_rest.iter().zip(y_rest) {
        add_products(&mut lanes, [x], [y]);
    }
    total(lanes)
}

#[inline(always)]
fn add_products<T: Element, const N: usize>(lanes: &mut [T; LANES], x: [T; N], y: [T; N]) {
    for i in 0..N {
        lanes[i] += x[i] * y[i];
    }
}

/// The sum of all lanes.
#[inline(always)]
pub(crate) fn total<T: Element>(lanes: [T; LANES]) -> T {
    let mut half = [T::default(); LANES / 2];
    for (i, half) in half.iter_mut().enumerate() {
        *half = lanes[i] + lanes[i + LANES / 2];
    }
    half.into_iter().sum()
}

/// The largest number of a row, −∞ for one without numbers. NaN is passed over.
#[inline(always)]
pub(crate) fn max<T: Element>(x: &[T]) -> T {
    let lowest = T::of(f64::NEG_INFINITY);
    let mut lanes = [lowest; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        raise(&mut lanes, *chunk);
    }
    for &x in rest {
        raise(&mut lanes, [x]);
    }
    lanes
        .into_iter()
        .fold(lowest, |max, x| Element::max(x, max))
}

#[inline(always)]
fn raise<T: Element, const N: usize>(lanes: &mut [T; LANES], x: [T; N]) {
    for i in 0..N {
        lanes[i] = Element::max(x[i], lanes[i]);
    }
}

/// y ← exp(x − shift); yields Σ y.
#[inline(always)]
pub(crate) fn powers<T: Functions>(y: &mut [T], x: &[T], shift: T) -> T {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = Functions::exp(x - shift);
    }
    sum(y)
}
