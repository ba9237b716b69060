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
//! [`Outer`] and [`turned_product`] have the same tile for the other product of a backward pass, `Σ_m left[m, k]
//! right[m, n]`: the one of gathered rows, the other of plain matrices.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the chosen instruction set"
)]

mod outer;
mod panels;
mod product;
mod turned;

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

pub(crate) use self::{
    outer::{Outer, accumulate},
    panels::Panels,
    product::Product,
    turned::turned_product,
};
use super::element::Element;

/// Registers side by side in a tile.
const VECTORS: usize = 2;

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

/// Work in tiles of `ROWS` rows, or of so many elements of the depth.
trait Tiled {
    type Out;

    fn run<S: Simd, const ROWS: usize>(self, simd: S) -> Self::Out;
}

/// Does the work in the instruction set of this processor, in tiles as high as its registers allow.
fn tiled<W: Tiled>(work: W) -> W::Out {
    struct Chosen<W>(W);
    impl<W: Tiled> WithSimd for Chosen<W> {
        type Output = W::Out;

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> W::Out {
            if S::REGISTER_COUNT >= 32 {
                self.0.run::<S, 12>(simd)
            } else {
                self.0.run::<S, 6>(simd)
            }
        }
    }
    Arch::new().dispatch(Chosen(work))
}

/// Rows of a tile on this processor.
pub(crate) fn tile_rows() -> usize {
    struct Rows;
    impl Tiled for Rows {
        type Out = usize;

        #[inline(always)]
        fn run<S: Simd, const ROWS: usize>(self, _: S) -> usize {
            ROWS
        }
    }
    tiled(Rows)
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
