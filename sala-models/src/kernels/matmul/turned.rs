//! A turned matrix times another: what the gradient of a plain weight is.
//!
//! ```text
//! out[k, n] = Σ_m left[m, k] right[m, n]
//! ```
//!
//! A tile of the result wants a few elements of every row of the left matrix. At the distance that rows have in
//! memory, often a power of two, they would share no line and want the same few places of the cache. So the
//! columns of a tile are copied side by side, row by row: a *strip*, which the innermost loop reads from one end
//! to the other, as it does the panel. The strips of one part of the depth are copied by the thread that
//! multiplies them, and stay in its second-level cache meanwhile: to turn the whole matrix before would send it
//! through memory twice.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the chosen instruction set"
)]

use std::{mem::MaybeUninit, ops::Range};

use pulp::Simd;

use super::{
    Panels, Tiled, VECTORS,
    product::{DEPTH, load, store},
    tile_rows, tiled,
};
use crate::kernels::{element::Element, pieces, scratch::Scratch};

/// Strips of a piece, at most: of one part of the depth they take half of a second-level cache.
const STRIPS: usize = 16;

/// Pieces there should be for each thread.
const PIECES: usize = 2;

/// `left (depth, rows)`, turned, times a packed `(depth, columns)`: `(rows, columns)`, computed in parallel.
pub(crate) fn turned_product<T: Element>(left: &[T], right: &Panels<T>) -> Vec<T> {
    let (depth, columns) = right.sizes();
    let rows = left.len() / depth;
    let strips = rows.div_ceil(tile_rows());
    let wanted = strips.div_ceil(PIECES * rayon::current_num_threads());
    let of_piece = wanted.clamp(1, STRIPS) * tile_rows();
    pieces::made(rows * columns, of_piece * columns, |i, out| {
        let first = i * of_piece;
        let wanted = first..first + out.len() / columns;
        tiled(Write {
            left,
            rows,
            wanted,
            right,
            out: &mut *out,
        });
        // SAFETY: the first part of the depth writes every column of every row.
        unsafe { pieces::assume_written(out) }
    })
}

struct Write<'a, 'b, T: Element> {
    left: &'a [T],
    /// Of the result: the left matrix's columns.
    rows: usize,
    /// Those of this piece.
    wanted: Range<usize>,
    right: &'a Panels<T>,
    out: &'b mut [MaybeUninit<T>],
}

impl<T: Element> Tiled for Write<'_, '_, T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd, const ROWS: usize>(self, simd: S) {
        let Self {
            left,
            rows,
            wanted,
            right,
            out,
        } = self;
        let (depth, columns) = right.sizes();
        // Parts whose panel stays in the first-level cache while the strips pass by.
        let part = depth.div_ceil(depth.div_ceil(DEPTH));
        let mut strips = Scratch::new(wanted.len().div_ceil(ROWS) * ROWS * part);
        for start in (0..depth).step_by(part) {
            let part = start..depth.min(start + part);
            let strips = &mut strips[..wanted.len().div_ceil(ROWS) * ROWS * part.len()];
            let from = &left[part.start * rows..part.end * rows];
            copy_strips::<T, ROWS>(from, rows, wanted.clone(), strips);
            for first in (0..columns).step_by(right.width) {
                let here = first..columns.min(first + right.width);
                let block = &right.values[first * depth..][..right.width * depth];
                let panel = &block[part.start * right.width..part.end * right.width];
                let panel = T::vectors::<S>(panel).as_chunks::<VECTORS>().0;
                let tiles = strips.chunks_exact(ROWS * part.len());
                for (strip, out) in tiles.zip(out.chunks_mut(ROWS * columns)) {
                    let mut sums = [[T::splat(simd, T::default()); VECTORS]; ROWS];
                    if start > 0 {
                        for (sums, out) in sums.iter_mut().zip(out.chunks_exact(columns)) {
                            let out = &out[here.clone()];
                            // SAFETY: the first part has written it.
                            *sums = load::<S, T>(simd, unsafe {
                                &*(std::ptr::from_ref(out) as *const [T])
                            });
                        }
                    }
                    let sums = simd.vectorize(Tile {
                        simd,
                        strip: strip.as_chunks().0,
                        panel,
                        sums,
                    });
                    for (sums, out) in sums.into_iter().zip(out.chunks_exact_mut(columns)) {
                        store::<S, T>(sums, &mut out[here.start..], here.len());
                    }
                }
            }
        }
    }
}

/// Copies some columns of rows of `columns` elements into strips, each `(depth, WIDTH)`. What the last strip has
/// too many is left as it is: nobody stores what is computed from it.
#[inline(always)]
fn copy_strips<T: Element, const WIDTH: usize>(
    left: &[T],
    columns: usize,
    wanted: Range<usize>,
    strips: &mut [T],
) {
    let depth = left.len() / columns;
    let strips = strips.chunks_exact_mut(WIDTH * depth);
    for (strip, first) in strips.zip(wanted.clone().step_by(WIDTH)) {
        let places = strip.as_chunks_mut::<WIDTH>().0.iter_mut();
        let copied = places.zip(left.chunks_exact(columns));
        if first + WIDTH <= wanted.end {
            for (place, row) in copied {
                place.copy_from_slice(&row[first..first + WIDTH]);
            }
        } else {
            let count = wanted.end - first;
            for (place, row) in copied {
                place[..count].copy_from_slice(&row[first..wanted.end]);
            }
        }
    }
}

/// One tile. A function of its own, so that the compiler gives its loop all registers.
struct Tile<'a, S: Simd, T: Element, const ROWS: usize> {
    simd: S,
    strip: &'a [[T; ROWS]],
    panel: &'a [[T::Vector<S>; VECTORS]],
    sums: [[T::Vector<S>; VECTORS]; ROWS],
}

impl<S: Simd, T: Element, const ROWS: usize> pulp::NullaryFnOnce for Tile<'_, S, T, ROWS> {
    type Output = [[T::Vector<S>; VECTORS]; ROWS];

    #[inline(always)]
    fn call(self) -> Self::Output {
        let mut sums = self.sums;
        for (left, right) in self.strip.iter().zip(self.panel) {
            for (&x, sums) in left.iter().zip(&mut sums) {
                let x = T::splat(self.simd, x);
                for (sum, &right) in sums.iter_mut().zip(right) {
                    *sum = T::mul_add(self.simd, x, right, *sum);
                }
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whole and broken strips, panels, pieces and parts of the depth.
    #[test]
    fn the_product_sums_over_the_rows_of_both() {
        for (depth, rows, columns) in [(1, 1, 1), (5, 7, 3), (400, 50, 17), (800, 509, 33)] {
            let value = |i: usize| (i * 37 % 101) as f64 - 50.0;
            let left: Vec<f64> = (0..depth * rows).map(value).collect();
            let right: Vec<f64> = (7..7 + depth * columns).map(value).collect();
            let panels = Panels::pack(depth, columns, &right, columns);
            let wanted = (0..rows * columns).map(|i| {
                let (k, n) = (i / columns, i % columns);
                let product = |m: usize| left[m * rows + k] * right[m * columns + n];
                (0..depth).map(product).sum::<f64>()
            });
            // Whole numbers, so no sum is rounded.
            let wanted: Vec<f64> = wanted.collect();
            let product = turned_product(&left, &panels);
            assert_eq!(product, wanted, "{depth} {rows} {columns}");
        }
    }
}
