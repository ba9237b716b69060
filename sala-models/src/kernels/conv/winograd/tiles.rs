//! Where tiles lie, and the kernels that carry them from images to positions and back.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the chosen instruction set"
)]

use std::{marker::PhantomData, ops::Range};

use super::maps::{LANES, Lanes, Variant, both};
use crate::kernels::{element::Element, pieces::Kernel};

/// Height and width.
pub(super) type Size = (usize, usize);

/// Images with their channels last, cut into tiles. Tiles may reach over the border, where zeros are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    pub(super) batch: usize,
    pub(super) source: Size,
    pub(super) target: Size,
    pub(super) padding: Size,
    /// Height and width of a tile of targets.
    pub(super) tile: usize,
}

/// A tile's image, and its first row and column there.
type Corner = (usize, usize, usize);

impl Grid {
    pub(super) const fn tile_rows(&self) -> usize {
        self.target.0.div_ceil(self.tile)
    }

    pub(super) const fn tile_columns(&self) -> usize {
        self.target.1.div_ceil(self.tile)
    }

    pub(super) const fn tiles(&self) -> usize {
        self.batch * self.tile_rows() * self.tile_columns()
    }

    #[inline(always)]
    const fn corner(&self, tile: usize) -> Corner {
        let (row, column) = (tile / self.tile_columns(), tile % self.tile_columns());
        let (image, row) = (row / self.tile_rows(), row % self.tile_rows());
        (image, row * self.tile, column * self.tile)
    }
}

/// The pixels of a window of images, each with all its channels; `zeros` stand for those outside.
#[inline(always)]
fn window<'a, T: Element, const K: usize>(
    images: &'a [T],
    zeros: &'a [T],
    (height, width): Size,
    (image, row, column): Corner,
    padding: Size,
) -> [[&'a [T]; K]; K] {
    let channels = zeros.len();
    let mut pixels = [[zeros; K]; K];
    for (i, pixels) in pixels.iter_mut().enumerate() {
        let Some(row) = (row + i).checked_sub(padding.0).filter(|&r| r < height) else {
            continue;
        };
        let start = (image * height + row) * width;
        for (j, pixel) in pixels.iter_mut().enumerate() {
            if let Some(column) = (column + j).checked_sub(padding.1).filter(|&c| c < width) {
                *pixel = &images[(start + column) * channels..][..channels];
            }
        }
    }
    pixels
}

/// How the tiles of a chunk lie in memory, by position and channel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk {
    /// Tiles there is room for.
    pub(super) tiles: usize,
    /// Channels of one block, whose tiles follow each other.
    pub(super) width: usize,
    /// Blocks, each with all its positions.
    pub(super) blocks: usize,
    pub(super) positions: usize,
}

impl Chunk {
    /// From one position to the next. A cache line more than the tiles need: with distances of 4 KiB, the
    /// positions of one tile would push each other from the cache.
    pub(super) const fn position(&self) -> usize {
        self.tiles * self.width + LANES
    }

    pub(super) const fn block(&self) -> usize {
        self.positions * self.position()
    }

    pub(super) const fn len(&self) -> usize {
        self.blocks * self.block()
    }

    /// Where sixteen channels of a tile are, and how many of them lie side by side there.
    #[inline(always)]
    const fn start(&self, tile: usize, channel: usize) -> usize {
        channel / self.width * self.block() + tile * self.width + channel % self.width
    }

    #[inline(always)]
    fn load<T: Element>(&self, values: &[T], start: usize) -> Lanes<T> {
        if self.width >= LANES {
            return Lanes::load(&values[start..start + LANES]);
        }
        let mut lanes = Lanes::zeros();
        for (i, part) in lanes.0.chunks_mut(self.width).enumerate() {
            // Channels of the last block may end before the sixteenth.
            let start = start + i * self.block();
            if let Some(from) = values.get(start..start + part.len()) {
                part.copy_from_slice(from);
            }
        }
        lanes
    }

    #[inline(always)]
    fn store<T: Element>(&self, lanes: Lanes<T>, values: &mut [T], start: usize) {
        if self.width >= LANES {
            lanes.store(&mut values[start..start + LANES]);
            return;
        }
        for (i, part) in lanes.0.chunks(self.width).enumerate() {
            let start = start + i * self.block();
            if let Some(to) = values.get_mut(start..start + part.len()) {
                to.copy_from_slice(part);
            }
        }
    }
}

/// `V = Bᵀ d B` of the tiles `range` of images with padding.
pub(super) struct Inputs<'a, T, V, const M: usize, const N: usize> {
    pub(super) grid: &'a Grid,
    pub(super) images: &'a [T],
    /// One pixel of zeros.
    pub(super) zeros: &'a [T],
    pub(super) range: Range<usize>,
    pub(super) chunk: Chunk,
    pub(super) variant: PhantomData<V>,
}

impl<T: Element, V: Variant<M, N>, const M: usize, const N: usize> Kernel<&mut [T]>
    for Inputs<'_, T, V, M, N>
{
    #[inline(always)]
    fn run(self, to: &mut [T]) {
        let Grid {
            source, padding, ..
        } = *self.grid;
        for (i, tile) in self.range.enumerate() {
            let corner = self.grid.corner(tile);
            let pixels = window::<T, N>(self.images, self.zeros, source, corner, padding);
            for channel in (0..self.zeros.len()).step_by(LANES) {
                let d = load(&pixels, channel);
                let v = both(&d, V::input::<T>);
                spread(&v, self.chunk, to, i, channel);
            }
        }
    }
}

/// `A ∂L/∂y Aᵀ` of the tiles `range`.
pub(super) struct Gradients<'a, T, V, const M: usize, const N: usize> {
    pub(super) grid: &'a Grid,
    /// The gradient of the targets.
    pub(super) images: &'a [T],
    /// One pixel of zeros.
    pub(super) zeros: &'a [T],
    pub(super) range: Range<usize>,
    pub(super) chunk: Chunk,
    pub(super) variant: PhantomData<V>,
}

impl<T: Element, V: Variant<M, N>, const M: usize, const N: usize> Kernel<&mut [T]>
    for Gradients<'_, T, V, M, N>
{
    #[inline(always)]
    fn run(self, to: &mut [T]) {
        let target = self.grid.target;
        for (i, tile) in self.range.enumerate() {
            let corner = self.grid.corner(tile);
            let pixels = window::<T, M>(self.images, self.zeros, target, corner, (0, 0));
            for channel in (0..self.zeros.len()).step_by(LANES) {
                let y = load(&pixels, channel);
                let m = both(&y, V::gradient::<T>);
                spread(&m, self.chunk, to, i, channel);
            }
        }
    }
}

#[inline(always)]
fn load<T: Element, const K: usize>(pixels: &[[&[T]; K]; K], channel: usize) -> [[Lanes<T>; K]; K] {
    let mut d = [[Lanes::zeros(); K]; K];
    for (d, pixels) in d.iter_mut().zip(pixels) {
        for (d, pixel) in d.iter_mut().zip(pixels) {
            *d = Lanes::load(&pixel[channel..]);
        }
    }
    d
}

#[inline(always)]
fn spread<T: Element, const N: usize>(
    tile: &[[Lanes<T>; N]; N],
    chunk: Chunk,
    to: &mut [T],
    place: usize,
    channel: usize,
) {
    let start = chunk.start(place, channel);
    for (position, &lanes) in tile.as_flattened().iter().enumerate() {
        chunk.store(lanes, to, start + position * chunk.position());
    }
}

/// `y = Aᵀ m A + b` of the tiles `range`.
pub(super) struct Outputs<'a, T, V, const M: usize, const N: usize> {
    pub(super) grid: &'a Grid,
    pub(super) products: &'a [T],
    pub(super) chunk: Chunk,
    /// Place of the first tile in the chunk.
    pub(super) place: usize,
    pub(super) range: Range<usize>,
    pub(super) bias: Option<&'a [T]>,
    pub(super) channels: usize,
    /// Rows of targets, through all images, that come before those that are written.
    pub(super) rows_before: usize,
    pub(super) variant: PhantomData<V>,
}

impl<T: Element, V: Variant<M, N>, const M: usize, const N: usize> Kernel<&mut [T]>
    for Outputs<'_, T, V, M, N>
{
    #[inline(always)]
    fn run(self, out: &mut [T]) {
        let (height, width) = self.grid.target;
        for (i, tile) in self.range.enumerate() {
            let (image, row, column) = self.grid.corner(tile);
            let (rows, columns) = (M.min(height - row), M.min(width - column));
            let first = image * height + row - self.rows_before;
            for channel in (0..self.channels).step_by(LANES) {
                let count = LANES.min(self.channels - channel);
                let start = self.chunk.start(self.place + i, channel);
                let mut m = [[Lanes::zeros(); N]; N];
                for (position, m) in m.as_flattened_mut().iter_mut().enumerate() {
                    let start = start + position * self.chunk.position();
                    *m = self.chunk.load(self.products, start);
                }
                let y = both(&m, V::output::<T>);
                let bias = match self.bias {
                    Some(bias) => Lanes::load(&bias[channel..channel + count]),
                    None => Lanes::zeros(),
                };
                for (row, y) in y.iter().enumerate().take(rows) {
                    let start = (first + row) * width + column;
                    for (pixel, &y) in y.iter().enumerate().take(columns) {
                        let to = &mut out[(start + pixel) * self.channels + channel..][..count];
                        (y + bias).store(to);
                    }
                }
            }
        }
    }
}

/// How a weight is read: distances between channels read and between channels written, and whether it
/// is turned by 180°.
#[derive(Debug, Clone, Copy)]
pub(super) struct WeightView<'a, T> {
    pub(super) values: &'a [T],
    pub(super) read: usize,
    pub(super) written: usize,
    pub(super) turned: bool,
}

/// `U = G w Gᵀ` of some of the written channels, one after the other the positions' matrices
/// `(read, width)`.
pub(super) struct Weights<'a, T, V, const M: usize, const N: usize> {
    pub(super) weight: WeightView<'a, T>,
    /// Channels read.
    pub(super) depth: usize,
    /// Channels written.
    pub(super) columns: Range<usize>,
    pub(super) width: usize,
    pub(super) variant: PhantomData<V>,
}

impl<T: Element, V: Variant<M, N>, const M: usize, const N: usize> Kernel<&mut [T]>
    for Weights<'_, T, V, M, N>
{
    #[inline(always)]
    fn run(self, block: &mut [T]) {
        let Self {
            weight,
            depth,
            width,
            columns,
            ..
        } = self;
        for k in 0..depth {
            for first in (0..columns.len()).step_by(LANES) {
                let mut w = [[Lanes::zeros(); 3]; 3];
                for lane in 0..LANES.min(columns.len() - first) {
                    let start = k * weight.read + (columns.start + first + lane) * weight.written;
                    let entries = &weight.values[start..start + 9];
                    for (e, w) in w.as_flattened_mut().iter_mut().enumerate() {
                        w.0[lane] = entries[if weight.turned { 8 - e } else { e }];
                    }
                }
                let u = both(&w, V::weight::<T>);
                let count = LANES.min(width - first);
                for (position, &u) in u.as_flattened().iter().enumerate() {
                    u.store(&mut block[(position * depth + k) * width + first..][..count]);
                }
            }
        }
    }
}

/// Adds `Gᵀ u G` to the gradients of some outputs' weights, `(outputs, depth, 3, 3)`.
pub(super) struct WeightsBack<'a, T, V, const M: usize, const N: usize> {
    /// One after the other the positions' matrices `(depth, width)`.
    pub(super) sums: &'a [T],
    pub(super) depth: usize,
    pub(super) width: usize,
    pub(super) variant: PhantomData<V>,
}

impl<T: Element, V: Variant<M, N>, const M: usize, const N: usize> Kernel<&mut [T]>
    for WeightsBack<'_, T, V, M, N>
{
    #[inline(always)]
    fn run(self, out: &mut [T]) {
        let Self {
            sums, depth, width, ..
        } = self;
        let outputs = out.len() / (9 * depth);
        for k in 0..depth {
            for first in (0..outputs).step_by(LANES) {
                let count = LANES.min(outputs - first);
                let mut u = [[Lanes::zeros(); N]; N];
                for (position, u) in u.as_flattened_mut().iter_mut().enumerate() {
                    *u = Lanes::load(&sums[(position * depth + k) * width + first..][..count]);
                }
                let w = both(&u, V::weight_back::<T>);
                for lane in 0..count {
                    let start = ((first + lane) * depth + k) * 9;
                    for (to, w) in out[start..start + 9].iter_mut().zip(w.as_flattened()) {
                        *to += w.0[lane];
                    }
                }
            }
        }
    }
}
