//! Dynamic loss scaling for half precision.
//!
//! In f16 small gradients underflow to zero. The loss is multiplied by a large factor S before its
//! backward pass and the gradients are divided by S afterwards, in f32. When a scaled gradient
//! overflows, the step is left out and S is lowered; after so many steps without overflow it is raised
//! (Micikevicius et al. 2018, arXiv:1710.03740).
//!
//! ```text
//! overflow in either pass:      weights and state as before the step,  S ← max(b S, S_min)
//! `interval` good steps:        S ← min(a S, S_max)
//! ```

use candle_core::Tensor;

use crate::{
    error::{Error, Result, check},
    minimizer::{Minimizer, StepReport},
    objective::{Evaluation, Objective, Pass},
    state::{State, StateReader, Stateful},
};

/// Configuration of [`LossScaler`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParamsLossScaler {
    /// The first factor S.
    pub initial: f64,
    /// Factor a ≥ 1 of S after `interval` good steps.
    pub growth: f64,
    /// Factor b in (0, 1) of S after an overflow.
    pub backoff: f64,
    /// Good steps in a row before S grows, at least 1.
    pub interval: u64,
    /// Least S; an overflow there is an error, because scaling is not its cause.
    pub min: f64,
    /// Greatest S.
    pub max: f64,
}

impl Default for ParamsLossScaler {
    /// Those of `torch.amp.GradScaler` (S = 2¹⁶, a = 2, b = 0.5, 2000 steps), between 1 and 2²⁴.
    fn default() -> Self {
        Self {
            initial: 65_536.0,
            growth: 2.0,
            backoff: 0.5,
            interval: 2000,
            min: 1.0,
            max: 16_777_216.0,
        }
    }
}

impl ParamsLossScaler {
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`] that names the field.
    pub fn validate(&self) -> Result<()> {
        const OWNER: &str = "ParamsLossScaler";
        check::positive(OWNER, "initial", self.initial)?;
        let grows = self.growth.is_finite() && self.growth >= 1.0;
        check::holds(OWNER, "growth", grows, "finite and >= 1", self.growth)?;
        let shrinks = self.backoff > 0.0 && self.backoff < 1.0;
        check::holds(OWNER, "backoff", shrinks, "in (0, 1)", self.backoff)?;
        check::at_least_one(OWNER, "interval", self.interval)?;
        check::positive(OWNER, "min", self.min)?;
        check::positive(OWNER, "max", self.max)?;
        let ordered = (self.min..=self.max).contains(&self.initial);
        check::holds(
            OWNER,
            "initial",
            ordered,
            "between min and max",
            self.initial,
        )
    }
}

/// Runs the steps of an optimizer on scaled losses.
///
/// ```
/// # use candle_core::{DType, Device, Tensor, Var};
/// # use sala_core::{LossScaler, ParamSet, ParamsLossScaler, ParamsSam, ParamsSgd, Pass, Sam, Sgd};
/// let w = Var::new(&[3f32], &Device::Cpu)?;
/// let w = Var::from_tensor(&w.to_dtype(DType::F16)?)?;
/// let params = ParamSet::new([("w", w.clone())])?.with_f32_masters()?;
/// let base = Sgd::new(&params, ParamsSgd::default())?;
/// let mut sam = Sam::new(params, base, ParamsSam::default())?;
/// let mut scaler = LossScaler::new(ParamsLossScaler::default())?;
/// // 2¹⁶ · ∇(w²) = 6 · 2¹⁶ is above f16's largest number: the first step is left out
/// let first = scaler.step(&mut sam, &mut |_pass: Pass| w.sqr()?.sum_all())?;
/// assert!(first.is_none() && scaler.scale() == 32_768.0);
/// # Ok::<(), sala_core::Error>(())
/// ```
#[derive(Debug)]
pub struct LossScaler {
    config: ParamsLossScaler,
    scale: f64,
    good_steps: u64,
    skipped: u64,
}

impl LossScaler {
    /// A scaler.
    ///
    /// # Errors
    /// Those of [`ParamsLossScaler::validate`].
    pub fn new(config: ParamsLossScaler) -> Result<Self> {
        config.validate()?;
        Ok(Self {
            scale: config.initial,
            config,
            good_steps: 0,
            skipped: 0,
        })
    }

    /// The factor S of the next step.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Steps left out so far.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// One step on a loss; `None` when it was left out because a scaled gradient overflowed. Weights and
    /// optimizer are then those of before it.
    ///
    /// # Errors
    /// Those of the step; [`Error::NonFinite`] only when the factor is at its minimum already. Until then
    /// a loss that is not finite leaves steps out, too.
    pub fn step<M, F>(&mut self, optimizer: &mut M, loss: &mut F) -> Result<Option<StepReport>>
    where
        M: Minimizer + ?Sized,
        F: FnMut(Pass) -> candle_core::Result<Tensor>,
    {
        let scale = self.scale;
        let outcome = optimizer.step(&mut Scaled { loss, scale });
        self.settle(outcome)
    }

    /// As [`LossScaler::step`] for any objective, which must take [`LossScaler::scale`] itself into what it
    /// returns ([`Evaluation::scale`], [`MicroBatches::scaled`](crate::MicroBatches::scaled)).
    ///
    /// # Errors
    /// As for [`LossScaler::step`].
    pub fn step_objective<M: Minimizer + ?Sized>(
        &mut self,
        optimizer: &mut M,
        objective: &mut dyn Objective,
    ) -> Result<Option<StepReport>> {
        let outcome = optimizer.step(objective);
        self.settle(outcome)
    }

    fn settle(&mut self, outcome: Result<StepReport>) -> Result<Option<StepReport>> {
        match outcome {
            Ok(report) => {
                self.good_steps += 1;
                // A state may come from a run with a longer interval.
                if self.good_steps >= self.config.interval {
                    self.scale = (self.scale * self.config.growth).min(self.config.max);
                    self.good_steps = 0;
                }
                Ok(Some(report))
            }
            Err(error @ Error::NonFinite { .. }) if self.scale <= self.config.min => Err(error),
            Err(Error::NonFinite { pass, what, value }) => {
                tracing::debug!(%pass, what, value, scale = self.scale, "step left out: overflow");
                self.scale = (self.scale * self.config.backoff).max(self.config.min);
                self.good_steps = 0;
                self.skipped += 1;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

struct Scaled<'a, F> {
    loss: &'a mut F,
    scale: f64,
}

impl<F: FnMut(Pass) -> candle_core::Result<Tensor>> Objective for Scaled<'_, F> {
    fn evaluate(&mut self, pass: Pass) -> candle_core::Result<Evaluation> {
        Evaluation::of_scaled_loss((self.loss)(pass)?, self.scale)
    }
}

impl Stateful for LossScaler {
    fn state(&self) -> Result<State> {
        let mut state = State::new("LossScaler");
        state.set("scale", self.scale);
        state.set("good_steps", self.good_steps);
        state.set("skipped", self.skipped);
        Ok(state)
    }

    fn load_state(&mut self, state: &State) -> Result<()> {
        let mut reader = StateReader::new("LossScaler", state)?;
        let scale = reader.get("scale")?;
        let (good_steps, skipped) = (reader.get("good_steps")?, reader.get("skipped")?);
        reader.finish()?;
        (self.scale, self.good_steps, self.skipped) = (scale, good_steps, skipped);
        Ok(())
    }
}
