//! The sigmoid linear unit, also called swish.
//!
//! `silu(x) = x / (1 + exp(−x))` (Elfwing, Uchibe and Doya 2017, arXiv:1702.03118). candle's
//! operation has the right gradient; what is added here is that half precision is computed in f32,
//! in both directions.

use candle_core::{Result, Tensor};

use super::checks::{accumulator, check_values};
use crate::kernels::{
    self,
    activation::{Silu, activation},
    card::{self, activation::SILU},
};

/// `x / (1 + exp(−x))` for each entry: any shape, half precision in f32.
///
/// # Errors
/// When `x` is empty or not of floats, or candle fails.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use sala_models::ops::silu;
///
/// let y = silu(&Tensor::new(&[0f64, 1.], &Device::Cpu)?)?.to_vec1::<f64>()?;
/// assert!(y[0] == 0. && (y[1] - 0.731_058_578).abs() < 1e-9);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn silu(x: &Tensor) -> Result<Tensor> {
    check_values("silu", "x", x)?;
    if let Some(card) = card::serving(x)? {
        return card::activation::activation(card, SILU, x);
    }
    let values = x.to_dtype(accumulator(x.dtype()))?;
    let y = if kernels::fast(&values)? {
        activation::<Silu>(&values.contiguous()?)?
    } else {
        values.silu()?
    };
    y.to_dtype(x.dtype())
}
