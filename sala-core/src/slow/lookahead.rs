//! Lookahead: k steps of a base, one step back.
//!
//! ```text
//! every k steps:  φ ← φ + α (θ − φ),   θ ← φ
//! ```
//!
//! Zhang, Lucas, Hinton and Ba 2019, arXiv:1907.08610. The base keeps its buffers across a
//! synchronisation. Cost: no extra gradient; every k steps a pull, which copies back as it goes.
//! Memory: one copy of the weights.

use candle_core::{Var, backprop::GradStore};
use candle_nn::Optimizer;

use super::{SlowInit, SlowWeights};
use crate::{
    compose::Descend,
    error::{Result, check},
    kernels::Fast,
    minimizer::{Minimizer, StepReport},
    objective::Objective,
    params::ParamSet,
    state::{State, StateReader, Stateful},
};

/// Configuration of [`Lookahead`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParamsLookahead {
    /// Steps between synchronisations, at least 1.
    pub k: u64,
    /// Share α in [0, 1] that the slow weights go towards the fast ones.
    pub alpha: f64,
    /// When the slow weights begin.
    pub init: SlowInit,
}

impl Default for ParamsLookahead {
    /// k = 5, α = 0.8: the paper's choice for CIFAR, and that of SALA's authors for comparison.
    fn default() -> Self {
        Self {
            k: 5,
            alpha: 0.8,
            init: SlowInit::Construction,
        }
    }
}

impl ParamsLookahead {
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) that names the field.
    pub fn validate(&self) -> Result<()> {
        check::at_least_one("ParamsLookahead", "k", self.k)?;
        check::unit("ParamsLookahead", "alpha", self.alpha)
    }
}

/// Lookahead around any base; see the [module](self) for the equations.
///
/// It takes one pass a step, so it is a [`candle_nn::Optimizer`] and fits into code that is generic
/// over that trait; as a [`Minimizer`] it also checks and clips gradients. With both traits in scope
/// a call of a method that they share must say which it means: `Minimizer::step(&mut opt, …)`.
///
/// ```
/// # use candle_core::{Device, Var};
/// # use candle_nn::Optimizer;
/// # use sala_core::{Lookahead, ParamSet, ParamsLookahead, ParamsSgd, Sgd};
/// let w = Var::new(&[8f64], &Device::Cpu)?;
/// let params = ParamSet::new([("w", w.clone())])?;
/// let base = Sgd::new(&params, ParamsSgd { lr: 0.25, ..Default::default() })?;
/// let config = ParamsLookahead { k: 2, alpha: 0.5, ..Default::default() };
/// let mut optimizer = Lookahead::new(params, base, config)?;
/// optimizer.backward_step(&w.sqr()?.sum_all()?)?; // 8 → 4
/// optimizer.backward_step(&w.sqr()?.sum_all()?)?; // 4 → 2, then half way back to 8
/// assert_eq!(w.to_vec1::<f64>()?, [5.0]);
/// # Ok::<(), sala_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Lookahead<B> {
    descent: Descend<B>,
    config: ParamsLookahead,
    slow: SlowWeights,
}

impl<B: Optimizer> Lookahead<B> {
    /// Lookahead over `params`, which `base` trains.
    ///
    /// # Errors
    /// Those of [`ParamsLookahead::validate`] and of copying the parameters.
    pub fn new(params: ParamSet, base: B, config: ParamsLookahead) -> Result<Self> {
        config.validate()?;
        let slow = SlowWeights::new(&params, config.init)?;
        Ok(Self {
            descent: Descend::new(params, base),
            config,
            slow,
        })
    }

    /// Clips the gradient to the global norm `max`; in the [`Minimizer`] form only.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when `max` is not finite and above 0.
    pub fn with_clip_norm(mut self, max: f64) -> Result<Self> {
        self.descent = self.descent.with_clip_norm(max)?;
        Ok(self)
    }

    /// The base rule.
    pub fn base(&self) -> &B {
        self.descent.base()
    }

    /// Synchronises when the step that was just taken is the last of its cycle.
    fn after_step(&mut self) -> Result<()> {
        let steps_taken = self.descent.next_step() - 1;
        if steps_taken.is_multiple_of(self.config.k) {
            let (params, alpha) = (self.descent.params(), self.config.alpha);
            self.slow.pull(params, alpha, Fast::Return)?;
        }
        Ok(())
    }
}

impl<B: Optimizer> Optimizer for Lookahead<B> {
    type Config = (ParamsLookahead, B::Config);

    fn new(vars: Vec<Var>, (config, base): Self::Config) -> candle_core::Result<Self> {
        let base = B::new(vars.clone(), base)?;
        Ok(Self::new(ParamSet::from_vars(vars)?, base, config)?)
    }

    fn step(&mut self, grads: &GradStore) -> candle_core::Result<()> {
        self.descent.update_from(grads)?;
        Ok(self.after_step()?)
    }

    fn learning_rate(&self) -> f64 {
        self.descent.base().learning_rate()
    }

    fn set_learning_rate(&mut self, lr: f64) {
        self.descent.set_learning_rate(lr);
    }
}

impl<B: Optimizer> Minimizer for Lookahead<B> {
    fn step(&mut self, objective: &mut dyn Objective) -> Result<StepReport> {
        let report = self.descent.step(objective)?;
        self.after_step()?;
        Ok(report)
    }

    fn params(&self) -> &ParamSet {
        self.descent.params()
    }

    fn learning_rate(&self) -> f64 {
        self.descent.base().learning_rate()
    }

    fn set_learning_rate(&mut self, lr: f64) {
        self.descent.set_learning_rate(lr);
    }

    fn slow_weights(&self) -> Option<&SlowWeights> {
        Some(&self.slow)
    }
}

impl<B: Optimizer + Stateful> Stateful for Lookahead<B> {
    fn state(&self) -> Result<State> {
        let mut state = State::new("Lookahead");
        self.slow.save(self.descent.params(), &mut state)?;
        state.nest("descent", self.descent.state()?);
        Ok(state)
    }

    fn load_state(&mut self, state: &State) -> Result<()> {
        let mut reader = StateReader::new("Lookahead", state)?;
        let slow = SlowWeights::read(self.descent.params(), &mut reader)?;
        let descent = reader.part("descent");
        reader.finish()?;
        self.descent.load_state(&descent)?;
        self.slow = slow;
        Ok(())
    }
}
