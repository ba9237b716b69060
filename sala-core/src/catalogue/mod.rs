//! The named methods, each an alias of a composition with a configuration of its own, and a factory
//! for tools that choose a method at run time.
//!
//! | name | composition | gradients a step | copies of the weights | reference |
//! |---|---|---|---|---|
//! | base | [`Descend`] | 1 | | |
//! | [`Lookahead`] | base × slow weights | 1 | 1 | Zhang et al. 2019, arXiv:1907.08610 |
//! | [`Averaged`] | any × average | that one's | 1 more | Izmailov et al. 2018, arXiv:1803.05407 |
//! | [`Sam`] | base × L2 × always | 2 | 1 | Foret et al. 2021, arXiv:2010.01412 |
//! | [`Sam`], stable | the same × renormalised | 2 | 1 | Tan et al. 2024, arXiv:2401.07250 |
//! | [`Sam`], m-SAM | the same, per micro-batch | 2 | 2 | Foret et al. 2021 |
//! | [`Asam`] | base × adaptive × always | 2 | 2 | Kwon et al. 2021, arXiv:2102.11600 |
//! | [`SamEvery`] | base × L2 × every k | 1 + 1/k | 1 | |
//! | [`LookSam`] | base × L2 × every k × reuse | 1 + 1/k | 3 | Liu et al. 2022, arXiv:2203.02714 |
//! | [`Gsam`] | base × L2 × always × surrogate gap | 2 | 2 | Zhuang et al. 2022, arXiv:2203.08065 |
//! | [`FriendlySam`] | base × friendly × always | 2 | 3 | Li et al. 2024, arXiv:2403.12350 |
//! | [`MomentumSam`] | base × momentum × always | 1 | 2 | Becker et al. 2024, arXiv:2401.12033 |
//! | [`Sala`] | base × slow weights × L2 × proximity | 1 + f/k | 1 | Tan et al. 2024, doi:10.1109/TPAMI.2024.3444002 |
//!
//! f is the share of cycles that climb. Where a method has a direction pass, taking it on the share q
//! of the batch (`direction_fraction`) makes the second term q times as large. Copies count what a
//! method holds beside weights, gradients and the base's buffers, a kept first gradient included.
//! [`Sala::over`] puts any other perturbation into SALA.
//!
//! [`Descend`]: crate::Descend
//! [`Lookahead`]: crate::Lookahead
//! [`Averaged`]: crate::Averaged

mod asam;
mod build;
mod friendly_sam;
mod gsam;
mod look_sam;
mod momentum_sam;
mod sala;
mod sam;
mod sam_every;

pub use asam::{Asam, ParamsAsam};
pub use build::{Base, Direction, Method, build};
pub use friendly_sam::{FriendlySam, ParamsFriendlySam};
pub use gsam::{Gsam, ParamsGsam};
pub use look_sam::{LookSam, ParamsLookSam};
pub use momentum_sam::{MomentumSam, ParamsMomentumSam};
pub use sala::{ParamsSala, Sala};
pub use sam::{ParamsSam, Sam};
pub use sam_every::{ParamsSamEvery, SamEvery};
