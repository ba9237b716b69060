//! Root mean square normalisation over the last dimension.
//!
//! For each row of `n` values (Zhang and Sennrich 2019, arXiv:1910.07467):
//!
//! ```text
//! y = γ x / √(Σ x² / n + ε)
//! ```
//!
//! `ε` stands under the root, as in `PyTorch` and Llama. candle's `RmsNorm` runs a fused operation
//! that has no backward: neither its input nor its weight receives a gradient.

use candle_core::{D, Result, Tensor};
use candle_nn::{Init, VarBuilder};

use super::checks::{accumulator, check_per_feature, check_positive, check_size, check_values};
use crate::kernels::{self, card, norm};

const OP: &str = "rms_norm";

/// Divides each row of `x (…, n)` by its root mean square, then scales by `weight (n)`.
///
/// The result has `x`'s shape and dtype. Half precision is computed in f32, the product with the
/// weight included, and rounded once; the weight has `x`'s dtype or the one it is computed in. `x`
/// may have any strides.
///
/// # Errors
/// When `x` is empty, a scalar or not of floats, the weight has another shape or dtype, `eps` is
/// not positive and finite, or candle fails.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use sala_models::ops::rms_norm;
///
/// let x = Tensor::new(&[3f64, 3., 3.], &Device::Cpu)?;
/// let weight = Tensor::new(&[1f64, 2., 4.], &Device::Cpu)?;
/// let y = rms_norm(&x, &weight, 1e-12)?.to_vec1::<f64>()?;
/// assert!((y[2] - 4.).abs() < 1e-9);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    check_values(OP, "x", x)?;
    check_positive(OP, "eps", eps)?;
    check_per_feature(OP, "weight", weight, x)?;
    if let Some(card) = card::serving(x)? {
        return card::norm::rms_norm(card, &x.contiguous()?, weight, eps);
    }
    let dtype = accumulator(x.dtype());
    let (values, weight) = (x.to_dtype(dtype)?, weight.to_dtype(dtype)?);
    let y = if kernels::fast(&values)? {
        norm::rms_norm(&values.contiguous()?, &weight, eps)?
    } else {
        composed(&values, &weight, eps)?
    };
    y.to_dtype(x.dtype())
}

fn composed(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let size = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    x.broadcast_div(&size)?.broadcast_mul(weight)
}

/// [`rms_norm()`] with its parameter `weight (size)`, which starts at 1.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// A layer for rows of `size` values, with its weight under the builder's prefix.
    ///
    /// # Errors
    /// When `size` is zero, `eps` is not positive and finite, or the store holds the name with
    /// another shape.
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use sala_models::{VarStore, ops::RmsNorm};
    ///
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// RmsNorm::new(8, 1e-6, store.builder().pp("norm"))?;
    /// assert!(store.get("norm.weight").is_some());
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    pub fn new(size: usize, eps: f64, vb: VarBuilder) -> crate::Result<Self> {
        check_size(OP, "size", size)?;
        check_positive(OP, "eps", eps)?;
        let weight = vb.get_with_hints(size, "weight", Init::Const(1.0))?;
        Ok(Self { weight, eps })
    }

    /// Normalises `x (…, size)`.
    ///
    /// # Errors
    /// As for [`rms_norm()`].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        rms_norm(x, &self.weight, self.eps)
    }
}
