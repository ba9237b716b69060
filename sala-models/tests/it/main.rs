//! Integration tests.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy's exception for tests does not reach their helper functions"
)]
#![allow(
    clippy::float_cmp,
    reason = "where values are compared exactly, the bits are what is promised"
)]

mod attention;
mod batch_norm;
mod cnn;
mod cnn_reference;
mod conv;
mod dropout;
mod fast;
mod features;
mod forms;
mod gradcheck;
mod graph;
#[cfg(feature = "hub")]
mod hub;
#[cfg(feature = "hub")]
mod hub_refusals;
#[cfg(feature = "hub")]
mod hub_server;
mod layers;
mod networks;
mod norms;
mod pool;
mod published;
mod reference;
mod saving;
mod silent_cuts;
mod softmax;
mod store;
mod transformer_reference;
mod weight_files;
mod weights;
mod winograd;
