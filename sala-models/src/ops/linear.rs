//! Fully connected layers.
//!
//! Weight and bias start from `U(−1/√fan_in, 1/√fan_in)`, as those of `torch.nn.Linear` do.
//! [`candle_nn::linear()`] draws its weights from a Kaiming normal instead, of variance `2/fan_in`:
//! six times as much, so a recipe tuned on `PyTorch` starts elsewhere.

use candle_core::{Module, Result, Tensor};
use candle_nn::{Init, VarBuilder};

use super::checks::{accumulator, check_companion, check_values, last_dim, refuse_shape};
use crate::{
    Error,
    kernels::{self, card},
};

const OP: &str = "linear";

/// `x·Wᵀ + b`: from `x (…, I)`, `weight (O, I)` and `bias (O)` to `(…, O)`, of `x`'s dtype.
///
/// Half precision is computed in f32 and rounded once; parameters have `x`'s dtype or the one it is
/// computed in. On a graphics card a product takes factors of one dtype, so parameters of f32 are
/// rounded to an `x` of half precision first, as `torch.autocast` does; their gradients are rounded to it,
/// too, and arrive as f32.
///
/// # Errors
/// When a tensor is empty, not of floats, of another dtype or does not fit the others, or candle fails.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use sala_models::ops::linear;
///
/// let x = Tensor::new(&[[1f32, 2.]], &Device::Cpu)?;
/// let weight = Tensor::new(&[[1f32, 1.], [3., -1.]], &Device::Cpu)?;
/// let bias = Tensor::new(&[0f32, 10.], &Device::Cpu)?;
/// assert_eq!(linear(&x, &weight, Some(&bias))?.to_vec2::<f32>()?, [[3., 11.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (inputs, outputs) = check(x, weight, bias)?;
    if let Some(card) = card::serving(x)? {
        let fitting = |t: &Tensor| t.to_dtype(x.dtype())?.contiguous();
        let bias = bias.map(fitting).transpose()?;
        return card::linear::linear(card, &x.contiguous()?, &fitting(weight)?, bias.as_ref());
    }
    let dtype = accumulator(x.dtype());
    let (values, weight) = (x.to_dtype(dtype)?, weight.to_dtype(dtype)?);
    let bias = bias.map(|bias| bias.to_dtype(dtype)).transpose()?;
    let y = if kernels::fast(&values)? {
        let bias = bias.map(|bias| bias.contiguous()).transpose()?;
        kernels::linear::linear(&values.contiguous()?, &weight.contiguous()?, bias.as_ref())?
    } else {
        let rows = values.reshape(((), inputs))?;
        let mut dims = x.dims().to_vec();
        dims.pop();
        dims.push(outputs);
        composed(&rows, &weight, bias.as_ref())?.reshape(dims)?
    };
    y.to_dtype(x.dtype())
}

/// `rows (M, I)` to `(M, O)` in plain candle operations.
fn composed(rows: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let product = rows.matmul(&weight.t()?)?;
    match bias {
        Some(bias) => product.broadcast_add(bias),
        None => Ok(product),
    }
}

/// The numbers of inputs and of outputs.
fn check(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<(usize, usize)> {
    check_values(OP, "x", x)?;
    check_values(OP, "weight", weight)?;
    check_companion(OP, "weight", weight, x)?;
    let inputs = last_dim(OP, "x", x)?;
    let outputs = match *weight.dims() {
        [outputs, of] if of == inputs => outputs,
        _ => {
            let wanted = format!("of shape (O, {inputs})");
            return Err(refuse_shape(OP, "weight", wanted, weight));
        }
    };
    if let Some(bias) = bias {
        if bias.dims() != [outputs] {
            return Err(refuse_shape(
                OP,
                "bias",
                format!("of shape ({outputs})"),
                bias,
            ));
        }
        check_companion(OP, "bias", bias, x)?;
    }
    Ok((inputs, outputs))
}

/// [`linear()`] with its parameters: `weight (outputs, inputs)` and, unless it was left out,
/// `bias (outputs)`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// A layer from `(…, inputs)` to `(…, outputs)` with its parameters under the builder's prefix.
    ///
    /// # Errors
    /// When a size is zero, or the store holds such a name with another shape.
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use sala_models::{VarStore, ops::Linear};
    ///
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// let layer = Linear::new(784, 10, store.builder().pp("head"))?;
    /// assert_eq!(layer.weight().dims(), [10, 784]);
    /// assert!(store.get("head.bias").is_some());
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    pub fn new(inputs: usize, outputs: usize, vb: VarBuilder) -> crate::Result<Self> {
        let init = fan_in_uniform(OP, inputs, outputs)?;
        Self::with_init(inputs, outputs, init, Some(init), vb)
    }

    /// [`Linear::new`] without the bias.
    ///
    /// # Errors
    /// As for [`Linear::new`].
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use sala_models::{VarStore, ops::Linear};
    ///
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// let layer = Linear::without_bias(6, 2, store.builder())?;
    /// assert!(layer.bias().is_none());
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    pub fn without_bias(inputs: usize, outputs: usize, vb: VarBuilder) -> crate::Result<Self> {
        let init = fan_in_uniform(OP, inputs, outputs)?;
        Self::with_init(inputs, outputs, init, None, vb)
    }

    /// [`Linear::new`] with other initial values: those of the weight, and of the bias or `None` for no bias.
    ///
    /// # Errors
    /// As for [`Linear::new`], and when an initialisation makes no sense.
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use candle_nn::Init;
    /// use sala_models::{VarStore, ops::Linear};
    ///
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// let (zero, normal) = (Init::Const(0.0), Init::Randn { mean: 0.0, stdev: 0.02 });
    /// let layer = Linear::with_init(4, 2, normal, Some(zero), store.builder())?;
    /// assert_eq!(layer.bias().ok_or("no bias")?.to_vec1::<f32>()?, [0.0; 2]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[expect(
        clippy::needless_pass_by_value,
        reason = "candle's layers take the builder by value"
    )]
    pub fn with_init(
        inputs: usize,
        outputs: usize,
        weight: Init,
        bias: Option<Init>,
        vb: VarBuilder,
    ) -> crate::Result<Self> {
        check_sizes(OP, inputs, outputs)?;
        let bias = bias.map(|init| vb.get_with_hints(outputs, "bias", init));
        Ok(Self {
            weight: vb.get_with_hints((outputs, inputs), "weight", weight)?,
            bias: bias.transpose()?,
        })
    }

    /// A layer of parameters that exist: `weight (outputs, inputs)`, `bias (outputs)`; for weights that
    /// two layers share. They are checked when the layer is used.
    pub const fn from_parts(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// The weight, `(outputs, inputs)`.
    pub const fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The bias, `(outputs)`.
    pub const fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}

impl Module for Linear {
    /// As [`linear()`].
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &self.weight, self.bias.as_ref())
    }
}

/// `U(−1/√fan_in, 1/√fan_in)`, for a layer that has inputs and outputs.
pub(crate) fn fan_in_uniform(
    op: &'static str,
    fan_in: usize,
    outputs: usize,
) -> crate::Result<Init> {
    check_sizes(op, fan_in, outputs)?;
    let bound = 1.0 / (fan_in as f64).sqrt();
    Ok(Init::Uniform {
        lo: -bound,
        up: bound,
    })
}

/// Refuses a layer without inputs or outputs.
pub(super) fn check_sizes(op: &'static str, fan_in: usize, outputs: usize) -> crate::Result<()> {
    for (argument, size) in [("fan_in", fan_in), ("outputs", outputs)] {
        if size == 0 {
            return Err(Error::Argument {
                op,
                argument,
                wanted: "at least 1".into(),
                got: "0".into(),
            });
        }
    }
    Ok(())
}
