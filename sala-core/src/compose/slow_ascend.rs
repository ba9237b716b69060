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
//! batch of the direction pass. Over a built-in base the pull and the return to φ happen within the base's
//! steps and add one pass over φ a cycle; a cycle that climbs adds the ascent. Over another base they are a
//! pull and a copy of their own. Memory: one copy of the weights. A climb needs no second one: close to
//! its end a cycle's θ is discarded, so θ and φ exchange their memory, the ascent writes φ + ε over what θ has
//! left behind, and the base steps from φ.
//!
//! Decisions:
//! - the policy is asked once a cycle, at the pull, and its answer kept for the last step of the cycle:
//!   a radius that changes in between cannot make a step climb from weights that were not copied;
//! - before the first pull the gap is 0, which matters for k = 1 alone: there every step is both the
//!   last and the (k − 1)th of its cycle, so it takes its gradient, returns to φ, steps and pulls;
//! - the gap is compared with the radius at the pull, scaled by its [`RhoScale`](crate::perturb::RhoScale);
//! - from a pull that ends near to the climb the parameters hold φ: whoever changes them in between changes
//!   the slow weights, too;
//! - slow weights of [`SlowInit::FirstSync`] that do not exist yet are not returned to.

use candle_nn::Optimizer;

use super::{
    Descend,
    climb::{Climb, Outcome, Passes},
    descend::replaced_too_early,
};
use crate::{
    blend::{Ascended, Blend},
    clip::Clip,
    error::{Result, check},
    gradients::Taken,
    kernels::{Fast, Scalar},
    minimizer::{Minimizer, Progress, StepReport, passes_on_to},
    objective::{Evaluation, Pass},
    params::ParamSet,
    perturb::{Perturbation, Radius},
    policy::{Moment, Policy},
    slow::{SlowInit, SlowWeights, weights},
    state::{State, StateReader, Stateful},
    trace, vector,
};

/// Base × slow weights × perturbation × policy × blend; [`Sala`](crate::Sala) is its named form.
#[derive(Debug)]
pub struct SlowAscend<B, P, W, D = Ascended> {
    descent: Descend<B>,
    climb: Climb<P, D>,
    policy: W,
    k: u64,
    alpha: f64,
    init: SlowInit,
    slow: SlowWeights,
    gap: f64,
    near: bool,
}

impl<B, P, W, D> SlowAscend<B, P, W, D>
where
    B: Optimizer + 'static,
    P: Perturbation,
    W: Policy,
    D: Blend,
{
    /// Composes the factors, with cycles of `k` ≥ 1 steps and a pull of `alpha` in [0, 1].
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when `k` or `alpha` is outside, or the blend compares with
    /// a gradient at the weights that the perturbation does not take.
    ///
    /// ```
    /// # use candle_core::{Device, Var};
    /// # use sala_core::{ParamSet, ParamsSgd, Sgd, SlowAscend, SlowInit};
    /// # use sala_core::{blend::Ascended, perturb::{Adaptive, Radius}, policy::Always};
    /// let w = Var::new(&[3f32, 4.0], &Device::Cpu)?;
    /// let params = ParamSet::new([("w", w)])?;
    /// let base = Sgd::new(&params, ParamsSgd::default())?;
    /// // climbs at the end of every cycle, along ASAM's direction
    /// let ascent = (Adaptive::new(0.01, false)?, Radius::absolute(0.5)?);
    /// let slow = (5, 0.8, SlowInit::Construction);
    /// let optimizer = SlowAscend::compose(params, base, slow, ascent, Always, Ascended::default())?;
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn compose(
        params: ParamSet,
        base: B,
        (k, alpha, init): (u64, f64, SlowInit),
        ascent: (P, Radius),
        policy: W,
        blend: D,
    ) -> Result<Self> {
        check::at_least_one("SlowAscend", "k", k)?;
        check::unit("SlowAscend", "alpha", alpha)?;
        let slow = SlowWeights::new(&params, init)?;
        let climb = Climb::new("SlowAscend", &params, ascent, blend)?;
        let mut optimizer = Self {
            descent: Descend::new(params, base),
            climb,
            policy,
            k,
            alpha,
            init,
            slow,
            gap: 0.0,
            near: false,
        };
        optimizer.start()?;
        Ok(optimizer)
    }

    /// Takes the direction pass on this share of the batch, in (0, 1].
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when it is outside.
    pub fn with_direction_fraction(mut self, fraction: f64) -> Result<Self> {
        self.climb = self.climb.on_fraction("SlowAscend", fraction)?;
        Ok(self)
    }

    /// Perturbs each of `count` ≥ 1 micro-batches on its own when it climbs, as m-SAM does. The objective
    /// of a step must have as many; see [`MicroBatches`](crate::MicroBatches).
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for 0, and for more than 1 with a perturbation or blend that
    /// remembers gradients.
    pub fn per_micro_batch(mut self, count: usize) -> Result<Self> {
        self.climb = self.climb.per_micro_batch("SlowAscend", count)?;
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

    /// Decides for a cycle that begins where the slow weights are.
    fn start(&mut self) -> Result<()> {
        let weight_squares = self.climb.weight_squares(self.descent.params())?;
        self.decide(self.descent.next_step() - 1, &[], weight_squares)
    }

    /// Reads how far a pull went, in one synchronisation, and decides whether the cycle's end climbs.
    fn decide(&mut self, step: u64, pulled: &[Scalar], weight_squares: Vec<Scalar>) -> Result<()> {
        let mut scalars = pulled.to_vec();
        scalars.extend(weight_squares);
        let squares = vector::read_scalars(scalars)?;
        let (pulled, weights) = squares.split_at(pulled.len());
        self.gap = weights::gap(self.alpha, pulled);
        let rho = self.climb.effective_rho(self.learning_rate(), weights);
        let gap = Some(self.gap);
        self.near = self.policy.climbs(Moment { step, gap, rho });
        Ok(())
    }

    /// Brings fast and slow weights to where they belong after the passes. Tells whether only the slow
    /// weights do, so that the base has to step from them.
    fn gather(&mut self, passes: &mut Passes) -> Result<bool> {
        if !self.slow.is_in_params() {
            self.climb.put_back(passes)?;
            return Ok(false);
        }
        if let Some(displaced) = passes.displaced.take() {
            // What the ascent saved is φ.
            self.slow.reclaim(displaced.leave());
            return Ok(true);
        }
        self.slow.settle(self.descent.params())?;
        Ok(false)
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

    /// The base's step, with the return to φ before it and the pull after it where they are due.
    fn update(&mut self, mut passes: Passes) -> Result<StepReport> {
        let step = self.descent.next_step();
        let ends = step.is_multiple_of(self.k);
        let pulls = (step + 1).is_multiple_of(self.k);
        if self.slow.is_in_params() || (ends && pulls) {
            // What follows moves weights before the update, and nothing would move them back.
            passes.taken = Taken::Checked(passes.taken.check(self.descent.params())?);
        }
        let from_slow = self.gather(&mut passes)? || (ends && !self.near);
        if from_slow && pulls {
            // k = 1: the slow weights cannot be read and pulled in one sweep.
            self.slow.copy_to(self.descent.params())?;
        }
        let updated = if pulls {
            // The pull cannot copy back as it goes: whether to is known when it is done.
            let pull = Some((&mut self.slow, self.alpha, Fast::Stay));
            let updated = self.descent.update(passes.taken, None, pull)?;
            let weight_squares = self.climb.weight_squares(self.descent.params())?;
            self.decide(step, &updated.pulled, weight_squares)?;
            if self.near {
                self.slow.move_into(self.descent.params())?;
            }
            updated
        } else {
            let from = Some(&self.slow).filter(|_| from_slow);
            self.descent.update(passes.taken, from, None)?
        };
        let report = StepReport {
            step,
            loss: passes.loss.unwrap_or(updated.loss),
            evaluations: passes.evaluations,
            ascent: passes.ascent,
            gap: Some(self.gap),
            grad_norm: updated.grad_norm,
        };
        trace::done(&report);
        Ok(report)
    }
}

impl<B, P, W, D> Minimizer for SlowAscend<B, P, W, D>
where
    B: Optimizer + 'static,
    P: Perturbation,
    W: Policy,
    D: Blend,
{
    fn begin(&mut self) -> Result<Pass> {
        self.descent.check_base()?;
        let climbs = self.near && self.descent.next_step().is_multiple_of(self.k);
        if climbs && let Some(buffers) = self.slow.take_spare() {
            self.climb.lend(buffers);
        }
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

    fn slow_weights(&self) -> Option<&SlowWeights> {
        Some(&self.slow)
    }

    fn weights_replaced(&mut self) -> Result<()> {
        if self.is_displaced() {
            return Err(replaced_too_early());
        }
        self.descent.weights_replaced()?;
        self.slow = SlowWeights::new(self.descent.params(), self.init)?;
        self.start()
    }
}

impl<B, P, W, D> Stateful for SlowAscend<B, P, W, D>
where
    B: Optimizer + Stateful + 'static,
    P: Perturbation,
    W: Policy,
    D: Blend,
{
    fn state(&self) -> Result<State> {
        let mut state = State::new("SlowAscend");
        state.set("method", self.climb.method(&self.policy));
        state.set("k", self.k);
        state.set("alpha", self.alpha);
        state.set("gap", self.gap);
        state.set("near", self.near);
        self.slow.save(self.descent.params(), &mut state)?;
        self.climb.save(self.descent.params(), &mut state)?;
        state.nest("descent", self.descent.state()?);
        Ok(state)
    }

    fn load_state(&mut self, state: &State) -> Result<()> {
        let mut reader = StateReader::new("SlowAscend", state)?;
        reader.same("method", self.climb.method(&self.policy))?;
        reader.same("k", self.k)?;
        reader.same("alpha", self.alpha)?;
        let (gap, near) = (reader.get("gap")?, reader.get("near")?);
        let slow = SlowWeights::read(self.descent.params(), &mut reader)?;
        let climb = self.climb.read(self.descent.params(), &mut reader)?;
        let descent = reader.part("descent");
        reader.finish()?;
        self.descent.load_state(&descent)?;
        (self.gap, self.near, self.slow) = (gap, near, slow);
        self.climb.restore(climb);
        Ok(())
    }
}
