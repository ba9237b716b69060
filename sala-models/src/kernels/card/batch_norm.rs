//! Batch norm of rows of channels; [`kernels::batch_norm`](crate::kernels::batch_norm) has the equations.

use std::sync::OnceLock;

use candle_core::{DType, Result, Tensor, Var, bail};

use super::{
    Call, Card, computed, fitting_parameters,
    tiles::{Tiles, blocks_of_teams},
    wide,
};
use crate::kernels::graph::{self, Input, Operation};

/// One application of the layer, to tensors whose channels are the last dimension.
pub(crate) struct BatchNorm {
    pub(crate) channels: usize,
    pub(crate) eps: f64,
    pub(crate) relu: bool,
    /// Whether the statistics are those of the batch, or else the running ones.
    pub(crate) train: bool,
    /// By how much the running statistics move towards the batch's; 0 for not at all.
    pub(crate) share: f64,
    pub(crate) running: [Var; 2],
}

/// Applies the layer to contiguous tensors of one type. Parameters have that type or the one it is computed in, running
/// statistics have the latter.
pub(crate) fn batch_norm(
    card: Card,
    x: &Tensor,
    [weight, bias]: [&Tensor; 2],
    residual: Option<&Tensor>,
    settings: BatchNorm,
) -> Result<Tensor> {
    let parameters = fitting_parameters(x, [weight, bias].into_iter())?;
    let inputs: Vec<&Tensor> = [x].into_iter().chain(&parameters).chain(residual).collect();
    let statistics = OnceLock::new();
    graph::apply(
        Op {
            card,
            settings,
            statistics,
        },
        &inputs,
    )
}

struct Op {
    card: Card,
    settings: BatchNorm,
    /// Mean and inverse deviation that the forward pass normalised with.
    statistics: OnceLock<[Tensor; 2]>,
}

impl Op {
    fn tiles(&self, x: &Tensor) -> Tiles {
        let channels = self.settings.channels;
        Tiles::of(x.elem_count() / channels, channels)
    }

    /// Launches a kernel for each tile. It may read `weight` and what has its type.
    fn tiled(
        &self,
        kernel: &'static str,
        (x, weight, tiles): (&Tensor, &Tensor, Tiles),
        tensors: &[Option<&Tensor>],
    ) -> Result<()> {
        let mut numbers = tiles.numbers().to_vec();
        numbers.extend([usize::from(self.settings.relu), wide(weight, x)]);
        self.card.launch(Call {
            kernel,
            dtype: x.dtype(),
            blocks: tiles.blocks(),
            tensors,
            numbers: &numbers,
            factors: &[],
        })
    }

    fn statistics(&self, x: &Tensor, weight: &Tensor, tiles: Tiles) -> Result<[Tensor; 2]> {
        let BatchNorm {
            channels,
            eps,
            train,
            share,
            ref running,
            ..
        } = self.settings;
        let sums = train
            .then(|| self.card.empty((2, channels, tiles.chunks()), DType::F64))
            .transpose()?;
        if let Some(sums) = &sums {
            self.tiled("norm_sums", (x, weight, tiles), &[Some(x), Some(sums)])?;
        }
        let of_channels = || self.card.empty(channels, computed(x.dtype()));
        let [mean, inverse] = [of_channels()?, of_channels()?];
        let [running_mean, running_variance] = running.each_ref().map(Var::as_tensor);
        self.card.launch(Call {
            kernel: "norm_statistics",
            dtype: x.dtype(),
            blocks: blocks_of_teams(channels),
            tensors: &[
                Some(x),
                sums.as_ref(),
                Some(&mean),
                Some(&inverse),
                Some(running_mean),
                Some(running_variance),
            ],
            numbers: &[tiles.rows, channels, if train { tiles.chunks() } else { 0 }],
            factors: &[eps, share],
        })?;
        Ok([mean, inverse])
    }
}

impl Operation for Op {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let (x, weight) = (inputs[0], inputs[1]);
        let tiles = self.tiles(x);
        let [mean, inverse] = self.statistics(x, weight, tiles)?;
        let y = self.card.empty_like(x)?;
        let tensors = [
            Some(x),
            Some(&y),
            Some(&mean),
            Some(&inverse),
            Some(weight),
            Some(inputs[2]),
            inputs.get(3).copied(),
        ];
        self.tiled("normalise", (x, weight, tiles.finer()), &tensors)?;
        // Set once: there is one forward pass.
        let _ = self.statistics.set([mean, inverse]);
        Ok(y)
    }

    fn backward(&self, inputs: &[Input], y: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let Some([mean, inverse]) = self.statistics.get() else {
            bail!("batch_norm: backward before forward");
        };
        let BatchNorm {
            channels,
            relu,
            train,
            ..
        } = self.settings;
        let (x, weight) = (&inputs[0].value, &inputs[1].value);
        let tiles = self.tiles(x);
        let sums = self.card.empty((2, channels, tiles.chunks()), DType::F64)?;
        let of_sums = [Some(x), Some(&sums), Some(y), Some(dy), Some(mean)];
        self.tiled("norm_gradient_sums", (x, weight, tiles), &of_sums)?;
        let [of_weight, of_bias] = [self.card.empty_like(weight)?, self.card.empty_like(weight)?];
        let [constant, slope] = [self.card.empty_like(mean)?, self.card.empty_like(mean)?];
        self.card.launch(Call {
            kernel: "norm_parameter_gradients",
            dtype: x.dtype(),
            blocks: blocks_of_teams(channels),
            tensors: &[
                Some(inverse),
                Some(&sums),
                Some(&of_weight),
                Some(&of_bias),
                Some(&constant),
                Some(&slope),
            ],
            numbers: &[
                tiles.rows,
                channels,
                tiles.chunks(),
                usize::from(train),
                wide(weight, x),
            ],
            factors: &[],
        })?;
        let of_x = (inputs[0].tracked)
            .then(|| self.card.empty_like(x))
            .transpose()?;
        let residual = inputs.get(3).filter(|residual| residual.tracked);
        let of_residual = match residual {
            Some(_) if relu => Some(self.card.empty_like(x)?),
            Some(residual) => Some(residual.share(dy)?),
            None => None,
        };
        if of_x.is_some() || (relu && of_residual.is_some()) {
            let tensors = [
                Some(x),
                Some(y),
                Some(dy),
                Some(mean),
                Some(inverse),
                Some(weight),
                Some(&constant),
                Some(&slope),
                of_x.as_ref(),
                of_residual.as_ref().filter(|_| relu),
            ];
            self.tiled("norm_gradient", (x, weight, tiles.finer()), &tensors)?;
        }
        Ok(vec![of_x, Some(of_weight), Some(of_bias), of_residual])
    }
}
