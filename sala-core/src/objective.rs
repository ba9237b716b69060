//! What an optimizer asks of the training loop: the loss and its gradients, and what they are for.

use std::fmt;

use candle_core::{Tensor, backprop::GradStore};

/// What the optimizer will do with the gradient of a pass.
///
/// An objective that ignores its pass is correct. One that looks at it can keep batch-norm statistics
/// at the unperturbed weights ([`Pass::tracks_statistics`]) and take the direction pass on a part of
/// the batch ([`Pass::take`]).
///
/// | pass | taken at | updates the weights | tracks statistics |
/// |---|---|---|---|
/// | `Clean` | the weights | yes | yes |
/// | `Direction` | the weights | no, it points the ascent | yes |
/// | `Perturbed` | displaced weights, second pass of its step | yes | no |
/// | `Displaced` | displaced weights, only pass of its step | yes | yes |
/// | `Probe` | any weights, outside of training ([`sharpness`](crate::sharpness)) | no | no |
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pass {
    /// The gradient updates the weights that it was taken at.
    Clean,
    /// Taken at the unperturbed weights too, but it only points the ascent: a fraction of the batch
    /// can be enough.
    Direction {
        /// The share of the batch, in (0, 1], that the optimizer was configured for. The step's cost
        /// counts this pass as that share.
        fraction: f64,
    },
    /// Taken at the perturbed weights; it updates the unperturbed ones.
    Perturbed,
    /// Taken at weights that were displaced without a gradient, along a momentum: the only pass of
    /// its step. It updates the undisplaced weights.
    Displaced,
    /// Taken to measure the loss around the weights ([`sharpness`](crate::sharpness)): it updates
    /// nothing.
    Probe,
}

impl Pass {
    /// Whether running statistics (batch norm) may be updated: once a step, so not in the second pass
    /// at perturbed weights, which the network never has outside it, and never by a measurement.
    pub fn tracks_statistics(self) -> bool {
        !matches!(self, Self::Perturbed | Self::Probe)
    }

    /// The share of the batch that the pass wants: 1 but for a direction pass.
    pub fn fraction(self) -> f64 {
        match self {
            Self::Direction { fraction } => fraction,
            Self::Clean | Self::Perturbed | Self::Displaced | Self::Probe => 1.0,
        }
    }

    /// The first ⌈fraction · n⌉ rows of a batch with n rows, without a copy.
    ///
    /// # Errors
    /// When `batch` has no dimensions.
    ///
    /// ```
    /// # use candle_core::{Device, Tensor, DType};
    /// # use sala_core::Pass;
    /// let x = Tensor::zeros((8, 3), DType::F32, &Device::Cpu)?;
    /// assert_eq!(Pass::Direction { fraction: 0.25 }.take(&x)?.dims(), [2, 3]);
    /// assert_eq!(Pass::Clean.take(&x)?.dims(), [8, 3]);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a ceiling of a share in (0, 1] of a row count is a row count"
    )]
    pub fn take(self, batch: &Tensor) -> candle_core::Result<Tensor> {
        let rows = batch.dim(0)?;
        let wanted = (self.fraction() * rows as f64).ceil() as usize;
        batch.narrow(0, 0, wanted.clamp(1.min(rows), rows))
    }
}

impl fmt::Display for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clean => "clean",
            Self::Direction { .. } => "direction",
            Self::Perturbed => "perturbed",
            Self::Displaced => "displaced",
            Self::Probe => "probe",
        })
    }
}

/// The outcome of one pass.
#[derive(Debug)]
pub struct Evaluation {
    /// The loss, a scalar tensor of any float dtype.
    pub loss: Tensor,
    /// The gradients of `scale` times the loss.
    pub grads: GradStore,
    /// The factor of the loss before its backward pass; 1 but for loss scaling
    /// ([`LossScaler`](crate::LossScaler)).
    pub scale: f64,
}

impl Evaluation {
    /// A loss and its gradients.
    pub fn new(loss: Tensor, grads: GradStore) -> Self {
        Self {
            loss,
            grads,
            scale: 1.0,
        }
    }

    /// Runs the backward pass of a scalar loss.
    ///
    /// # Errors
    /// Those of [`Tensor::backward`].
    pub fn of_loss(loss: Tensor) -> candle_core::Result<Self> {
        let grads = loss.backward()?;
        Ok(Self::new(loss, grads))
    }

    /// Runs the backward pass of `scale` times a scalar loss. In half precision the factor lifts
    /// small gradients above what underflows to zero.
    ///
    /// # Errors
    /// Those of [`Tensor::backward`].
    pub fn of_scaled_loss(loss: Tensor, scale: f64) -> candle_core::Result<Self> {
        // The scaled loss may overflow: only its gradients are used.
        let grads = (&loss * scale)?.backward()?;
        Ok(Self { loss, grads, scale })
    }
}

/// A function of the parameters that an optimizer minimises.
///
/// Closures `|pass| -> candle_core::Result<Tensor>` that return the scalar loss are objectives; the
/// backward pass is run for them. [`MicroBatches`](crate::MicroBatches) accumulates gradients over
/// parts of a batch. Implement the trait to supply gradients in another way: averaged over devices, or
/// analytic.
///
/// `evaluate` must not change the parameters, and for one step it must use the same batch and the
/// same random masks in every pass.
pub trait Objective {
    /// Loss and gradients at the current parameters.
    ///
    /// # Errors
    /// Whatever goes wrong; the optimizer then restores weights and state and passes the error on.
    fn evaluate(&mut self, pass: Pass) -> candle_core::Result<Evaluation>;

    /// How many equally weighted micro-batches the objective is the mean of; 1 unless it says so.
    fn micro_batches(&self) -> usize {
        1
    }

    /// Loss and gradients on one micro-batch, from 0, for methods that perturb each on its own.
    ///
    /// # Errors
    /// As for [`Objective::evaluate`].
    fn evaluate_micro_batch(
        &mut self,
        _index: usize,
        pass: Pass,
    ) -> candle_core::Result<Evaluation> {
        self.evaluate(pass)
    }

    /// The loss alone, for measurements that need no gradient; implement it where the backward pass
    /// can be saved.
    ///
    /// # Errors
    /// As for [`Objective::evaluate`].
    fn loss(&mut self, pass: Pass) -> candle_core::Result<Tensor> {
        Ok(self.evaluate(pass)?.loss.detach())
    }

    /// The loss alone on one micro-batch, from 0.
    ///
    /// # Errors
    /// As for [`Objective::evaluate`].
    fn loss_of_micro_batch(&mut self, index: usize, pass: Pass) -> candle_core::Result<Tensor> {
        Ok(self.evaluate_micro_batch(index, pass)?.loss.detach())
    }
}

impl<F> Objective for F
where
    F: FnMut(Pass) -> candle_core::Result<Tensor>,
{
    fn evaluate(&mut self, pass: Pass) -> candle_core::Result<Evaluation> {
        Evaluation::of_loss(self(pass)?)
    }

    fn loss(&mut self, pass: Pass) -> candle_core::Result<Tensor> {
        Ok(self(pass)?.detach())
    }

    fn loss_of_micro_batch(&mut self, _index: usize, pass: Pass) -> candle_core::Result<Tensor> {
        self.loss(pass)
    }
}

/// A backward pass: [`Tensor::backward`], or what stands for it.
pub type Backward = fn(&Tensor) -> candle_core::Result<GradStore>;

/// A loss that is differentiated by another function than [`Tensor::backward`], as by the `backward` of
/// `sala_models`, which saves copies of the gradients.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use sala_core::{Descend, Differentiated, Minimizer, ParamSet, ParamsSgd, Pass, Sgd};
///
/// let w = Var::new(&[3f64, 4.0], &Device::Cpu)?;
/// let params = ParamSet::new([("w", w.clone())])?;
/// let base = Sgd::new(&params, ParamsSgd { lr: 0.25, ..Default::default() })?;
/// let mut sgd = Descend::new(params, base);
/// let loss = |_pass: Pass| w.sqr()?.sum_all();
/// sgd.step(&mut Differentiated::by(Tensor::backward, loss))?;
/// assert_eq!(w.to_vec1::<f64>()?, [1.5, 2.0]);
/// # Ok::<(), sala_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Differentiated<F> {
    backward: Backward,
    loss: F,
}

impl<F> Differentiated<F>
where
    F: FnMut(Pass) -> candle_core::Result<Tensor>,
{
    /// From the backward pass and the loss.
    pub fn by(backward: Backward, loss: F) -> Self {
        Self { backward, loss }
    }
}

impl<F> Objective for Differentiated<F>
where
    F: FnMut(Pass) -> candle_core::Result<Tensor>,
{
    fn evaluate(&mut self, pass: Pass) -> candle_core::Result<Evaluation> {
        let loss = (self.loss)(pass)?;
        let grads = (self.backward)(&loss)?;
        Ok(Evaluation::new(loss, grads))
    }

    fn loss(&mut self, pass: Pass) -> candle_core::Result<Tensor> {
        Ok((self.loss)(pass)?.detach())
    }

    fn loss_of_micro_batch(&mut self, _index: usize, pass: Pass) -> candle_core::Result<Tensor> {
        Objective::loss(self, pass)
    }
}
