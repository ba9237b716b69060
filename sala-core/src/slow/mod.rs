//! Slow weights: a second copy of the parameters that follows the trained (fast) ones.

pub mod average;
pub mod lookahead;
pub mod weights;

pub use average::{Average, Averaged, ParamsAveraged};
pub use lookahead::{Lookahead, MomentumAtPull, ParamsLookahead};
pub use weights::{SlowInit, SlowView, SlowWeights};
