//! Base rules: how a gradient becomes an update.
//!
//! Each rule stands as a pure function of tensors (its equations) and as an optimizer with
//! buffers that implements [`candle_nn::Optimizer`]. Any other implementation of that trait can take
//! their place in the compositions of this crate.
//!
//! The built-in ones can do more than candle's trait has room for: obey the learning rate and weight
//! decay of single parameters ([`ParamSet`]), show their momentum to Lookahead, take a weight decay from
//! a schedule, and step from the slow weights while they pull them. The compositions find out by
//! the base's type whether it is one of them.

pub mod adam;
pub mod sgd;

pub use adam::{Adam, ParamsAdam};
pub use sgd::{ParamsSgd, Sgd};

mod moves;

pub(crate) use moves::Moves;

use std::{any::Any, collections::HashMap};

use candle_core::{Tensor, TensorId, backprop::GradStore};

use crate::{
    error::{Error, Result},
    kernels::{self, Beside, Fast, Guard, Pull, Scalar},
    params::{Param, ParamSet},
};

/// What a step of a built-in base does beside updating, for all parameters at once.
#[derive(Debug, Default)]
pub(crate) struct Around<'a> {
    /// Step from these weights.
    pub(crate) from: Option<&'a [Tensor]>,
    /// Pull these slow weights by α towards the result.
    pub(crate) pull: Option<(&'a mut [Tensor], f64, Fast)>,
    /// Do all of it only under this condition.
    pub(crate) guard: Option<&'a Guard>,
}

impl<'a> Around<'a> {
    /// The part for each parameter, in order.
    fn each(self) -> impl Iterator<Item = Beside<'a>> {
        let mut from = self.from.map(<[Tensor]>::iter);
        let mut pull = self.pull.map(|(slow, a, fast)| (slow.iter_mut(), a, fast));
        std::iter::repeat_with(move || Beside {
            from: from.as_mut().and_then(Iterator::next),
            pull: pull.as_mut().and_then(|(slow, alpha, fast)| {
                let (alpha, fast) = (*alpha, *fast);
                slow.next().map(|slow| Pull { slow, alpha, fast })
            }),
        })
    }
}

/// What the built-in bases can do beyond candle's trait.
pub(crate) trait Rule {
    /// The parameters in the order in which gradients are given.
    fn trained(&self) -> Vec<&Param>;

    /// Takes on the order and the names of a set, for the variables that it has in common with it.
    fn adopt(&mut self, params: &ParamSet);

    /// A step on gradients in the order of the parameters; yields Σ (θ − φ₀)² of each parameter where
    /// it pulls.
    fn step_around(&mut self, gradients: &[Tensor], around: Around) -> Result<Vec<Scalar>>;

    /// What the host notes in a step.
    fn notes(&self) -> Notes;

    /// Returns to the notes of before a step that the device has not made.
    fn take_back(&mut self, notes: &Notes);

    /// The momentum (first moment) of each parameter, `None` before there is any.
    fn momentum(&mut self) -> Vec<Option<&mut Tensor>>;

    fn weight_decay(&self) -> f64;

    fn set_weight_decay(&mut self, decay: f64);
}

/// What a rule knows on the host: its number of steps, where it counts them, and which parameters it remembers
/// something of.
#[derive(Debug)]
pub(crate) struct Notes {
    steps: u64,
    remembered: Vec<bool>,
}

/// The base as a built-in one, if it is.
pub(crate) fn as_rule_mut<B: 'static>(base: &mut B) -> Option<&mut dyn Rule> {
    let base: &mut dyn Any = base;
    if base.is::<Sgd>() {
        return base.downcast_mut::<Sgd>().map(|base| base as &mut dyn Rule);
    }
    base.downcast_mut::<Adam>()
        .map(|base| base as &mut dyn Rule)
}

/// As [`as_rule_mut`], to look at.
pub(crate) fn as_rule<B: 'static>(base: &B) -> Option<&dyn Rule> {
    let base: &dyn Any = base;
    match base.downcast_ref::<Sgd>() {
        Some(base) => Some(base),
        None => base.downcast_ref::<Adam>().map(|base| base as &dyn Rule),
    }
}

/// How the variables of a rule, which has adopted the set, differ from those of the set.
fn difference(trained: &[&Param], params: &ParamSet) -> Option<String> {
    let same = |(a, b): (&&Param, &Param)| a.var().id() == b.var().id();
    if trained.len() == params.len() && trained.iter().zip(params).all(same) {
        return None;
    }
    let has = |var: &Tensor| trained.iter().any(|t| t.var().id() == var.id());
    if let Some(param) = params.iter().find(|p| !has(p.var())) {
        let name = param.name();
        return Some(if has(param.model_var()) {
            format!("it has the model's variable of `{name}` and not the f32 master copy")
        } else {
            format!("`{name}` is not among its own")
        });
    }
    let known = |t: &Param| params.iter().any(|p| p.var().id() == t.var().id());
    let surplus = trained.iter().find(|t| !known(t))?;
    let name = surplus.name();
    Some(format!(
        "it has `{name}` too, which is frozen or not in the set"
    ))
}

/// Whether a base trains all parameters and nothing else, and obeys their settings. What the variables of
/// a base from another crate are, only its steps show ([`Moves`]).
///
/// # Errors
/// [`Error::OtherVars`] and [`Error::StaleBase`] for a built-in one that was made from other variables or
/// settings, [`Error::ForeignBase`] for another one when there are settings.
pub(crate) fn check<B: 'static>(base: &B, params: &ParamSet) -> Result<()> {
    let Some(rule) = as_rule(base) else {
        if params.iter().any(Param::has_base_settings) {
            let what = "a learning rate or weight decay of single parameters";
            return Err(Error::ForeignBase { what });
        }
        return Ok(());
    };
    let trained = rule.trained();
    if let Some(problem) = difference(&trained, params) {
        return Err(Error::OtherVars { problem });
    }
    let pairs = trained.into_iter().zip(params);
    match pairs
        .into_iter()
        .find(|(known, p)| !p.same_base_settings(known))
    {
        None => Ok(()),
        Some((_, param)) => Err(Error::StaleBase {
            name: param.name().to_owned(),
        }),
    }
}

/// A parameter with what the rule remembers of it.
#[derive(Debug)]
struct Slot<S> {
    param: Param,
    memory: Option<S>,
}

/// A slot without memory for each parameter.
fn slots<S>(params: &ParamSet) -> Vec<Slot<S>> {
    params
        .iter()
        .map(|p| Slot {
            param: p.clone(),
            memory: None,
        })
        .collect()
}

/// Brings slots into the order of the set, under its names: a base that was made from a list of variables
/// knows neither.
fn adopt<S>(slots: &mut [Slot<S>], params: &ParamSet) {
    let places = params.iter().enumerate();
    let places: HashMap<TensorId, usize> = places.map(|(i, p)| (p.var().id(), i)).collect();
    let place = |slot: &Slot<S>| places.get(&slot.param.var().id()).copied();
    slots.sort_by_key(|slot| place(slot).unwrap_or(usize::MAX));
    for slot in slots {
        let known = place(slot).and_then(|i| params.iter().nth(i));
        if let Some(param) = known {
            slot.param.take_name(param);
        }
    }
}

/// Which slots have a memory.
fn remembered<S>(slots: &[Slot<S>]) -> Vec<bool> {
    slots.iter().map(|slot| slot.memory.is_some()).collect()
}

/// Forgets what only a step that was taken back remembers.
fn forget<S>(slots: &mut [Slot<S>], remembered: &[bool]) {
    for (slot, _) in slots.iter_mut().zip(remembered).filter(|(_, r)| !**r) {
        slot.memory = None;
    }
}

/// The gradient of each slot's parameter, or an error that names the first one without: a base
/// neither skips a parameter silently nor starts a step that it cannot finish.
fn gradients<S>(slots: &[Slot<S>], grads: &GradStore) -> candle_core::Result<Vec<Tensor>> {
    let gradient = |slot: &Slot<S>| {
        let found = grads.get(slot.param.var()).cloned();
        found.ok_or_else(|| {
            let name = slot.param.name();
            candle_core::Error::msg(format!("parameter `{name}` received no gradient"))
        })
    };
    slots.iter().map(gradient).collect()
}

/// Calls `update` for each slot with its gradient and what goes beside, within the thread pool.
fn for_each<S: Send>(
    slots: &mut [Slot<S>],
    gradients: &[Tensor],
    around: Around,
    update: impl Fn(
        &dyn kernels::Kernels,
        &mut Slot<S>,
        &Tensor,
        Beside,
    ) -> candle_core::Result<Option<Scalar>>
    + Send
    + Sync,
) -> Result<Vec<Scalar>> {
    kernels::run_under(around.guard, gradients, |kernels| {
        let mut sums = Vec::new();
        for ((slot, gradient), beside) in slots.iter_mut().zip(gradients).zip(around.each()) {
            let kernels = kernels.of(slot.param.var());
            sums.extend(update(kernels, slot, gradient, beside)?);
        }
        Ok(sums)
    })
}
