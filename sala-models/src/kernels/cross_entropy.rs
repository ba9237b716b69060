//! The mean cross entropy of rows of logits, with its gradient.
//!
//! With `m = max x`, `log p = x − m − log Σ exp(x − m)`, `N` rows that count and `g` the gradient of the
//! mean:
//!
//! ```text
//! classes y:          dx = (p − (1 − ε) [c = y] − ε / C) g / N          0 in rows that do not count
//! distributions t:    dx = (p Σ t′ − t′) g / N          dt = −(1 − ε) log p · g / N
//!                     t′ = (1 − ε) t + ε / C
//! ```
//!
//! The forward has a row's `exp(x − m)` at hand, from which dx for `g = 1` is one more loop in cache, while
//! the backward would have to compute them again from memory. So the forward of logits that are to be
//! differentiated writes dx, in the place where other forms keep log p, and the backward only hands it
//! over, or multiplies it by `g` if that is not 1. It moves 2 elements per element.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the chosen instruction set"
)]

use std::sync::OnceLock;

use candle_core::{D, DType, Result, Shape, Tensor, bail};

use super::{
    access,
    functions::Functions,
    graph::{self, Input, Operation},
    pieces::{self, Kernel, PIECE},
    rows::{self, max, powers, sum_by},
};

/// The mean over the rows that have a target, of contiguous `logits (…, classes)` of f32 or f64.
/// There is at least one.
pub(crate) fn of_classes(
    logits: &Tensor,
    targets: Vec<Option<u32>>,
    smoothing: f64,
) -> Result<Tensor> {
    let inputs = &[logits];
    match logits.dtype() {
        DType::F64 => graph::apply(Entropy::<f64>::new(logits, targets, smoothing)?, inputs),
        _ => graph::apply(Entropy::<f32>::new(logits, targets, smoothing)?, inputs),
    }
}

/// The mean over all rows, of contiguous `logits` and `targets`, both `(…, classes)` of f32 or f64.
pub(crate) fn of_distributions(
    logits: &Tensor,
    targets: &Tensor,
    smoothing: f64,
) -> Result<Tensor> {
    let inputs = &[logits, targets];
    match logits.dtype() {
        DType::F64 => graph::apply(Entropy::<f64>::new(logits, vec![], smoothing)?, inputs),
        _ => graph::apply(Entropy::<f32>::new(logits, vec![], smoothing)?, inputs),
    }
}

/// What the forward leaves of a row.
#[derive(Clone, Copy, Default)]
struct Row<T> {
    loss: f64,
    /// m.
    max: T,
    /// log Σ exp(x − m).
    log_sum: T,
}

struct Entropy<T> {
    /// The class of each row that counts; empty for targets that are distributions.
    targets: Vec<Option<u32>>,
    smoothing: f64,
    classes: usize,
    /// That of the logits.
    shape: Shape,
    /// N.
    counted: f64,
    differentiated: bool,
    /// dx for g = 1.
    gradient: OnceLock<Tensor>,
    rows: OnceLock<Vec<Row<T>>>,
}

impl<T: Functions> Entropy<T> {
    fn new(logits: &Tensor, targets: Vec<Option<u32>>, smoothing: f64) -> Result<Self> {
        let classes = logits.dim(D::Minus1)?;
        let rows = logits.elem_count() / classes;
        let counted = if targets.is_empty() {
            rows
        } else {
            targets.iter().flatten().count()
        };
        Ok(Self {
            targets,
            smoothing,
            classes,
            shape: logits.shape().clone(),
            counted: counted as f64,
            differentiated: logits.track_op(),
            gradient: OnceLock::new(),
            rows: OnceLock::new(),
        })
    }

    /// Computes all rows, `distributions` being empty for targets that are classes.
    fn loss(&self, x: &[T], distributions: &[T]) -> Result<T> {
        let classes = self.classes;
        let mut rows = vec![Row::default(); x.len() / classes];
        let count = rows::per_piece(classes);
        let work = |i: usize, buffer: &mut [T], rows: &mut [Row<T>]| {
            let targets = if distributions.is_empty() {
                Targets::Classes(&self.targets[i * count..])
            } else {
                Targets::Distributions(&distributions[i * count * classes..])
            };
            let x = &x[i * count * classes..];
            pieces::compiled(Piece, (self, buffer, x, targets, rows));
        };
        if self.differentiated {
            let piece = count * classes;
            let dx = pieces::filled_beside(x.len(), piece, &mut rows, count, work);
            let dx = access::tensor(dx, &self.shape)?;
            // Set once, as below: an operation runs forward once.
            self.gradient.get_or_init(|| dx);
        } else {
            pieces::each_of(&mut rows, count, |i, rows| {
                work(i, &mut vec![T::default(); classes], rows);
            });
        }
        let total: f64 = rows.iter().map(|row| row.loss).sum();
        self.rows.get_or_init(|| rows);
        Ok(T::of(total / self.counted))
    }

    /// The gradient of the logits.
    fn of_logits(&self, logits: &Input, upstream: T) -> Result<Option<Tensor>> {
        let Some(gradient) = self.gradient.get().filter(|_| logits.tracked) else {
            return Ok(None);
        };
        if upstream == T::of(1.0) {
            return logits.share(gradient).map(Some);
        }
        let dx = access::view::<T>(gradient)?;
        let scaled = pieces::filled(dx.len(), PIECE, |i, y| {
            pieces::compiled(Scale, (y, &dx[i * PIECE..], upstream));
        });
        access::tensor(scaled, gradient.shape()).map(Some)
    }

    /// The gradient of targets that are distributions.
    fn of_targets(&self, logits: &Input, upstream: T) -> Result<Tensor> {
        let Some(rows) = self.rows.get() else {
            bail!("cross_entropy: backward before forward");
        };
        let factor = upstream * T::of((self.smoothing - 1.0) / self.counted);
        let (count, classes) = (rows::per_piece(self.classes), self.classes);
        let x = access::view::<T>(&logits.value)?;
        let dt = pieces::filled(x.len(), count * classes, |i, dt| {
            let x = &x[i * count * classes..];
            pieces::compiled(Logarithms, (dt, x, &rows[i * count..], classes, factor));
        });
        access::tensor(dt, logits.value.shape())
    }

    /// (1 − ε) and ε / C.
    #[inline(always)]
    fn shares(&self) -> (f64, f64) {
        (1.0 - self.smoothing, self.smoothing / self.classes as f64)
    }

    /// A row of logits with its class; `y` is dx, or a place for intermediate values.
    #[inline(always)]
    fn of_class(&self, y: &mut [T], x: &[T], class: usize) -> Row<T> {
        let (own, all) = self.shares();
        let max = max(x);
        let sum = powers(y, x, max);
        let log_sum = sum.ln();
        let mut loss = -own * (x[class] - max - log_sum).wide();
        // Without smoothing, classes with a logit of −∞ do not matter.
        if all > 0.0 {
            loss -= all * sum_by(x, |x| x - max - log_sum).wide();
        }
        if self.differentiated {
            let (factor, all) = (T::of(1.0 / self.counted) / sum, T::of(all / self.counted));
            for y in &mut *y {
                *y = *y * factor - all;
            }
            y[class] += T::of(-own / self.counted);
        }
        Row { loss, max, log_sum }
    }

    /// As `of_class`, for a distribution.
    #[inline(always)]
    fn of_distribution(&self, y: &mut [T], x: &[T], target: &[T]) -> Row<T> {
        let (own, all) = self.shares();
        let (own, all) = (T::of(own), T::of(all));
        let max = max(x);
        let sum = powers(y, x, max);
        let log_sum = sum.ln();
        // Σ t′ and Σ t′ log p.
        let total = own * rows::sum(target) + all * T::of(self.classes as f64);
        let loss = rows::sum_of_pairs(x, target, |x, t| (own * t + all) * (x - max - log_sum));
        if self.differentiated {
            let mean = T::of(1.0 / self.counted);
            let factor = total / sum * mean;
            for (y, &target) in y.iter_mut().zip(target) {
                *y = *y * factor - (own * target + all) * mean;
            }
        }
        let loss = -loss.wide();
        Row { loss, max, log_sum }
    }
}

enum Targets<'a, T> {
    Classes(&'a [Option<u32>]),
    Distributions(&'a [T]),
}

/// The operation, dx or room for one row, logits, targets, what is left of the rows.
type Rows<'a, T> = (
    &'a Entropy<T>,
    &'a mut [T],
    &'a [T],
    Targets<'a, T>,
    &'a mut [Row<T>],
);

/// All rows of a piece.
struct Piece;

impl<T: Functions> Kernel<Rows<'_, T>> for Piece {
    #[inline(always)]
    fn run(self, (op, buffer, x, targets, rows): Rows<T>) {
        let classes = op.classes;
        for (i, (x, row)) in x.chunks_exact(classes).zip(rows).enumerate() {
            let start = if op.differentiated { i * classes } else { 0 };
            let y = &mut buffer[start..start + classes];
            match &targets {
                Targets::Classes(targets) => {
                    // The gradient of a row that does not count is there already: zeros.
                    if let Some(class) = targets[i] {
                        *row = op.of_class(y, x, class as usize);
                    }
                }
                Targets::Distributions(targets) => {
                    let target = &targets[i * classes..(i + 1) * classes];
                    *row = op.of_distribution(y, x, target);
                }
            }
        }
    }
}

/// y ← factor · x.
struct Scale;

impl<T: Functions> Kernel<(&mut [T], &[T], T)> for Scale {
    #[inline(always)]
    fn run(self, (y, x, factor): (&mut [T], &[T], T)) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x * factor;
        }
    }
}

/// y ← log p · factor.
struct Logarithms;

impl<T: Functions> Kernel<(&mut [T], &[T], &[Row<T>], usize, T)> for Logarithms {
    #[inline(always)]
    fn run(self, (y, x, rows, classes, factor): (&mut [T], &[T], &[Row<T>], usize, T)) {
        let rows = x.chunks_exact(classes).zip(rows);
        for (y, (x, row)) in y.chunks_exact_mut(classes).zip(rows) {
            for (y, &x) in y.iter_mut().zip(x) {
                *y = (x - row.max - row.log_sum) * factor;
            }
        }
    }
}

impl<T: Functions> Operation for Entropy<T> {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let logits = access::view(inputs[0])?;
        let loss = match inputs.get(1) {
            Some(targets) => self.loss(&logits, &access::view(targets)?)?,
            None => self.loss(&logits, &[])?,
        };
        access::tensor(vec![loss], ())
    }

    fn backward(
        &self,
        inputs: &[Input],
        _: &Tensor,
        upstream: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let upstream = upstream.to_scalar()?;
        let mut gradients = vec![self.of_logits(&inputs[0], upstream)?];
        if inputs.get(1).is_some_and(|targets| targets.tracked) {
            gradients.push(Some(self.of_targets(&inputs[0], upstream)?));
        }
        Ok(gradients)
    }
}
