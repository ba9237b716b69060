//! Norms and combinations of all parameters seen as one vector.
//!
//! Sums run over the parameters in the order of their names, each parameter's own sum first, so a
//! result does not depend on the order in which a model made its variables. All numbers that one
//! decision needs are read from the device together: one synchronisation.

use candle_core::{DType, Device, Tensor};

use crate::{
    error::Result,
    kernels::{self, Scalar},
};

/// Σ xᵢ² of each tensor.
pub(crate) fn squared_norms(tensors: &[Tensor]) -> Result<Vec<Scalar>> {
    kernels::run(tensors, |kernels| {
        let norm = |x| Ok(kernels.of(x).squared_norm(x)?);
        tensors.iter().map(norm).collect()
    })
}

/// Σ xᵢ yᵢ of each pair of tensors.
pub(crate) fn dots(xs: &[Tensor], ys: &[Tensor]) -> Result<Vec<Scalar>> {
    kernels::run(xs, |kernels| {
        let dot = |(x, y)| Ok(kernels.of(x).dot(x, y)?);
        xs.iter().zip(ys).map(dot).collect()
    })
}

/// sumᵢ ← sumᵢ + factor · xᵢ.
pub(crate) fn accumulate(sums: &mut [Tensor], xs: &[Tensor], factor: f64) -> Result<()> {
    kernels::run(xs, |kernels| {
        for (sum, x) in sums.iter_mut().zip(xs) {
            kernels.of(x).accumulate(sum, x, factor)?;
        }
        Ok(())
    })
}

/// The numbers on the host; those that are still on a device are brought with one synchronisation.
pub(crate) fn read_scalars(scalars: Vec<Scalar>) -> Result<Vec<f64>> {
    let mut on_device = Vec::new();
    for scalar in &scalars {
        if let Scalar::Device(tensor) = scalar {
            on_device.push(tensor.clone());
        }
    }
    let mut read = read_tensors(&on_device)?.into_iter();
    let number = |scalar| match scalar {
        Scalar::Host(number) => Some(number),
        Scalar::Device(_) => read.next(),
    };
    Ok(scalars.into_iter().filter_map(number).collect())
}

/// Scalar tensors on the host.
fn read_tensors(scalars: &[Tensor]) -> Result<Vec<f64>> {
    if scalars.is_empty() {
        return Ok(Vec::new());
    }
    let dtype = if scalars.iter().any(|s| s.dtype() == DType::F64) {
        DType::F64
    } else {
        DType::F32
    };
    #[cfg(any(test, feature = "testing"))]
    crate::testing::count_synchronisation();
    let flat = scalars
        .iter()
        .map(|s| s.to_dtype(dtype)?.reshape(1))
        .collect::<candle_core::Result<Vec<_>>>()?;
    // f64 exists on the CPU even where the device (Metal) has none.
    let host = Tensor::cat(&flat, 0)?.to_device(&Device::Cpu)?;
    Ok(host.to_dtype(DType::F64)?.to_vec1()?)
}

/// ⟨x, y⟩ over all tensors, read on the host.
pub(crate) fn dot(xs: &[Tensor], ys: &[Tensor]) -> Result<f64> {
    Ok(read_scalars(dots(xs, ys)?)?.iter().sum())
}

/// factor · xᵢ, in storage of its own.
pub(crate) fn scaled(xs: &[Tensor], factor: f64) -> Result<Vec<Tensor>> {
    let scale = |x: &Tensor| Ok((x * factor)?);
    xs.iter().map(scale).collect()
}

/// ‖x‖₂ over all tensors, read on the host.
pub(crate) fn norm(tensors: &[Tensor]) -> Result<f64> {
    Ok(norm_of(&read_scalars(squared_norms(tensors)?)?))
}

/// √Σ sᵢ of squared norms.
pub(crate) fn norm_of(squared: &[f64]) -> f64 {
    squared.iter().sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
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
        let scalars = vec![Scalar::Device(a), Scalar::Host(0.2), Scalar::Device(b)];
        assert_eq!(read_scalars(scalars).unwrap(), [0.1, 0.2, 0.5]);
    }
}
