//! Right matrices, packed.

use std::ops::Range;

use super::width;
use crate::kernels::{element::Element, pieces, scratch::Scratch, transpose};

/// A right matrix `(depth, columns)`, packed: block by block of [`Panels::width`] columns, in each row
/// by row. Missing columns of the last block are zeros.
#[derive(Debug)]
pub(crate) struct Panels<T: Element> {
    pub(super) values: Scratch<T>,
    pub(super) depth: usize,
    pub(super) columns: usize,
    pub(super) width: usize,
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

    /// Packs `right`, whose rows begin `stride` apart.
    pub(crate) fn pack(depth: usize, columns: usize, right: &[T], stride: usize) -> Self {
        let width = width::<T>();
        Self::new(depth, columns, |columns, block| {
            let rows = block.chunks_exact_mut(width).enumerate();
            for (k, row) in rows {
                let from = &right[k * stride + columns.start..][..columns.len()];
                pieces::copy_short(&mut row[..columns.len()], from);
            }
        })
    }

    /// Packs the transpose of `left`, of `columns` rows that begin `stride` apart.
    pub(crate) fn pack_turned(depth: usize, columns: usize, left: &[T], stride: usize) -> Self {
        let width = width::<T>();
        Self::new(depth, columns, |columns, block| {
            let rows = (&left[columns.start * stride..], stride);
            transpose::turn(rows, 0, columns.len(), (block, width));
        })
    }
}
