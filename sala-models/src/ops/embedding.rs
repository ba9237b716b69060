//! Rows of a table, looked up by index.
//!
//! `y[…] = table[indices[…]]`; the gradient of a row is the sum over all places that looked it up.
//!
//! candle's lookup differentiates, but takes the largest index of a dtype (`u32::MAX`, 255 for u8)
//! for a row of zeros, and sums the gradient of a half-precision table in half precision, where
//! that of a row that occurs often stops growing: in bf16, 256 + 1 = 256.

use candle_core::{Result, Tensor};
use candle_nn::{Init, VarBuilder};

use super::checks::{
    accumulator, check_integers, check_size, check_values, index_below, read_indices, refuse_shape,
};
use crate::kernels::{self, card, embedding as fast};

const OP: &str = "embedding";

/// The rows of `table (entries, size)` at `indices`, of `indices`' shape with `size` added at the
/// end, and of the table's dtype.
///
/// Indices have any integer dtype. They are read to be checked, which would wait for a graphics card: there,
/// the row of an index that is not below `entries` is NaN instead. The gradient of a half-precision table is
/// summed in f32, on the CPU at the price of a copy of the table.
///
/// # Errors
/// When the table does not have rank 2 or is empty or not of floats, the indices are not integers,
/// there are none or (on the CPU) one is not below `entries`, or candle fails.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use sala_models::ops::embedding;
///
/// let table = Tensor::new(&[[1f32, 2.], [3., 4.]], &Device::Cpu)?;
/// let y = embedding(&table, &Tensor::new(&[1u32, 0, 1], &Device::Cpu)?)?;
/// assert_eq!(y.to_vec2::<f32>()?, [[3., 4.], [1., 2.], [3., 4.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn embedding(table: &Tensor, indices: &Tensor) -> Result<Tensor> {
    check_values(OP, "table", table)?;
    let &[entries, size] = table.dims() else {
        return Err(refuse_shape(OP, "table", "of shape (entries, size)", table));
    };
    let dims = [indices.dims(), &[size]].concat();
    if let Some(card) = card::serving(table)? {
        check_integers(OP, "indices", indices)?;
        if indices.elem_count() == 0 {
            return Err(refuse_shape(OP, "indices", "at least one index", indices));
        }
        return card::embedding::embedding(card, &table.contiguous()?, indices);
    }
    let rows = read_indices(OP, "indices", indices)?
        .into_iter()
        .map(|index| index_below(OP, "indices", index, entries))
        .collect::<Result<Vec<u32>>>()?;
    if rows.is_empty() {
        return Err(refuse_shape(OP, "indices", "at least one index", indices));
    }
    let values = table.to_dtype(accumulator(table.dtype()))?.contiguous()?;
    let y = if kernels::fast(&values)? {
        fast::embedding(&values, rows, dims)?
    } else {
        composed(&values, rows)?.reshape(dims)?
    };
    y.to_dtype(table.dtype())
}

fn composed(table: &Tensor, rows: Vec<u32>) -> Result<Tensor> {
    let count = rows.len();
    table.index_select(&Tensor::from_vec(rows, count, table.device())?, 0)
}

/// [`embedding()`] with its table, the parameter `weight (entries, size)`, which starts with
/// standard normal values as `torch.nn.Embedding` does.
#[derive(Debug, Clone)]
pub struct Embedding {
    weight: Tensor,
}

impl Embedding {
    /// A table of `entries` rows of `size` values, under the builder's prefix.
    ///
    /// # Errors
    /// When a size is zero or the store holds the name with another shape.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use sala_models::{VarStore, ops::Embedding};
    ///
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// let tokens = Embedding::new(100, 8, store.builder().pp("tokens"))?;
    /// let y = tokens.forward(&Tensor::new(&[[1u32, 2, 3], [4, 5, 6]], &Device::Cpu)?)?;
    /// assert_eq!(y.dims(), [2, 3, 8]);
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    pub fn new(entries: usize, size: usize, vb: VarBuilder) -> crate::Result<Self> {
        let init = Init::Randn {
            mean: 0.0,
            stdev: 1.0,
        };
        Self::with_init(entries, size, init, vb)
    }

    /// [`Embedding::new`] with other initial values.
    ///
    /// # Errors
    /// As for [`Embedding::new`], and when the initialisation makes no sense.
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use candle_nn::Init;
    /// use sala_models::{VarStore, ops::Embedding};
    ///
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// let normal = Init::Randn { mean: 0.0, stdev: 0.02 };
    /// let tokens = Embedding::with_init(100, 8, normal, store.builder().pp("tokens"))?;
    /// assert_eq!(tokens.weight().dims(), [100, 8]);
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    #[expect(
        clippy::needless_pass_by_value,
        reason = "candle's layers take the builder by value"
    )]
    pub fn with_init(
        entries: usize,
        size: usize,
        init: Init,
        vb: VarBuilder,
    ) -> crate::Result<Self> {
        check_size(OP, "entries", entries)?;
        check_size(OP, "size", size)?;
        let weight = vb.get_with_hints((entries, size), "weight", init)?;
        Ok(Self { weight })
    }

    /// The table, `(entries, size)`: for an output layer that shares it.
    pub const fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The rows at `indices`.
    ///
    /// # Errors
    /// As for [`embedding()`].
    pub fn forward(&self, indices: &Tensor) -> Result<Tensor> {
        embedding(&self.weight, indices)
    }
}
