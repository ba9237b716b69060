//! Dropout; [`kernels::dropout`](crate::kernels::dropout) says which entries are dropped, here as there.

use candle_core::{Result, Tensor};

use super::{CHUNK, Call, Card};
use crate::{
    kernels::{
        dropout::threshold,
        graph::{self, Input, Operation},
    },
    ops::DropoutMask,
};

/// Drops entries of a contiguous tensor with probability `p > 0`.
pub(crate) fn dropout(card: Card, x: &Tensor, mask: DropoutMask) -> Result<Tensor> {
    graph::apply(Dropout { card, mask }, &[x])
}

/// What a kernel is told of a mask: numbers, and 1 / (1 − p).
pub(super) fn told(mask: DropoutMask) -> ([usize; 5], f64) {
    let (last, scale) = threshold::<f64>(mask);
    let [seed0, seed1, tag0, tag1] = mask.stream.words_of_key_and_tag();
    let numbers = [last, seed0, seed1, tag0, tag1].map(|word| word as usize);
    (numbers, scale)
}

struct Dropout {
    card: Card,
    mask: DropoutMask,
}

impl Dropout {
    fn masked(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.card.empty_like(x)?;
        let count = x.elem_count();
        let (mask, scale) = told(self.mask);
        let numbers: Vec<usize> = [count].into_iter().chain(mask).collect();
        self.card.launch(Call {
            kernel: "dropout",
            dtype: x.dtype(),
            blocks: count.div_ceil(CHUNK),
            tensors: &[Some(x), Some(&y)],
            numbers: &numbers,
            factors: &[scale],
        })?;
        Ok(y)
    }
}

impl Operation for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        self.masked(inputs[0])
    }

    fn backward(&self, _: &[Input], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(self.masked(dy)?)])
    }
}
