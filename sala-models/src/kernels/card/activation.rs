//! Activations; [`kernels::activation`](crate::kernels::activation) has their equations.

use candle_core::{Result, Tensor};

use super::Card;
use crate::kernels::graph::{self, Input, Operation};

/// The kernel for the values, and the one for the gradient of `x` from `x` and that of the value.
pub(crate) type Pair = (&'static str, &'static str);

pub(crate) const RELU: Pair = ("relu", "relu_back");
pub(crate) const RELU6: Pair = ("relu6", "relu6_back");
pub(crate) const SILU: Pair = ("silu", "silu_back");
pub(crate) const GELU: Pair = ("gelu", "gelu_back");
pub(crate) const GELU_TANH: Pair = ("gelu_tanh", "gelu_tanh_back");

/// An activation of a tensor of any shape.
pub(crate) fn activation(card: Card, kernels: Pair, x: &Tensor) -> Result<Tensor> {
    graph::apply(Activation { card, kernels }, &[&x.contiguous()?])
}

struct Activation {
    card: Card,
    kernels: Pair,
}

impl Operation for Activation {
    fn name(&self) -> &'static str {
        self.kernels.0
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let x = inputs[0];
        let y = self.card.empty_like(x)?;
        self.card.each(self.kernels.0, &[Some(x), Some(&y)], &[])?;
        Ok(y)
    }

    fn backward(&self, inputs: &[Input], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let x = &inputs[0].value;
        let dx = self.card.empty_like(x)?;
        let tensors = [Some(x), Some(dy), Some(&dx)];
        self.card.each(self.kernels.1, &tensors, &[])?;
        Ok(vec![Some(dx)])
    }
}
