//! Lookahead: k steps of a base, one step back.
//!
//! ```text
//! every k steps:  φ ← φ + α (θ − φ),   θ ← φ
//! ```
//!
//! Zhang, Lucas, Hinton and Ba 2019, arXiv:1907.08610. Cost: no extra gradient; every k steps a pull, which
//! happens within the step of a built-in base. Memory: one copy of the weights.
//!
//! The base's momentum m at a synchronisation ([`MomentumAtPull`]), as in the paper's appendix:
//!
//! ```text
//! keep:       m stays
//! reset:      m ← 0
//! pull back:  s ← s + α (m − s),   m ← s      from s = 0; one more copy of the weights
//! ```
//!
//! For Adam m is the first moment; the second and the step number stay.

use candle_core::{Tensor, Var, backprop::GradStore};
use candle_nn::Optimizer;

use super::{SlowInit, SlowWeights};
use crate::{
    base::{self, Rule},
    clip::Clip,
    compose::{Descend, no_second_pass},
    error::{Error, Result, check},
    kernels::Fast,
    memory::Memory,
    minimizer::{Minimizer, Progress, StepReport, passes_on_to},
    objective::{Evaluation, Pass},
    params::ParamSet,
    state::{State, StateReader, Stateful},
    trace,
};

/// What becomes of the base's momentum when fast and slow weights meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MomentumAtPull {
    /// It stays.
    #[default]
    Keep,
    /// It is set to 0.
    Reset,
    /// It is pulled as the weights are, towards a slow momentum.
    PullBack,
}

/// Configuration of [`Lookahead`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParamsLookahead {
    /// Steps between synchronisations, at least 1.
    pub k: u64,
    /// Share α in [0, 1] that the slow weights go towards the fast ones.
    pub alpha: f64,
    /// When the slow weights begin.
    pub init: SlowInit,
    /// What becomes of the base's momentum; other than [`MomentumAtPull::Keep`] for built-in bases only.
    pub momentum: MomentumAtPull,
}

impl Default for ParamsLookahead {
    /// k = 5, α = 0.8: the paper's choice for CIFAR, and that of SALA's authors for comparison.
    fn default() -> Self {
        Self {
            k: 5,
            alpha: 0.8,
            init: SlowInit::Construction,
            momentum: MomentumAtPull::Keep,
        }
    }
}

impl ParamsLookahead {
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`] that names the field.
    pub fn validate(&self) -> Result<()> {
        check::at_least_one("ParamsLookahead", "k", self.k)?;
        check::unit("ParamsLookahead", "alpha", self.alpha)
    }
}

/// Lookahead around any base; see the [module](self) for the equations.
///
/// It takes one pass a step, so it is a [`candle_nn::Optimizer`] and fits into code that is generic
/// over that trait. Both forms check that every parameter has a gradient that fits, leave frozen ones alone
/// and obey settings and masters; as a [`Minimizer`] it also refuses gradients that are not finite, and
/// clips. With both traits in scope
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
    slow_momentum: Memory,
}

impl<B: Optimizer + 'static> Lookahead<B> {
    /// Lookahead over `params`, which `base` trains.
    ///
    /// # Errors
    /// Those of [`ParamsLookahead::validate`] and of copying the parameters, and
    /// [`Error::ForeignBase`] when the momentum of a base that does not show it is to be changed.
    pub fn new(params: ParamSet, base: B, config: ParamsLookahead) -> Result<Self> {
        config.validate()?;
        if config.momentum != MomentumAtPull::Keep && base::as_rule(&base).is_none() {
            return Err(Error::ForeignBase {
                what: "Lookahead that resets the momentum or pulls it back",
            });
        }
        let slow = SlowWeights::new(&params, config.init)?;
        Ok(Self {
            descent: Descend::new(params, base),
            config,
            slow,
            slow_momentum: Memory::new(),
        })
    }

    /// Clips the gradient; in the [`Minimizer`] form only.
    ///
    /// # Errors
    /// Those of [`Clip::validate`].
    pub fn with_clip(mut self, clip: Clip) -> Result<Self> {
        self.descent = self.descent.with_clip(clip)?;
        Ok(self)
    }

    /// The base rule.
    pub fn base(&self) -> &B {
        self.descent.base()
    }

    /// Whether the cycle ends with this step.
    fn ends_cycle(&self, step: u64) -> bool {
        step.is_multiple_of(self.config.k)
    }

    /// Treats the base's momentum when a cycle has ended.
    fn treat_momentum(&mut self) -> Result<()> {
        let Some(rule) = base::as_rule_mut(self.descent.base_mut()) else {
            return Ok(());
        };
        match self.config.momentum {
            MomentumAtPull::Keep => Ok(()),
            MomentumAtPull::Reset => reset(rule),
            MomentumAtPull::PullBack => pull_back(rule, &mut self.slow_momentum, self.config.alpha),
        }
    }
}

fn reset(rule: &mut dyn Rule) -> Result<()> {
    for momentum in rule.momentum().into_iter().flatten() {
        *momentum = momentum.zeros_like()?;
    }
    Ok(())
}

fn pull_back(rule: &mut dyn Rule, slow: &mut Memory, alpha: f64) -> Result<()> {
    let mut fast: Vec<&mut Tensor> = rule.momentum().into_iter().flatten().collect();
    let now: Vec<Tensor> = fast.iter().map(|m| (**m).clone()).collect();
    slow.blend(1.0 - alpha, alpha, &now)?;
    for (fast, slow) in fast.iter_mut().zip(slow.tensors().unwrap_or_default()) {
        // A copy: the base updates its buffers in place.
        **fast = slow.force_contiguous()?;
    }
    Ok(())
}

impl<B: Optimizer + 'static> Optimizer for Lookahead<B> {
    type Config = (ParamsLookahead, B::Config);

    fn new(vars: Vec<Var>, (config, base): Self::Config) -> candle_core::Result<Self> {
        let base = B::new(vars.clone(), base)?;
        Ok(Self::new(ParamSet::from_vars(vars)?, base, config)?)
    }

    fn step(&mut self, grads: &GradStore) -> candle_core::Result<()> {
        let ends = self.ends_cycle(self.descent.next_step());
        let pull = ends.then_some((&mut self.slow, self.config.alpha, Fast::Return));
        self.descent.update_from(grads, pull)?;
        if ends {
            self.treat_momentum()?;
        }
        Ok(())
    }

    fn learning_rate(&self) -> f64 {
        self.descent.base().learning_rate()
    }

    fn set_learning_rate(&mut self, lr: f64) {
        self.descent.set_learning_rate(lr);
    }
}

impl<B: Optimizer + 'static> Minimizer for Lookahead<B> {
    fn begin(&mut self) -> Result<Pass> {
        self.descent.begin()
    }

    fn first_step(&mut self, evaluation: Evaluation) -> Result<Progress> {
        self.descent.check_base()?;
        let step = self.descent.next_step();
        let taken = self.descent.take(evaluation)?;
        let ends = self.ends_cycle(step);
        let pull = ends.then_some((&mut self.slow, self.config.alpha, Fast::Return));
        let updated = self.descent.update(taken, None, pull)?;
        if ends {
            self.treat_momentum()?;
        }
        let report = StepReport {
            step,
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

    passes_on_to!(descent);

    fn slow_weights(&self) -> Option<&SlowWeights> {
        Some(&self.slow)
    }

    fn weights_replaced(&mut self) -> Result<()> {
        self.descent.weights_replaced()?;
        self.slow = SlowWeights::new(self.descent.params(), self.config.init)?;
        Ok(())
    }
}

impl<B: Optimizer + Stateful + 'static> Stateful for Lookahead<B> {
    fn state(&self) -> Result<State> {
        let mut state = State::new("Lookahead");
        state.set("k", self.config.k);
        state.set("alpha", self.config.alpha);
        let params = self.descent.params();
        self.slow.save(params, &mut state)?;
        let mut momentum = State::new("Memory");
        self.slow_momentum.save(params, &mut momentum)?;
        state.nest("slow_momentum", momentum);
        state.nest("descent", self.descent.state()?);
        Ok(state)
    }

    fn load_state(&mut self, state: &State) -> Result<()> {
        let mut reader = StateReader::new("Lookahead", state)?;
        reader.same("k", self.config.k)?;
        reader.same("alpha", self.config.alpha)?;
        let params = self.descent.params();
        let slow = SlowWeights::read(params, &mut reader)?;
        let mut momentum = StateReader::new("Memory", &reader.part("slow_momentum"))?;
        let slow_momentum = Memory::read(params, &mut momentum)?;
        momentum.finish()?;
        let descent = reader.part("descent");
        reader.finish()?;
        self.descent.load_state(&descent)?;
        (self.slow, self.slow_momentum) = (slow, slow_momentum);
        Ok(())
    }
}
