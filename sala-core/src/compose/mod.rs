//! Compositions: the only place that orders passes, perturbations and updates.
//!
//! | type | factors | passes of a step |
//! |---|---|---|
//! | [`Descend`] | base | clean |
//! | [`Ascend`] | base × perturbation × policy × blend | clean; direction then perturbed; or displaced |
//! | [`SlowAscend`] | base × slow weights × perturbation × policy × blend | the same, within cycles of k steps |
//!
//! Named combinations with their configurations are in the [catalogue](crate::catalogue).

mod ascend;
mod climb;
mod descend;
mod slow_ascend;

pub use ascend::Ascend;
pub use descend::Descend;
pub(crate) use descend::no_second_pass;
pub use slow_ascend::SlowAscend;
