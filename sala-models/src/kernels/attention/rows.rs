//! Matrices whose rows lie somewhere in memory: the heads of a tensor.

use std::ops::Range;

use crate::kernels::{
    functions::Functions,
    matmul::{self, Panels, Place, Product},
};

/// Where the rows of a matrix are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows {
    pub(super) start: usize,
    pub(super) stride: usize,
    pub(super) len: usize,
}

impl Rows {
    pub(super) const fn plain(len: usize) -> Self {
        Self {
            start: 0,
            stride: len,
            len,
        }
    }

    pub(super) const fn at(&self, row: usize) -> usize {
        self.start + row * self.stride
    }

    /// Row `row` of a matrix.
    pub(super) fn of<'a, T>(&self, matrix: &'a [T], row: usize) -> &'a [T] {
        &matrix[self.at(row)..][..self.len]
    }

    /// The matrix, of `depth` rows, packed to be multiplied with from the left.
    pub(super) fn packed<T: Functions>(&self, matrix: &[T], depth: usize) -> Panels<T> {
        Panels::pack(depth, self.len, &matrix[self.start..], self.stride)
    }

    /// The transposed matrix, of `columns` rows, packed to be multiplied with from the left.
    pub(super) fn transposed<T: Functions>(&self, matrix: &[T], columns: usize) -> Panels<T> {
        Panels::pack_turned(self.len, columns, &matrix[self.start..], self.stride)
    }
}

/// Rows `rows` of a matrix times a packed one, into the rows of another from `first` on.
pub(super) fn multiply<T: Functions>(
    (left, left_rows): (&[T], Rows),
    rows: Range<usize>,
    right: &Panels<T>,
    (out, out_rows): (&mut [T], Rows),
    first: usize,
) {
    let place = |(i, row)| Place {
        base: left_rows.at(row),
        out: out_rows.at(first + i),
    };
    let product = Product {
        left,
        places: &rows.enumerate().map(place).collect::<Vec<_>>(),
        runs: &[matmul::plain_run(left_rows.len)],
        right,
        bias: None,
    };
    product.write(out);
}
