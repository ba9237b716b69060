//! Sharpness-aware minimisation: climb, take the gradient there, descend from below.
//!
//! ```text
//! g = ∇L(θ)            direction pass, on a fraction of the batch if so configured
//! g = ∇L(θ + ε(g))     perturbed pass; left out, with a clean pass in its place, when the policy says so
//! θ ← base(θ, g)
//! ```
//!
//! Foret et al. 2021, arXiv:2010.01412. Cost: 1 + f gradients a step, f the share of steps that climb
//! (with a direction pass on the share q of the batch: 1 + q f); climbing copies the weights twice.
//! Memory: once it has climbed, one copy of the weights.

use candle_nn::Optimizer;

use super::{
    Descend,
    climb::{Climb, Landing, Passes, clean},
};
use crate::{
    error::Result,
    minimizer::{Minimizer, StepReport},
    objective::Objective,
    params::ParamSet,
    perturb::Perturbation,
    policy::{Moment, Policy},
    state::{State, StateReader, Stateful},
    trace,
};

/// Base × perturbation × policy; see the [catalogue](crate::catalogue) for its named forms.
#[derive(Debug)]
pub struct Ascend<B, P, W> {
    descent: Descend<B>,
    climb: Climb<P>,
    policy: W,
}

impl<B: Optimizer, P: Perturbation, W: Policy> Ascend<B, P, W> {
    /// Composes the factors.
    ///
    /// ```
    /// # use candle_core::{Device, Var};
    /// # use sala_core::{Ascend, Minimizer, ParamSet, ParamsSgd, Pass, Sgd};
    /// # use sala_core::{perturb::{Adaptive, AscentNorm}, policy::EveryK};
    /// let w = Var::new(&[3f32, 4.0], &Device::Cpu)?;
    /// let params = ParamSet::new([("w", w.clone())])?;
    /// let base = Sgd::new(&params, ParamsSgd::default())?;
    /// let adaptive = Adaptive::new(0.5, 0.01, AscentNorm::Global)?;
    /// let mut optimizer = Ascend::compose(params, base, adaptive, EveryK::new(10)?);
    /// let report = optimizer.step(&mut |_pass: Pass| w.sqr()?.sum_all())?;
    /// assert!(!report.ascent && report.evaluations == 1.0);
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn compose(params: ParamSet, base: B, perturbation: P, policy: W) -> Self {
        let descent = Descend::new(params, base);
        Self {
            descent,
            climb: Climb::new(perturbation),
            policy,
        }
    }

    /// Takes the direction pass on this share of the batch, in (0, 1].
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when it is outside.
    pub fn with_direction_fraction(mut self, fraction: f64) -> Result<Self> {
        self.climb = self.climb.on_fraction("Ascend", fraction)?;
        Ok(self)
    }

    /// Clips the gradient that updates the weights to the global norm `max`.
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
}

impl<B: Optimizer, P: Perturbation, W: Policy> Minimizer for Ascend<B, P, W> {
    fn step(&mut self, objective: &mut dyn Objective) -> Result<StepReport> {
        let step = self.descent.next_step();
        let span = trace::step(step, self.learning_rate(), Some(self.climb.rho()));
        let _entered = span.enter();

        let ascent = self.policy.climbs(Moment { step, gap: None });
        let Passes {
            loss,
            gradients,
            evaluations,
        } = if ascent {
            self.climb
                .passes(&self.descent, objective, Landing::Start)?
        } else {
            clean(&self.descent, objective)?
        };
        let grad_norm = gradients.norm();
        self.descent.update(gradients)?;

        let report = StepReport {
            step,
            loss,
            evaluations,
            ascent,
            gap: None,
            grad_norm,
        };
        trace::record(&span, &report);
        Ok(report)
    }

    fn params(&self) -> &ParamSet {
        self.descent.params()
    }

    fn learning_rate(&self) -> f64 {
        self.descent.learning_rate()
    }

    fn set_learning_rate(&mut self, lr: f64) {
        self.descent.set_learning_rate(lr);
    }
}

impl<B: Stateful, P, W> Stateful for Ascend<B, P, W> {
    fn state(&self) -> Result<State> {
        let mut state = State::new("Ascend");
        state.nest("descent", self.descent.state()?);
        Ok(state)
    }

    fn load_state(&mut self, state: &State) -> Result<()> {
        let mut reader = StateReader::new("Ascend", state)?;
        let descent = reader.part("descent");
        reader.finish()?;
        self.descent.load_state(&descent)
    }
}
