//! The sum of two tensors, as of a block and what goes past it.

use candle_core::{Result, Tensor};

use super::checks::{check_values, refuse};
use crate::kernels::{self, card, sum};

/// `a + b` of two tensors of one shape and float dtype. Gradients go through it without a copy, where
/// candle's own sum costs two.
///
/// # Errors
/// When the tensors are empty, not of floats, or differ in shape, dtype or device, or candle fails.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use sala_models::ops::add;
///
/// let a = Tensor::new(&[1f32, 2.0], &Device::Cpu)?;
/// let b = Tensor::new(&[10f32, 20.0], &Device::Cpu)?;
/// assert_eq!(add(&a, &b)?.to_vec1::<f32>()?, [11.0, 22.0]);
/// assert!(add(&a, &b.reshape((2, 1))?).is_err());
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    check_values("add", "a", a)?;
    if (a.shape(), a.dtype()) != (b.shape(), b.dtype()) {
        let of = |t: &Tensor| format!("shape {:?} of {:?}", t.dims(), t.dtype());
        return Err(refuse("add", "b", format!("{}, as `a`", of(a)), of(b)));
    }
    if let Some(card) = card::serving(a)?
        && a.device().same_device(b.device())
    {
        return card::sum::add(card, &a.contiguous()?, &b.contiguous()?);
    }
    if kernels::fast(a)? && b.device().is_cpu() {
        return sum::add(&a.contiguous()?, &b.contiguous()?);
    }
    a + b
}
