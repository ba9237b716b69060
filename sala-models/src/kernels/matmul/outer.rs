//! Products that sum over the rows of two matrices.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the chosen instruction set"
)]

use std::ops::Range;

use pulp::Simd;

use super::{Run, Tiled, VECTORS, tiled, width};
use crate::kernels::{element::Element, pieces, scratch::Scratch};

/// The product that sums over the rows of two matrices, as gradients of weights do:
/// `sums[k, n] = Σ_m left[m, k] right[m, n]`.
pub(crate) struct Outer<'a, T: Element, B> {
    pub(crate) left: &'a [T],
    /// Where a range of the left matrix's rows begins.
    pub(crate) bases: B,
    pub(crate) runs: &'a [Run],
    /// Row `m` is `right[m · stride..][..columns]`.
    pub(crate) right: &'a [T],
    pub(crate) stride: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

/// Rows whose products are summed in registers before they are added to the sums in memory, and elements
/// of a row that are copied side by side. A tile reads a few elements of each row: at the distance that
/// rows have in memory, often a power of two, they would all want the same few places of the cache.
const SUMMED: usize = 96;
const COPIED: usize = 192;

/// Bytes of partial sums, and their number: rows are cut into parts so that many threads find work.
const PARTIAL: usize = 4 << 20;
const PARTS: usize = 16;

/// Blocks of columns that share one copy of the rows, at most, and tasks there should be.
const SHARING: usize = 4;
const TASKS: usize = 8;

impl<T: Element, B: Fn(Range<usize>) -> Vec<usize> + Sync> Outer<'_, T, B> {
    /// The sums, computed in parallel.
    pub(crate) fn sums(&self) -> OuterSums<T> {
        let width = width::<T>();
        let depth: usize = self.runs.iter().map(|run| run.len).sum();
        let blocks = self.columns.div_ceil(width);
        let bytes = blocks * depth * width * size_of::<T>();
        let parts = (PARTIAL / bytes.max(1)).clamp(1, PARTS).min(self.rows);
        let of_part = self.rows.div_ceil(parts);
        let most = (parts * blocks / TASKS).clamp(1, SHARING);
        let sharing = (1..=most).rev().find(|n| blocks.is_multiple_of(*n));
        let sharing = sharing.unwrap_or(1);
        let mut values = Scratch::zeros(parts * blocks * depth * width);
        pieces::each_of(&mut values, sharing * depth * width, |i, sums| {
            let (part, block) = (i * sharing / blocks, i * sharing % blocks);
            let rows = (part * of_part).min(self.rows)..((part + 1) * of_part).min(self.rows);
            self.accumulate(rows, block * width, sums);
        });
        OuterSums {
            values,
            parts,
            blocks,
            depth,
            width,
        }
    }

    /// Adds the products of some rows to the sums of some blocks of columns from column `first` on, each
    /// `(depth, width)`, on the calling thread.
    pub(crate) fn accumulate(&self, rows: Range<usize>, first: usize, sums: &mut [T]) {
        let width = width::<T>();
        let depth: usize = self.runs.iter().map(|run| run.len).sum();
        let blocks = sums.len() / (depth * width);
        let bases = (self.bases)(rows.clone());
        let mut right = Scratch::<T>::zeros(blocks * SUMMED * width);
        let mut left = Scratch::<T>::new(SUMMED * COPIED);
        for (bases, row) in bases.chunks(SUMMED).zip(rows.step_by(SUMMED)) {
            for (block, to) in right.chunks_exact_mut(SUMMED * width).enumerate() {
                self.copy_right(row, first + block * width, &mut to[..bases.len() * width]);
            }
            let mut k = 0;
            for run in self.runs {
                for start in (0..run.len).step_by(COPIED) {
                    let len = COPIED.min(run.len - start);
                    for (to, base) in left.chunks_exact_mut(len).zip(bases) {
                        to.copy_from_slice(&self.left[base + run.offset + start..][..len]);
                    }
                    let blocks = sums.chunks_exact_mut(depth * width);
                    for (sums, right) in blocks.zip(right.chunks_exact(SUMMED * width)) {
                        let sums = &mut sums[k * width..(k + len) * width];
                        accumulate(&left, len, &right[..bases.len() * width], sums);
                    }
                    k += len;
                }
            }
        }
    }

    /// Rows from `row` on of the block of columns that begins with `first`.
    fn copy_right(&self, row: usize, first: usize, to: &mut [T]) {
        let width = width::<T>();
        let columns = width.min(self.columns - first);
        let from = self.right[row * self.stride + first..].chunks(self.stride);
        for (to, from) in to.chunks_exact_mut(width).zip(from) {
            pieces::copy_short(&mut to[..columns], &from[..columns]);
        }
    }
}

/// Sums of an [`Outer`]: for each part of the rows, block by block of columns, `(depth, width)`.
#[derive(Debug)]
pub(crate) struct OuterSums<T: Element> {
    values: Scratch<T>,
    parts: usize,
    blocks: usize,
    depth: usize,
    width: usize,
}

impl<T: Element> OuterSums<T> {
    /// Column `n` of each part, from the first to the last: their sum is the column of the sums.
    pub(crate) fn columns(&self, n: usize) -> impl Iterator<Item = impl Iterator<Item = T>> {
        let (block, column) = (n / self.width, n % self.width);
        (0..self.parts).map(move |part| {
            let start = (part * self.blocks + block) * self.depth * self.width;
            let block = &self.values[start..start + self.depth * self.width];
            block[column..].iter().step_by(self.width).copied()
        })
    }
}

/// Adds `Σ_m left[m · stride + k] right[m, n]` to the sums of one block of columns, `(depth, width)`, on
/// the calling thread. `right` is `(rows, width)`.
pub(crate) fn accumulate<T: Element>(left: &[T], stride: usize, right: &[T], sums: &mut [T]) {
    tiled(Accumulate {
        left,
        stride,
        right,
        sums,
    });
}

struct Accumulate<'a, 'b, T: Element> {
    /// Rows that begin `stride` apart.
    left: &'a [T],
    stride: usize,
    /// `(rows, width)`.
    right: &'a [T],
    /// `(depth, width)`.
    sums: &'b mut [T],
}

impl<T: Element> Tiled for Accumulate<'_, '_, T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd, const DEPTH: usize>(self, simd: S) {
        let right = T::vectors::<S>(self.right).as_chunks::<VECTORS>().0;
        let sums = T::vectors_mut::<S>(self.sums).as_chunks_mut::<VECTORS>().0;
        let (left, stride) = (self.left, self.stride);
        let (tiles, rest) = sums.as_chunks_mut::<DEPTH>();
        let mut covered = tiles.len() * DEPTH;
        for (i, tile) in tiles.iter_mut().enumerate() {
            *tile = simd.vectorize(OuterWork {
                simd,
                left: &left[i * DEPTH..],
                stride,
                right,
                sums: *tile,
            });
        }
        // Four keep the processor busy still: their eight sums need not wait for each other.
        let (fours, last) = rest.as_chunks_mut::<4>();
        for tile in fours {
            *tile = simd.vectorize(OuterWork {
                simd,
                left: &left[covered..],
                stride,
                right,
                sums: *tile,
            });
            covered += 4;
        }
        for (i, tile) in last.iter_mut().enumerate() {
            [*tile] = simd.vectorize(OuterWork {
                simd,
                left: &left[covered + i..],
                stride,
                right,
                sums: [*tile],
            });
        }
    }
}

/// One tile of an [`Outer`]: some columns of the left matrix.
struct OuterWork<'a, S: Simd, T: Element, const DEPTH: usize> {
    simd: S,
    /// From the tile's first column on, with rows `stride` apart.
    left: &'a [T],
    stride: usize,
    right: &'a [[T::Vector<S>; VECTORS]],
    sums: [[T::Vector<S>; VECTORS]; DEPTH],
}

impl<S: Simd, T: Element, const DEPTH: usize> pulp::NullaryFnOnce for OuterWork<'_, S, T, DEPTH> {
    type Output = [[T::Vector<S>; VECTORS]; DEPTH];

    #[inline(always)]
    fn call(self) -> Self::Output {
        let mut sums = self.sums;
        for (row, right) in self.left.chunks(self.stride).zip(self.right) {
            for (&x, sums) in row[..DEPTH].iter().zip(&mut sums) {
                let x = T::splat(self.simd, x);
                for (sum, &right) in sums.iter_mut().zip(right) {
                    *sum = T::mul_add(self.simd, x, right, *sum);
                }
            }
        }
        sums
    }
}
