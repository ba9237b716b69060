//! Networks on [candle](candle_core) that train: repeatable, and correct under optimizers that
//! evaluate the gradient twice in a step.
//!
//! Each part is here because of a trap:
//!
//! | part | the trap it avoids |
//! |---|---|
//! | [`VarStore`] | `VarMap` lists variables in another order in each run, counts running statistics among the weights, and cannot be seeded on the CPU |
//! | [`Rng`] | `Device::Cpu` cannot be seeded, and values depend on what was drawn before; here value `i` is a pure function of seed, name and `i`, on every device |
//! | [`Mode`] | a `train: bool` cannot say that the second pass of a sharpness-aware step wants the same masks and must leave running statistics alone |
//! | [`ops::BatchNorm`] | candle's tracks its statistics in every training forward, also at perturbed weights |
//! | [`ops::Dropout`] | candle's draws a fresh mask in every pass and cannot be seeded |
//! | [`ops::Pool2d`], [`ops::adaptive_avg_pool2d`] | candle pools without padding, cannot differentiate overlapping windows, and its gradient of a maximum is too small by the size of the window |
//! | [`ops::layer_norm()`], [`ops::rms_norm()`], [`ops::softmax()`], [`ops::Rope`] | candle's fused forms have no backward: gradients end there without a word |
//! | [`ops::gelu()`], [`ops::gelu_tanh`] | the backward of candle's has constants of six digits |
//! | [`ops::embedding()`], [`ops::cross_entropy()`] | candle takes the largest index of a dtype for a row of zeros, and computes half precision in half precision |
//! | [`ops::Attention`] | candle has none that differentiates |
//! | [`ops::relu()`] | candle's derivative at 0 is 1 |
//! | [`ops::conv2d()`] | the backward of candle's is naive, and an error for some sizes with a stride |
//! | [`ops::Linear`], [`ops::Conv2d`] | candle's initial weights are not `PyTorch`'s |
//!
//! Networks implement [`Network`]: [`Mlp`], [`SimpleCnn`] and the published architectures in [`cnn`] and
//! [`transformer`], whose parameters have the published names.
//!
//! # One step of training
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::{AdamW, Optimizer, loss};
//! use sala_models::{Mode, Network, Rng, SimpleCnn, SimpleCnnConfig, VarStore};
//!
//! let (seed, step) = (7, 0);
//! let store = VarStore::new(seed, DType::F32, &Device::Cpu);
//! let config = SimpleCnnConfig { image_size: 8, widths: vec![4], dropout: 0.1, ..Default::default() };
//! let network = SimpleCnn::new(&config, store.builder(), Rng::new(seed))?;
//! let weights = store.trainable().into_iter().map(|(_, var)| var).collect();
//! let mut optimizer = AdamW::new_lr(weights, 1e-3)?;
//!
//! let images = Tensor::ones((2, 1, 8, 8), DType::F32, &Device::Cpu)?;
//! let labels = Tensor::new(&[3u32, 5], &Device::Cpu)?;
//! let logits = network.forward(&images, Mode::train(step))?;
//! optimizer.backward_step(&loss::cross_entropy(&logits, &labels)?)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod cnn;
pub mod error;
mod files;
pub mod images;
#[allow(
    clippy::disallowed_methods,
    reason = "they run on the CPU alone, where a copy is one"
)]
pub mod kernels;
pub mod mlp;
pub mod mode;
pub mod network;
pub mod ops;
pub mod pretrained;
pub mod rng;
pub mod store;
pub mod transformer;

pub use cnn::{SimpleCnn, SimpleCnnConfig};
pub use error::{Error, Result};
pub use kernels::backward;
pub use mlp::{Mlp, MlpConfig};
pub use mode::Mode;
pub use network::Network;
pub use rng::{Rng, Stream};
pub use store::VarStore;
