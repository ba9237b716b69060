//! Sharpness-aware minimisation: climb, take the gradient there, descend from below.
//!
//! ```text
//! g = ∇L(θ)            direction pass, on a fraction of the batch if so configured
//! g' = ∇L(θ + ε(g))    perturbed pass; left out, with a clean pass in its place, when the policy says so
//! θ ← base(θ, blend(g, g'))
//! ```
//!
//! Foret et al. 2021, arXiv:2010.01412. Cost: 1 + f gradients a step, f the share of steps that climb
//! (with a direction pass on the share q of the batch: 1 + q f; without a direction pass: 1). To climb
//! moves the weights and the direction through memory once. Memory: once it has climbed, one copy of
//! the weights.
//!
//! m-SAM ([`Ascend::per_micro_batch`]) takes the sum over the micro-batches i, each with an ascent of
//! its own: g' = Σᵢ ∇Lᵢ(θ + ε(∇Lᵢ(θ))) / n. It generalises better the smaller the micro-batches are
//! (Foret et al. 2021, section 4.1). SAM on an accumulated gradient is another thing: one ascent for
//! all, with a [`MicroBatches`](crate::MicroBatches) objective.

use candle_nn::Optimizer;

use super::{
    Descend,
    climb::{Climb, Outcome, Passes},
    descend::replaced_too_early,
};
use crate::{
    blend::{Ascended, Blend},
    clip::Clip,
    error::Result,
    minimizer::{Minimizer, Progress, StepReport, passes_on_to},
    objective::{Evaluation, Pass},
    params::ParamSet,
    perturb::{Perturbation, Radius},
    policy::{Moment, Policy},
    state::{State, StateReader, Stateful},
    trace,
};

/// Base × perturbation × policy × blend; see the [catalogue](crate::catalogue) for its named forms.
#[derive(Debug)]
pub struct Ascend<B, P, W, D = Ascended> {
    descent: Descend<B>,
    climb: Climb<P, D>,
    policy: W,
}

impl<B, P, W, D> Ascend<B, P, W, D>
where
    B: Optimizer + 'static,
    P: Perturbation,
    W: Policy,
    D: Blend,
{
    /// Composes the factors.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when the blend compares with a gradient at the weights
    /// that the perturbation does not take.
    ///
    /// ```
    /// # use candle_core::{Device, Var};
    /// # use sala_core::{Ascend, Minimizer, ParamSet, ParamsSgd, Pass, Sgd};
    /// # use sala_core::{blend::Ascended, perturb::{Adaptive, Radius}, policy::EveryK};
    /// let w = Var::new(&[3f32, 4.0], &Device::Cpu)?;
    /// let params = ParamSet::new([("w", w.clone())])?;
    /// let base = Sgd::new(&params, ParamsSgd::default())?;
    /// let ascent = (Adaptive::new(0.01, false)?, Radius::absolute(0.5)?);
    /// let mut optimizer = Ascend::compose(params, base, ascent, EveryK::new(10)?, Ascended::default())?;
    /// let report = optimizer.step(&mut |_pass: Pass| w.sqr()?.sum_all())?;
    /// assert!(!report.ascent && report.evaluations == 1.0);
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn compose(
        params: ParamSet,
        base: B,
        ascent: (P, Radius),
        policy: W,
        blend: D,
    ) -> Result<Self> {
        Ok(Self {
            climb: Climb::new("Ascend", &params, ascent, blend)?,
            descent: Descend::new(params, base),
            policy,
        })
    }

    /// Takes the direction pass on this share of the batch, in (0, 1].
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when it is outside.
    pub fn with_direction_fraction(mut self, fraction: f64) -> Result<Self> {
        self.climb = self.climb.on_fraction("Ascend", fraction)?;
        Ok(self)
    }

    /// Perturbs each of `count` ≥ 1 micro-batches on its own: m-SAM. The objective of a step must have as
    /// many; see [`MicroBatches`](crate::MicroBatches).
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for 0, and for more than 1 with a perturbation or blend that
    /// remembers gradients.
    pub fn per_micro_batch(mut self, count: usize) -> Result<Self> {
        self.climb = self.climb.per_micro_batch("Ascend", count)?;
        Ok(self)
    }

    /// Clips the gradient that updates the weights.
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

    fn proceed(&mut self, outcome: Result<Outcome>) -> Result<Progress> {
        match outcome {
            Ok(Outcome::Perturbed) => Ok(Progress::Perturbed),
            Ok(Outcome::MicroBatch) => Ok(Progress::MicroBatch(self.begin()?)),
            Ok(Outcome::Ready(passes)) => Ok(Progress::Done(self.update(*passes)?)),
            Err(error) => {
                self.abandon();
                Err(error)
            }
        }
    }

    fn update(&mut self, mut passes: Passes) -> Result<StepReport> {
        self.climb.put_back(&mut passes)?;
        let step = self.descent.next_step();
        let updated = self.descent.update(passes.taken, None, None)?;
        let report = StepReport {
            step,
            loss: passes.loss.unwrap_or(updated.loss),
            evaluations: passes.evaluations,
            ascent: passes.ascent,
            gap: None,
            grad_norm: updated.grad_norm,
        };
        trace::done(&report);
        Ok(report)
    }
}

impl<B, P, W, D> Minimizer for Ascend<B, P, W, D>
where
    B: Optimizer + 'static,
    P: Perturbation,
    W: Policy,
    D: Blend,
{
    fn begin(&mut self) -> Result<Pass> {
        self.descent.check_base()?;
        let moment = Moment {
            step: self.descent.next_step(),
            gap: None,
            rho: self.climb.radius.rho(),
        };
        let climbs = self.policy.climbs(moment);
        let lr = self.learning_rate();
        self.climb.begin(self.descent.params(), lr, climbs)
    }

    fn first_step(&mut self, evaluation: Evaluation) -> Result<Progress> {
        if !self.climb.has_begun() && self.begin()? == Pass::Displaced {
            self.climb.abandon();
        }
        let (params, lr) = (self.descent.params(), self.learning_rate());
        let outcome = self.climb.first(params, lr, evaluation);
        self.proceed(outcome)
    }

    fn second_step(&mut self, evaluation: Evaluation) -> Result<Progress> {
        let outcome = self.climb.second(self.descent.params(), evaluation);
        self.proceed(outcome)
    }

    fn abandon(&mut self) {
        self.climb.abandon();
    }

    fn is_displaced(&self) -> bool {
        self.climb.is_displaced()
    }

    fn micro_batches(&self) -> usize {
        self.climb.micro_batches()
    }

    passes_on_to!(descent);

    fn rho(&self) -> Option<f64> {
        Some(self.climb.radius.rho())
    }

    fn set_rho(&mut self, rho: f64) -> Result<()> {
        self.climb.radius.set_rho(rho)
    }

    fn weights_replaced(&mut self) -> Result<()> {
        if self.is_displaced() {
            return Err(replaced_too_early());
        }
        self.descent.weights_replaced()
    }
}

impl<B, P, W, D> Stateful for Ascend<B, P, W, D>
where
    B: Optimizer + Stateful + 'static,
    P: Perturbation,
    W: Policy,
    D: Blend,
{
    fn state(&self) -> Result<State> {
        let mut state = State::new("Ascend");
        state.set("method", self.climb.method(&self.policy));
        self.climb.save(self.descent.params(), &mut state)?;
        state.nest("descent", self.descent.state()?);
        Ok(state)
    }

    fn load_state(&mut self, state: &State) -> Result<()> {
        let mut reader = StateReader::new("Ascend", state)?;
        reader.same("method", self.climb.method(&self.policy))?;
        let climb = self.climb.read(self.descent.params(), &mut reader)?;
        let descent = reader.part("descent");
        reader.finish()?;
        self.descent.load_state(&descent)?;
        self.climb.restore(climb);
        Ok(())
    }
}
