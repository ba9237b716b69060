//! What a forward pass is for: training or evaluation, and which of its side effects are wanted.

use std::num::NonZero;

/// How layers that behave differently in training should behave in this pass.
///
/// A sharpness-aware step evaluates the network twice: once at the weights `w` and once at
/// perturbed weights `w + e`. Four things follow, and a plain `train: bool` cannot say them:
///
/// - **Statistics.** Batch norm normalises with the statistics of the batch in both passes, but its
///   running averages must describe the network that will be evaluated, which is the one at `w`.
///   The second pass therefore must not track ([`without_stats`](Self::without_stats)).
///   Tracking in both would also apply the momentum twice a step.
/// - **Masks.** The two gradients are compared: the second is meant to differ from the first by the
///   perturbation alone. With fresh dropout masks it would belong to another sub-network. So
///   `draw`, the index of the random masks, is the same in all passes of one step.
/// - **Parts.** A batch that goes through the network in parts, to save memory, is still one batch:
///   its parts must not drop the same places ([`part`](Self::part)).
/// - **Seeds.** Masks depend on the layer's seed and on `draw` only, so two optimizers that are
///   compared with one seed see the same masks at the same step, however many passes each makes.
///
/// ```
/// use sala_models::Mode;
///
/// let step = 12;
/// let first = Mode::train(step);      // at w: masks 12, statistics tracked
/// let second = first.without_stats(); // at w + e: masks 12 again, statistics left alone
/// assert_eq!(first.draw, second.draw);
/// assert!(second.train && !second.track_stats);
/// assert!(!Mode::eval().train);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode {
    /// Training behaviour: batch statistics in batch norm, dropout active.
    pub train: bool,
    /// Whether batch norm updates its running statistics. Without effect unless `train`.
    pub track_stats: bool,
    /// Index of the random masks, normally the number of the optimizer step. Without effect
    /// unless `train`.
    pub draw: u64,
    /// For statistics that are taken anew: this pass is batch number i, from 1, of a plain average
    /// over batches. Nothing for the moving average of training.
    pub averaging: Option<NonZero<u64>>,
}

impl Mode {
    /// Training with the masks number `draw`, tracking statistics.
    ///
    /// ```
    /// # use sala_models::Mode;
    /// assert!(Mode::train(0).track_stats);
    /// ```
    pub const fn train(draw: u64) -> Self {
        Self {
            train: true,
            track_stats: true,
            draw,
            averaging: None,
        }
    }

    /// The same pass for part `index` of the `parts` that a batch goes through the network in: each part has masks of
    /// its own, `draw · parts + index`, and the same ones in all passes of a step. `parts` has to be the same in all
    /// steps.
    ///
    /// Without it all parts of a step would drop the same places.
    ///
    /// ```
    /// # use sala_models::Mode;
    /// let draws = |step| [0, 1, 2, 3].map(|index| Mode::train(step).part(index, 4).draw);
    /// assert_eq!((draws(0), draws(1)), ([0, 1, 2, 3], [4, 5, 6, 7]));
    /// assert_eq!(Mode::train(7).part(0, 1), Mode::train(7));
    /// ```
    #[must_use]
    pub const fn part(self, index: usize, parts: usize) -> Self {
        // Any number is a sub-stream, also one that has come around.
        let draw = self.draw.wrapping_mul(parts as u64);
        Self {
            draw: draw.wrapping_add(index as u64),
            ..self
        }
    }

    /// Evaluation: running statistics, no dropout, no side effects.
    ///
    /// ```
    /// # use sala_models::Mode;
    /// assert!(!Mode::eval().track_stats);
    /// ```
    pub const fn eval() -> Self {
        Self {
            train: false,
            track_stats: false,
            draw: 0,
            averaging: None,
        }
    }

    /// The same pass, leaving running statistics alone: for gradients at perturbed weights.
    ///
    /// ```
    /// # use sala_models::Mode;
    /// assert!(!Mode::train(0).without_stats().track_stats);
    /// ```
    #[must_use]
    pub const fn without_stats(self) -> Self {
        Self {
            track_stats: false,
            ..self
        }
    }
    /// The same pass as batch number `batch` of a plain average over batches, which takes the place of the
    /// running statistics from the first batch on: `running ← running + (batch's − running) / batch`.
    ///
    /// For weights that training did not pass through, such as slow weights or averages: their statistics
    /// are not those that training tracked (Izmailov et al. 2018, arXiv:1803.05407, section 3.2). A channel whose
    /// statistics in a batch are not finite keeps in it what it had, which then counts for this batch.
    ///
    /// ```
    /// # use std::num::NonZero;
    /// # use sala_models::Mode;
    /// let second = Mode::train(0).as_batch_of_average(NonZero::new(2).unwrap());
    /// assert!(second.track_stats && second.averaging.is_some());
    /// ```
    #[must_use]
    pub const fn as_batch_of_average(self, batch: NonZero<u64>) -> Self {
        Self {
            averaging: Some(batch),
            ..self
        }
    }
}
