//! One clean pass, one step of the base.

use candle_nn::Optimizer;

use crate::{
    error::{Result, check},
    gradients::Gradients,
    minimizer::{Minimizer, StepReport},
    objective::{Objective, Pass},
    params::ParamSet,
    state::{State, StateReader, Stateful},
    trace,
};

/// A base rule as a [`Minimizer`]: evaluates, checks, clips and steps. The other compositions are
/// built around one.
///
/// ```
/// # use candle_core::{Device, Tensor, Var};
/// # use candle_nn::{AdamW, Optimizer, ParamsAdamW};
/// # use sala_core::{Descend, Minimizer, ParamSet, Pass};
/// let w = Var::new(&[3f32, 4.0], &Device::Cpu)?;
/// let params = ParamSet::new([("w", w.clone())])?;
/// let base = AdamW::new(params.vars(), ParamsAdamW::default())?; // any candle_nn::Optimizer
/// let mut optimizer = Descend::new(params, base).with_clip_norm(1.0)?;
/// let report = optimizer.step(&mut |_pass: Pass| w.sqr()?.sum_all())?;
/// assert_eq!((report.loss, report.grad_norm), (25.0, 10.0));
/// # Ok::<(), sala_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Descend<B> {
    params: ParamSet,
    base: B,
    clip_norm: Option<f64>,
    steps: u64,
}

impl<B: Optimizer> Descend<B> {
    /// Steps `base`, which must train the same variables, with gradients checked against `params`.
    pub fn new(params: ParamSet, base: B) -> Self {
        Self {
            params,
            base,
            clip_norm: None,
            steps: 0,
        }
    }

    /// Clips the gradient that updates the weights to the global norm `max`.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when `max` is not finite and above 0.
    pub fn with_clip_norm(mut self, max: f64) -> Result<Self> {
        check::positive("Descend", "clip_norm", max)?;
        self.clip_norm = Some(max);
        Ok(self)
    }

    /// The base rule.
    pub fn base(&self) -> &B {
        &self.base
    }

    /// Number of the step that is under way or comes next, from 1.
    pub(crate) fn next_step(&self) -> u64 {
        self.steps + 1
    }

    /// Loss and checked gradients of one pass.
    pub(crate) fn evaluate(
        &self,
        objective: &mut dyn Objective,
        pass: Pass,
    ) -> Result<(f64, Gradients)> {
        let _span = trace::pass(pass).entered();
        Gradients::check(&self.params, pass, objective.evaluate(pass)?)
    }

    /// Updates the weights; the step is then done.
    pub(crate) fn update(&mut self, gradients: Gradients) -> Result<()> {
        let store = gradients.into_clipped(&self.params, self.clip_norm)?;
        self.base.step(&store)?;
        self.steps += 1;
        Ok(())
    }

    /// Counts a step that the base took by itself.
    pub(crate) fn update_from(&mut self, store: &candle_core::backprop::GradStore) -> Result<()> {
        self.base.step(store)?;
        self.steps += 1;
        Ok(())
    }
}

impl<B: Optimizer> Minimizer for Descend<B> {
    fn step(&mut self, objective: &mut dyn Objective) -> Result<StepReport> {
        let span = trace::step(self.next_step(), self.learning_rate(), None);
        let _entered = span.enter();
        let (loss, gradients) = self.evaluate(objective, Pass::Clean)?;
        let grad_norm = gradients.norm();
        self.update(gradients)?;
        let step = self.steps;
        let report = StepReport {
            step,
            loss,
            evaluations: 1.0,
            ascent: false,
            gap: None,
            grad_norm,
        };
        trace::record(&span, &report);
        Ok(report)
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
}

impl<B: Stateful> Stateful for Descend<B> {
    fn state(&self) -> Result<State> {
        let mut state = State::new("Descend");
        state.set("steps", self.steps);
        state.nest("base", self.base.state()?);
        Ok(state)
    }

    fn load_state(&mut self, state: &State) -> Result<()> {
        let mut reader = StateReader::new("Descend", state)?;
        let steps = reader.get("steps")?;
        let base = reader.part("base");
        reader.finish()?;
        self.base.load_state(&base)?;
        self.steps = steps;
        Ok(())
    }
}
