//! Rows of a table; [`kernels::embedding`](crate::kernels::embedding) has the equations.
//!
//! The slopes of a table with few entries are the product of a matrix of zeros and ones with those of the rows. Otherwise
//! each index is looked for among the lookups, and those of one index are added up in their order.

use candle_core::{DType, Result, Tensor};

use super::{Call, Card, product::product, rows::Rows};
use crate::kernels::graph::{self, Input, Operation};

/// Entries up to which a product adds up the slopes: an index that occurs thousands of times would keep one block busy
/// while the others wait.
const FEW: usize = 1024;

/// Columns of a block that adds up slopes; `device/lookup.cuh` has the same number.
const COLUMNS: usize = 1024;

/// The rows of a contiguous `table (entries, size)` at `indices`, which are integers of any shape: `(…, size)`. A row for an
/// index that is not below `entries` is NaN.
pub(crate) fn embedding(card: Card, table: &Tensor, indices: &Tensor) -> Result<Tensor> {
    let (indices, kind) = readable(indices)?;
    let op = Lookup {
        card,
        indices,
        kind,
    };
    graph::apply(op, &[table])
}

/// Integers as kernels read them, and the number by which a kernel knows their type.
pub(super) fn readable(indices: &Tensor) -> Result<(Tensor, usize)> {
    let indices = indices.detach().contiguous()?;
    Ok(match indices.dtype() {
        DType::U8 => (indices, 0),
        DType::U32 => (indices, 1),
        _ => (indices.to_dtype(DType::I64)?, 2),
    })
}

struct Lookup {
    card: Card,
    indices: Tensor,
    kind: usize,
}

impl Lookup {
    /// Launches a kernel for each lookup.
    fn each_lookup(
        &self,
        kernel: &'static str,
        (size, entries): (usize, usize),
        dtype: DType,
        tensors: &[Option<&Tensor>],
    ) -> Result<()> {
        let rows = Rows::new(self.indices.elem_count(), size)?;
        let mut numbers = rows.numbers().to_vec();
        numbers.extend([self.kind, entries]);
        self.card.launch(Call {
            kernel,
            dtype,
            blocks: rows.blocks(),
            tensors,
            numbers: &numbers,
            factors: &[],
        })
    }

    /// The slopes of a table with few entries.
    fn by_product(&self, entries: usize, dy: &Tensor) -> Result<Tensor> {
        let shape = (self.indices.elem_count(), entries);
        let one_hot = self.card.empty(shape, dy.dtype())?;
        let tensors = [Some(&self.indices), Some(&one_hot)];
        self.each_lookup("one_hot", (entries, entries), dy.dtype(), &tensors)?;
        product(&one_hot.t()?, dy)
    }

    /// The slopes of any table.
    fn by_search(&self, (entries, size): (usize, usize), dy: &Tensor) -> Result<Tensor> {
        let sums = Tensor::zeros((entries, size), dy.dtype(), dy.device())?;
        let lookups = self.indices.elem_count();
        self.card.launch(Call {
            kernel: "lookup_back",
            dtype: dy.dtype(),
            blocks: lookups * size.div_ceil(COLUMNS),
            tensors: &[Some(&self.indices), Some(dy), Some(&sums)],
            numbers: &[lookups, size, entries, self.kind],
            factors: &[],
        })?;
        Ok(sums)
    }
}

impl Operation for Lookup {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let table = inputs[0];
        let (entries, size) = table.dims2()?;
        let shape = [self.indices.dims(), &[size]].concat();
        let y = self.card.empty(shape, table.dtype())?;
        let tensors = [Some(table), Some(&self.indices), Some(&y)];
        self.each_lookup("lookup", (size, entries), table.dtype(), &tensors)?;
        Ok(y)
    }

    fn backward(&self, inputs: &[Input], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let dims = inputs[0].value.dims2()?;
        let dy = &dy.reshape(((), dims.1))?;
        let sums = if dims.0 <= FEW {
            self.by_product(dims.0, dy)
        } else {
            self.by_search(dims, dy)
        };
        Ok(vec![Some(sums?)])
    }
}
