//! Convolution of images whose channels come last, by cuDNN where the program has it and it knows the shape, else by
//! products of gathered rows ([`gathered`]). [`kernels::conv`](crate::kernels::conv) has the equations.

#[cfg(feature = "cudnn")]
mod cudnn;
mod gathered;
pub(crate) mod search;

use std::sync::OnceLock;

use candle_core::{Result, Tensor};

use super::{
    Card,
    rows::swap_rows,
    tiles::{add_bias, column_sums},
};
use crate::{
    kernels::graph::{self, Input, Operation},
    ops::conv::Geometry,
};

/// The convolution of contiguous tensors of one type: `x (N, H, W, C)`, `weight (O, C / groups, Kh, Kw)`, `bias (O)`;
/// whatever format the geometry says.
pub(crate) fn conv2d(
    card: Card,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    geometry: &Geometry,
) -> Result<Tensor> {
    let op = Conv {
        card,
        geometry: *geometry,
        last: OnceLock::new(),
    };
    let tensors: Vec<&Tensor> = [x, weight].into_iter().chain(bias).collect();
    graph::apply(op, &tensors)
}

struct Conv {
    card: Card,
    geometry: Geometry,
    /// The weight with its channels last, from the forward pass for the backward.
    last: OnceLock<Tensor>,
}

impl Conv {
    /// `(N, Hw, Ww, O)`. `weight (O, Kh, Kw, C / groups)`, here and below.
    fn values(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cudnn")]
        if let Some(y) = cudnn::forward(&self.card, x, weight, &self.geometry)? {
            return Ok(y);
        }
        gathered::forward(&self.card, x, weight, &self.geometry)
    }

    fn input_gradient(&self, dy: &Tensor, weight: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cudnn")]
        if let Some(dx) = cudnn::input_gradient(&self.card, dy, weight, &self.geometry)? {
            return Ok(dx);
        }
        gathered::input_gradient(&self.card, dy, weight, &self.geometry)
    }

    fn weight_gradient(&self, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cudnn")]
        if let Some(dw) = cudnn::weight_gradient(&self.card, x, dy, &self.geometry)? {
            return Ok(dw);
        }
        gathered::weight_gradient(&self.card, x, dy, &self.geometry)
    }
}

/// A weight `(O, I, Kh, Kw)` as `(O, Kh, Kw, I)`.
fn channels_last(card: &Card, weight: &Tensor) -> Result<Tensor> {
    let (outputs, inputs, rows, columns) = weight.dims4()?;
    let last = swap_rows(card, weight, [outputs, inputs, rows * columns, 1])?;
    last.reshape((outputs, rows, columns, inputs))
}

/// The way back.
fn channels_first(card: &Card, weight: &Tensor) -> Result<Tensor> {
    let (outputs, rows, columns, inputs) = weight.dims4()?;
    let first = swap_rows(card, weight, [outputs, rows * columns, inputs, 1])?;
    first.reshape((outputs, inputs, rows, columns))
}

impl Operation for Conv {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let weight = channels_last(&self.card, inputs[1])?;
        let y = self.values(inputs[0], &weight)?;
        if let Some(bias) = inputs.get(2) {
            add_bias(&self.card, &y, bias)?;
        }
        // Set once: there is one forward pass.
        let _ = self.last.set(weight);
        Ok(y)
    }

    fn backward(&self, inputs: &[Input], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let gradient_of = |i: usize| match i {
            0 => match self.last.get() {
                Some(weight) => self.input_gradient(dy, weight),
                None => candle_core::bail!("conv2d: backward before forward"),
            },
            1 => {
                let last = self.weight_gradient(&inputs[0].value, dy)?;
                channels_first(&self.card, &last)
            }
            _ => column_sums(&self.card, dy, self.geometry.outputs),
        };
        (inputs.iter().enumerate())
            .map(|(i, input)| input.tracked.then(|| gradient_of(i)).transpose())
            .collect()
    }
}
