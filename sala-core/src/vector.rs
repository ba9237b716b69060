//! Norms and combinations of all parameters seen as one vector.
//!
//! Sums run over the parameters in the order of their names, each parameter's own sum first, so a
//! result does not depend on the order in which a model made its variables. All numbers that one
//! decision needs are read from the device together: one synchronisation.

use candle_core::{DType, Tensor};

use crate::error::Result;

/// The dtype in which sums of squares are accumulated: f64 for f64, f32 for everything narrower.
fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 {
        DType::F64
    } else {
        DType::F32
    }
}

/// Σ tᵢ² of one tensor, a scalar on its device in f32 or f64.
pub(crate) fn squared_norm(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.to_dtype(wide(tensor.dtype()))?.sqr()?.sum_all()?)
}

/// Brings scalar tensors to the host with one synchronisation.
pub(crate) fn read_scalars(scalars: &[Tensor]) -> Result<Vec<f64>> {
    let dtype = scalars
        .iter()
        .map(|s| wide(s.dtype()))
        .find(|&d| d == DType::F64);
    let dtype = dtype.unwrap_or(DType::F32);
    let flat = scalars
        .iter()
        .map(|s| s.to_dtype(dtype)?.reshape(1))
        .collect::<candle_core::Result<Vec<_>>>()?;
    // f64 exists on the CPU even where the device (Metal) has none.
    let host = Tensor::cat(&flat, 0)?.to_device(&candle_core::Device::Cpu)?;
    Ok(host.to_dtype(DType::F64)?.to_vec1()?)
}

/// ‖x‖₂ over all tensors, read on the host.
#[cfg(test)]
pub(crate) fn norm(tensors: &[Tensor]) -> Result<f64> {
    Ok(norm_of(&read_scalars(
        &tensors
            .iter()
            .map(squared_norm)
            .collect::<Result<Vec<_>>>()?,
    )?))
}

/// √Σ sᵢ of squared norms.
pub(crate) fn norm_of(squared: &[f64]) -> f64 {
    squared.iter().sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_norm_runs_over_all_tensors() {
        let a = Tensor::new(&[[3f32, 0.0], [0.0, 0.0]], &Device::Cpu).unwrap();
        let b = Tensor::new(&[4f32], &Device::Cpu).unwrap();
        assert!((norm(&[a, b]).unwrap() - 5.0).abs() < 1e-12);
    }

    #[test]
    fn squares_of_half_precision_values_do_not_overflow() {
        // 300² = 90 000 is above f16's largest value, 65 504.
        let a = Tensor::new(&[300f32], &Device::Cpu)
            .unwrap()
            .to_dtype(DType::F16)
            .unwrap();
        assert!((norm(&[a]).unwrap() - 300.0).abs() < 1e-12);
    }

    #[test]
    fn scalars_of_different_dtypes_are_read_together_without_loss() {
        let a = Tensor::new(0.1f64, &Device::Cpu).unwrap();
        let b = Tensor::new(0.5f32, &Device::Cpu).unwrap();
        assert_eq!(read_scalars(&[a, b]).unwrap(), [0.1, 0.5]);
    }
}
