//! Transposition of the matrices of a batch: between channels first and channels last.

use super::{element::Element, pieces, scratch::Scratch};

/// Rows and columns of a tile: so few that the compiler turns it within registers. Larger ones go through
/// memory element by element, and where rows begin at powers of two their lines displace each other.
const TILE: usize = 4;

/// Elements of a cache line.
const LINE: usize = 16;

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
    turn((from, columns), start % matrix / rows, rows, (out, rows));
}

/// Turns columns `first..` of a matrix with as many rows, `columns` apart, into rows of `out`, `stride` apart.
pub(super) fn turn<T: Element>(
    (from, columns): (&[T], usize),
    first: usize,
    rows: usize,
    (out, stride): (&mut [T], usize),
) {
    let count = out.len() / stride;
    let (whole_columns, whole_rows) = (count / TILE * TILE, rows / TILE * TILE);
    // A line of the matrix is read once for all its columns. Rows at such distances want the same few places
    // of the cache: of many, none would still be there.
    for near in (0..whole_columns).step_by(LINE) {
        for row in (0..whole_rows).step_by(TILE) {
            for column in (near..whole_columns.min(near + LINE)).step_by(TILE) {
                let place = row * columns + first + column;
                let tile = turned_tile(from, place, columns);
                for (i, line) in tile.iter().enumerate() {
                    out[(column + i) * stride + row..][..TILE].copy_from_slice(line);
                }
            }
        }
    }
    // What is left on the right and below.
    for column in 0..count {
        let done = if column < whole_columns {
            whole_rows
        } else {
            0
        };
        let to = &mut out[column * stride..][..rows];
        for (row, to) in to.iter_mut().enumerate().skip(done) {
            *to = from[row * columns + first + column];
        }
    }
}

/// The tile that begins at `place`, with its rows and columns exchanged.
#[inline]
fn turned_tile<T: Element>(from: &[T], place: usize, columns: usize) -> [[T; TILE]; TILE] {
    let mut tile = [[T::default(); TILE]; TILE];
    for (i, line) in tile.iter_mut().enumerate() {
        line.copy_from_slice(&from[place + i * columns..][..TILE]);
    }
    let mut turned = [[T::default(); TILE]; TILE];
    for (i, line) in turned.iter_mut().enumerate() {
        for (value, from) in line.iter_mut().zip(&tile) {
            *value = from[i];
        }
    }
    turned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_columns_in_every_matrix() {
        for (batch, rows, columns) in [
            (1, 1, 1),
            (1, 50, 70),
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
