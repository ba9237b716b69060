//! What every optimizer of this crate can do.

use crate::{
    error::{Error, Result},
    objective::{Evaluation, Objective, Pass},
    params::ParamSet,
    slow::{SlowView, SlowWeights},
    state::Stateful,
    trace,
};

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Number of the step, from 1.
    pub step: u64,
    /// Loss of the first pass, at the weights before the step; of its fraction of the batch for a
    /// direction pass. Where the only pass is a displaced one, the loss there.
    pub loss: f64,
    /// Gradient evaluations of a whole batch that the step took; a direction pass on a fraction of
    /// the batch counts as that fraction.
    pub evaluations: f64,
    /// Whether the step climbed, so that its update uses a gradient at perturbed weights.
    pub ascent: bool,
    /// Distance of fast and slow weights at their last synchronisation (see
    /// [`slow::weights`](crate::slow::weights)), for methods whose policy looks at it: SALA. `None` for all
    /// others, Lookahead included, which do without the wait for the device that reading it costs.
    pub gap: Option<f64>,
    /// ‖g‖₂ of the gradient that updated the weights, before clipping.
    pub grad_norm: f64,
}

/// What a step needs next, in the form of two phases.
#[derive(Debug, Clone, Copy, PartialEq)]
#[must_use]
pub enum Progress {
    /// The weights are perturbed: take the gradient there ([`Pass::Perturbed`]) and call
    /// [`Minimizer::second_step`].
    Perturbed,
    /// One micro-batch is done: take the gradient of the next, for this pass, and call
    /// [`Minimizer::first_step`].
    MicroBatch(Pass),
    /// The step is complete.
    Done(StepReport),
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
///
/// # Two phases
///
/// Loops that cannot hand over a closure take the passes themselves; [`Minimizer::step`] does no more:
///
/// ```
/// # use candle_core::{Device, Var};
/// # use sala_core::{Evaluation, Minimizer, ParamSet, ParamsSam, ParamsSgd, Pass, Progress, Sam, Sgd};
/// # let w = Var::new(&[3f64], &Device::Cpu)?;
/// # let params = ParamSet::new([("w", w.clone())])?;
/// # let base = Sgd::new(&params, ParamsSgd::default())?;
/// # let mut sam = Sam::new(params, base, ParamsSam::default())?;
/// let loss = |_pass: Pass| w.sqr()?.sum_all();
/// let first = sam.begin()?; // what the first gradient is for
/// let mut progress = sam.first_step(Evaluation::of_loss(loss(first)?)?)?;
/// if progress == Progress::Perturbed {
///     progress = sam.second_step(Evaluation::of_loss(loss(Pass::Perturbed)?)?)?;
/// }
/// assert!(matches!(progress, Progress::Done(report) if report.ascent));
/// # Ok::<(), sala_core::Error>(())
/// ```
///
/// Between the two calls the weights are perturbed. An error of either call puts them back;
/// [`Minimizer::abandon`] does so when the loop fails in between, and so does dropping the optimizer.
pub trait Minimizer {
    /// Begins a step, unless it has begun, and says what its first gradient is for. Displaces the
    /// weights when that is to be taken at displaced ones.
    ///
    /// # Errors
    /// [`Error::Order`] while a second pass is outstanding, [`Error::Config`] for a learning rate that is
    /// negative or not finite, [`Error::OtherVars`], [`Error::StaleBase`] and [`Error::ForeignBase`] for a
    /// base that does not go with the parameters.
    fn begin(&mut self) -> Result<Pass>;

    /// Takes the first gradient of a step, or of a micro-batch: updates the weights or perturbs them.
    ///
    /// # Errors
    /// When the gradient is amiss, [`Error::Order`] while a second pass is outstanding; the step is
    /// then abandoned.
    fn first_step(&mut self, evaluation: Evaluation) -> Result<Progress>;

    /// Takes the gradient at the perturbed weights, which return to where they were and are updated.
    ///
    /// # Errors
    /// When the gradient is amiss, [`Error::Order`] without an outstanding second pass; the step is
    /// then abandoned.
    fn second_step(&mut self, evaluation: Evaluation) -> Result<Progress>;

    /// Gives up a step that has begun: weights and state are those of before it.
    fn abandon(&mut self);

    /// Whether a step is under way whose weights are not to be looked at: displaced, or between the
    /// micro-batches of m-SAM.
    fn is_displaced(&self) -> bool {
        false
    }

    /// How many micro-batches are perturbed one by one; 1 for all methods but m-SAM.
    fn micro_batches(&self) -> usize {
        1
    }

    /// One step: evaluates the objective and updates the parameters.
    ///
    /// # Errors
    /// When a pass fails, lacks a gradient or is not finite. Parameters and state are then those of
    /// before the step. The same holds for the parameters if the objective panics.
    /// What the objective itself keeps, such as running statistics that a first pass has moved, is its
    /// own affair.
    fn step(&mut self, objective: &mut dyn Objective) -> Result<StepReport> {
        let parts = self.micro_batches();
        if parts > 1 && objective.micro_batches() != parts {
            return Err(Error::MicroBatches {
                wanted: parts,
                got: objective.micro_batches(),
            });
        }
        let span = trace::step(self.next_step(), self.learning_rate(), self.rho());
        let _entered = span.enter();
        let mut step = Unfinished(Some(self));
        let report = step.run(parts, objective)?;
        step.0 = None;
        trace::record(&span, &report);
        Ok(report)
    }

    /// Number of the step that is under way or comes next, from 1.
    fn next_step(&self) -> u64;

    /// The parameters that are trained.
    fn params(&self) -> &ParamSet;

    /// Learning rate of the base.
    fn learning_rate(&self) -> f64;

    /// Sets the learning rate of the base, for schedules. One that is negative or not finite is an error
    /// of the next step, which names it.
    fn set_learning_rate(&mut self, lr: f64);

    /// Radius ρ of the ascent before any scaling; `None` for methods that never climb.
    fn rho(&self) -> Option<f64> {
        None
    }

    /// Sets the radius ρ, for schedules.
    ///
    /// # Errors
    /// [`Error::Config`] when it is negative or not finite, or the method has none.
    fn set_rho(&mut self, rho: f64) -> Result<()> {
        Err(Error::Config {
            owner: "Minimizer",
            field: "rho",
            wanted: "set for a method that climbs only",
            got: rho.to_string(),
        })
    }

    /// Weight decay of the base; `None` for bases that keep it to themselves.
    fn weight_decay(&self) -> Option<f64>;

    /// Sets the weight decay of the base, for schedules.
    ///
    /// # Errors
    /// [`Error::Config`] when it is negative or not finite, [`Error::ForeignBase`] for a base that is
    /// not of this crate.
    fn set_weight_decay(&mut self, decay: f64) -> Result<()>;

    /// The slow weights, for methods that have them.
    fn slow_weights(&self) -> Option<&SlowWeights> {
        None
    }

    /// To be called when the model's variables have been given other values from outside, as by loading
    /// weights into them: f32 master copies are taken from them, and slow weights and averages begin anew
    /// where they are. Without it the next synchronisation would pull the weights back to where the slow
    /// ones are, and masters would overwrite them. What the base and the method remember of gradients stays.
    ///
    /// Not for resuming: [`Stateful::load_state`] brings slow weights and masters along.
    ///
    /// # Errors
    /// [`Error::Order`] in the middle of a step, and those of copying tensors.
    fn weights_replaced(&mut self) -> Result<()> {
        Ok(())
    }

    /// Puts the slow weights, if there are any, into the parameters until the view is dropped.
    ///
    /// # Errors
    /// [`Error::Order`] in the middle of a step, and those of copying tensors.
    fn slow_view(&self) -> Result<Option<SlowView<'_>>> {
        if self.is_displaced() {
            return Err(Error::Order {
                problem: "the weights cannot be evaluated in the middle of a step: finish or abandon it",
            });
        }
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

/// A step that is abandoned when it is dropped before its end, by an error or a panic.
struct Unfinished<'a, M: Minimizer + ?Sized>(Option<&'a mut M>);

impl<M: Minimizer + ?Sized> Unfinished<'_, M> {
    fn run(&mut self, parts: usize, objective: &mut dyn Objective) -> Result<StepReport> {
        let Some(optimizer) = &mut self.0 else {
            return Err(Error::Order {
                problem: "a step that is complete cannot go on",
            });
        };
        let mut part = 0;
        let mut evaluate = |part: usize, pass: Pass| {
            let _span = trace::pass(pass).entered();
            if parts > 1 {
                objective.evaluate_micro_batch(part, pass)
            } else {
                objective.evaluate(pass)
            }
        };
        let mut pass = optimizer.begin()?;
        loop {
            let mut progress = optimizer.first_step(evaluate(part, pass)?)?;
            if progress == Progress::Perturbed {
                progress = optimizer.second_step(evaluate(part, Pass::Perturbed)?)?;
            }
            match progress {
                Progress::Done(report) => return Ok(report),
                Progress::MicroBatch(next) => pass = next,
                Progress::Perturbed => {
                    return Err(Error::Order {
                        problem: "a second step cannot ask for another second pass",
                    });
                }
            }
            part += 1;
        }
    }
}

impl<M: Minimizer + ?Sized> Drop for Unfinished<'_, M> {
    fn drop(&mut self) {
        if let Some(optimizer) = &mut self.0 {
            optimizer.abandon();
        }
    }
}

impl<M: Minimizer + ?Sized> Minimizer for Box<M> {
    fn begin(&mut self) -> Result<Pass> {
        (**self).begin()
    }

    fn first_step(&mut self, evaluation: Evaluation) -> Result<Progress> {
        (**self).first_step(evaluation)
    }

    fn second_step(&mut self, evaluation: Evaluation) -> Result<Progress> {
        (**self).second_step(evaluation)
    }

    fn abandon(&mut self) {
        (**self).abandon();
    }

    fn is_displaced(&self) -> bool {
        (**self).is_displaced()
    }

    fn micro_batches(&self) -> usize {
        (**self).micro_batches()
    }

    fn step(&mut self, objective: &mut dyn Objective) -> Result<StepReport> {
        (**self).step(objective)
    }

    fn next_step(&self) -> u64 {
        (**self).next_step()
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

    fn rho(&self) -> Option<f64> {
        (**self).rho()
    }

    fn set_rho(&mut self, rho: f64) -> Result<()> {
        (**self).set_rho(rho)
    }

    fn weight_decay(&self) -> Option<f64> {
        (**self).weight_decay()
    }

    fn set_weight_decay(&mut self, decay: f64) -> Result<()> {
        (**self).set_weight_decay(decay)
    }

    fn slow_weights(&self) -> Option<&SlowWeights> {
        (**self).slow_weights()
    }

    fn weights_replaced(&mut self) -> Result<()> {
        (**self).weights_replaced()
    }
}

/// The methods of [`Minimizer`] in which a composition only passes on to the part of it that steps.
macro_rules! passes_on_to {
    ($part:ident) => {
        fn next_step(&self) -> u64 {
            self.$part.next_step()
        }

        fn params(&self) -> &ParamSet {
            self.$part.params()
        }

        fn learning_rate(&self) -> f64 {
            Minimizer::learning_rate(&self.$part)
        }

        fn set_learning_rate(&mut self, lr: f64) {
            Minimizer::set_learning_rate(&mut self.$part, lr);
        }

        fn weight_decay(&self) -> Option<f64> {
            self.$part.weight_decay()
        }

        fn set_weight_decay(&mut self, decay: f64) -> Result<()> {
            self.$part.set_weight_decay(decay)
        }
    };
}
pub(crate) use passes_on_to;

/// A [`Minimizer`] whose complete state can be saved and loaded.
pub trait Resumable: Minimizer + Stateful {}

impl<M: Minimizer + Stateful + ?Sized> Resumable for M {}
