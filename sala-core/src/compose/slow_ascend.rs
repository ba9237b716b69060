//! Sharpness-aware lookahead.
//!
//! With fast weights θ, slow weights φ, cycle length k, pull α, radius ρ and the step number n from 1:
//!
//! ```text
//! g = ∇L(θ)
//! n ≡ 0 (mod k):       if near:  g = ∇L(θ + ε(g))          stage 2: climb from φ (θ = φ here)
//!                      θ ← φ                               stage 1 did its climbing by walking
//! θ ← base(θ, g)
//! n ≡ k − 1 (mod k):   φ ← φ₀ + α (θ − φ₀),   gap = (1 − α) ‖θ − φ₀‖₂,   near = gap < ρ
//!                      if near:  θ ← φ
//! ```
//!
//! In the first stage the fast weights end their cycle further along the trajectory than the slow
//! ones, in a direction that leads to flat regions; the gradient taken there updates the slow
//! weights, like SAM's, at no extra cost. Once the trajectory slows down (gap < ρ) that lead is too
//! short, and SAM's ascent takes its place. Tan, Zhang, Liu and Gong, "Sharpness-Aware Lookahead for
//! Accelerating Convergence and Improving Generalization", TPAMI 2024, doi:10.1109/TPAMI.2024.3444002.
//!
//! Cost: 1 + q f / k gradients a step, with f the share of cycles that climb and q the fraction of the
//! batch of the direction pass; in each cycle one pull and one or two copies of the weights, and one more
//! when it climbs. Memory: one copy of the weights, two once it has climbed.
//!
//! Decisions:
//! - the policy is asked once a cycle, at the pull, and its answer kept for the last step of the cycle:
//!   a radius that changes in between cannot make a step climb from weights that were not copied;
//! - before the first pull the gap is 0, which matters for k = 1 alone: there every step is both the
//!   last and the (k − 1)th of its cycle, so it takes its gradient, returns to φ, steps and pulls;
//! - slow weights of [`SlowInit::FirstSync`] that do not exist yet are not returned to.

use candle_nn::Optimizer;

use super::{
    Descend,
    climb::{Climb, Landing, Passes, clean},
};
use crate::{
    error::{Result, check},
    kernels::Fast,
    minimizer::{Minimizer, StepReport},
    objective::Objective,
    params::ParamSet,
    perturb::Perturbation,
    policy::{Moment, Policy},
    slow::{SlowInit, SlowWeights},
    state::{State, StateReader, Stateful},
    trace,
};

/// Base × slow weights × perturbation × policy; [`Sala`](crate::Sala) is its named form.
#[derive(Debug)]
pub struct SlowAscend<B, P, W> {
    descent: Descend<B>,
    climb: Climb<P>,
    policy: W,
    k: u64,
    alpha: f64,
    slow: SlowWeights,
    gap: f64,
    near: bool,
}

impl<B: Optimizer, P: Perturbation, W: Policy> SlowAscend<B, P, W> {
    /// Composes the factors, with cycles of `k` ≥ 1 steps and a pull of `alpha` in [0, 1].
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when `k` or `alpha` is outside.
    ///
    /// ```
    /// # use candle_core::{Device, Var};
    /// # use sala_core::{ParamSet, ParamsSgd, Sgd, SlowAscend, SlowInit};
    /// # use sala_core::{perturb::{Adaptive, AscentNorm}, policy::Always};
    /// let w = Var::new(&[3f32, 4.0], &Device::Cpu)?;
    /// let params = ParamSet::new([("w", w)])?;
    /// let base = Sgd::new(&params, ParamsSgd::default())?;
    /// let adaptive = Adaptive::new(0.5, 0.01, AscentNorm::Global)?;
    /// // climbs at the end of every cycle, along ASAM's direction
    /// let init = SlowInit::Construction;
    /// let optimizer = SlowAscend::compose(params, base, (5, 0.8, init), adaptive, Always)?;
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn compose(
        params: ParamSet,
        base: B,
        (k, alpha, init): (u64, f64, SlowInit),
        perturbation: P,
        policy: W,
    ) -> Result<Self> {
        check::at_least_one("SlowAscend", "k", k)?;
        check::unit("SlowAscend", "alpha", alpha)?;
        let slow = SlowWeights::new(&params, init)?;
        let gap = 0.0;
        let near = policy.climbs(Moment {
            step: 0,
            gap: Some(gap),
        });
        let descent = Descend::new(params, base);
        Ok(Self {
            descent,
            climb: Climb::new(perturbation),
            policy,
            k,
            alpha,
            slow,
            gap,
            near,
        })
    }

    /// Takes the direction pass on this share of the batch, in (0, 1].
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when it is outside.
    pub fn with_direction_fraction(mut self, fraction: f64) -> Result<Self> {
        self.climb = self.climb.on_fraction("SlowAscend", fraction)?;
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

    /// φ moves towards θ; near its end, the next step starts from φ.
    fn synchronise(&mut self, step: u64) -> Result<()> {
        // The pull cannot copy back as it goes: whether to is known when it is done.
        let params = self.descent.params();
        self.gap = self.slow.pull(params, self.alpha, Fast::Stay)?;
        self.near = self.policy.climbs(Moment {
            step,
            gap: Some(self.gap),
        });
        if self.near {
            self.slow.copy_to(self.descent.params())?;
        }
        Ok(())
    }
}

impl<B: Optimizer, P: Perturbation, W: Policy> Minimizer for SlowAscend<B, P, W> {
    fn step(&mut self, objective: &mut dyn Objective) -> Result<StepReport> {
        let step = self.descent.next_step();
        let span = trace::step(step, self.learning_rate(), Some(self.climb.rho()));
        let _entered = span.enter();

        let last_of_cycle = step.is_multiple_of(self.k);
        let ascent = last_of_cycle && self.near;
        let Passes {
            loss,
            gradients,
            evaluations,
        } = if ascent {
            let landing = Landing::Slow(&self.slow);
            self.climb.passes(&self.descent, objective, landing)?
        } else {
            clean(&self.descent, objective)?
        };
        let grad_norm = gradients.norm();
        if last_of_cycle && !ascent {
            self.slow.copy_to(self.descent.params())?;
        }
        self.descent.update(gradients)?;
        if (step + 1).is_multiple_of(self.k) {
            self.synchronise(step)?;
        }

        let gap = Some(self.gap);
        let report = StepReport {
            step,
            loss,
            evaluations,
            ascent,
            gap,
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

    fn slow_weights(&self) -> Option<&SlowWeights> {
        Some(&self.slow)
    }
}

impl<B: Optimizer + Stateful, P: Perturbation, W: Policy> Stateful for SlowAscend<B, P, W> {
    fn state(&self) -> Result<State> {
        let mut state = State::new("SlowAscend");
        state.set("gap", self.gap);
        state.set("near", self.near);
        self.slow.save(self.descent.params(), &mut state)?;
        state.nest("descent", self.descent.state()?);
        Ok(state)
    }

    fn load_state(&mut self, state: &State) -> Result<()> {
        let mut reader = StateReader::new("SlowAscend", state)?;
        let (gap, near) = (reader.get("gap")?, reader.get("near")?);
        let slow = SlowWeights::read(self.descent.params(), &mut reader)?;
        let descent = reader.part("descent");
        reader.finish()?;
        self.descent.load_state(&descent)?;
        (self.gap, self.near, self.slow) = (gap, near, slow);
        Ok(())
    }
}
