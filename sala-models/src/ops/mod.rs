//! Layers and operations whose gradients are right.
//!
//! Everything here has a form that is composed of candle operations that differentiate, so it runs on
//! every device and in every float dtype; on the CPU most have a fast form too, see
//! [`kernels`](crate::kernels). Many of candle's own operations are made for inference: they have no
//! backward, and a gradient ends there without a word.

pub mod add;
pub mod attention;
pub mod batch_norm;
pub mod conv;
pub mod cross_entropy;
pub mod dropout;
pub mod embedding;
pub mod format;
pub mod gelu;
pub mod layer_norm;
pub mod linear;
pub mod pool;
pub mod relu;
pub mod rms_norm;
pub mod rope;
pub mod silu;
pub mod softmax;

mod checks;

pub use add::add;
pub use attention::Attention;
pub use batch_norm::BatchNorm;
pub use conv::{Conv2d, Conv2dConfig, conv2d};
pub use cross_entropy::{CrossEntropy, cross_entropy};
pub use dropout::{Dropout, DropoutMask};
pub use embedding::{Embedding, embedding};
pub use format::ImageFormat;
pub use gelu::{gelu, gelu_tanh};
pub use layer_norm::{LayerNorm, layer_norm};
pub use linear::{Linear, linear};
pub use pool::{Pool2d, adaptive_avg_pool2d, global_avg_pool2d};
pub use relu::{relu, relu6};
pub use rms_norm::{RmsNorm, rms_norm};
pub use rope::{Rope, RopePairs, rope};
pub use silu::silu;
pub use softmax::{log_softmax, masked_softmax, softmax};
