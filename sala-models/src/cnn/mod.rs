//! Convolutional networks.
//!
//! All of them take images as `(N, C, H, W)` and work inside in the format that is fastest for their
//! dtype and device, to which the images are brought once. Their parameters have the shapes and, for
//! the published architectures, the names that `PyTorch` checkpoints of them have.

pub mod efficientnet_lite;
mod hub_names;
mod parts;
pub mod pyramidnet;
pub mod resnet;
pub mod simple;
pub mod wide_resnet;

pub use efficientnet_lite::{EfficientNetLite, EfficientNetLiteConfig};
pub use hub_names::resnet_hub_name;
pub use pyramidnet::{PyramidNet, PyramidNetBlock, PyramidNetConfig};
pub use resnet::{ResNet, ResNetBlock, ResNetConfig, ResNetStem};
pub use simple::{SimpleCnn, SimpleCnnConfig};
pub use wide_resnet::{WideResNet, WideResNetConfig};
