//! Slow weights: a second copy of the parameters that follows the trained (fast) ones.

pub mod lookahead;
pub mod weights;

pub use lookahead::{Lookahead, ParamsLookahead};
pub use weights::{SlowInit, SlowView, SlowWeights};
