//! `verify`, as it is typed.

use std::path::PathBuf;

use clap::Args;

use crate::spec::Device;

pub(super) const EXAMPLES: &str = "\
Examples:
  sala-bench verify                                       fast kernels of the CPU against plain operations
  sala-bench verify --device cuda --out verify.json       a graphics card against the CPU
  sala-bench verify --device metal --only conv2d          the checks with conv2d in their names

Gradients of every operation against differences; values and gradients of operations and small networks, and 50
steps of every method, against the CPU; a training twice. Takes a minute or two. Exit code 1 when a check fails.";

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// What to check: cpu, cuda, cuda:N or metal, if the program was built for it
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Cpu)]
    pub(crate) device: Device,
    /// Only checks with this in their names
    #[arg(long, value_name = "TEXT")]
    pub(crate) only: Option<String>,
    /// File for every check as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}
