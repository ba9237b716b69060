//! Softmax and its logarithm over the last dimension, with and without a mask;
//! [`kernels::softmax`](crate::kernels::softmax) has the equations.

use std::sync::OnceLock;

use candle_core::{DType, Result, Shape, Tensor, bail};

use super::{Call, Card, computed, dropout, rows::Rows};
use crate::{
    kernels::graph::{self, Input, Operation},
    ops::DropoutMask,
};

/// The softmax over the last dimension of a contiguous tensor.
pub(crate) fn softmax(card: Card, x: &Tensor) -> Result<Tensor> {
    graph::apply(Softmax::new(card, false, None), &[x])
}

/// The logarithm of [`softmax`].
pub(crate) fn log_softmax(card: Card, x: &Tensor) -> Result<Tensor> {
    graph::apply(Softmax::new(card, true, None), &[x])
}

/// The softmax of what a mask leaves, which needs no gradient. It is of u8, of `x`'s dtype or of the one that is
/// computed in, and broadcasts to `x`'s shape.
pub(crate) fn masked_softmax(card: Card, x: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let mask = Mask::new(mask, x.shape(), x.dtype())?;
    graph::apply(Softmax::new(card, false, Some(mask)), &[x])
}

/// Leading dimensions of a mask that kernels know of, after those that lie in one stretch have become one.
const LEADING: usize = 4;

/// A mask of scores, read where it lies: broadcast, it is never written out.
pub(super) struct Mask {
    entries: Tensor,
    /// Its kind, the stride of its entries, and the sizes and strides of its leading dimensions.
    numbers: [usize; 9],
}

impl Mask {
    /// A mask for scores of this shape and type.
    pub(super) fn new(mask: &Tensor, scores: &Shape, dtype: DType) -> Result<Self> {
        let entries = mask.detach().contiguous()?;
        let kind = match entries.dtype() {
            DType::U8 => 1,
            of_mask if of_mask == computed(dtype) => 2,
            of_mask if of_mask == dtype => 3,
            other => bail!("a mask of {other:?} for scores of {dtype:?}"),
        };
        let whole = entries.broadcast_as(scores)?;
        let strides = whole.layout().stride();
        let (Some(&stride), Some(leading)) = (strides.last(), merged(scores.dims(), strides))
        else {
            // More ways to repeat itself than a kernel knows of.
            return Self::new(&whole.contiguous()?, scores, dtype);
        };
        let mut numbers = [0; 9];
        numbers[..2].copy_from_slice(&[kind, stride]);
        for (i, (size, stride)) in leading.into_iter().enumerate() {
            if i + 1 < LEADING {
                numbers[2 + i] = size;
            }
            numbers[5 + i] = stride;
        }
        Ok(Self { entries, numbers })
    }
}

/// Sizes and strides of the dimensions before the last one, the last first; nothing if there are too many.
fn merged(dims: &[usize], strides: &[usize]) -> Option<[(usize, usize); LEADING]> {
    let leading = dims.len().saturating_sub(1);
    let mut merged: Vec<(usize, usize)> = vec![];
    for (&size, &stride) in dims[..leading].iter().zip(strides).rev() {
        match merged.last_mut() {
            Some((inner, step)) if stride == *inner * *step => *inner *= size,
            _ => merged.push((size, stride)),
        }
    }
    merged.resize(merged.len().max(LEADING), (1, 0));
    merged.try_into().ok()
}

/// What becomes of scores before and after their softmax.
#[derive(Clone, Copy)]
pub(super) struct Settings<'a> {
    pub(super) scale: f64,
    pub(super) mask: Option<&'a Mask>,
    /// Queries of a head, whose last one stands at the last key, if they do not see the keys after them.
    pub(super) causal: Option<usize>,
    pub(super) dropout: Option<DropoutMask>,
}

impl Settings<'_> {
    pub(super) const PLAIN: Self = Self {
        scale: 1.0,
        mask: None,
        causal: None,
        dropout: None,
    };

    /// The mask's entries.
    pub(super) fn entries(&self) -> Option<&Tensor> {
        self.mask.map(|mask| &mask.entries)
    }

    /// Launches a kernel for each row of `x`.
    pub(super) fn each_row(
        &self,
        card: &Card,
        kernel: &'static str,
        x: &Tensor,
        tensors: &[Option<&Tensor>],
    ) -> Result<()> {
        let rows = Rows::of(x)?;
        let mut numbers = rows.numbers().to_vec();
        numbers.extend(self.mask.map_or([0; 9], |mask| mask.numbers));
        numbers.push(self.causal.unwrap_or(0));
        let (dropout, kept) = self.dropout.map_or(([0; 5], 0.0), dropout::told);
        numbers.extend(dropout);
        card.launch(Call {
            kernel,
            dtype: x.dtype(),
            blocks: rows.blocks(),
            tensors,
            numbers: &numbers,
            factors: &[self.scale, kept],
        })
    }
}

struct Softmax {
    card: Card,
    logarithm: bool,
    mask: Option<Mask>,
    /// What the forward pass subtracted from each row, and 1 / Σ exp, `(rows, 2)`.
    statistics: OnceLock<Tensor>,
}

impl Softmax {
    const fn new(card: Card, logarithm: bool, mask: Option<Mask>) -> Self {
        Self {
            card,
            logarithm,
            mask,
            statistics: OnceLock::new(),
        }
    }

    fn settings(&self) -> Settings<'_> {
        Settings {
            mask: self.mask.as_ref(),
            ..Settings::PLAIN
        }
    }
}

impl Operation for Softmax {
    fn name(&self) -> &'static str {
        if self.logarithm {
            "log_softmax"
        } else {
            "softmax"
        }
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let x = inputs[0];
        let y = self.card.empty_like(x)?;
        let rows = x.elem_count() / x.dim(candle_core::D::Minus1)?;
        let statistics = self.card.empty((rows, 2), computed(x.dtype()))?;
        let settings = self.settings();
        let tensors = [Some(x), settings.entries(), Some(&y), Some(&statistics)];
        settings.each_row(&self.card, self.name(), x, &tensors)?;
        // Set once: there is one forward pass.
        let _ = self.statistics.set(statistics);
        Ok(y)
    }

    fn backward(&self, inputs: &[Input], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let Some(statistics) = self.statistics.get() else {
            bail!("{}: backward before forward", self.name());
        };
        let x = &inputs[0].value;
        let dx = self.card.empty_like(x)?;
        let kernel = if self.logarithm {
            "log_softmax_back"
        } else {
            "softmax_back"
        };
        let settings = self.settings();
        let entries = settings.entries();
        let tensors = [Some(x), entries, Some(statistics), Some(dy), Some(&dx)];
        settings.each_row(&self.card, kernel, x, &tensors)?;
        Ok(vec![Some(dx)])
    }
}
