//! Layer and RMS norm of rows; [`kernels::norm`](crate::kernels::norm) has the equations.

use std::sync::OnceLock;

use candle_core::{DType, Result, Tensor, bail};

use super::{
    Call, Card, computed, fitting_parameters,
    rows::Rows,
    tiles::{Tiles, blocks_of_teams},
    wide,
};
use crate::kernels::graph::{self, Input, Operation};

/// The layer norm of a contiguous tensor; parameters have its dtype or the one it is computed in.
pub(crate) fn layer_norm(
    card: Card,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    apply(Norm::new("layer_norm", card, eps, true), x, weight, bias)
}

/// The RMS norm of a contiguous tensor; the weight has its dtype or the one it is computed in.
pub(crate) fn rms_norm(card: Card, x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    apply(Norm::new("rms_norm", card, eps, false), x, weight, None)
}

fn apply(op: Norm, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let parameters = fitting_parameters(x, [weight].into_iter().chain(bias))?;
    let inputs: Vec<&Tensor> = [x].into_iter().chain(&parameters).collect();
    graph::apply(op, &inputs)
}

struct Norm {
    name: &'static str,
    card: Card,
    eps: f64,
    /// Whether the mean is subtracted.
    centred: bool,
    /// μ and r of each row, `(rows, 2)`.
    statistics: OnceLock<Tensor>,
}

impl Norm {
    const fn new(name: &'static str, card: Card, eps: f64, centred: bool) -> Self {
        Self {
            name,
            card,
            eps,
            centred,
            statistics: OnceLock::new(),
        }
    }

    /// Launches a kernel for each row of `x`.
    fn each_row(
        &self,
        kernel: &'static str,
        (x, weight): (&Tensor, &Tensor),
        tensors: &[Option<&Tensor>],
    ) -> Result<()> {
        let rows = Rows::of(x)?;
        let mut numbers = rows.numbers().to_vec();
        numbers.extend([usize::from(self.centred), wide(weight, x)]);
        self.card.launch(Call {
            kernel,
            dtype: x.dtype(),
            blocks: rows.blocks(),
            tensors,
            numbers: &numbers,
            factors: &[self.eps],
        })
    }

    /// The gradients of the weight and, where there is one, of the bias.
    fn of_parameters(
        &self,
        inputs: &[Input],
        statistics: &Tensor,
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 2]> {
        if inputs[1..].iter().all(|input| !input.tracked) {
            return Ok([None, None]);
        }
        let (x, weight) = (&inputs[0].value, &inputs[1].value);
        let columns = weight.elem_count();
        let tiles = Tiles::of(x.elem_count() / columns, columns);
        let sums = self.card.empty((2, columns, tiles.chunks()), DType::F64)?;
        self.card.launch(Call {
            kernel: "row_norm_sums",
            dtype: x.dtype(),
            blocks: tiles.blocks(),
            tensors: &[Some(x), Some(dy), Some(statistics), Some(&sums)],
            numbers: &tiles.numbers(),
            factors: &[],
        })?;
        let of_weight = self.card.empty_like(weight)?;
        let bias = inputs.get(2).map(|bias| &bias.value);
        let of_bias = bias.map(|bias| self.card.empty_like(bias)).transpose()?;
        self.card.launch(Call {
            kernel: "row_norm_totals",
            dtype: x.dtype(),
            blocks: blocks_of_teams(columns),
            tensors: &[Some(&sums), Some(&of_weight), of_bias.as_ref()],
            numbers: &[columns, tiles.chunks(), wide(weight, x)],
            factors: &[],
        })?;
        Ok([Some(of_weight), of_bias])
    }
}

impl Operation for Norm {
    fn name(&self) -> &'static str {
        self.name
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let (x, weight) = (inputs[0], inputs[1]);
        let y = self.card.empty_like(x)?;
        let rows = x.elem_count() / weight.elem_count();
        let statistics = self.card.empty((rows, 2), computed(x.dtype()))?;
        let bias = inputs.get(2).copied();
        let tensors = [Some(x), Some(&y), Some(weight), bias, Some(&statistics)];
        self.each_row("row_norm", (x, weight), &tensors)?;
        // Set once: there is one forward pass.
        let _ = self.statistics.set(statistics);
        Ok(y)
    }

    fn backward(&self, inputs: &[Input], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let Some(statistics) = self.statistics.get() else {
            bail!("{}: backward before forward", self.name);
        };
        let (x, weight) = (&inputs[0].value, &inputs[1].value);
        let of_x = (inputs[0].tracked)
            .then(|| self.card.empty_like(x))
            .transpose()?;
        if let Some(of_x) = &of_x {
            let tensors = [
                Some(x),
                Some(dy),
                Some(weight),
                Some(statistics),
                Some(of_x),
            ];
            self.each_row("row_norm_back", (x, weight), &tensors)?;
        }
        let [of_weight, of_bias] = self.of_parameters(inputs, statistics, dy)?;
        Ok(vec![of_x, of_weight, of_bias])
    }
}
