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
pub(crate) const LANES: usize = 32;

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
        for i in 0..LANES {
            lanes[i] += f(chunk[i]);
        }
    }
    let mut sum = total(&lanes);
    for &x in rest {
        sum += f(x);
    }
    sum
}

/// Σ xᵢ yᵢ.
#[inline(always)]
pub(crate) fn dot<T: Element>(x: &[T], y: &[T]) -> T {
    sum_of_pairs(x, y, |x, y| x * y)
}

/// Σ f(xᵢ, yᵢ).
#[inline(always)]
pub(crate) fn sum_of_pairs<T: Element>(x: &[T], y: &[T], f: impl Fn(T, T) -> T) -> T {
    let mut lanes = [T::default(); LANES];
    let (x, x_rest) = x.as_chunks::<LANES>();
    let (y, y_rest) = y.as_chunks::<LANES>();
    for (x, y) in x.iter().zip(y) {
        for i in 0..LANES {
            lanes[i] += f(x[i], y[i]);
        }
    }
    let mut sum = total(&lanes);
    for (&x, &y) in x_rest.iter().zip(y_rest) {
        sum += f(x, y);
    }
    sum
}

/// The sum of all lanes. Not inlined, and so the lanes have to be in order where a loop ends: the compiler
/// makes whole registers of them. Where it sees the sum, it sorts the lanes for that instead, in twos.
#[inline(never)]
pub(crate) fn total<T: Element>(lanes: &[T; LANES]) -> T {
    halved(*lanes, |a, b| a + b)
}

/// The largest of all lanes; not inlined for the same reason.
#[inline(never)]
fn largest<T: Element>(lanes: &[T; LANES]) -> T {
    halved(*lanes, |a, b| Element::max(b, a))
}

/// All lanes joined, each half with the other: one after the other they would wait for each other.
#[inline(always)]
fn halved<T: Element>(mut lanes: [T; LANES], join: impl Fn(T, T) -> T) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = join(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// The largest number of a row, −∞ for one without numbers. NaN is passed over.
#[inline(always)]
pub(crate) fn max<T: Element>(x: &[T]) -> T {
    let mut lanes = [T::of(f64::NEG_INFINITY); LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = Element::max(chunk[i], lanes[i]);
        }
    }
    let mut max = largest(&lanes);
    for &x in rest {
        max = Element::max(x, max);
    }
    max
}

/// y ← exp(x − shift); yields Σ y.
#[inline(always)]
pub(crate) fn powers<T: Functions>(y: &mut [T], x: &[T], shift: T) -> T {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = Functions::exp(x - shift);
    }
    sum(y)
}
