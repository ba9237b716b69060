//! Maxima and means of windows of images whose channels come last; [`kernels::pool`](crate::kernels::pool) has the
//! equations.

use std::sync::OnceLock;

use candle_core::{DType, Result, Tensor, bail};

use super::{Call, Card};
use crate::kernels::graph::{self, Input, Operation};

/// Elements that a block makes; `device/pool.cuh` has the same number.
const CHUNK: usize = 1024;

/// Windows along one axis.
#[derive(Clone, Copy)]
pub(crate) struct Axis {
    pub(crate) size: usize,
    pub(crate) windows: usize,
    pub(crate) steps: Steps,
}

/// Where windows start and end.
#[derive(Clone, Copy)]
pub(crate) enum Steps {
    /// Window `i` covers `[i stride − padding, i stride − padding + kernel)`; padding counts for a mean or not.
    Even {
        kernel: usize,
        stride: usize,
        padding: usize,
        count_padding: bool,
    },
    /// Window `i` of `n` covers `[⌊i size / n⌋, ⌈(i + 1) size / n⌉)`.
    Covering,
}

impl Axis {
    /// What a kernel is told; a stride of 0 stands for covering windows.
    fn numbers(self) -> [usize; 6] {
        let Self {
            size,
            windows,
            steps,
        } = self;
        match steps {
            Steps::Even {
                kernel,
                stride,
                padding,
                count_padding,
            } => [
                size,
                windows,
                kernel,
                stride,
                padding,
                usize::from(count_padding),
            ],
            Steps::Covering => [size, windows, 0, 0, 0, 0],
        }
    }
}

/// The largest value of each window of contiguous images `(N, H, W, C)`.
pub(crate) fn max(card: Card, x: &Tensor, rows: Axis, columns: Axis) -> Result<Tensor> {
    let windows = Windows {
        card,
        rows,
        columns,
    };
    let winners = OnceLock::new();
    graph::apply(Max { windows, winners }, &[x])
}

/// As [`max`], the means.
pub(crate) fn mean(card: Card, x: &Tensor, rows: Axis, columns: Axis) -> Result<Tensor> {
    let windows = Windows {
        card,
        rows,
        columns,
    };
    graph::apply(Mean(windows), &[x])
}

struct Windows {
    card: Card,
    rows: Axis,
    columns: Axis,
}

impl Windows {
    /// An output for each window and channel.
    fn output(&self, x: &Tensor, dtype: DType) -> Result<Tensor> {
        let (images, _, _, channels) = x.dims4()?;
        let shape = (images, self.rows.windows, self.columns.windows, channels);
        self.card.empty(shape, dtype)
    }

    /// A kernel that makes the elements of `made`.
    fn launch(
        &self,
        kernel: &'static str,
        tensors: &[Option<&Tensor>],
        made: &Tensor,
    ) -> Result<()> {
        let (images, _, _, channels) = made.dims4()?;
        let mut numbers = vec![images, channels];
        numbers.extend(self.rows.numbers());
        numbers.extend(self.columns.numbers());
        self.card.launch(Call {
            kernel,
            dtype: made.dtype(),
            blocks: made.elem_count().div_ceil(CHUNK),
            tensors,
            numbers: &numbers,
            factors: &[],
        })
    }
}

struct Max {
    windows: Windows,
    /// The place of each window's winner in its image.
    winners: OnceLock<Tensor>,
}

impl Operation for Max {
    fn name(&self) -> &'static str {
        "max_pool2d"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let x = inputs[0];
        let y = self.windows.output(x, x.dtype())?;
        let winners = self.windows.output(x, DType::U32)?;
        let tensors = [Some(x), Some(&y), Some(&winners)];
        self.windows.launch("max_pool", &tensors, &y)?;
        // Set once: there is one forward pass.
        let _ = self.winners.set(winners);
        Ok(y)
    }

    fn backward(&self, inputs: &[Input], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let Some(winners) = self.winners.get() else {
            bail!("max_pool2d: backward before forward");
        };
        let dx = self.windows.card.empty_like(&inputs[0].value)?;
        let tensors = [Some(dy), Some(&dx), Some(winners)];
        self.windows.launch("max_pool_back", &tensors, &dx)?;
        Ok(vec![Some(dx)])
    }
}

struct Mean(Windows);

impl Operation for Mean {
    fn name(&self) -> &'static str {
        "avg_pool2d"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let y = self.0.output(inputs[0], inputs[0].dtype())?;
        self.0
            .launch("mean_pool", &[Some(inputs[0]), Some(&y)], &y)?;
        Ok(y)
    }

    fn backward(&self, inputs: &[Input], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let dx = self.0.card.empty_like(&inputs[0].value)?;
        self.0
            .launch("mean_pool_back", &[Some(dy), Some(&dx)], &dx)?;
        Ok(vec![Some(dx)])
    }
}
