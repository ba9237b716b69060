//! Fully connected layers with `PyTorch`'s default initialisation.
//!
//! Weight and bias are both drawn from `U(−1/√fan_in, 1/√fan_in)`, as `torch.nn.Linear` does.
//! [`candle_nn::linear()`] draws its weights from a Kaiming normal instead, of variance `2/fan_in`:
//! six times as much, so a recipe tuned on `PyTorch` starts elsewhere. The layer type is candle's.

use candle_nn::{Init, Linear, VarBuilder};

use crate::{Error, Result};

/// A layer `y = x·Wᵀ + b` from `(…, inputs)` to `(…, outputs)`, with the parameters
/// `weight (outputs, inputs)` and `bias (outputs)` under the builder's prefix.
///
/// # Errors
/// When a size is zero, or the store holds such a name with another shape.
///
/// ```
/// use candle_core::{DType, Device};
/// use sala_models::{VarStore, ops::linear};
///
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let layer = linear(784, 10, store.builder().pp("head"))?;
/// assert_eq!(layer.weight().dims(), [10, 784]);
/// assert!(store.get("head.bias").is_some());
/// # Ok::<(), sala_models::Error>(())
/// ```
#[expect(
    clippy::needless_pass_by_value,
    reason = "candle's layers take the builder by value"
)]
pub fn linear(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Linear> {
    let init = fan_in_uniform("linear", inputs, outputs)?;
    let weight = vb.get_with_hints((outputs, inputs), "weight", init)?;
    let bias = vb.get_with_hints(outputs, "bias", init)?;
    Ok(Linear::new(weight, Some(bias)))
}

/// A layer `y = x·Wᵀ` from `(…, inputs)` to `(…, outputs)`: [`linear()`] without the bias.
///
/// # Errors
/// When a size is zero, or the store holds such a name with another shape.
///
/// ```
/// use candle_core::{DType, Device};
/// use sala_models::{VarStore, ops::linear_no_bias};
///
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let layer = linear_no_bias(6, 2, store.builder())?;
/// assert!(layer.bias().is_none());
/// # Ok::<(), sala_models::Error>(())
/// ```
#[expect(
    clippy::needless_pass_by_value,
    reason = "candle's layers take the builder by value"
)]
pub fn linear_no_bias(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Linear> {
    let init = fan_in_uniform("linear_no_bias", inputs, outputs)?;
    let weight = vb.get_with_hints((outputs, inputs), "weight", init)?;
    Ok(Linear::new(weight, None))
}

/// `U(−1/√fan_in, 1/√fan_in)`, for a layer that has inputs and outputs.
pub(crate) fn fan_in_uniform(op: &'static str, fan_in: usize, outputs: usize) -> Result<Init> {
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
    let bound = 1.0 / (fan_in as f64).sqrt();
    Ok(Init::Uniform {
        lo: -bound,
        up: bound,
    })
}
