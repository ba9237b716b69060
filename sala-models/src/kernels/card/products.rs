//! Matrix products.

use candle_core::{DType, Result, Tensor};

/// `a·b`, of any layout that candle multiplies. Half precision is summed in f32 and rounded once: by cuBLAS on a card,
/// and here on the processor, where candle has no product of bf16.
pub(super) fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let dtype = a.dtype();
    if a.device().is_cpu() && matches!(dtype, DType::BF16 | DType::F16) {
        let wide = a.to_dtype(DType::F32)?.matmul(&b.to_dtype(DType::F32)?)?;
        return wide.to_dtype(dtype);
    }
    a.matmul(b)
}
