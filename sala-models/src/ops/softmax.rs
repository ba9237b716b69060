//! Softmax and its logarithm over one dimension, with and without a mask.
//!
//! ```text
//! m = max x        softmax(x)ᵢ = exp(xᵢ − m) / Σⱼ exp(xⱼ − m)
//!                  log softmax(x)ᵢ = xᵢ − m − log Σⱼ exp(xⱼ − m)
//! ```
//!
//! The results do not depend on `m`, which keeps `exp` from overflowing, so no gradient flows
//! through it. `candle_nn`'s `softmax_last_dim` has no backward: the gradient ends there.
//!
//! A row in which the mask leaves nothing has no softmax (0/0, which `torch.softmax` gives as NaN).
//! [`masked_softmax`] returns zeros for it, and its gradient is zero: such rows are the padding of
//! a batch, whose outputs nobody reads, while one NaN among them would spoil every gradient.
//! `PyTorch`'s attention makes the same choice.

use candle_core::{DType, Result, Tensor, shape::Dim};

use super::checks::{accumulator, check_companion, check_values, refuse_shape};
use crate::kernels::{
    self,
    card::{self, Card},
    softmax as fast,
};

/// The softmax of `x` over `dim`, of `x`'s shape and dtype; half precision is computed in f32.
///
/// # Errors
/// When `x` is empty or not of floats, it has no dimension `dim`, or candle fails.
///
/// ```
/// use candle_core::{D, Device, Tensor};
/// use sala_models::ops::softmax;
///
/// let x = Tensor::new(&[[0f64, 0.], [1000., 1000.]], &Device::Cpu)?;
/// assert_eq!(softmax(&x, D::Minus1)?.to_vec2::<f64>()?, [[0.5, 0.5], [0.5, 0.5]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn softmax(x: &Tensor, dim: impl Dim) -> Result<Tensor> {
    check_values("softmax", "x", x)?;
    let dim = dim.to_index(x.shape(), "softmax")?;
    if let Some(card) = serving(x, dim)? {
        return card::softmax::softmax(card, &x.contiguous()?);
    }
    let values = x.to_dtype(accumulator(x.dtype()))?;
    let y = if fits(&values, dim)? {
        fast::softmax(&values.contiguous()?)?
    } else {
        composed(&values, dim)?
    };
    y.to_dtype(x.dtype())
}

fn composed(x: &Tensor, dim: usize) -> Result<Tensor> {
    let powers = below_maximum(x, dim)?.exp()?;
    powers.broadcast_div(&powers.sum_keepdim(dim)?)
}

/// Whether there is a fast form for this dimension of `x`: those are for the last.
fn fits(x: &Tensor, dim: usize) -> Result<bool> {
    Ok(dim + 1 == x.rank() && kernels::fast(x)?)
}

/// The card with a fast form for this dimension of `x`.
fn serving(x: &Tensor, dim: usize) -> Result<Option<Card>> {
    Ok(card::serving(x)?.filter(|_| dim + 1 == x.rank()))
}

/// The logarithm of [`softmax`], without the detour through numbers that underflow.
///
/// # Errors
/// When `x` is empty or not of floats, it has no dimension `dim`, or candle fails.
///
/// ```
/// use candle_core::{D, Device, Tensor};
/// use sala_models::ops::log_softmax;
///
/// let x = Tensor::new(&[0f64, 2000.], &Device::Cpu)?;
/// assert_eq!(log_softmax(&x, D::Minus1)?.to_vec1::<f64>()?, [-2000., 0.]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn log_softmax(x: &Tensor, dim: impl Dim) -> Result<Tensor> {
    check_values("log_softmax", "x", x)?;
    let dim = dim.to_index(x.shape(), "log_softmax")?;
    if let Some(card) = serving(x, dim)? {
        return card::softmax::log_softmax(card, &x.contiguous()?);
    }
    let values = x.to_dtype(accumulator(x.dtype()))?;
    let y = if fits(&values, dim)? {
        fast::log_softmax(&values.contiguous()?)?
    } else {
        composed_log(&values, dim)?
    };
    y.to_dtype(x.dtype())
}

fn composed_log(x: &Tensor, dim: usize) -> Result<Tensor> {
    let shifted = below_maximum(x, dim)?;
    let log_sum = shifted.exp()?.sum_keepdim(dim)?.log()?;
    shifted.broadcast_sub(&log_sum)
}

/// The softmax of `x` over `dim`, of the entries that `mask` leaves.
///
/// A mask of dtype u8 leaves the entries where it is not zero; what `x` holds elsewhere, NaN
/// included, does not matter. A mask of floats, of `x`'s dtype or the one it is computed in, is
/// added to `x` and receives a gradient; its entries are finite or −∞. Both may have any shape that
/// broadcasts to `x`'s. A row of which nothing is left becomes zeros.
///
/// # Errors
/// When `x` is empty or not of floats, it has no dimension `dim`, the mask is of another dtype or
/// does not broadcast to `x`'s shape, or candle fails.
///
/// ```
/// use candle_core::{D, Device, Tensor};
/// use sala_models::ops::masked_softmax;
///
/// let x = Tensor::new(&[[1f64, 1., 9.], [1., 1., 9.]], &Device::Cpu)?;
/// let mask = Tensor::new(&[[1u8, 1, 0], [0, 0, 0]], &Device::Cpu)?;
/// let y = masked_softmax(&x, &mask, D::Minus1)?;
/// assert_eq!(y.to_vec2::<f64>()?, [[0.5, 0.5, 0.], [0., 0., 0.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn masked_softmax(x: &Tensor, mask: &Tensor, dim: impl Dim) -> Result<Tensor> {
    const OP: &str = "masked_softmax";
    check_values(OP, "x", x)?;
    let dim = dim.to_index(x.shape(), OP)?;
    check_mask(OP, x, mask)?;
    // An added mask that is to be differentiated is left to candle.
    if let Some(card) = serving(x, dim)?.filter(|_| !mask.track_op()) {
        return card::softmax::masked_softmax(card, &x.contiguous()?, mask);
    }
    let mask = fitting(x, mask)?;
    let values = x.to_dtype(accumulator(x.dtype()))?;
    let y = if fits(&values, dim)? {
        fast::masked_softmax(&values.contiguous()?, &mask)?
    } else {
        composed_masked(&values, &mask, dim)?
    };
    y.to_dtype(x.dtype())
}

fn composed_masked(x: &Tensor, mask: &Tensor, dim: usize) -> Result<Tensor> {
    let scores = masked(x, mask)?;
    let max = scores.detach().max_keepdim(dim)?;
    // Not by the maximum: where Metal finds none it returns the lowest finite number.
    let left = scores.detach().ge(lowest(scores.dtype()))?;
    let nothing_left = left.to_dtype(DType::F32)?.sum_keepdim(dim)?.eq(0.0)?;
    // −∞ − (−∞) would be NaN.
    let shift = nothing_left.where_cond(&max.zeros_like()?, &max)?;
    let powers = scores.broadcast_sub(&shift)?.exp()?;
    // All powers of such a row are 0, and 0 / 1 has the value and the gradient that are wanted.
    let sum = (powers.sum_keepdim(dim)? + nothing_left.to_dtype(powers.dtype())?)?;
    powers.broadcast_div(&sum)
}

/// The lowest number of the dtype of a computation that is not −∞.
fn lowest(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => f64::MIN,
        _ => f64::from(f32::MIN),
    }
}

/// Refuses a mask that does not broadcast to `x`'s shape, or of another dtype than `x` can be masked with.
fn check_mask(op: &'static str, x: &Tensor, mask: &Tensor) -> Result<()> {
    if mask.broadcast_as(x.shape()).is_err() {
        let wanted = format!("a shape that broadcasts to {:?}", x.dims());
        return Err(refuse_shape(op, "mask", wanted, mask));
    }
    if mask.dtype() == DType::U8 {
        return Ok(());
    }
    check_companion(op, "mask", mask, x)
}

/// The mask, one of floats in the dtype of the computation.
fn fitting(x: &Tensor, mask: &Tensor) -> Result<Tensor> {
    if mask.dtype() == DType::U8 {
        return Ok(mask.clone());
    }
    mask.to_dtype(accumulator(x.dtype()))
}

/// `x` with −∞ where the mask leaves nothing.
fn masked(x: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let whole = mask.broadcast_as(x.shape())?;
    if mask.dtype() == DType::U8 {
        let nothing = Tensor::new(f32::NEG_INFINITY, x.device())?
            .to_dtype(x.dtype())?
            .broadcast_as(x.shape())?;
        return whole.where_cond(x, &nothing);
    }
    x + whole
}

/// `x − max x`; the maximum is a constant to the gradient.
fn below_maximum(x: &Tensor, dim: usize) -> Result<Tensor> {
    x.broadcast_sub(&x.detach().max_keepdim(dim)?)
}
