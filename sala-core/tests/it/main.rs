//! Integration tests: reference trajectories, the published equations, steps computed by hand,
//! conformance of every method, resuming, the order of passes, errors, kernels, sharpness.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    unreachable_pub
)]

mod bases;
mod by_hand;
mod conformance;
mod equations;
mod errors;
mod extensions;
mod forms;
mod kernels;
mod methods;
mod oracle;
mod order;
mod precision;
mod refused;
mod replaced;
mod resume;
mod settings;
mod sharpness;
mod threelines;
mod trajectory;
