//! Fully connected layers; [`kernels::linear`](crate::kernels::linear) has the equations.

use candle_core::{Result, Tensor};

use super::{
    Card,
    product::product,
    tiles::{add_bias, column_sums},
};
use crate::kernels::graph::{self, Input, Operation};

/// `x (…, I)`, `weight (O, I)` and `bias (O)` to `(…, O)`: contiguous tensors of one type.
pub(crate) fn linear(
    card: Card,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let tensors: Vec<&Tensor> = [x, weight].into_iter().chain(bias).collect();
    graph::apply(Linear { card }, &tensors)
}

struct Linear {
    card: Card,
}

/// `(…, n)` as `(rows, n)`.
fn rows(x: &Tensor) -> Result<Tensor> {
    x.reshape(((), x.dim(candle_core::D::Minus1)?))
}

impl Operation for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let (x, weight) = (inputs[0], inputs[1]);
        let y = product(&rows(x)?, &weight.t()?)?;
        if let Some(bias) = inputs.get(2) {
            add_bias(&self.card, &y, bias)?;
        }
        let mut dims = x.dims().to_vec();
        dims.pop();
        dims.push(weight.dim(0)?);
        y.reshape(dims)
    }

    fn backward(&self, inputs: &[Input], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let (x, weight) = (&inputs[0], &inputs[1]);
        let dy = rows(dy)?;
        let wanted =
            |input: &Input, of: &dyn Fn() -> Result<Tensor>| input.tracked.then(of).transpose();
        let of_x = wanted(x, &|| product(&dy, &weight.value)?.reshape(x.value.shape()))?;
        let of_weight = wanted(weight, &|| product(&dy.t()?, &rows(&x.value)?))?;
        let of_bias = match inputs.get(2) {
            Some(bias) => wanted(bias, &|| column_sums(&self.card, &dy, dy.dim(1)?))?,
            None => None,
        };
        Ok(vec![of_x, of_weight, of_bias])
    }
}
