//! One clean pass, one step of the base.

use candle_core::{Tensor, backprop::GradStore};
use candle_nn::Optimizer;

use crate::{
    base::{self, Around, Moves},
    clip::Clip,
    error::{Error, Result, check},
    gradients::{Checked, Gradients, Guarded, Taken, Unread},
    kernels::{Fast, Guard, Scalar},
    minimizer::{Minimizer, Progress, StepReport},
    objective::{Evaluation, Pass},
    params::ParamSet,
    slow::SlowWeights,
    state::{State, StateReader, Stateful},
    trace,
};

/// A base rule as a [`Minimizer`]: evaluates, checks, clips and steps. The other compositions are
/// built around one.
///
/// ```
/// # use candle_core::{Device, Tensor, Var};
/// # use candle_nn::{AdamW, Optimizer, ParamsAdamW};
/// # use sala_core::{Clip, Descend, Minimizer, ParamSet, Pass};
/// let w = Var::new(&[3f32, 4.0], &Device::Cpu)?;
/// let params = ParamSet::new([("w", w.clone())])?;
/// let base = AdamW::new(params.vars(), ParamsAdamW::default())?; // any candle_nn::Optimizer
/// let mut optimizer = Descend::new(params, base).with_clip(Clip::Norm(1.0))?;
/// let report = optimizer.step(&mut |_pass: Pass| w.sqr()?.sum_all())?;
/// assert_eq!((report.loss, report.grad_norm), (25.0, 10.0));
/// # Ok::<(), sala_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Descend<B> {
    params: ParamSet,
    base: B,
    clip: Option<Clip>,
    steps: u64,
    /// Whether a base from another crate has been seen to move the parameters.
    moves: bool,
}

impl<B: Optimizer + 'static> Descend<B> {
    /// Steps `base`, which must train the same variables, with gradients checked against `params`. A
    /// built-in base takes on the order and the names of `params`.
    ///
    /// Whether the variables are the same shows when a step begins, and with a base from another crate when
    /// one has moved nothing: [`Error::OtherVars`].
    pub fn new(params: ParamSet, mut base: B) -> Self {
        if let Some(rule) = base::as_rule_mut(&mut base) {
            rule.adopt(&params);
        }
        Self {
            params,
            base,
            clip: None,
            steps: 0,
            moves: false,
        }
    }

    /// Clips the gradient that updates the weights.
    ///
    /// # Errors
    /// Those of [`Clip::validate`].
    pub fn with_clip(mut self, clip: Clip) -> Result<Self> {
        clip.validate()?;
        self.clip = Some(clip);
        Ok(self)
    }

    /// The base rule.
    pub fn base(&self) -> &B {
        &self.base
    }

    pub(crate) fn base_mut(&mut self) -> &mut B {
        &mut self.base
    }

    /// Whether the base treats every parameter as it should, at a learning rate that is one; asked before
    /// each step.
    pub(crate) fn check_base(&self) -> Result<()> {
        // Setting it cannot fail, in candle's trait as in this crate's.
        check::non_negative("Minimizer", "learning_rate", self.base.learning_rate())?;
        base::check(&self.base, &self.params)
    }

    /// Checks loss and gradients and updates the weights, from the slow weights and with a pull of them if so
    /// asked; the step is then done. After an error weights and state are as before.
    pub(crate) fn update(
        &mut self,
        taken: Taken,
        from: Option<&SlowWeights>,
        pull: Option<Pulled>,
    ) -> Result<Updated> {
        let updated = match self.guard(taken, pull.as_ref())? {
            Ok(guarded) => self.update_under(guarded, from, pull),
            Err(taken) => {
                let checked = taken.check(&self.params)?;
                self.update_with(checked, from, pull)
            }
        }?;
        self.steps += 1;
        Ok(updated)
    }

    /// Leaves it to the device whether to update, where it can decide that and the base is one that can take back
    /// what it notes of a step.
    fn guard(
        &self,
        taken: Taken,
        pull: Option<&Pulled>,
    ) -> Result<std::result::Result<Guarded, Taken>> {
        let Taken::Unread(unread) = taken else {
            return Ok(Err(taken));
        };
        let foreign = base::as_rule(&self.base).is_none();
        // The first synchronisation makes slow weights, which nothing takes back.
        if foreign || pull.is_some_and(|(slow, ..)| slow.tensors().is_none()) {
            return Ok(Err(Taken::Unread(unread)));
        }
        Ok(unread.guarded(self.clip)?.map_err(Taken::Unread))
    }

    /// Has the update made if the device finds loss and gradients finite, and looks at them meanwhile.
    fn update_under(
        &mut self,
        guarded: Guarded,
        from: Option<&SlowWeights>,
        pull: Option<Pulled>,
    ) -> Result<Updated> {
        let params = &self.params;
        let Some(rule) = base::as_rule_mut(&mut self.base) else {
            let what = "an update that the device decides on";
            return Err(Error::ForeignBase { what });
        };
        let notes = rule.notes();
        let (gradients, guard) = guarded.parts();
        let queued = step_rule(rule, params, gradients, (from, pull, Some(guard)));
        let queued = queued.and_then(|pulled| {
            params.publish_under(Some(guard))?;
            Ok(pulled)
        });
        let updated = queued.and_then(|pulled| Ok(Updated::new(&guarded.check(params)?, pulled)));
        if updated.is_err() {
            rule.take_back(&notes);
        }
        updated
    }

    /// Updates with what has been checked.
    fn update_with(
        &mut self,
        checked: Checked,
        from: Option<&SlowWeights>,
        pull: Option<Pulled>,
    ) -> Result<Updated> {
        let mut updated = Updated::new(&checked, Vec::new());
        let mut gradients = checked.gradients;
        if let Some(clip) = self.clip {
            gradients.clip(clip)?;
        }
        updated.pulled = self.step_base(gradients, from, pull)?;
        Ok(updated)
    }

    /// The base's step; yields the parts of ‖θ − φ₀‖² of a pull.
    fn step_base(
        &mut self,
        gradients: Gradients,
        from: Option<&SlowWeights>,
        pull: Option<Pulled>,
    ) -> Result<Vec<Scalar>> {
        let params = &self.params;
        let pulled = if let Some(rule) = base::as_rule_mut(&mut self.base) {
            step_rule(rule, params, gradients.tensors(), (from, pull, None))?
        } else {
            if let Some(slow) = from {
                slow.copy_to(params)?;
            }
            self.step_foreign(gradients)?;
            match pull {
                Some((slow, alpha, fast)) => slow.pull(&self.params, alpha, fast)?,
                None => Vec::new(),
            }
        };
        self.params.publish()?;
        Ok(pulled)
    }

    /// The step of a base from another crate, which is watched until it has moved the parameters.
    fn step_foreign(&mut self, gradients: Gradients) -> Result<()> {
        let watched = if self.moves {
            None
        } else {
            Some(Moves::before(&self.params, gradients.tensors())?)
        };
        self.base.step(&gradients.into_store(&self.params)?)?;
        if let Some(watched) = watched {
            self.moves = watched.after(self.base.learning_rate())?;
        }
        Ok(())
    }

    /// As [`Descend::update`] on gradients whose numbers nobody has looked at, for candle's own trait.
    pub(crate) fn update_from(&mut self, store: &GradStore, pull: Option<Pulled>) -> Result<()> {
        self.check_base()?;
        let gradients = Gradients::of_store(&self.params, store)?;
        self.step_base(gradients, None, pull)?;
        self.steps += 1;
        Ok(())
    }

    /// Loss and gradients of a clean pass.
    pub(crate) fn take(&self, evaluation: Evaluation) -> Result<Taken> {
        let unread = Unread::collect(&self.params, Pass::Clean, evaluation)?;
        Ok(Taken::Unread(unread))
    }
}

/// What an update yields.
pub(crate) struct Updated {
    /// Of the pass whose gradients updated the weights.
    pub(crate) loss: f64,
    /// ‖g‖₂ before clipping.
    pub(crate) grad_norm: f64,
    /// The parts of ‖θ − φ₀‖² of a pull.
    pub(crate) pulled: Vec<Scalar>,
}

impl Updated {
    fn new(checked: &Checked, pulled: Vec<Scalar>) -> Self {
        Self {
            loss: checked.loss,
            grad_norm: checked.gradients.norm(),
            pulled,
        }
    }
}

/// Slow weights, how far they are pulled, and what becomes of the fast ones.
type Pulled<'a> = (&'a mut SlowWeights, f64, Fast);

/// A built-in base's step with what goes around it in the same sweep.
fn step_rule(
    rule: &mut dyn base::Rule,
    params: &ParamSet,
    gradients: &[Tensor],
    (from, pull, guard): (Option<&SlowWeights>, Option<Pulled>, Option<&Guard>),
) -> Result<Vec<Scalar>> {
    let from = from.and_then(SlowWeights::tensors);
    match pull {
        // The first synchronisation makes the slow weights, so it cannot be within the step.
        Some((slow, alpha, fast)) if slow.tensors().is_none() => {
            let around = Around {
                from,
                pull: None,
                guard,
            };
            rule.step_around(gradients, around)?;
            slow.pull(params, alpha, fast)
        }
        pull => {
            let pull =
                pull.and_then(|(slow, alpha, fast)| Some((slow.tensors_mut()?, alpha, fast)));
            rule.step_around(gradients, Around { from, pull, guard })
        }
    }
}

/// The error of weights that are replaced while they are displaced, and would be put back.
pub(crate) fn replaced_too_early() -> Error {
    Error::Order {
        problem: "the weights cannot be replaced in the middle of a step: finish or abandon it",
    }
}

/// The error of a second step where there is no second pass.
pub(crate) fn no_second_pass() -> Error {
    Error::Order {
        problem: "second_step without an outstanding second pass: first_step returns \
                  Progress::Perturbed when there is one",
    }
}

impl<B: Optimizer + 'static> Minimizer for Descend<B> {
    fn begin(&mut self) -> Result<Pass> {
        self.check_base()?;
        Ok(Pass::Clean)
    }

    fn first_step(&mut self, evaluation: Evaluation) -> Result<Progress> {
        self.check_base()?;
        let taken = self.take(evaluation)?;
        let updated = self.update(taken, None, None)?;
        let report = StepReport {
            step: self.steps,
            loss: updated.loss,
            evaluations: 1.0,
            ascent: false,
            gap: None,
            grad_norm: updated.grad_norm,
        };
        trace::done(&report);
        Ok(Progress::Done(report))
    }

    fn second_step(&mut self, _: Evaluation) -> Result<Progress> {
        Err(no_second_pass())
    }

    fn abandon(&mut self) {}

    fn next_step(&self) -> u64 {
        self.steps + 1
    }

    fn params(&self) -> &ParamSet {
        &self.params
    }

    fn learning_rate(&self) -> f64 {
        self.base.learning_rate()
    }

    fn set_learning_rate(&mut self, lr: f64) {
        self.base.set_learning_rate(lr);
    }

    fn weight_decay(&self) -> Option<f64> {
        base::as_rule(&self.base).map(base::Rule::weight_decay)
    }

    fn set_weight_decay(&mut self, decay: f64) -> Result<()> {
        check::non_negative("Minimizer", "weight_decay", decay)?;
        match base::as_rule_mut(&mut self.base) {
            Some(rule) => {
                rule.set_weight_decay(decay);
                Ok(())
            }
            None => Err(Error::ForeignBase {
                what: "a weight decay that is set from outside",
            }),
        }
    }

    fn weights_replaced(&mut self) -> Result<()> {
        self.params.renew_masters()
    }
}

impl<B: Stateful> Stateful for Descend<B> {
    fn state(&self) -> Result<State> {
        let mut state = State::new("Descend");
        state.set("steps", self.steps);
        self.params.save_masters(&mut state)?;
        state.nest("base", self.base.state()?);
        Ok(state)
    }

    fn load_state(&mut self, state: &State) -> Result<()> {
        let mut reader = StateReader::new("Descend", state)?;
        let steps = reader.get("steps")?;
        let masters = self.params.read_masters(&mut reader)?;
        let base = reader.part("base");
        reader.finish()?;
        self.base.load_state(&base)?;
        self.params.assign_masters(&masters)?;
        self.steps = steps;
        Ok(())
    }
}
