//! The rectified linear unit, and the one that is cut off at 6.
//!
//! `relu(x) = max(x, 0)`. Its derivative at 0 is taken to be 0, as everywhere; candle's is 1 there,
//! which matters where many values are exactly 0, as after another relu.
//!
//! `relu6(x) = min(max(x, 0), 6)` (Krizhevsky 2010), for networks whose values are to fit into few bits.
//! Its derivative is 0 at 0 and at 6.

use candle_core::{Result, Tensor};

use super::checks::check_values;
use crate::kernels::{
    self,
    activation::{Relu, Relu6, activation},
    card::{
        self,
        activation::{RELU, RELU6},
    },
};

/// `max(x, 0)` for each entry: any shape, any float dtype. NaN stays NaN.
///
/// # Errors
/// When `x` is empty or not of floats, or candle fails.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use sala_models::ops::relu;
///
/// let x = Var::new(&[-1f64, 0., 2.], &Device::Cpu)?;
/// let y = relu(&x)?;
/// assert_eq!(y.to_vec1::<f64>()?, [0., 0., 2.]);
/// let slope = y.sum_all()?.backward()?.get(&x).unwrap().to_vec1::<f64>()?;
/// assert_eq!(slope, [0., 0., 1.]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn relu(x: &Tensor) -> Result<Tensor> {
    check_values("relu", "x", x)?;
    if let Some(card) = card::serving(x)? {
        return card::activation::activation(card, RELU, x);
    }
    if kernels::fast(x)? {
        return activation::<Relu>(&x.contiguous()?);
    }
    composed(x)
}

/// `min(max(x, 0), 6)` for each entry: any shape, any float dtype. NaN stays NaN.
///
/// # Errors
/// As for [`relu`].
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use sala_models::ops::relu6;
///
/// let x = Var::new(&[-1f64, 2., 6., 7.], &Device::Cpu)?;
/// let y = relu6(&x)?;
/// assert_eq!(y.to_vec1::<f64>()?, [0., 2., 6., 6.]);
/// let slope = y.sum_all()?.backward()?.get(&x).unwrap().to_vec1::<f64>()?;
/// assert_eq!(slope, [0., 1., 0., 0.]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn relu6(x: &Tensor) -> Result<Tensor> {
    check_values("relu6", "x", x)?;
    if let Some(card) = card::serving(x)? {
        return card::activation::activation(card, RELU6, x);
    }
    if kernels::fast(x)? {
        return activation::<Relu6>(&x.contiguous()?);
    }
    let six = x.ones_like()?.detach().affine(6.0, 0.0)?;
    let cut = x.detach().ge(6.0)?;
    cut.where_cond(&six, &composed(x)?)
}

fn composed(x: &Tensor) -> Result<Tensor> {
    // Of a NaN neither x > 0 nor x <= 0 holds; it is to be seen in the result.
    let dropped = x.detach().le(0.0)?;
    dropped.where_cond(&x.zeros_like()?.detach(), x)
}
