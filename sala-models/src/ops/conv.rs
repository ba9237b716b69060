//! Two-dimensional convolutions with `PyTorch`'s default initialisation.
//!
//! Weight and bias are both drawn from `U(−1/√fan_in, 1/√fan_in)`, where `fan_in` counts the
//! inputs of one output value: `(inputs / groups) · kernel²`. The layer type is candle's own. Its
//! backward is slow (a plain loop on the CPU), and with a stride it returns an error when height and
//! width leave different remainders, as 5 × 4 does for a stride of 2; square images are safe.

use candle_nn::{Conv2d, Conv2dConfig, Init, VarBuilder};

use super::linear::fan_in_uniform;
use crate::{Error, Result};

/// A convolution from `(N, inputs, H, W)` to `(N, outputs, H', W')` with a square kernel, with the
/// parameters `weight (outputs, inputs / groups, kernel, kernel)` and `bias (outputs)`.
///
/// # Errors
/// When a size is zero, `groups` does not divide both channel counts, or the store holds such a
/// name with another shape.
///
/// ```
/// use candle_core::{DType, Device};
/// use candle_nn::Conv2dConfig;
/// use sala_models::{VarStore, ops::conv2d};
///
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let same_size = Conv2dConfig { padding: 1, ..Default::default() };
/// let layer = conv2d(3, 16, 3, same_size, store.builder())?;
/// assert_eq!(layer.weight().dims(), [16, 3, 3, 3]);
/// # Ok::<(), sala_models::Error>(())
/// ```
#[expect(
    clippy::needless_pass_by_value,
    reason = "candle's layers take the builder by value"
)]
pub fn conv2d(
    inputs: usize,
    outputs: usize,
    kernel: usize,
    config: Conv2dConfig,
    vb: VarBuilder,
) -> Result<Conv2d> {
    let (shape, init) = weight_spec("conv2d", inputs, outputs, kernel, config.groups)?;
    let weight = vb.get_with_hints(shape, "weight", init)?;
    let bias = vb.get_with_hints(outputs, "bias", init)?;
    Ok(Conv2d::new(weight, Some(bias), config))
}

/// [`conv2d()`] without the bias: what stands before a batch norm, whose own bias would hide it.
///
/// # Errors
/// When a size is zero, `groups` does not divide both channel counts, or the store holds such a
/// name with another shape.
///
/// ```
/// use candle_core::{DType, Device};
/// use candle_nn::Conv2dConfig;
/// use sala_models::{VarStore, ops::conv2d_no_bias};
///
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let depthwise = Conv2dConfig { groups: 8, ..Default::default() };
/// let layer = conv2d_no_bias(8, 8, 3, depthwise, store.builder())?;
/// assert_eq!(layer.weight().dims(), [8, 1, 3, 3]);
/// # Ok::<(), sala_models::Error>(())
/// ```
#[expect(
    clippy::needless_pass_by_value,
    reason = "candle's layers take the builder by value"
)]
pub fn conv2d_no_bias(
    inputs: usize,
    outputs: usize,
    kernel: usize,
    config: Conv2dConfig,
    vb: VarBuilder,
) -> Result<Conv2d> {
    let (shape, init) = weight_spec("conv2d_no_bias", inputs, outputs, kernel, config.groups)?;
    let weight = vb.get_with_hints(shape, "weight", init)?;
    Ok(Conv2d::new(weight, None, config))
}

type WeightShape = (usize, usize, usize, usize);

fn weight_spec(
    op: &'static str,
    inputs: usize,
    outputs: usize,
    kernel: usize,
    groups: usize,
) -> Result<(WeightShape, Init)> {
    if groups == 0 || !inputs.is_multiple_of(groups) || !outputs.is_multiple_of(groups) {
        return Err(Error::Argument {
            op,
            argument: "groups",
            wanted: format!("a divisor of {inputs} inputs and {outputs} outputs"),
            got: groups.to_string(),
        });
    }
    let in_group = inputs / groups;
    let init = fan_in_uniform(op, in_group * kernel * kernel, outputs)?;
    Ok(((outputs, in_group, kernel, kernel), init))
}
