//! Layer normalisation over the last dimension.
//!
//! For each row of `n` values (Ba, Kiros and Hinton 2016, arXiv:1607.06450):
//!
//! ```text
//! μ = Σ x / n        σ² = Σ (x − μ)² / n        y = γ (x − μ) / √(σ² + ε) + β
//! ```
//!
//! The variance is the biased one and is computed from centred values, as for
//! [batch norm](super::batch_norm). `PyTorch` can normalise over several last dimensions; here it
//! is always one, to which others can be flattened.
//!
//! candle's `LayerNorm` with a bias runs a fused operation that has no backward: neither its input
//! nor its parameters receive a gradient.

use candle_core::{D, Result, Tensor};
use candle_nn::{Init, VarBuilder};

use super::checks::{accumulator, check_per_feature, check_positive, check_size, check_values};
use crate::kernels::{self, card, norm};

const OP: &str = "layer_norm";

/// Normalises each row of `x (…, n)` to mean 0 and variance 1, then scales by `weight (n)` and adds
/// `bias (n)`.
///
/// The result has `x`'s shape and dtype. Half precision is computed in f32 and rounded once;
/// parameters have `x`'s dtype or the one it is computed in. `x` may have any strides.
///
/// # Errors
/// When `x` is empty, a scalar or not of floats, a parameter has another shape or dtype, `eps` is
/// not positive and finite, or candle fails.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use sala_models::ops::layer_norm;
///
/// let x = Tensor::new(&[[1f64, 3.], [-5., 5.]], &Device::Cpu)?;
/// let weight = Tensor::ones(2, DType::F64, &Device::Cpu)?;
/// let y = layer_norm(&x, &weight, None, 1e-12)?.to_vec2::<f64>()?;
/// assert!((y[0][0] + 1.).abs() < 1e-9 && (y[1][1] - 1.).abs() < 1e-9);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    check_values(OP, "x", x)?;
    check_positive(OP, "eps", eps)?;
    check_per_feature(OP, "weight", weight, x)?;
    if let Some(bias) = bias {
        check_per_feature(OP, "bias", bias, x)?;
    }
    if let Some(card) = card::serving(x)? {
        return card::norm::layer_norm(card, &x.contiguous()?, weight, bias, eps);
    }
    let dtype = accumulator(x.dtype());
    let (values, weight) = (x.to_dtype(dtype)?, weight.to_dtype(dtype)?);
    let bias = bias.map(|bias| bias.to_dtype(dtype)).transpose()?;
    let y = if kernels::fast(&values)? {
        norm::layer_norm(&values.contiguous()?, &weight, bias.as_ref(), eps)?
    } else {
        composed(&values, &weight, bias.as_ref(), eps)?
    };
    y.to_dtype(x.dtype())
}

fn composed(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    let scaled = centred.broadcast_div(&deviation)?.broadcast_mul(weight)?;
    match bias {
        Some(bias) => scaled.broadcast_add(bias),
        None => Ok(scaled),
    }
}

/// [`layer_norm()`] with its parameters: `weight (size)`, which starts at 1, and unless it was
/// left out `bias (size)`, which starts at 0.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Option<Tensor>,
    eps: f64,
}

impl LayerNorm {
    /// A layer for rows of `size` values, with its parameters under the builder's prefix.
    /// `PyTorch`'s `eps` is 1e-5.
    ///
    /// # Errors
    /// When `size` is zero, `eps` is not positive and finite, or the store holds one of the names
    /// with another shape.
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use sala_models::{VarStore, ops::LayerNorm};
    ///
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// LayerNorm::new(8, 1e-5, store.builder().pp("norm"))?;
    /// assert_eq!(store.num_parameters(), 16);
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    pub fn new(size: usize, eps: f64, vb: VarBuilder) -> crate::Result<Self> {
        let mut layer = Self::without_bias(size, eps, vb.clone())?;
        layer.bias = Some(vb.get_with_hints(size, "bias", Init::Const(0.0))?);
        Ok(layer)
    }

    /// [`LayerNorm::new`] without the bias.
    ///
    /// # Errors
    /// As for [`LayerNorm::new`].
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use sala_models::{VarStore, ops::LayerNorm};
    ///
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// LayerNorm::without_bias(8, 1e-5, store.builder().pp("norm"))?;
    /// assert_eq!(store.num_parameters(), 8);
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    pub fn without_bias(size: usize, eps: f64, vb: VarBuilder) -> crate::Result<Self> {
        check_size(OP, "size", size)?;
        check_positive(OP, "eps", eps)?;
        Ok(Self {
            weight: vb.get_with_hints(size, "weight", Init::Const(1.0))?,
            bias: None,
            eps,
        })
    }

    /// Normalises `x (…, size)`.
    ///
    /// # Errors
    /// As for [`layer_norm()`].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        layer_norm(x, &self.weight, self.bias.as_ref(), self.eps)
    }
}
