//! Matrix products.

use candle_core::{DType, Result, Tensor};

use super::computed;

/// The product of two matrices, or of two stacks of them, of one type.
///
/// It is candle's, but for half precision on the processor, where candle has none for bf16: there it is taken in f32 and
/// rounded once, as graphics cards do.
pub(super) fn product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let dtype = a.dtype();
    if a.device().is_cpu() && matches!(dtype, DType::BF16 | DType::F16) {
        let (a, b) = (a.to_dtype(computed(dtype))?, b.to_dtype(computed(dtype))?);
        return a.matmul(&b)?.to_dtype(dtype);
    }
    a.matmul(b)
}
