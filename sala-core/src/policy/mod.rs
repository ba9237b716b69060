//! When to climb. Policies see numbers only, no tensors, and have no memory.

mod always;
mod every_k;
mod proximity;

pub use always::Always;
pub use every_k::EveryK;
pub use proximity::Proximity;

use crate::state::type_name;

/// What a policy may look at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moment {
    /// Number of the step, from 1.
    pub step: u64,
    /// Distance of fast and slow weights at their last synchronisation, 0 before the first; `None`
    /// in compositions without slow weights.
    pub gap: Option<f64>,
    /// Radius of the ascent; with slow weights in the measure of the gap, else as configured.
    pub rho: f64,
}

/// Decides whether a step climbs before it descends.
pub trait Policy {
    /// What it is called in saved states, which fit a method of the same name only; the name of its type
    /// unless it says so.
    fn name(&self) -> String {
        type_name::<Self>()
    }

    /// Whether to climb at this moment.
    fn climbs(&self, moment: Moment) -> bool;
}
