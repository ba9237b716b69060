//! Published models: what their configuration says, and the networks that it describes.
//!
//! | part | what it is for |
//! |---|---|
//! | [`config`] | the hub's `config.json`: read, changed for new labels, written back with all that it held |
//! | [`build`] | from a configuration and a task to a network |
//! | [`names`] | what the hub calls a network's tensors |
//! | [`snapshot`] | the files of a model on disk: a folder, or a single file of weights |
//! | [`weights`] | from safetensors files, whole or in shards, into a [`VarStore`](crate::VarStore) |
//! | `hub` (feature `hub`) | from the Hugging Face hub into a cache, and from there |
//! | [`save`] | into a folder that `transformers` loads |

pub mod build;
pub mod config;
#[cfg(feature = "hub")]
pub mod hub;
pub mod names;
pub mod save;
pub mod snapshot;
pub mod weights;

pub use build::{Built, Task};
pub use config::{Architecture, ModelConfig, ProblemType};
#[cfg(feature = "hub")]
pub use hub::{Hub, HubError};
pub use save::SaveOptions;
pub use snapshot::Snapshot;
pub use weights::{LoadOptions, LoadReport, Weights};
