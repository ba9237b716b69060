//! Transposition of the matrices of a batch: between channels first and channels last.

use super::{element::Element, pieces, scratch::Scratch};

/// Rows and columns of a tile: it is read and written by whole cache lines.
const TILE: usize = 16;

/// `(N, rows, columns)` to `(N, columns, rows)`.
pub(crate) fn batches<T: Element>(x: &[T], rows: usize, columns: usize) -> Vec<T> {
    let matrix = rows * columns;
    let piece = piece(rows, columns);
    pieces::filled(x.len(), piece, |i, out| {
        part(x, matrix, i * piece, rows, columns, out);
    })
}

/// As [`batches`], to be thrown away soon.
pub(crate) fn to_scratch<T: Element>(x: &[T], rows: usize, columns: usize) -> Scratch<T> {
    let mut out = Scratch::new(x.len());
    let matrix = rows * columns;
    let piece = piece(rows, columns);
    pieces::each_of(&mut out, piece, |i, out| {
        part(x, matrix, i * piece, rows, columns, out);
    });
    out
}

/// Elements of a piece: whole rows of the result, a divisor of their number.
fn piece(rows: usize, columns: usize) -> usize {
    let wanted = (pieces::PIECE / rows).clamp(1, columns);
    let count = (1..=wanted).rev().find(|n| columns.is_multiple_of(*n));
    count.unwrap_or(1) * rows
}

/// Writes the results `start..` of the whole, rows of one matrix.
fn part<T: Element>(
    x: &[T],
    matrix: usize,
    start: usize,
    rows: usize,
    columns: usize,
    out: &mut [T],
) {
    let from = &x[start / matrix * matrix..][..matrix];
    let first = start % matrix / rows;
    let count = out.len() / rows;
    for tile in (0..rows).step_by(TILE) {
        let end = rows.min(tile + TILE);
        for block in (0..count).step_by(TILE) {
            for column in block..count.min(block + TILE) {
                let to = &mut out[column * rows + tile..column * rows + end];
                let from = from[tile * columns + first + column..]
                    .iter()
                    .step_by(columns);
                for (to, &value) in to.iter_mut().zip(from) {
                    *to = value;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_columns_in_every_matrix() {
        for (batch, rows, columns) in [
            (1, 1, 1),
            (2, 3, 5),
            (3, 17, 40),
            (1, 33_000, 3),
            (2, 3, 33_000),
        ] {
            let x: Vec<f32> = (0..batch * rows * columns).map(|i| i as f32).collect();
            let source = |i: usize| {
                let (n, column, row) = (i / (rows * columns), i / rows % columns, i % rows);
                x[(n * rows + row) * columns + column]
            };
            let wanted: Vec<f32> = (0..x.len()).map(source).collect();
            assert_eq!(batches(&x, rows, columns), wanted);
            assert_eq!(*to_scratch(&x, rows, columns), wanted);
        }
    }
}
