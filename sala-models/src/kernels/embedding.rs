//! Rows of a table, and the sums of their gradients.
//!
//! ```text
//! y[i] = table[index[i]]        dtable[r] = Σ_{i: index[i] = r} dy[i]
//! ```
//!
//! The lookups are sorted by row, those of one row staying in their order, and the table is cut into pieces
//! of rows. So no two threads meet in a row, and each row's sum runs in the order of the lookups. Rows that
//! nobody looked up are not touched at all: their zeros are fresh pages of the system.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};

use super::{
    access,
    element::Element,
    pieces,
    rows::{self},
};

/// The rows of a contiguous f32 or f64 `table (entries, size)`: `(indices, size)`. All indices are below
/// the number of entries.
pub(crate) fn embedding(table: &Tensor, indices: Vec<u32>) -> Result<Tensor> {
    table.apply_op1(Lookup { indices })
}

struct Lookup {
    indices: Vec<u32>,
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
        let mut sums = vec![T::default(); entries * size];
        pieces::each_of(&mut sums, count * size, |piece, sums| {
            let first = piece * count;
            let from = |row: usize| order.partition_point(|&i| (self.indices[i] as usize) < row);
            for &i in &order[from(first)..from(first + sums.len() / size)] {
                let row = self.indices[i] as usize - first;
                let sum = &mut sums[row * size..(row + 1) * size];
                for (sum, &dy) in sum.iter_mut().zip(&dy[i * size..(i + 1) * size]) {
                    *sum += dy;
                }
            }
        });
        sums
    }
}

impl CustomOp1 for Lookup {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(&self, table: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, size) = layout.shape().dims2()?;
        let shape = (self.indices.len(), size);
        Ok(match table {
            CpuStorage::F64(_) => {
                access::result(self.rows::<f64>(access::slice(table, layout)?, size), shape)
            }
            _ => access::result(self.rows::<f32>(access::slice(table, layout)?, size), shape),
        })
    }

    fn bwd(&self, table: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        if !table.track_op() {
            return Ok(None);
        }
        let (dims, dy) = (table.dims2()?, dy.contiguous()?);
        let sums = match table.dtype() {
            DType::F64 => access::tensor(
                access::read(&dy, |dy: &[f64]| Ok(self.sums(dy, dims)))?,
                dims,
            ),
            _ => access::tensor(
                access::read(&dy, |dy: &[f32]| Ok(self.sums(dy, dims)))?,
                dims,
            ),
        };
        sums.map(Some)
    }
}
