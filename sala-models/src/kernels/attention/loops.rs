//! The loops over scores.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the chosen instruction set"
)]

use super::Rows;
use crate::kernels::{
    functions::Functions,
    pieces::Kernel,
    rows::{dot, max, powers},
};

/// y ← y factor.
pub(super) struct Scale;

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
pub(super) struct Shares;

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
pub(super) struct SlopesOf<'a, T> {
    pub(super) shares: &'a mut [T],
    pub(super) slopes: &'a mut [T],
    pub(super) log_sums: &'a [T],
    pub(super) y: &'a [T],
    pub(super) g: &'a [T],
    /// The head's rows in both, and the first of them.
    pub(super) rows: Rows,
    pub(super) first: usize,
    pub(super) keys: usize,
    pub(super) scale: T,
}

/// ∂L/∂(Q Kᵀ) of a block of rows.
pub(super) struct Slopes;

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
