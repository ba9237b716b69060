//! Rows of a table, and the sums of their gradients.
//!
//! ```text
//! y[i] = table[index[i]]        dtable[r] = Σ_{i: index[i] = r} dy[i]
//! ```
//!
//! The lookups are sorted by row, those of one row staying in their order, and the table is cut into pieces
//! of rows. So no two threads meet in a row, and each row's sum runs in the order of the lookups.

use candle_core::{DType, Result, Shape, Tensor};

use super::{
    access,
    element::Element,
    graph::{self, Input, Operation},
    pieces,
    rows::{self},
};

/// The rows of a contiguous f32 or f64 `table (entries, size)`, as a tensor of this shape. All indices are below
/// the number of entries.
pub(crate) fn embedding(
    table: &Tensor,
    indices: Vec<u32>,
    shape: impl Into<Shape>,
) -> Result<Tensor> {
    let shape = shape.into();
    graph::apply(Lookup { indices, shape }, &[table])
}

struct Lookup {
    indices: Vec<u32>,
    /// That of the result.
    shape: Shape,
}

impl Lookup {
    fn rows<T: Element>(&self, table: &[T], size: usize) -> Vec<T> {
        let count = rows::per_piece(size);
        pieces::filled(self.indices.len() * size, count * size, |i, y| {
            let indices = &self.indices[i * count..];
            for (y, &index) in y.chunks_exact_mut(size).zip(indices) {
                y.copy_from_slice(&table[index as usize * size..][..size]);
            }
        })
    }

    fn sums<T: Element>(&self, dy: &[T], (entries, size): (usize, usize)) -> Vec<T> {
        // The sort is stable.
        let mut order: Vec<usize> = (0..self.indices.len()).collect();
        order.sort_by_key(|&i| self.indices[i]);
        let count = rows::per_piece(size);
        pieces::filled(entries * size, count * size, |piece, sums| {
            let first = piece * count;
            let from = |row: usize| order.partition_point(|&i| (self.indices[i] as usize) < row);
            for &i in &order[from(first)..from(first + sums.len() / size)] {
                let row = self.indices[i] as usize - first;
                let sum = &mut sums[row * size..(row + 1) * size];
                for (sum, &dy) in sum.iter_mut().zip(&dy[i * size..(i + 1) * size]) {
                    *sum += dy;
                }
            }
        })
    }
}

impl Operation for Lookup {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let table = inputs[0];
        let (_, size) = table.dims2()?;
        let shape = &self.shape;
        Ok(match table.dtype() {
            DType::F64 => access::tensor(self.rows(&access::view::<f64>(table)?, size), shape)?,
            _ => access::tensor(self.rows(&access::view::<f32>(table)?, size), shape)?,
        })
    }

    fn backward(&self, inputs: &[Input], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let dims = inputs[0].value.dims2()?;
        let sums = match dy.dtype() {
            DType::F64 => access::tensor(self.sums(&access::view::<f64>(dy)?, dims), dims),
            _ => access::tensor(self.sums(&access::view::<f32>(dy)?, dims), dims),
        };
        Ok(vec![Some(sums?)])
    }
}
