//! The sum of two tensors.

use candle_core::{Result, Tensor};

use super::Card;
use crate::kernels::graph::{self, Input, Operation};

/// `a + b` of contiguous tensors of one shape and type.
pub(crate) fn add(card: Card, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    graph::apply(Add { card }, &[a, b])
}

struct Add {
    card: Card,
}

impl Operation for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let y = self.card.empty_like(inputs[0])?;
        self.card
            .each("add", &[Some(inputs[0]), Some(inputs[1]), Some(&y)], &[])?;
        Ok(y)
    }

    fn backward(&self, inputs: &[Input], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        inputs
            .iter()
            .map(|input| input.share(dy).map(Some))
            .collect()
    }
}
