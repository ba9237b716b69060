//! The gradient of the weight: tiles are summed over, in parts or all at once.

use std::{marker::PhantomData, ops::Range};

use super::{
    ROWS, Work,
    maps::Variant,
    tiles::{Chunk, Gradients, WeightsBack},
};
use crate::kernels::{
    element::Element,
    matmul,
    pieces::{self, compiled},
    scratch::Scratch,
};

/// Bytes of partial sums of the weight gradient, and their number.
const PARTIAL: usize = 16 << 20;
const PARTS: usize = 16;

/// Bytes of V and A ∂L/∂y Aᵀ at a time, where the weight gradient has but one part.
const ROUND: usize = 16 << 20;

impl<V: Variant<M, N>, const M: usize, const N: usize> Work<V, M, N> {
    pub(super) fn weight_gradient<T: Element>(&self, x: &[T], gradient: &[T]) -> Vec<T> {
        let width = matmul::width::<T>();
        let (blocks, block) = (
            self.written.div_ceil(width),
            Self::POSITIONS * self.read * width,
        );
        let bytes = blocks * block * size_of::<T>();
        let parts = (PARTIAL / bytes)
            .clamp(1, PARTS)
            .min(self.grid.tiles().div_ceil(ROWS));
        let mut sums = Scratch::zeros(parts * blocks * block);
        let sides = Sides {
            x,
            gradient,
            zeros: &vec![T::default(); self.read.max(self.written)],
        };
        if parts > 1 {
            let of_part = self.grid.tiles().div_ceil(parts);
            pieces::each_of(&mut sums, blocks * block, |part, sums| {
                let end = self.grid.tiles().min((part + 1) * of_part);
                self.add_part(&sides, part * of_part..end, sums);
            });
        } else {
            self.add_all(&sides, &mut sums);
        }
        let len = 9 * self.read;
        pieces::filled(self.written * len, width * len, |i, out| {
            for part in 0..parts {
                let back = WeightsBack::<_, V, M, N> {
                    sums: &sums[(part * blocks + i) * block..][..block],
                    depth: self.read,
                    width,
                    variant: PhantomData,
                };
                compiled(back, &mut *out);
            }
        })
    }

    /// Both sides of the weight gradient's products for the tiles `range`.
    fn transform_sides<T: Element>(
        &self,
        sides: &Sides<T>,
        range: Range<usize>,
        (v_chunk, m_chunk): (Chunk, Chunk),
        v: &mut [T],
        m: &mut [T],
    ) {
        let zeros = &sides.zeros[..self.read];
        self.transform_inputs(sides.x, zeros, range.clone(), v_chunk, v);
        let gradients = Gradients::<_, V, M, N> {
            grid: &self.grid,
            images: sides.gradient,
            zeros: &sides.zeros[..self.written],
            range,
            chunk: m_chunk,
            variant: PhantomData,
        };
        compiled(gradients, m);
    }

    /// Adds the products of some tiles to the sums, on the calling thread.
    fn add_part<T: Element>(&self, sides: &Sides<T>, part: Range<usize>, sums: &mut [T]) {
        let tiles = self.chunk_tiles::<T>();
        let chunks = (self.inputs(tiles), self.products::<T>(tiles));
        let mut v = Scratch::new(chunks.0.len());
        let mut m = Scratch::new(chunks.1.len());
        for start in part.clone().step_by(tiles) {
            let range = start..part.end.min(start + tiles);
            let count = range.len();
            self.transform_sides(sides, range, chunks, &mut v, &mut m);
            let each = sums.chunks_exact_mut(self.read * chunks.1.width);
            for (i, sums) in each.enumerate() {
                Self::add(chunks, (&v, &m), count, i, sums);
            }
        }
    }

    /// Adds the products of all tiles to the sums. The tasks are positions and blocks.
    fn add_all<T: Element>(&self, sides: &Sides<T>, sums: &mut [T]) {
        let (all, tiles) = (self.grid.tiles(), self.chunk_tiles::<T>());
        let chunks = (self.inputs(tiles), self.products::<T>(tiles));
        let in_round = (ROUND / (tiles * self.bytes::<T>())).clamp(1, all.div_ceil(tiles));
        let mut v = Scratch::new(in_round * chunks.0.len());
        let mut m = Scratch::new(in_round * chunks.1.len());
        let range_of = |start: usize, i: usize| {
            let start = all.min(start + i * tiles);
            start..all.min(start + tiles)
        };
        for start in (0..all).step_by(in_round * tiles) {
            let (v_piece, m_piece) = (chunks.0.len(), chunks.1.len());
            pieces::each_of_two((&mut v, v_piece), (&mut m, m_piece), |i, v, m| {
                self.transform_sides(sides, range_of(start, i), chunks, v, m);
            });
            pieces::each_of(sums, self.read * chunks.1.width, |i, sums| {
                let pairs = v.chunks_exact(v_piece).zip(m.chunks_exact(m_piece));
                for (j, pair) in pairs.enumerate() {
                    let count = range_of(start, j).len();
                    Self::add(chunks, pair, count, i, sums);
                }
            });
        }
    }

    /// Adds the products of a chunk's first `count` tiles to the sums of one position and block, which `i` counts through.
    fn add<T: Element>(
        (v_chunk, m_chunk): (Chunk, Chunk),
        (v, m): (&[T], &[T]),
        count: usize,
        i: usize,
        sums: &mut [T],
    ) {
        let (block, position) = (i / Self::POSITIONS, i % Self::POSITIONS);
        let left = &v[position * v_chunk.position()..];
        let right = &m[block * m_chunk.block() + position * m_chunk.position()..];
        let right = &right[..count * m_chunk.width];
        matmul::accumulate(left, v_chunk.width, right, sums);
    }
}

/// What the weight gradient reads.
struct Sides<'a, T> {
    x: &'a [T],
    gradient: &'a [T],
    zeros: &'a [T],
}
