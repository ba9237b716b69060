//! Convolutional networks.

pub mod simple;

pub use simple::{SimpleCnn, SimpleCnnConfig};
