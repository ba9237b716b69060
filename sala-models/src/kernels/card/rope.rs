//! Rotary position embedding; [`kernels::rope`](crate::kernels::rope) has the equations.

use candle_core::{Result, Tensor};

use super::{Call, Card, rows::Rows};
use crate::{
    kernels::graph::{self, Input, Operation},
    ops::RopePairs,
};

/// Turns contiguous `x (…, T, D)` by contiguous tables `(T, D/2)` of the type that it is computed in.
pub(crate) fn rope(
    card: Card,
    x: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    pairs: RopePairs,
) -> Result<Tensor> {
    graph::apply(Rope { card, pairs }, &[x, &cos.detach(), &sin.detach()])
}

struct Rope {
    card: Card,
    pairs: RopePairs,
}

impl Rope {
    fn turned(&self, x: &Tensor, [cos, sin]: [&Tensor; 2], back: bool) -> Result<Tensor> {
        let (positions, half) = cos.dims2()?;
        let y = self.card.empty_like(x)?;
        let rows = Rows::new(x.elem_count() / (2 * half), half)?;
        let mut numbers = rows.numbers().to_vec();
        let neighbours = self.pairs == RopePairs::Interleaved;
        numbers.extend([positions, usize::from(neighbours), usize::from(back)]);
        self.card.launch(Call {
            kernel: "rope",
            dtype: x.dtype(),
            blocks: rows.blocks(),
            tensors: &[Some(x), Some(cos), Some(sin), Some(&y)],
            numbers: &numbers,
            factors: &[],
        })?;
        Ok(y)
    }
}

impl Operation for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        self.turned(inputs[0], [inputs[1], inputs[2]], false)
    }

    fn backward(&self, inputs: &[Input], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let tables = [&inputs[1].value, &inputs[2].value];
        Ok(vec![Some(self.turned(dy, tables, true)?), None, None])
    }
}
