//! Right matrices, packed.

use std::ops::Range;

use super::width;
use crate::kernels::{element::Element, pieces, scratch::Scratch};

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
