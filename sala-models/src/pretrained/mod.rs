//! Published models: what their configuration says, and the networks that it describes.
//!
//! | part | what it is for |
//! |---|---|
//! | [`config`] | the hub's `config.json`: read, changed for new labels, written back with all that it held |
//! | [`build`] | from a configuration and a task to a network |
//! | [`names`] | what the hub calls a network's tensors |

pub mod build;
pub mod config;
pub mod names;

pub use build::{Built, Task};
pub use config::{Architecture, ModelConfig, ProblemType};
