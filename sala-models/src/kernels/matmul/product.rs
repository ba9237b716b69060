//! Gathered rows times a packed matrix.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the chosen instruction set"
)]

use std::{mem::MaybeUninit, ops::Range};

use pulp::Simd;

use super::{Panels, Place, Run, Tiled, VECTORS, tiled};
use crate::kernels::{element::Element, pieces};

/// Rows of a block of the right matrix: with two registers of 32 bytes in each, 24 KiB.
pub(super) const DEPTH: usize = 384;

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

    /// As [`Product::write`] for rows that follow each other in memory that holds nothing yet. Returns it, with
    /// the product.
    pub(crate) fn write_new(self, out: &mut [MaybeUninit<T>]) -> &mut [T] {
        let columns = self.right.columns;
        let follow = |(i, place): (usize, &Place)| place.out == i * columns;
        assert!(self.places.iter().enumerate().all(follow));
        assert!(self.places.len() * columns == out.len() && self.runs.iter().any(|r| r.len > 0));
        self.dispatch((0, 0..columns), out);
        // SAFETY: the first group of runs writes every column of every place, which are all of `out`.
        unsafe { pieces::assume_written(out) }
    }

    /// As [`Product::write`] for a part of the right matrix: its rows from `first_row` on, as many as the
    /// left matrix is wide, and the columns of some whole blocks. `out` begins with the first of them.
    pub(crate) fn write_part(self, part: (usize, Range<usize>), out: &mut [T]) {
        // SAFETY: nothing but values is written to it.
        let out = unsafe { &mut *(std::ptr::from_mut(out) as *mut [MaybeUninit<T>]) };
        self.dispatch(part, out);
    }

    /// Writes values, and reads only what it has written.
    fn dispatch(self, (first_row, columns): (usize, Range<usize>), out: &mut [MaybeUninit<T>]) {
        tiled(Write {
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
    out: &'b mut [MaybeUninit<T>],
}

impl<T: Element> Tiled for Write<'_, '_, T> {
    type Out = ();

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
                            let out = &out[place(i).out + to..][..columns];
                            // SAFETY: the first group has written it.
                            *sums = load::<S, T>(simd, unsafe {
                                &*(std::ptr::from_ref(out) as *const [T])
                            });
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

/// At most as many elements as the registers hold; zeros follow.
#[inline(always)]
pub(super) fn load<S: Simd, T: Element>(simd: S, from: &[T]) -> [T::Vector<S>; VECTORS] {
    if from.len() == VECTORS * T::lanes::<S>() {
        let vectors = T::vectors::<S>(from);
        return std::array::from_fn(|v| vectors[v]);
    }
    let mut vectors = [T::splat(simd, T::default()); VECTORS];
    let scalars = T::scalars_mut::<S>(&mut vectors);
    scalars[..from.len()].copy_from_slice(from);
    vectors
}

/// Writes the first `columns` of the sums.
#[inline(always)]
pub(super) fn store<S: Simd, T: Element>(
    sums: [T::Vector<S>; VECTORS],
    to: &mut [MaybeUninit<T>],
    columns: usize,
) {
    // Two loops: where the length is known, the first becomes a store of each register.
    let all = VECTORS * T::lanes::<S>();
    if columns == all {
        copy(&mut to[..all], T::scalars::<S>(&sums));
    } else {
        copy(&mut to[..columns], T::scalars::<S>(&sums));
    }
}

#[inline(always)]
fn copy<T: Element>(to: &mut [MaybeUninit<T>], from: &[T]) {
    for (to, &from) in to.iter_mut().zip(from) {
        to.write(from);
    }
}
