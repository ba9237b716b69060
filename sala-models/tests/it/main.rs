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
mod folders;
mod forms;
mod gradcheck;
mod graph;
mod hub;
mod hub_refusals;
mod hub_server;
mod images;
mod layers;
mod model_build;
mod model_config;
mod networks;
mod norms;
mod pool;
mod published;
mod reference;
mod saving;
mod silent_cuts;
mod single;
mod softmax;
mod store;
mod transformers;
mod weight_files;
mod weights;
mod winograd;
