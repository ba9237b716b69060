//! Gathered rows times a packed matrix.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the chosen instruction set"
)]

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::{Panels, Place, Run, VECTORS};
use crate::kernels::element::Element;

/// Rows of a block of the right matrix: with two registers of 32 bytes in each, 20 KiB.
const DEPTH: usize = 320;

/// A product of gathered rows and a packed matrix.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product<'a, T: Element> {
    pub(crate) left: &'a [T],
    pub(crate) places: &'a [Place],
    pub(crate) runs: &'a [Run],
    pub(crate) right: &'a Panels<T>,
    /// What each column's sum starts from.
    pub(crate) bias: Option<&'a [T]>,
}

impl<T: Element> Product<'_, T> {
    /// Writes row `m` of the product to `out[places[m].out..]`, on the calling thread.
    pub(crate) fn write(self, out: &mut [T]) {
        let part = (0, 0..self.right.columns);
        self.write_part(part, out);
    }

    /// As [`Product::write`] for a part of the right matrix: its rows from `first_row` on, as many as the
    /// left matrix is wide, and the columns of some whole blocks. `out` begins with the first of them.
    pub(crate) fn write_part(self, (first_row, columns): (usize, Range<usize>), out: &mut [T]) {
        Arch::new().dispatch(Write {
            product: self,
            first_row,
            columns,
            out,
        });
    }
}

/// Runs in groups that are at most [`DEPTH`] deep; long runs are cut evenly.
fn groups(runs: &[Run]) -> Vec<Vec<Run>> {
    let mut groups: Vec<Vec<Run>> = vec![];
    let mut room = 0;
    for run in runs {
        let parts = run.len.div_ceil(DEPTH).max(1);
        let part = run.len.div_ceil(parts);
        for start in (0..run.len).step_by(part.max(1)) {
            let len = part.min(run.len - start);
            if len > room {
                groups.push(vec![]);
                room = DEPTH;
            }
            room -= len;
            let offset = run.offset + start;
            if let Some(group) = groups.last_mut() {
                group.push(Run { offset, len });
            }
        }
    }
    groups
}

struct Write<'a, 'b, T: Element> {
    product: Product<'a, T>,
    first_row: usize,
    columns: Range<usize>,
    out: &'b mut [T],
}

impl<T: Element> WithSimd for Write<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::REGISTER_COUNT >= 32 {
            self.run::<S, 12>(simd);
        } else {
            self.run::<S, 6>(simd);
        }
    }
}

impl<T: Element> Write<'_, '_, T> {
    #[inline(always)]
    fn run<S: Simd, const ROWS: usize>(self, simd: S) {
        let Product {
            left,
            places,
            runs,
            right,
            bias,
        } = self.product;
        let (out, all) = (self.out, self.columns);
        let groups = groups(runs);
        for first in all.clone().step_by(right.width) {
            let block = &right.values[first * right.depth..][..right.width * right.depth];
            let columns = right.width.min(all.end - first);
            let to = first - all.start;
            let mut start = vec![T::default(); right.width];
            if let Some(bias) = bias {
                start[..columns].copy_from_slice(&bias[first..first + columns]);
            }
            let start = T::vectors::<S>(&start);
            let start: [T::Vector<S>; VECTORS] = std::array::from_fn(|v| start[v]);
            let mut k = self.first_row;
            for (number, group) in groups.iter().enumerate() {
                let depth: usize = group.iter().map(|run| run.len).sum();
                let panel = T::vectors::<S>(&block[k * right.width..(k + depth) * right.width]);
                let panel = panel.as_chunks::<VECTORS>().0;
                k += depth;
                let tile = Tile {
                    left,
                    runs: group,
                    panel,
                };
                for places in places.chunks(ROWS) {
                    // A last tile with too few rows computes the last one several times.
                    let place = |i: usize| places[i.min(places.len() - 1)];
                    let mut sums = [start; ROWS];
                    if number > 0 {
                        for (i, sums) in sums.iter_mut().enumerate() {
                            *sums = load::<S, T>(simd, &out[place(i).out + to..], columns);
                        }
                    }
                    let bases = std::array::from_fn(|i| place(i).base);
                    let sums = simd.vectorize(tile.with(simd, bases, sums));
                    for (place, sums) in places.iter().zip(sums) {
                        store::<S, T>(sums, &mut out[place.out + to..], columns);
                    }
                }
            }
        }
    }
}

/// What all tiles of one block have in common.
struct Tile<'a, S: Simd, T: Element> {
    left: &'a [T],
    runs: &'a [Run],
    panel: &'a [[T::Vector<S>; VECTORS]],
}

impl<'a, S: Simd, T: Element> Tile<'a, S, T> {
    #[inline(always)]
    fn with<const ROWS: usize>(
        &self,
        simd: S,
        bases: [usize; ROWS],
        sums: [[T::Vector<S>; VECTORS]; ROWS],
    ) -> TileWork<'a, S, T, ROWS> {
        TileWork {
            simd,
            left: self.left,
            runs: self.runs,
            panel: self.panel,
            bases,
            sums,
        }
    }
}

/// One tile. A function of its own, so that the compiler gives its loop all registers.
struct TileWork<'a, S: Simd, T: Element, const ROWS: usize> {
    simd: S,
    left: &'a [T],
    runs: &'a [Run],
    panel: &'a [[T::Vector<S>; VECTORS]],
    bases: [usize; ROWS],
    sums: [[T::Vector<S>; VECTORS]; ROWS],
}

impl<S: Simd, T: Element, const ROWS: usize> pulp::NullaryFnOnce for TileWork<'_, S, T, ROWS> {
    type Output = [[T::Vector<S>; VECTORS]; ROWS];

    #[inline(always)]
    fn call(self) -> Self::Output {
        let Self {
            simd,
            left,
            runs,
            mut panel,
            bases,
            mut sums,
        } = self;
        for run in runs {
            let (part, rest) = panel.split_at(run.len);
            panel = rest;
            // A loop rather than `map`, which the compiler does not see through: it would check the
            // bounds of each row for each k.
            let mut rows: [&[T]; ROWS] = [&[]; ROWS];
            for (row, base) in rows.iter_mut().zip(bases) {
                *row = &left[base + run.offset..][..part.len()];
            }
            for (k, right) in part.iter().enumerate() {
                for (row, sums) in rows.iter().zip(&mut sums) {
                    let x = T::splat(simd, row[k]);
                    for (sum, &right) in sums.iter_mut().zip(right) {
                        *sum = T::mul_add(simd, x, right, *sum);
                    }
                }
            }
        }
        sums
    }
}

/// The first `columns` elements of `from` in registers.
#[inline(always)]
fn load<S: Simd, T: Element>(simd: S, from: &[T], columns: usize) -> [T::Vector<S>; VECTORS] {
    if columns == VECTORS * T::lanes::<S>() {
        let vectors = T::vectors::<S>(&from[..columns]);
        return std::array::from_fn(|v| vectors[v]);
    }
    let mut vectors = [T::splat(simd, T::default()); VECTORS];
    let scalars = T::scalars_mut::<S>(&mut vectors);
    scalars[..columns].copy_from_slice(&from[..columns]);
    vectors
}

#[inline(always)]
fn store<S: Simd, T: Element>(sums: [T::Vector<S>; VECTORS], to: &mut [T], columns: usize) {
    if columns == VECTORS * T::lanes::<S>() {
        for (to, sum) in T::vectors_mut::<S>(&mut to[..columns]).iter_mut().zip(sums) {
            *to = sum;
        }
        return;
    }
    to[..columns].copy_from_slice(&T::scalars::<S>(&sums)[..columns]);
}
