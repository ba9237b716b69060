//! Convolution with a 3 × 3 kernel by Winograd's minimal filtering (Lavin and Gray 2016, arXiv:1509.09308).
//!
//! A tile of M × M results sees (M + 2)² inputs d and nine weights w. It is
//!
//! ```text
//! y = Aᵀ [ (G w Gᵀ) ⊙ (Bᵀ d B) ] A
//! ```
//!
//! with (M + 2)² multiplications for each pair of channels where a plain convolution has 9 M²: 16 instead of
//! 36 for F(2×2, 3×3), a factor of 2.25, and 36 instead of 144 for F(4×4, 3×3), a factor of 4.
//!
//! Why it is right, along one axis: the correlation y is the transposed of a product of polynomials
//! w(p) y(p) of degree M + 1. A product is fixed by its values at M + 1 points and its leading coefficient
//! ("the value at infinity"); there it is a product of numbers. G and A evaluate w and y at the points, and
//! Bᵀ is the transposed of what makes coefficients of values. The points are 0, 1, −1 for M = 2, and
//! 0, ±1, ±2 for M = 4; the denominators of the interpolation are in G.
//!
//! ```text
//! F(2, 3)   Bᵀ = ⎡1  0 −1  0⎤   G = ⎡ 1   0   0 ⎤   Aᵀ = ⎡1  1  1  0⎤
//!                ⎢0  1  1  0⎥       ⎢½   ½   ½⎥        ⎣0  1 −1 −1⎦
//!                ⎢0 −1  1  0⎥       ⎢½  −½   ½⎥
//!                ⎣0  1  0 −1⎦       ⎣ 0   0   1 ⎦
//!
//! F(4, 3)   Bᵀ = ⎡4  0 −5  0  1  0⎤   G = ⎡ 1/4    0     0 ⎤   Aᵀ = ⎡1  1  1  1  1  0⎤
//!                ⎢0 −4 −4  1  1  0⎥       ⎢−1/6  −1/6  −1/6⎥        ⎢0  1 −1  2 −2  0⎥
//!                ⎢0  4 −4 −1  1  0⎥       ⎢−1/6   1/6  −1/6⎥        ⎢0  1  1  4  4  0⎥
//!                ⎢0 −2 −1  2  1  0⎥       ⎢1/24  1/12   1/6⎥        ⎣0  1 −1  8 −8  1⎦
//!                ⎢0  2 −1 −2  1  0⎥       ⎢1/24 −1/12   1/6⎥
//!                ⎣0  4  0 −5  0  1⎦       ⎣ 0      0     1 ⎦
//! ```
//!
//! For each of the (M + 2)² positions the multiplications of all tiles and channels are one matrix product,
//! `M[position] (tiles, O) = V[position] (tiles, C) · U[position] (C, O)`. The input gradient is the
//! same with the weight turned by 180°, inputs and outputs exchanged, and a padding of 2 − p. The weight
//! gradient is the derivative by w:
//!
//! ```text
//! ∂L/∂w = Gᵀ [ Σ over tiles of (Bᵀ d B) ⊙ (A ∂L/∂y Aᵀ) ] G
//! ```
//!
//! again one product for each position, `V[position]ᵀ (C, tiles) · (tiles, O)`. Tiles that reach over the
//! border see zeros there, and what they compute beyond it is dropped.
//!
//! Work goes in chunks of tiles, whose V and M stay in the caches. With few tiles and many channels the
//! weights are what is large: then the tasks are blocks of written channels, and each makes its own part
//! of U, which memory never sees.

mod gradient;
mod maps;
mod tiles;

use std::{marker::PhantomData, ops::Range};

use self::{
    maps::{Four, LANES, Two, Variant},
    tiles::{Chunk, Grid, Inputs, Outputs, WeightView, Weights},
};
use super::precision::ConvPrecision;
use crate::{
    kernels::{
        element::Element,
        matmul::{self, Panels, Place, Product, plain_run},
        pieces::{self, compiled},
        scratch::Scratch,
    },
    ops::conv::{Axis, Geometry},
};

/// Bytes of V and M of a chunk, about, and the tiles of a chunk at most. Chunks have a multiple of
/// [`ROWS`] tiles, the rows of a product's tile.
const CHUNK: usize = 1 << 19;
const TILES: usize = 96;
const ROWS: usize = 12;

/// Up to so many tiles the tasks are blocks of written channels.
const FEW: usize = 192;

/// F(2×2, 3×3) or F(4×4, 3×3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tile {
    Two,
    Four,
}

/// The tile that a convolution is computed with, if any. `always` is for comparisons: every
/// convolution that can be is computed with tiles, not only where that is faster.
pub(super) fn tile(geometry: &Geometry, precision: ConvPrecision, always: bool) -> Option<Tile> {
    let fits = |axis: &Axis| {
        axis.kernel == 3 && axis.stride == 1 && axis.dilation == 1 && axis.padding <= 2
    };
    if geometry.groups != 1 || !fits(&geometry.rows) || !fits(&geometry.columns) {
        return None;
    }
    let tile = match precision {
        ConvPrecision::Exact => return None,
        ConvPrecision::Balanced => Tile::Two,
        ConvPrecision::Fast => Tile::Four,
    };
    (always || wins(geometry, tile)).then_some(tile)
}

/// Whether tiles are faster than gathered rows. With fewer channels the transformations cost more than
/// the products save, with fewer tiles that of the weight does.
fn wins(geometry: &Geometry, tile: Tile) -> bool {
    let side = match tile {
        Tile::Two => 2,
        Tile::Four => 4,
    };
    let (height, width) = (geometry.rows.windows, geometry.columns.windows);
    let tiles = geometry.batch * height.div_ceil(side) * width.div_ceil(side);
    geometry.inputs.min(geometry.outputs) >= 64 && tiles >= 32
}

/// The convolution.
pub(super) fn forward<T: Element>(
    x: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    geometry: &Geometry,
    tile: Tile,
) -> Vec<T> {
    let (rows, columns) = (&geometry.rows, &geometry.columns);
    let grid = Grid {
        batch: geometry.batch,
        source: (rows.size, columns.size),
        target: (rows.windows, columns.windows),
        padding: (rows.padding, columns.padding),
        tile: 0,
    };
    let weight = WeightView {
        values: weight,
        read: 9,
        written: 9 * geometry.inputs,
        turned: false,
    };
    let channels = (geometry.inputs, geometry.outputs);
    of_tile(x, weight, bias, grid, channels, tile)
}

/// The gradient of the images.
pub(super) fn input_gradient<T: Element>(
    gradient: &[T],
    weight: &[T],
    geometry: &Geometry,
    tile: Tile,
) -> Vec<T> {
    let (rows, columns) = (&geometry.rows, &geometry.columns);
    let grid = Grid {
        batch: geometry.batch,
        source: (rows.windows, columns.windows),
        target: (rows.size, columns.size),
        padding: (2 - rows.padding, 2 - columns.padding),
        tile: 0,
    };
    let weight = WeightView {
        values: weight,
        read: 9 * geometry.inputs,
        written: 9,
        turned: true,
    };
    let channels = (geometry.outputs, geometry.inputs);
    of_tile(gradient, weight, None, grid, channels, tile)
}

fn of_tile<T: Element>(
    sources: &[T],
    weight: WeightView<T>,
    bias: Option<&[T]>,
    grid: Grid,
    channels: (usize, usize),
    tile: Tile,
) -> Vec<T> {
    match tile {
        Tile::Two => Work::<Two, 2, 4>::new(grid, channels).product(sources, weight, bias),
        Tile::Four => Work::<Four, 4, 6>::new(grid, channels).product(sources, weight, bias),
    }
}

/// The gradient of the weight, `(O, C, 3, 3)`.
pub(super) fn weight_gradient<T: Element>(
    x: &[T],
    gradient: &[T],
    geometry: &Geometry,
    tile: Tile,
) -> Vec<T> {
    let (rows, columns) = (&geometry.rows, &geometry.columns);
    let grid = Grid {
        batch: geometry.batch,
        source: (rows.size, columns.size),
        target: (rows.windows, columns.windows),
        padding: (rows.padding, columns.padding),
        tile: 0,
    };
    let channels = (geometry.inputs, geometry.outputs);
    match tile {
        Tile::Two => Work::<Two, 2, 4>::new(grid, channels).weight_gradient(x, gradient),
        Tile::Four => Work::<Four, 4, 6>::new(grid, channels).weight_gradient(x, gradient),
    }
}

/// One convolution with tiles of M × M.
struct Work<V, const M: usize, const N: usize> {
    grid: Grid,
    read: usize,
    written: usize,
    variant: PhantomData<V>,
}

impl<V: Variant<M, N>, const M: usize, const N: usize> Work<V, M, N> {
    const POSITIONS: usize = N * N;

    const fn new(grid: Grid, (read, written): (usize, usize)) -> Self {
        Self {
            grid: Grid { tile: M, ..grid },
            read,
            written,
            variant: PhantomData,
        }
    }

    /// V of some tiles.
    const fn inputs(&self, tiles: usize) -> Chunk {
        Chunk {
            tiles,
            width: self.read.next_multiple_of(LANES),
            blocks: 1,
            positions: Self::POSITIONS,
        }
    }

    /// M of some tiles, in blocks of a panel's width.
    fn products<T: Element>(&self, tiles: usize) -> Chunk {
        let width = matmul::width::<T>();
        Chunk {
            tiles,
            width,
            blocks: self.written.div_ceil(width),
            positions: Self::POSITIONS,
        }
    }

    /// Bytes of V and M of a tile.
    const fn bytes<T>(&self) -> usize {
        Self::POSITIONS * (self.read + self.written) * size_of::<T>()
    }

    /// Tiles of a chunk.
    fn chunk_tiles<T>(&self) -> usize {
        let tiles = (CHUNK / self.bytes::<T>() / ROWS * ROWS).clamp(ROWS, TILES);
        tiles.min(self.grid.tiles())
    }

    fn transform_inputs<T: Element>(
        &self,
        images: &[T],
        zeros: &[T],
        range: Range<usize>,
        chunk: Chunk,
        to: &mut [T],
    ) {
        let inputs = Inputs::<_, V, M, N> {
            grid: &self.grid,
            images,
            zeros,
            range,
            chunk,
            variant: PhantomData,
        };
        compiled(inputs, to);
    }

    fn product<T: Element>(
        &self,
        sources: &[T],
        weight: WeightView<T>,
        bias: Option<&[T]>,
    ) -> Vec<T> {
        let zeros = vec![T::default(); self.read];
        if self.grid.tiles() <= FEW {
            self.product_by_channels(sources, &zeros, weight, bias)
        } else {
            self.product_by_tiles(sources, &zeros, weight, bias)
        }
    }

    /// U of some written channels.
    fn weights<T: Element>(&self, weight: WeightView<T>, written: Range<usize>) -> Panels<T> {
        let depth = Self::POSITIONS * self.read;
        Panels::new(depth, written.len(), |columns, block| {
            let weights = Weights::<_, V, M, N> {
                weight,
                depth: self.read,
                columns: columns.start + written.start..columns.end + written.start,
                width: block.len() / depth,
                variant: PhantomData,
            };
            compiled(weights, block);
        })
    }

    /// Hands out the result in pieces of about `tiles` tiles: whole rows of them, or whole images if the
    /// last row of tiles reaches over the border. `work` is told the tiles, and the rows before them.
    fn filled<T: Element>(
        &self,
        tiles: usize,
        work: impl Fn(Range<usize>, usize, &mut [T]) + Sync + Send,
    ) -> Vec<T> {
        let (height, width) = self.grid.target;
        let (tile_rows, tile_columns) = (self.grid.tile_rows(), self.grid.tile_columns());
        // The smallest that can be handed out.
        let (rows, tiles_of_rows) = if height.is_multiple_of(M) {
            (M, tile_columns)
        } else {
            (height, tile_rows * tile_columns)
        };
        let count = (tiles / tiles_of_rows).max(1);
        let row_len = width * self.written;
        let len = self.grid.batch * height * row_len;
        pieces::filled(len, count * rows * row_len, |i, out| {
            let first = i * count * tiles_of_rows;
            let tiles = out.len() / (rows * row_len) * tiles_of_rows;
            work(first..first + tiles, i * count * rows, out);
        })
    }

    /// The tasks are pieces of the result.
    fn product_by_tiles<T: Element>(
        &self,
        sources: &[T],
        zeros: &[T],
        weight: WeightView<T>,
        bias: Option<&[T]>,
    ) -> Vec<T> {
        let right = self.weights(weight, 0..self.written);
        let tiles = self.chunk_tiles::<T>();
        let (inputs, products) = (self.inputs(tiles), self.products::<T>(tiles));
        let places: Vec<_> = (0..tiles)
            .map(|i| Place {
                base: i * inputs.width,
                out: i * products.width,
            })
            .collect();
        let runs = [plain_run(self.read)];
        self.filled(tiles, |all, rows_before, out| {
            let mut v = Scratch::new(inputs.len());
            let mut m = Scratch::new(products.len());
            for start in all.clone().step_by(tiles) {
                let range = start..all.end.min(start + tiles);
                self.transform_inputs(sources, zeros, range.clone(), inputs, &mut v);
                for position in 0..Self::POSITIONS {
                    let product = Product {
                        left: &v[position * inputs.position()..],
                        places: &places[..range.len()],
                        runs: &runs,
                        right: &right,
                        bias: None,
                    };
                    for block in 0..products.blocks {
                        let columns =
                            block * products.width..self.written.min((block + 1) * products.width);
                        let to = block * products.block() + position * products.position();
                        product.write_part((position * self.read, columns), &mut m[to..]);
                    }
                }
                let outputs = Outputs::<_, V, M, N> {
                    grid: &self.grid,
                    products: &m,
                    chunk: products,
                    place: 0,
                    range,
                    bias,
                    channels: self.written,
                    rows_before,
                    variant: PhantomData,
                };
                compiled(outputs, out);
            }
        })
    }

    /// The tasks are blocks of written channels, each with all tiles.
    fn product_by_channels<T: Element>(
        &self,
        sources: &[T],
        zeros: &[T],
        weight: WeightView<T>,
        bias: Option<&[T]>,
    ) -> Vec<T> {
        let (all, tiles) = (self.grid.tiles(), self.chunk_tiles::<T>());
        let (inputs, products) = (self.inputs(tiles), self.products::<T>(all));
        let mut v = Scratch::new(all.div_ceil(tiles) * inputs.len());
        pieces::each_of(&mut v, inputs.len(), |i, v| {
            let range = i * tiles..all.min((i + 1) * tiles);
            self.transform_inputs(sources, zeros, range, inputs, v);
        });
        let places: Vec<_> = (0..all)
            .map(|i| Place {
                base: i / tiles * inputs.len() + i % tiles * inputs.width,
                out: i * products.width,
            })
            .collect();
        let runs = [plain_run(self.read)];
        let mut m = Scratch::new(products.len());
        pieces::each_of(&mut m, products.block(), |block, m| {
            let first = block * products.width;
            let written = first..self.written.min(first + products.width);
            let right = self.weights(weight, written.clone());
            for position in 0..Self::POSITIONS {
                let product = Product {
                    left: &v[position * inputs.position()..],
                    places: &places,
                    runs: &runs,
                    right: &right,
                    bias: None,
                };
                let to = &mut m[position * products.position()..];
                product.write_part((position * self.read, 0..written.len()), to);
            }
        });
        self.filled(tiles, |range, rows_before, out| {
            let outputs = Outputs::<_, V, M, N> {
                grid: &self.grid,
                products: &m,
                chunk: products,
                place: range.start,
                range,
                bias,
                channels: self.written,
                rows_before,
                variant: PhantomData,
            };
            compiled(outputs, out);
        })
    }
}
