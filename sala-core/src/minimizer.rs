//! What every optimizer of this crate can do.

use crate::{
    error::{Error, Result},
    objective::Objective,
    params::ParamSet,
    slow::{SlowView, SlowWeights},
    state::Stateful,
};

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Number of the step, from 1.
    pub step: u64,
    /// Loss of the first pass, at the weights before the step; of its fraction of the batch for a
    /// direction pass.
    pub loss: f64,
    /// Gradient evaluations of a whole batch that the step took; a direction pass on a fraction of
    /// the batch counts as that fraction.
    pub evaluations: f64,
    /// Whether the step climbed, so that its update uses a gradient at perturbed weights.
    pub ascent: bool,
    /// Distance of fast and slow weights at their last synchronisation (see
    /// [`slow::weights`](crate::slow::weights)); `None` without slow weights.
    pub gap: Option<f64>,
    /// ‖g‖₂ of the gradient that updated the weights, before clipping.
    pub grad_norm: f64,
}

/// An optimizer that steps on an [`Objective`], which it evaluates once or more in a step.
///
/// A single set of gradients is not enough for a method that evaluates twice, so it cannot be
/// mistaken for one that needs only one:
///
/// ```compile_fail
/// # use candle_core::{Device, Var};
/// # use sala_core::{ParamSet, ParamsSam, ParamsSgd, Sam, Sgd, Minimizer};
/// let w = Var::new(1f32, &Device::Cpu).unwrap();
/// let params = ParamSet::new([("w", w.clone())]).unwrap();
/// let base = Sgd::new(&params, ParamsSgd::default()).unwrap();
/// let mut sam = Sam::new(params, base, ParamsSam::default()).unwrap();
/// let grads = w.sqr().unwrap().backward().unwrap();
/// sam.step(&grads); // expected `&mut dyn Objective`
/// ```
pub trait Minimizer {
    /// One step: evaluates the objective and updates the parameters.
    ///
    /// # Errors
    /// When a pass fails, lacks a gradient or is not finite. Parameters and state are then those of
    /// before the step. The same holds for the parameters if the objective panics.
    /// What the objective itself keeps, such as running statistics that a first pass has moved, is its
    /// own affair.
    fn step(&mut self, objective: &mut dyn Objective) -> Result<StepReport>;

    /// The parameters that are trained.
    fn params(&self) -> &ParamSet;

    /// Learning rate of the base.
    fn learning_rate(&self) -> f64;

    /// Sets the learning rate of the base, for schedules.
    fn set_learning_rate(&mut self, lr: f64);

    /// The slow weights, for methods that have them.
    fn slow_weights(&self) -> Option<&SlowWeights> {
        None
    }

    /// Puts the slow weights, if there are any, into the parameters until the view is dropped.
    ///
    /// # Errors
    /// Those of copying tensors.
    fn slow_view(&self) -> Result<Option<SlowView<'_>>> {
        self.slow_weights()
            .map(|slow| slow.view(self.params()))
            .transpose()
    }

    /// Runs `evaluate` on the slow weights, if there are any, else on the weights as they are. The
    /// fast weights are put back afterwards, also when `evaluate` fails or panics.
    ///
    /// # Errors
    /// Those of `evaluate` and of copying tensors.
    fn with_slow_weights<T, E: From<Error>>(
        &self,
        evaluate: impl FnOnce() -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E>
    where
        Self: Sized,
    {
        let view = self.slow_view()?;
        let outcome = evaluate()?;
        if let Some(view) = view {
            view.restore()?;
        }
        Ok(outcome)
    }
}

impl<M: Minimizer + ?Sized> Minimizer for Box<M> {
    fn step(&mut self, objective: &mut dyn Objective) -> Result<StepReport> {
        (**self).step(objective)
    }

    fn params(&self) -> &ParamSet {
        (**self).params()
    }

    fn learning_rate(&self) -> f64 {
        (**self).learning_rate()
    }

    fn set_learning_rate(&mut self, lr: f64) {
        (**self).set_learning_rate(lr);
    }

    fn slow_weights(&self) -> Option<&SlowWeights> {
        (**self).slow_weights()
    }
}

/// A [`Minimizer`] whose complete state can be saved and loaded.
pub trait Resumable: Minimizer + Stateful {}

impl<M: Minimizer + Stateful + ?Sized> Resumable for M {}
