//! Gaussian error linear units.
//!
//! With the normal distribution function `Φ` (Hendrycks and Gimpel 2016, arXiv:1606.08415):
//!
//! ```text
//! gelu(x)      = x Φ(x) = x (1 + erf(x / √2)) / 2
//! gelu_tanh(x) = x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2
//! ```
//!
//! candle's `gelu_erf` and `gelu` have these values, but the backward of each works with constants
//! of six digits: its gradient is off by some 1e-6 of its size, in f64 as well.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI};

use candle_core::{Result, Tensor};

use super::checks::{accumulator, check_values};
use crate::kernels::{
    self,
    activation::{Gelu, GeluTanh, activation},
    card::{
        self,
        activation::{GELU, GELU_TANH},
    },
};

/// The exact form, `torch.nn.functional.gelu(x)`: any shape, half precision in f32.
///
/// # Errors
/// When `x` is empty or not of floats, or candle fails.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use sala_models::ops::gelu;
///
/// let y = gelu(&Tensor::new(&[0f64, 1.], &Device::Cpu)?)?.to_vec1::<f64>()?;
/// assert!(y[0] == 0. && (y[1] - 0.841_344_746).abs() < 1e-9);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    check_values("gelu", "x", x)?;
    if let Some(card) = card::serving(x)? {
        return card::activation::activation(card, GELU, x);
    }
    let values = x.to_dtype(accumulator(x.dtype()))?;
    let y = if kernels::fast(&values)? {
        activation::<Gelu>(&values.contiguous()?)?
    } else {
        composed(&values)?
    };
    y.to_dtype(x.dtype())
}

fn composed(x: &Tensor) -> Result<Tensor> {
    let twice = (x.affine(FRAC_1_SQRT_2, 0.0)?.erf()? + 1.0)?;
    (x * twice)?.affine(0.5, 0.0)
}

/// The approximation of GPT-2 and others, `torch.nn.functional.gelu(x, approximate="tanh")`: any
/// shape, half precision in f32. It differs from [`gelu()`] by less than 5e-4.
///
/// # Errors
/// When `x` is empty or not of floats, or candle fails.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use sala_models::ops::gelu_tanh;
///
/// let y = gelu_tanh(&Tensor::new(&[0f64, 1.], &Device::Cpu)?)?.to_vec1::<f64>()?;
/// assert!(y[0] == 0. && (y[1] - 0.841_192).abs() < 1e-6);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    check_values("gelu_tanh", "x", x)?;
    if let Some(card) = card::serving(x)? {
        return card::activation::activation(card, GELU_TANH, x);
    }
    let values = x.to_dtype(accumulator(x.dtype()))?;
    let y = if kernels::fast(&values)? {
        activation::<GeluTanh>(&values.contiguous()?)?
    } else {
        composed_tanh(&values)?
    };
    y.to_dtype(x.dtype())
}

fn composed_tanh(x: &Tensor) -> Result<Tensor> {
    // x + 0.044715 x³ = x (1 + 0.044715 x²)
    let bent = (x * x.sqr()?.affine(0.044_715, 1.0)?)?;
    let twice = (bent.affine(FRAC_2_PI.sqrt(), 0.0)?.tanh()? + 1.0)?;
    (x * twice)?.affine(0.5, 0.0)
}
