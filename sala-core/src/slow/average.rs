//! Averages of the weights along the trajectory, for evaluation: they do not touch the training.
//!
//! ```text
//! exponential:  φ ← β φ + (1 − β) θ                    (Polyak and Juditsky 1992; Ruppert 1988)
//! stochastic weight averaging:  φ ← (n φ + θ) / (n + 1)     n = weights averaged so far
//! ```
//!
//! SWA: Izmailov et al. 2018, arXiv:1803.05407. Both begin as φ = θ after step `start` and are updated every
//! `every` steps from there. Cost: no gradient and no wait for the device; one pull for each update.
//! Memory: one copy of the weights. Batch-norm statistics belong to the trained weights: pass some
//! batches in training mode through the averaged network before it is evaluated.

use super::{SlowInit, SlowWeights};
use crate::{
    error::{Result, check},
    kernels::Fast,
    minimizer::{Minimizer, Progress, StepReport, passes_on_to},
    objective::{Evaluation, Pass},
    params::ParamSet,
    state::{State, StateReader, Stateful},
};

/// Which average.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Average {
    /// Exponential, with decay β in [0, 1).
    Exponential {
        /// β.
        decay: f64,
    },
    /// Equal weights: SWA.
    Equal,
}

/// Configuration of [`Averaged`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParamsAveraged {
    /// Which average.
    pub average: Average,
    /// The step, from 1, whose result it begins with.
    pub start: u64,
    /// Steps from one update to the next, at least 1.
    pub every: u64,
}

impl Default for ParamsAveraged {
    /// Exponential with β = 0.999, from the first step at every step.
    fn default() -> Self {
        Self {
            average: Average::Exponential { decay: 0.999 },
            start: 1,
            every: 1,
        }
    }
}

impl ParamsAveraged {
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) that names the field.
    pub fn validate(&self) -> Result<()> {
        const OWNER: &str = "ParamsAveraged";
        if let Average::Exponential { decay } = self.average {
            check::below_one(OWNER, "average.decay", decay)?;
        }
        check::at_least_one(OWNER, "start", self.start)?;
        check::at_least_one(OWNER, "every", self.every)
    }
}

/// Any optimizer with an average of its weights beside it, which takes the place of the slow weights.
///
/// ```
/// # use candle_core::{Device, Var};
/// # use sala_core::{Average, Averaged, Descend, Minimizer, ParamSet, ParamsAveraged, ParamsSgd, Pass, Sgd};
/// let w = Var::new(&[8f64], &Device::Cpu)?;
/// let params = ParamSet::new([("w", w.clone())])?;
/// let base = Sgd::new(&params, ParamsSgd { lr: 0.25, ..Default::default() })?;
/// let config = ParamsAveraged { average: Average::Equal, ..Default::default() };
/// let mut optimizer = Averaged::new(Descend::new(params, base), config)?;
/// for _ in 0..3 {
///     optimizer.step(&mut |_pass: Pass| w.sqr()?.sum_all())?; // 8 → 4 → 2 → 1
/// }
/// let mean = optimizer.with_slow_weights(|| w.to_vec1::<f64>())?[0];
/// assert!((mean - 7.0 / 3.0).abs() < 1e-12);
/// # Ok::<(), sala_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Averaged<M> {
    inner: M,
    config: ParamsAveraged,
    average: SlowWeights,
    /// Weights averaged so far.
    count: u64,
}

impl<M: Minimizer> Averaged<M> {
    /// Averages the weights of `inner`.
    ///
    /// # Errors
    /// Those of [`ParamsAveraged::validate`].
    pub fn new(inner: M, config: ParamsAveraged) -> Result<Self> {
        config.validate()?;
        let average = SlowWeights::new(inner.params(), SlowInit::FirstSync)?;
        Ok(Self {
            inner,
            config,
            average,
            count: 0,
        })
    }

    /// The optimizer that is averaged.
    pub fn inner(&self) -> &M {
        &self.inner
    }

    fn after(&mut self, progress: Progress) -> Result<Progress> {
        if let Progress::Done(StepReport { step, .. }) = progress {
            let since = step.checked_sub(self.config.start);
            if since.is_some_and(|since| since.is_multiple_of(self.config.every)) {
                self.count += 1;
                let alpha = match self.config.average {
                    Average::Exponential { decay } => 1.0 - decay,
                    Average::Equal => 1.0 / self.count as f64,
                };
                self.average.pull(self.inner.params(), alpha, Fast::Stay)?;
            }
        }
        Ok(progress)
    }
}

impl<M: Minimizer> Minimizer for Averaged<M> {
    fn begin(&mut self) -> Result<Pass> {
        self.inner.begin()
    }

    fn first_step(&mut self, evaluation: Evaluation) -> Result<Progress> {
        let progress = self.inner.first_step(evaluation)?;
        self.after(progress)
    }

    fn second_step(&mut self, evaluation: Evaluation) -> Result<Progress> {
        let progress = self.inner.second_step(evaluation)?;
        self.after(progress)
    }

    fn abandon(&mut self) {
        self.inner.abandon();
    }

    fn is_displaced(&self) -> bool {
        self.inner.is_displaced()
    }

    fn micro_batches(&self) -> usize {
        self.inner.micro_batches()
    }

    passes_on_to!(inner);

    fn rho(&self) -> Option<f64> {
        self.inner.rho()
    }

    fn set_rho(&mut self, rho: f64) -> Result<()> {
        self.inner.set_rho(rho)
    }

    fn slow_weights(&self) -> Option<&SlowWeights> {
        Some(&self.average)
    }

    fn weights_replaced(&mut self) -> Result<()> {
        self.inner.weights_replaced()?;
        self.average = SlowWeights::new(self.inner.params(), SlowInit::FirstSync)?;
        self.count = 0;
        Ok(())
    }
}

impl<M: Minimizer + Stateful> Stateful for Averaged<M> {
    fn state(&self) -> Result<State> {
        let mut state = State::new("Averaged");
        state.set("count", self.count);
        self.average.save(self.inner.params(), &mut state)?;
        state.nest("inner", self.inner.state()?);
        Ok(state)
    }

    fn load_state(&mut self, state: &State) -> Result<()> {
        let mut reader = StateReader::new("Averaged", state)?;
        let count = reader.get("count")?;
        let average = SlowWeights::read(self.inner.params(), &mut reader)?;
        let inner = reader.part("inner");
        reader.finish()?;
        self.inner.load_state(&inner)?;
        (self.count, self.average) = (count, average);
        Ok(())
    }
}
