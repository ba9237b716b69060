//! Models from a hub that runs on this machine.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy's exception for tests does not reach their helper functions"
)]

mod client;
#[allow(dead_code, reason = "what these tests do not need, the others do")]
#[path = "../it/folders.rs"]
mod folders;
mod refusals;
mod server;
