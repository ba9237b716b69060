//! The passes of a step: at the weights, or at perturbed weights, which are put back whatever happens.

use candle_core::Tensor;

use super::descend::no_second_pass;
use crate::{
    blend::{Blend, Direction},
    displaced::{Displaced, Saved},
    error::{Error, Result, check},
    gradients::{Checked, Read, Taken, Unread},
    kernels::Scalar,
    memory::Memory,
    objective::{Evaluation, Pass},
    params::ParamSet,
    perturb::{Ascent, Perturbation, Radius},
    policy::Policy,
    state::{State, StateReader},
    vector,
};

/// What the passes of one step gave.
pub(crate) struct Passes {
    /// Loss of the first pass, the mean over micro-batches; `None` where the only pass has it.
    pub(crate) loss: Option<f64>,
    /// Gradients for the update.
    pub(crate) taken: Taken,
    /// Cost in gradient evaluations of a whole batch.
    pub(crate) evaluations: f64,
    /// Whether the gradients come from perturbed weights.
    pub(crate) ascent: bool,
    /// The weights are still displaced; to be put back, or left to a base that steps from elsewhere.
    pub(crate) displaced: Option<Displaced>,
}

/// What comes after a gradient.
pub(crate) enum Outcome {
    /// The weights are perturbed; the gradient there is wanted.
    Perturbed,
    /// The next micro-batch is wanted.
    MicroBatch,
    /// All gradients are there; the weights can be put back and updated.
    Ready(Box<Passes>),
}

/// How to climb, and where in a step we are.
#[derive(Debug)]
pub(crate) struct Climb<P, D> {
    perturbation: P,
    blend: D,
    pub(crate) radius: Radius,
    direction_fraction: f64,
    micro_batches: usize,
    stage: Stage,
    tally: Option<Tally>,
    /// Kept between climbs: to make buffers anew costs more time than to fill them.
    saved: Saved,
}

/// Between steps, or what has begun.
#[derive(Debug)]
enum Stage {
    Idle,
    /// The first gradient is wanted, at weights that may be displaced.
    Begun(Pass, Option<Displaced>),
    /// The second gradient is wanted.
    Climbed {
        displaced: Displaced,
        loss: f64,
        direction: Direction,
    },
}

/// The sum over the micro-batches so far.
#[derive(Debug, Default)]
struct Tally {
    count: usize,
    loss: f64,
    evaluations: f64,
    sum: Vec<Tensor>,
}

impl<P: Perturbation, D: Blend> Climb<P, D> {
    /// With the direction pass on the whole batch. `owner` names the composition in errors.
    pub(crate) fn new(
        owner: &'static str,
        params: &ParamSet,
        (perturbation, radius): (P, Radius),
        blend: D,
    ) -> Result<Self> {
        perturbation.check(params)?;
        check::holds(
            owner,
            "blend",
            perturbation.needs_direction() || !blend.needs_direction(),
            "the gradient at the perturbed weights as it is, for a perturbation without a direction pass",
            "one that compares it with the gradient at the weights",
        )?;
        Ok(Self {
            perturbation,
            blend,
            radius,
            direction_fraction: 1.0,
            micro_batches: 1,
            stage: Stage::Idle,
            tally: None,
            saved: Saved::new(),
        })
    }

    /// Takes the direction pass on this share of the batch.
    pub(crate) fn on_fraction(mut self, owner: &'static str, fraction: f64) -> Result<Self> {
        check::fraction(owner, "direction_fraction", fraction)?;
        self.direction_fraction = fraction;
        Ok(self)
    }

    /// Perturbs each of so many micro-batches on its own.
    pub(crate) fn per_micro_batch(mut self, owner: &'static str, count: usize) -> Result<Self> {
        check::at_least_one(owner, "micro_batches", count as u64)?;
        let forgetful = self.perturbation.memory().is_none() && self.blend.memory().is_none();
        let wanted = "1 for a perturbation or blend that remembers gradients";
        check::holds(
            owner,
            "micro_batches",
            forgetful || count == 1,
            wanted,
            count,
        )?;
        self.micro_batches = count;
        Ok(self)
    }

    pub(crate) fn micro_batches(&self) -> usize {
        self.micro_batches
    }

    /// What a state belongs to: the names of the factors.
    pub(crate) fn method(&self, policy: &impl Policy) -> String {
        let (perturbation, blend) = (self.perturbation.name(), self.blend.name());
        format!("{perturbation} × {} × {blend}", policy.name())
    }

    /// ρ' at this learning rate, for policies, given the squared norms of the weights if it needs them.
    pub(crate) fn effective_rho(&self, lr: f64, weight_squares: &[f64]) -> f64 {
        self.radius.effective(lr, vector::norm_of(weight_squares))
    }

    /// The squared norms of the weights, if the radius depends on them.
    pub(crate) fn weight_squares(&self, params: &ParamSet) -> Result<Vec<Scalar>> {
        if self.radius.needs_weight_norm() {
            let weights: Vec<_> = params.tensors().map(Tensor::detach).collect();
            vector::squared_norms(&weights)
        } else {
            Ok(Vec::new())
        }
    }

    /// Whether a step has begun.
    pub(crate) fn has_begun(&self) -> bool {
        !matches!(self.stage, Stage::Idle)
    }

    /// Whether the weights are displaced, or a part of a step has been taken.
    pub(crate) fn is_displaced(&self) -> bool {
        let displaced = matches!(self.stage, Stage::Climbed { .. } | Stage::Begun(_, Some(_)));
        displaced || self.tally.is_some()
    }

    /// Refuses to save or load in the middle of a step.
    fn require_rest(&self) -> Result<()> {
        if self.is_displaced() {
            return Err(Error::Order {
                problem: "a state can be saved and loaded between steps only: this one has begun",
            });
        }
        Ok(())
    }

    /// Begins a step, or goes on with a step that has begun.
    pub(crate) fn begin(&mut self, params: &ParamSet, lr: f64, climbs: bool) -> Result<Pass> {
        match &self.stage {
            Stage::Begun(pass, _) => return Ok(*pass),
            Stage::Climbed { .. } => return Err(outstanding()),
            Stage::Idle => {}
        }
        let fraction = self.direction_fraction;
        let (pass, displaced) = if !climbs {
            (Pass::Clean, None)
        } else if self.perturbation.needs_direction() {
            (Pass::Direction { fraction }, None)
        } else {
            match self.perturbation.ascent(params, &[])? {
                Some(ascent) => (Pass::Displaced, Some(self.displace(params, lr, ascent)?)),
                None => (Pass::Clean, None),
            }
        };
        self.stage = Stage::Begun(pass, displaced);
        Ok(pass)
    }

    /// Perturbs along a direction that no gradient comes with, and so reads its norm by itself.
    fn displace(&mut self, params: &ParamSet, lr: f64, ascent: Ascent) -> Result<Displaced> {
        let mut scalars = ascent
            .along
            .as_ref()
            .map_or(Vec::new(), |a| a.squares.clone());
        scalars.extend(self.weight_squares(params)?);
        let mut squares = vector::read_scalars(scalars)?;
        let weights = squares.split_off(params.len().min(squares.len()));
        self.perturb(params, lr, ascent, &[], &squares, &weights)
    }

    /// θ ← θ + ε.
    fn perturb(
        &mut self,
        params: &ParamSet,
        lr: f64,
        ascent: Ascent,
        gradients: &[Tensor],
        squares: &[f64],
        weight_squares: &[f64],
    ) -> Result<Displaced> {
        let effective = ascent.sign * self.effective_rho(lr, weight_squares);
        let factors = self.radius.factors(params, squares, effective);
        let along = ascent.along.map(|along| along.directions);
        let directions = along.as_deref().unwrap_or(gradients);
        vector::check_shapes(params.tensors(), directions)?;
        let saved = std::mem::take(&mut self.saved);
        Displaced::new(params, saved, directions, &factors)
    }

    /// Takes the first gradient. An error leaves the step to be abandoned.
    pub(crate) fn first(
        &mut self,
        params: &ParamSet,
        lr: f64,
        evaluation: Evaluation,
    ) -> Result<Outcome> {
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Begun(pass @ Pass::Direction { .. }, _) => {
                self.direct(params, lr, pass, evaluation)
            }
            Stage::Begun(pass, Some(displaced)) => {
                let unread = Unread::collect(params, pass, evaluation)?;
                let (numbers, taken) = ((None, 1.0, true), Taken::Unread(unread));
                self.finish(params, numbers, taken, None, Some(displaced))
            }
            Stage::Begun(pass, None) => self.clean(params, pass, evaluation),
            climbed @ Stage::Climbed { .. } => {
                self.stage = climbed;
                Err(outstanding())
            }
            Stage::Idle => Err(Error::Order {
                problem: "first_step before begin, which displaces the weights of this method",
            }),
        }
    }

    fn direct(
        &mut self,
        params: &ParamSet,
        lr: f64,
        pass: Pass,
        evaluation: Evaluation,
    ) -> Result<Outcome> {
        let mut unread = Unread::collect(params, pass, evaluation)?;
        let gradients = if self.perturbation.reads_gradients() {
            unread.widen()?
        } else {
            &[]
        };
        let Some(ascent) = self.perturbation.ascent(params, gradients)? else {
            return Err(Error::Order {
                problem: "a perturbation that takes a direction pass must give a direction",
            });
        };
        // The direction's norms, if they are not those of the gradient, and ‖w‖, if it is needed.
        let mut others = self.weight_squares(params)?;
        let weights = others.len();
        if let Some(along) = &ascent.along {
            others.extend(along.squares.iter().cloned());
        }
        let Read {
            checked,
            mut others,
        } = unread.read(params, others)?;
        let Checked {
            loss,
            mut gradients,
            squares,
        } = checked;
        let along = others.split_off(weights);
        let squares = if along.is_empty() { squares } else { along };
        let displaced = self.perturb(params, lr, ascent, gradients.tensors(), &squares, &others)?;
        let keep = self.blend.keeps_direction() || self.perturbation.memory().is_some();
        let direction = Direction {
            norm: gradients.norm(),
            tensors: if keep {
                gradients.widen()?;
                gradients.into_tensors()
            } else {
                Vec::new()
            },
        };
        self.stage = Stage::Climbed {
            displaced,
            loss,
            direction,
        };
        Ok(Outcome::Perturbed)
    }

    fn clean(&mut self, params: &ParamSet, pass: Pass, evaluation: Evaluation) -> Result<Outcome> {
        let mut unread = Unread::collect(params, pass, evaluation)?;
        let mut others = Vec::new();
        if let Some(addition) = self.blend.addition() {
            vector::check_shapes(params.tensors(), addition)?;
            others.extend(vector::squared_norms(addition)?);
            others.extend(vector::dots(addition, unread.widen()?)?);
        }
        let numbers = (None, 1.0, false);
        if others.is_empty() && self.perturbation.memory().is_none() {
            return self.finish(params, numbers, Taken::Unread(unread), None, None);
        }
        unread.widen()?;
        let Read {
            mut checked,
            others,
        } = unread.read(params, others)?;
        let gradients = &mut checked.gradients;
        let at_weights = self
            .perturbation
            .memory()
            .map(|_| gradients.tensors().to_vec());
        if !others.is_empty() {
            let (squares, dots) = others.split_at(params.len());
            let numbers = (vector::norm_of(squares), dots.iter().sum());
            self.blend.between(numbers, gradients)?;
        }
        self.finish(params, numbers, Taken::Checked(checked), at_weights, None)
    }

    /// Takes the second gradient. An error leaves the step to be abandoned.
    pub(crate) fn second(&mut self, params: &ParamSet, evaluation: Evaluation) -> Result<Outcome> {
        let (displaced, loss, direction) = match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Climbed {
                displaced,
                loss,
                direction,
            } => (displaced, loss, direction),
            other => {
                self.stage = other;
                return Err(no_second_pass());
            }
        };
        let mut unread = Unread::collect(params, Pass::Perturbed, evaluation)?;
        let numbers = (Some(loss), 1.0 + self.direction_fraction, true);
        if self.blend.is_plain() && self.perturbation.memory().is_none() {
            let taken = Taken::Unread(unread);
            return self.finish(params, numbers, taken, None, Some(displaced));
        }
        let gradients = unread.widen()?;
        let dots = if self.blend.keeps_direction() {
            vector::dots(&direction.tensors, gradients)?
        } else {
            Vec::new()
        };
        let Read {
            mut checked,
            others,
        } = unread.read(params, dots)?;
        let dot = others.iter().sum();
        self.blend
            .climbed(&direction, dot, &mut checked.gradients)?;
        let at_weights = Some(direction.tensors).filter(|t| !t.is_empty());
        let taken = Taken::Checked(checked);
        self.finish(params, numbers, taken, at_weights, Some(displaced))
    }

    /// Adds one micro-batch, or is done with the only one.
    fn finish(
        &mut self,
        params: &ParamSet,
        (loss, evaluations, ascent): (Option<f64>, f64, bool),
        mut taken: Taken,
        at_weights: Option<Vec<Tensor>>,
        displaced: Option<Displaced>,
    ) -> Result<Outcome> {
        if self.micro_batches > 1 {
            let checked = taken.check(params)?;
            let numbers = (loss.unwrap_or(checked.loss), evaluations, ascent);
            return self.add(numbers, checked, displaced);
        }
        if self.perturbation.memory().is_some() {
            let mut checked = taken.check(params)?;
            checked.gradients.widen()?;
            let descent = checked.gradients.tensors();
            self.perturbation.remember(at_weights.as_deref(), descent)?;
            taken = Taken::Checked(checked);
        }
        Ok(Outcome::Ready(Box::new(Passes {
            loss,
            taken,
            evaluations,
            ascent,
            displaced,
        })))
    }

    /// Adds one micro-batch; after the last one the passes are those of all.
    fn add(
        &mut self,
        (loss, evaluations, ascent): (f64, f64, bool),
        mut checked: Checked,
        displaced: Option<Displaced>,
    ) -> Result<Outcome> {
        if let Some(displaced) = displaced {
            self.saved = displaced.put_back()?;
        }
        let gradients = checked.gradients.tensors();
        let mut tally = self.tally.take().unwrap_or_default();
        let share = 1.0 / self.micro_batches as f64;
        tally.add(share, (loss, evaluations), gradients)?;
        if tally.count < self.micro_batches {
            self.tally = Some(tally);
            return Ok(Outcome::MicroBatch);
        }
        let squares = vector::read_scalars(vector::squared_norms(&tally.sum)?)?;
        let norm = vector::norm_of(&squares);
        checked.gradients.replace(tally.sum, norm);
        Ok(Outcome::Ready(Box::new(Passes {
            loss: Some(tally.loss),
            taken: Taken::Checked(checked),
            evaluations: tally.evaluations,
            ascent,
            displaced: None,
        })))
    }

    /// Puts displaced weights back.
    pub(crate) fn put_back(&mut self, passes: &mut Passes) -> Result<()> {
        if let Some(displaced) = passes.displaced.take() {
            self.saved = displaced.put_back()?;
        }
        Ok(())
    }

    /// Gives buffers for the next ascent to save the weights in.
    pub(crate) fn lend(&mut self, buffers: Vec<Option<Tensor>>) {
        self.saved = buffers;
    }

    /// Forgets a step that has begun; displaced weights return.
    pub(crate) fn abandon(&mut self) {
        self.tally = None;
        // Dropping puts the weights back.
        self.stage = Stage::Idle;
    }

    pub(crate) fn save(&self, params: &ParamSet, state: &mut State) -> Result<()> {
        self.require_rest()?;
        state.set("rho", self.radius.rho());
        let parts = [
            ("perturbation", self.perturbation.memory()),
            ("blend", self.blend.memory()),
        ];
        for (name, memory) in parts {
            if let Some(memory) = memory {
                let mut part = State::new("Memory");
                memory.save(params, &mut part)?;
                state.nest(name, part);
            }
        }
        Ok(())
    }

    /// Reads what [`Climb::save`] wrote, for [`Climb::restore`].
    pub(crate) fn read(&self, params: &ParamSet, reader: &mut StateReader) -> Result<Saveable> {
        self.require_rest()?;
        let mut radius = self.radius;
        radius.set_rho(reader.get("rho")?)?;
        let mut memory = |name: &str, there: bool| -> Result<Option<Memory>> {
            if !there {
                return Ok(None);
            }
            let mut part = StateReader::new("Memory", &reader.part(name))?;
            let memory = Memory::read(params, &mut part)?;
            part.finish()?;
            Ok(Some(memory))
        };
        Ok(Saveable {
            radius,
            perturbation: memory("perturbation", self.perturbation.memory().is_some())?,
            blend: memory("blend", self.blend.memory().is_some())?,
        })
    }

    pub(crate) fn restore(&mut self, saved: Saveable) {
        self.radius = saved.radius;
        if let (Some(mine), Some(saved)) = (self.perturbation.memory_mut(), saved.perturbation) {
            *mine = saved;
        }
        if let (Some(mine), Some(saved)) = (self.blend.memory_mut(), saved.blend) {
            *mine = saved;
        }
        self.abandon();
    }
}

/// The part of a climb's state that lasts from step to step.
pub(crate) struct Saveable {
    radius: Radius,
    perturbation: Option<Memory>,
    blend: Option<Memory>,
}

fn outstanding() -> Error {
    Error::Order {
        problem: "a step has begun: its second pass is outstanding (second_step, or abandon)",
    }
}

impl Tally {
    fn add(
        &mut self,
        share: f64,
        (loss, evaluations): (f64, f64),
        gradients: &[Tensor],
    ) -> Result<()> {
        self.count += 1;
        self.loss += share * loss;
        self.evaluations += share * evaluations;
        if self.count == 1 {
            self.sum = vector::scaled(gradients, share)?;
            return Ok(());
        }
        vector::accumulate(&mut self.sum, gradients, share)
    }
}
