//! Matrix products whose left rows are gathered from memory: the core of convolutions, linear layers
//! and attention.
//!
//! ```text
//! out[m, n] = bias[n] + Σ_k left[m, k] right[k, n]
//! ```
//!
//! A row of the left matrix is not copied anywhere. It consists of *runs*: stretches of consecutive
//! elements, at the same distances from the row's own base for all rows. A plain matrix has one run;
//! a convolution over images with their channels last has one for each row of its kernel, and moving
//! from one output pixel to the next moves the base (an "implicit" matrix of patches: written out, it
//! would be nine times the image for a 3 × 3 kernel).
//!
//! The right matrix is packed into [`Panels`]: blocks of two registers' columns, whose rows follow each
//! other in memory. The innermost loop keeps a tile of 6 × 2 registers of sums (12 × 2 where there are
//! 32 registers): for each `k` it loads two registers of the panel, and multiplies them with one
//! element of each of the six rows. That is eight loads for twelve multiplications and additions, two
//! of which a core does in a cycle: the arithmetic is the limit, not the loads. Blocks of `k` are so long
//! that a panel's part stays in the first-level cache while all rows pass by (van Zee and van de Geijn
//! 2015, doi:10.1145/2764454, describe this order of loops).
//!
//! [`Outer`] has the same tile for the other product of a backward pass, `Σ_m left[m, k]
//! right[m, n]`.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the chosen instruction set"
)]

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::{element::Element, pieces, scratch::Scratch};

/// Registers side by side in a tile.
const VECTORS: usize = 2;

/// Rows of a block of the right matrix: with two registers of 32 bytes in each, 20 KiB.
const DEPTH: usize = 320;

/// A stretch of consecutive elements: its distance from a row's base, and its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) offset: usize,
    pub(crate) len: usize,
}

/// Where a row begins in the left matrix's memory, and where its result goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) base: usize,
    pub(crate) out: usize,
}

/// A right matrix `(depth, columns)`, packed: block by block of [`Panels::width`] columns, in each row
/// by row. Missing columns of the last block are zeros.
#[derive(Debug)]
pub(crate) struct Panels<T: Element> {
    values: Scratch<T>,
    depth: usize,
    columns: usize,
    width: usize,
}

impl<T: Element> Panels<T> {
    /// `fill` writes rows `first_column..` of a block, `(depth, width)`; it leaves missing columns alone.
    pub(crate) fn new(
        depth: usize,
        columns: usize,
        fill: impl Fn(Range<usize>, &mut [T]) + Sync + Send,
    ) -> Self {
        let width = width::<T>();
        let mut values = Scratch::new(columns.div_ceil(width) * width * depth);
        pieces::each_of(&mut values, (width * depth).max(1), |i, block| {
            let first = i * width;
            let end = columns.min(first + width);
            if end < first + width {
                block.fill(T::default());
            }
            fill(first..end, block);
        });
        Self {
            values,
            depth,
            columns,
            width,
        }
    }

    /// Its rows and columns.
    pub(crate) const fn sizes(&self) -> (usize, usize) {
        (self.depth, self.columns)
    }

    /// Packs `right`, whose element `(k, n)` is number `k · strides.0 + n · strides.1`.
    pub(crate) fn pack(depth: usize, columns: usize, right: &[T], strides: (usize, usize)) -> Self {
        let width = width::<T>();
        Self::new(depth, columns, |range, block| {
            pack_block(right, strides, range, width, block);
        })
    }
}

fn pack_block<T: Element>(
    right: &[T],
    strides: (usize, usize),
    columns: Range<usize>,
    width: usize,
    block: &mut [T],
) {
    let count = columns.len();
    for (k, row) in block.chunks_exact_mut(width).enumerate() {
        let from = &right[k * strides.0 + columns.start * strides.1..];
        if strides.1 == 1 {
            row[..count].copy_from_slice(&from[..count]);
        } else {
            for (value, &x) in row
                .iter_mut()
                .zip(from.iter().step_by(strides.1))
                .take(count)
            {
                *value = x;
            }
        }
    }
}

/// Columns of a panel's block on this processor.
pub(crate) fn width<T: Element>() -> usize {
    struct Width<T>(std::marker::PhantomData<T>);
    impl<T: Element> WithSimd for Width<T> {
        type Output = usize;

        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            VECTORS * T::lanes::<S>()
        }
    }
    Arch::new().dispatch(Width::<T>(std::marker::PhantomData))
}

/// Rows of a tile on this processor.
pub(crate) fn tile_rows() -> usize {
    struct Rows;
    impl WithSimd for Rows {
        type Output = usize;

        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            if S::REGISTER_COUNT >= 32 { 12 } else { 6 }
        }
    }
    Arch::new().dispatch(Rows)
}

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
            to[..columns].copy_from_slice(&from[..columns]);
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
    Arch::new().dispatch(Accumulate {
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

impl<T: Element> WithSimd for Accumulate<'_, '_, T> {
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

impl<T: Element> Accumulate<'_, '_, T> {
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

/// The places of the rows of two plain matrices, whose rows begin `stride` and `columns` elements apart.
pub(crate) fn plain_places(rows: Range<usize>, stride: usize, columns: usize) -> Vec<Place> {
    let place = |(i, row)| Place {
        base: row * stride,
        out: i * columns,
    };
    rows.enumerate().map(place).collect()
}

/// The run of a plain matrix.
pub(crate) const fn plain_run(depth: usize) -> Run {
    Run {
        offset: 0,
        len: depth,
    }
}
