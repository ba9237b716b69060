//! The mean cross entropy; [`kernels::cross_entropy`](crate::kernels::cross_entropy) has the equations.
//!
//! How many rows count is known to the card alone. The loss of half precision is f32.

use std::sync::OnceLock;

use candle_core::{D, DType, Result, Tensor, bail};

use super::{Call, Card, computed, embedding::readable, rows::Rows};
use crate::kernels::graph::{self, Input, Operation};

/// The mean over the rows of contiguous `logits (…, classes)` whose target, an integer, is not `ignored`; NaN if
/// there are none or another one is not a class.
pub(crate) fn of_classes(
    card: Card,
    logits: &Tensor,
    targets: &Tensor,
    ignored: Option<i64>,
    smoothing: f64,
) -> Result<Tensor> {
    let (targets, kind) = readable(targets)?;
    let op = Entropy::new(card, smoothing, kind, Some((targets, ignored)));
    graph::apply(op, &[logits])
}

/// The mean over all rows, of contiguous `logits` and `targets`, both `(…, classes)`; targets have the dtype of the
/// logits or the one that those are computed in.
pub(crate) fn of_distributions(
    card: Card,
    logits: &Tensor,
    targets: &Tensor,
    smoothing: f64,
) -> Result<Tensor> {
    let wide = targets.dtype() == computed(logits.dtype());
    let op = Entropy::new(card, smoothing, if wide { 3 } else { 4 }, None);
    graph::apply(op, &[logits, targets])
}

struct Entropy {
    card: Card,
    smoothing: f64,
    /// What targets are; `device/loss.cuh` has the same numbers.
    kind: usize,
    /// Targets that are classes, and the one that does not count.
    classes: Option<(Tensor, Option<i64>)>,
    left: OnceLock<Left>,
}

/// What the forward pass leaves: of each row max x, log Σ exp(x − max x) and the sum of its target, and 1 / N.
struct Left {
    statistics: Tensor,
    share: Tensor,
}

impl Entropy {
    const fn new(
        card: Card,
        smoothing: f64,
        kind: usize,
        classes: Option<(Tensor, Option<i64>)>,
    ) -> Self {
        Self {
            card,
            smoothing,
            kind,
            classes,
            left: OnceLock::new(),
        }
    }

    /// Launches a kernel for each row of logits.
    fn each_row(
        &self,
        kernel: &'static str,
        logits: &Tensor,
        tensors: &[Option<&Tensor>],
    ) -> Result<()> {
        let rows = Rows::of(logits)?;
        let mut numbers = rows.numbers().to_vec();
        let ignored = self.classes.as_ref().and_then(|(_, ignored)| *ignored);
        numbers.extend([self.kind, usize::from(ignored.is_some())]);
        numbers.extend(halves(ignored.unwrap_or(0)));
        self.card.launch(Call {
            kernel,
            dtype: logits.dtype(),
            blocks: rows.blocks(),
            tensors,
            numbers: &numbers,
            factors: &[self.smoothing],
        })
    }
}

/// The low and the high half of a number, which may be negative, as kernels are told it.
#[expect(clippy::cast_sign_loss, reason = "the bits are what is told")]
const fn halves(number: i64) -> [usize; 2] {
    let bits = number as u64;
    [(bits & 0xFFFF_FFFF) as usize, (bits >> 32) as usize]
}

impl Operation for Entropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let logits = inputs[0];
        let rows = logits.elem_count() / logits.dim(D::Minus1)?;
        let wide = computed(logits.dtype());
        let targets = (self.classes.as_ref())
            .map(|(classes, _)| classes)
            .or(inputs.get(1).copied());
        let losses = self.card.empty((rows, 2), DType::F64)?;
        let statistics = self.card.empty((rows, 3), wide)?;
        let tensors = [Some(logits), targets, Some(&losses), Some(&statistics)];
        self.each_row("entropy_rows", logits, &tensors)?;
        let (loss, share) = (self.card.empty((), wide)?, self.card.empty((), DType::F64)?);
        self.card.launch(Call {
            kernel: "entropy_mean",
            dtype: logits.dtype(),
            blocks: 1,
            tensors: &[Some(&losses), Some(&loss), Some(&share)],
            numbers: &[rows],
            factors: &[],
        })?;
        // Set once: there is one forward pass.
        let _ = self.left.set(Left { statistics, share });
        Ok(loss)
    }

    fn backward(
        &self,
        inputs: &[Input],
        _: &Tensor,
        slope: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let Some(Left { statistics, share }) = self.left.get() else {
            bail!("cross_entropy: backward before forward");
        };
        let logits = &inputs[0].value;
        let distributions = inputs.get(1);
        let targets = (self.classes.as_ref())
            .map(|(classes, _)| classes)
            .or(distributions.map(|targets| &targets.value));
        let place = |input: &Input| {
            let wanted = input.tracked.then(|| self.card.empty_like(&input.value));
            wanted.transpose()
        };
        let of_logits = place(&inputs[0])?;
        let of_targets = distributions.map(place).transpose()?.flatten();
        let tensors = [
            Some(logits),
            targets,
            Some(statistics),
            Some(share),
            Some(slope),
            of_logits.as_ref(),
            of_targets.as_ref(),
        ];
        self.each_row("entropy_back", logits, &tensors)?;
        Ok(vec![of_logits, of_targets])
    }
}
