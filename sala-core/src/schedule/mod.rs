//! Schedules: pure functions from a position to a factor of a peak value.
//!
//! A position counts steps or epochs, from 0, as the caller likes; a factor multiplies a learning
//! rate or any other number.
//!
//! ```
//! # use sala_core::schedule::{Cosine, Schedule, WarmUp};
//! let schedule = WarmUp::new(10, Cosine::new(100)?)?;
//! let lr = 0.05 * schedule.factor(60);
//! assert!((lr - 0.025).abs() < 1e-12); // half way down the cosine
//! # Ok::<(), sala_core::Error>(())
//! ```

mod chain;
mod constant;
mod cosine;
mod exponential;
mod multistep;
mod one_cycle;
mod polynomial;
mod restarts;
mod scheduler;
mod warm_up;

pub use chain::Chain;
pub use constant::Constant;
pub use cosine::Cosine;
pub use exponential::Exponential;
pub use multistep::MultiStep;
pub use one_cycle::OneCycle;
pub use polynomial::Polynomial;
pub use restarts::CosineRestarts;
pub use scheduler::Scheduler;
pub use warm_up::WarmUp;

/// A pure function of the position.
pub trait Schedule: std::fmt::Debug + Send + Sync {
    /// The factor at position `at`, counted from 0.
    fn factor(&self, at: u64) -> f64;
}

impl<S: Schedule + ?Sized> Schedule for Box<S> {
    fn factor(&self, at: u64) -> f64 {
        (**self).factor(at)
    }
}
