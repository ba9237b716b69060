//! Blends: which gradient updates the weights, given the one at the weights and the one at the
//! perturbed weights.
//!
//! | blend | descent gradient | method |
//! |---|---|---|
//! | [`Ascended`] | g' | SAM |
//! | [`Ascended`], stable | g' ‖g‖ / ‖g'‖ | Stable SAM |
//! | [`SurrogateGap`] | g' − α g⊥ | GSAM |
//! | [`Reuse`] | g'; without an ascent g + α (‖g‖ / ‖v‖) v | LookSAM |
//!
//! g is the gradient at the weights, g' the one at the perturbed weights, g⊥ the part of g that is
//! orthogonal to g', and v the part of g' that was orthogonal to g at the last ascent.

mod ascended;
mod reuse;
mod surrogate_gap;

pub use ascended::Ascended;
pub use reuse::Reuse;
pub use surrogate_gap::SurrogateGap;

use candle_core::Tensor;

use crate::{error::Result, gradients::Gradients, memory::Memory, state::type_name};

/// Added to norms that something is divided by.
const EPS: f64 = 1e-12;

/// The gradient of the direction pass.
#[derive(Debug)]
pub struct Direction {
    /// ‖g‖₂.
    pub norm: f64,
    /// g, one tensor for each parameter in order; empty unless the blend keeps it.
    pub tensors: Vec<Tensor>,
}

/// Makes the descent gradient from the gradients of the passes.
pub trait Blend {
    /// What it is called in saved states, which fit a method of the same name only; the name of its type
    /// unless it says so.
    fn name(&self) -> String {
        type_name::<Self>()
    }

    /// Whether the blend looks at the direction pass at all.
    fn needs_direction(&self) -> bool {
        true
    }

    /// Whether g itself is needed at the end of the perturbed pass, and ⟨g, g'⟩ with it; its norm always
    /// is at hand. Costs the memory of one gradient.
    fn keeps_direction(&self) -> bool {
        false
    }

    /// Whether [`Blend::climbed`] leaves g' as it is, so that nothing but the update waits for its norm.
    fn is_plain(&self) -> bool {
        false
    }

    /// Turns g', given in `gradients`, into the descent gradient. `dot` is ⟨g, g'⟩ if g was kept, else 0.
    ///
    /// # Errors
    /// Those of candle's operations.
    fn climbed(&mut self, direction: &Direction, dot: f64, gradients: &mut Gradients)
    -> Result<()>;

    /// What a step that does not climb adds to its gradient: one tensor for each parameter, of its shape.
    fn addition(&self) -> Option<&[Tensor]> {
        None
    }

    /// Turns the gradient of a step that does not climb into the descent gradient, given the addition's
    /// norm and its product with the gradient.
    ///
    /// # Errors
    /// Those of candle's operations.
    fn between(&self, _norm_and_dot: (f64, f64), _gradients: &mut Gradients) -> Result<()> {
        Ok(())
    }

    /// What is remembered between steps, for blends that do; it is part of the state.
    fn memory(&self) -> Option<&Memory> {
        None
    }

    /// As [`Blend::memory`], to be replaced by a saved one.
    fn memory_mut(&mut self) -> Option<&mut Memory> {
        None
    }
}
