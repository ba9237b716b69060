//! Base rules: how a gradient becomes an update.
//!
//! Each rule stands as a pure function of tensors (its equations) and as an optimizer with
//! buffers that implements [`candle_nn::Optimizer`]. Any other implementation of that trait can take
//! their place in the compositions of this crate.

pub mod adam;
pub mod sgd;

pub use adam::{Adam, ParamsAdam};
pub use sgd::{ParamsSgd, Sgd};

use candle_core::{Tensor, backprop::GradStore};

use crate::params::{Param, ParamSet};

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

/// The gradient of each slot's parameter, or an error that names the first one without: a base
/// neither skips a parameter silently nor starts a step that it cannot finish.
fn gradients<'g, S>(
    slots: &[Slot<S>],
    grads: &'g GradStore,
) -> candle_core::Result<Vec<&'g Tensor>> {
    let gradient = |slot: &Slot<S>| {
        grads.get(slot.param.var()).ok_or_else(|| {
            let name = slot.param.name();
            candle_core::Error::msg(format!("parameter `{name}` received no gradient"))
        })
    };
    slots.iter().map(gradient).collect()
}
