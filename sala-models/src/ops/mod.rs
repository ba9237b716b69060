//! Layers and operations whose gradients are right.
//!
//! Everything here is composed of candle operations that differentiate, so it runs on every device.

pub mod batch_norm;
pub mod conv;
pub mod dropout;
pub mod linear;
pub mod pool;

pub use batch_norm::BatchNorm;
pub use conv::{conv2d, conv2d_no_bias};
pub use dropout::Dropout;
pub use linear::{linear, linear_no_bias};
pub use pool::max_pool2d;
