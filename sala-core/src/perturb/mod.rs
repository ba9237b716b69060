//! Perturbations: where to look for a higher loss near the weights.
//!
//! A [`Perturbation`] gives a direction; a [`Radius`] says how far to go.
//!
//! | perturbation | direction | extra gradient | memory |
//! |---|---|---|---|
//! | [`L2`] (SAM) | g | yes | |
//! | [`Adaptive`] (ASAM) | T² g, T = \|w\| + η | yes | |
//! | [`Friendly`] (F-SAM) | g − σ m, m the mean of past gradients | yes | one copy of the weights |
//! | [`Momentum`] (MSAM) | −v, v the momentum | no | one copy of the weights |

mod adaptive;
mod friendly;
mod l2;
mod momentum;
mod radius;

pub use adaptive::Adaptive;
pub use friendly::Friendly;
pub use l2::L2;
pub use momentum::Momentum;
pub use radius::{AscentNorm, Radius, RhoScale};

use candle_core::Tensor;

use crate::{error::Result, kernels::Scalar, memory::Memory, params::ParamSet, state::type_name};

/// Points from the weights to where the gradient that updates them is taken.
pub trait Perturbation {
    /// What it is called in saved states, which fit a method of the same name only; the name of its type
    /// unless it says so.
    fn name(&self) -> String {
        type_name::<Self>()
    }

    /// Whether it can do anything with these parameters; asked when a method is put together.
    ///
    /// # Errors
    /// When it cannot.
    fn check(&self, _params: &ParamSet) -> Result<()> {
        Ok(())
    }

    /// Whether the direction depends on the gradient at the weights, and so costs a pass.
    fn needs_direction(&self) -> bool {
        true
    }

    /// Whether [`Perturbation::ascent`] looks at the gradients themselves. One that goes along them, whatever they
    /// are, does not: then they need not be brought to f32 first.
    fn reads_gradients(&self) -> bool {
        self.needs_direction()
    }

    /// The direction at the current weights, from the gradients there (one f32 or f64 tensor for each
    /// parameter, in order; empty if the perturbation does not read them). `None`: stay. A direction that
    /// does not have one tensor for each parameter, of its shape, is an error of the step
    /// ([`Error::Direction`](crate::Error::Direction)).
    ///
    /// # Errors
    /// Those of candle's operations.
    fn ascent(&self, params: &ParamSet, gradients: &[Tensor]) -> Result<Option<Ascent>>;

    /// Learns from a step that has succeeded: the gradient at the unperturbed weights, if one was
    /// taken, and the gradient that updates them. Called where there is a [`Perturbation::memory`].
    ///
    /// # Errors
    /// Those of candle's operations.
    fn remember(&mut self, _at_weights: Option<&[Tensor]>, _descent: &[Tensor]) -> Result<()> {
        Ok(())
    }

    /// What is remembered between steps, for perturbations that do; it is part of the state.
    fn memory(&self) -> Option<&Memory> {
        None
    }

    /// As [`Perturbation::memory`], to be replaced by a saved one.
    fn memory_mut(&mut self) -> Option<&mut Memory> {
        None
    }
}

impl<P: Perturbation + ?Sized> Perturbation for Box<P> {
    fn name(&self) -> String {
        (**self).name()
    }

    fn check(&self, params: &ParamSet) -> Result<()> {
        (**self).check(params)
    }

    fn needs_direction(&self) -> bool {
        (**self).needs_direction()
    }

    fn reads_gradients(&self) -> bool {
        (**self).reads_gradients()
    }

    fn ascent(&self, params: &ParamSet, gradients: &[Tensor]) -> Result<Option<Ascent>> {
        (**self).ascent(params, gradients)
    }

    fn remember(&mut self, at_weights: Option<&[Tensor]>, descent: &[Tensor]) -> Result<()> {
        (**self).remember(at_weights, descent)
    }

    fn memory(&self) -> Option<&Memory> {
        (**self).memory()
    }

    fn memory_mut(&mut self) -> Option<&mut Memory> {
        (**self).memory_mut()
    }
}

/// A direction, to be scaled to the radius.
#[derive(Debug)]
pub struct Ascent {
    /// `None`: along the gradients themselves, whose norms are known.
    pub(crate) along: Option<Along>,
    /// 1, or −1 to go against the direction.
    pub(crate) sign: f64,
}

#[derive(Debug)]
pub(crate) struct Along {
    pub(crate) directions: Vec<Tensor>,
    /// ‖·‖² by which they are normalised.
    pub(crate) squares: Vec<Scalar>,
}

impl Ascent {
    /// Along the gradients.
    pub fn gradient() -> Self {
        Self {
            along: None,
            sign: 1.0,
        }
    }

    /// Along one tensor for each parameter, normalised by their norm.
    ///
    /// # Errors
    /// Those of candle's operations.
    pub fn along(directions: Vec<Tensor>) -> Result<Self> {
        let squares = crate::vector::squared_norms(&directions)?;
        Ok(Self::normalised(directions, squares))
    }

    /// Along one tensor for each parameter, normalised by numbers of their own.
    pub(crate) fn normalised(directions: Vec<Tensor>, squares: Vec<Scalar>) -> Self {
        Self {
            along: Some(Along {
                directions,
                squares,
            }),
            sign: 1.0,
        }
    }

    /// The other way.
    #[must_use]
    pub fn reversed(mut self) -> Self {
        self.sign = -self.sign;
        self
    }
}
