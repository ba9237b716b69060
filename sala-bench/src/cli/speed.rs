//! `speed`, as it is typed.

use std::{num::NonZero, path::PathBuf};

use clap::{Args, Subcommand, ValueEnum};

use crate::{
    spec::Device,
    speed::{Precision, Size, UpdateMethod, Workload},
};

pub(super) const EXAMPLES: &str = "\
Examples:
  sala-bench speed                                small workloads, this project's side alone
  sala-bench speed --python python3               beside PyTorch, in turn, with fused SGD
  sala-bench speed --workloads minilm,vit-tiny --rounds 15 --out results/speed
  sala-bench speed --kernels auto,composed        also without the fast kernels
  sala-bench speed --device cuda --precision bf16 --workloads resnet18-b128,wrn-28-10,vit-small,bert-base
  sala-bench speed updates --device cuda --out results/updates
  sala-bench speed compare before/speed.json after/speed.json

Workloads: resnet18-b32, resnet18-b128, wrn-16-4, small-cnn, minilm, vit-tiny, and unless some are named not
wrn-28-10, vit-small, bert-base. Each side has a process of its own, and every round asks one after the other.
With --out, speed.json has every single time.";

pub(super) const UPDATES_EXAMPLES: &str = "\
Examples:
  sala-bench speed updates                                      all methods, 1 million to 1 billion parameters
  sala-bench speed updates --methods sgd,sala-climbs --sizes 100M --python python3
  sala-bench speed updates --device cuda --precision bf16 --out results/updates

Gradients are given, so a step is the optimizer's own work: a norm of each gradient and the update. Parameters
have the shapes of twelve transformer layers. What does not fit into memory is left out and named.";

pub(super) const COMPARE_EXAMPLES: &str = "\
Examples:
  sala-bench speed compare results/2026-11-22-speed/speed.json results/2026-11-26-speed/speed.json

Steps of what both files have, and the second's time divided by the first's. Files of older versions can be read.";

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct SpeedArgs {
    #[command(subcommand)]
    pub(crate) command: Option<SpeedCommand>,
    /// What to time [default: what a processor does in moments]
    #[arg(
        long,
        value_name = "NAME,…",
        value_delimiter = ',',
        hide_default_value = true,
        hide_possible_values = true,
        default_values_t = Workload::SMALL
    )]
    pub(crate) workloads: Vec<Workload>,
    #[command(flatten)]
    pub(crate) timing: Timing,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SpeedCommand {
    /// Time the optimizers' own work in a step, for all methods and many sizes
    #[command(after_help = UPDATES_EXAMPLES)]
    Updates(UpdatesArgs),
    /// Print what two files of `speed` or `speed updates` have in common, side by side
    #[command(after_help = COMPARE_EXAMPLES)]
    Compare(SpeedCompareArgs),
}

/// How to time.
#[derive(Debug, Args)]
pub(crate) struct Timing {
    /// How often everything is timed
    #[arg(long, value_name = "N", default_value = "7")]
    pub(crate) rounds: NonZero<usize>,
    /// A Python that can import torch, to time it too
    #[arg(long, value_name = "PATH")]
    pub(crate) python: Option<PathBuf>,
    /// Threads of each side
    #[arg(long, value_name = "N", default_value = "2")]
    pub(crate) threads: NonZero<usize>,
    /// Which of this project's kernels: the fast ones where there are some, or plain operations
    #[arg(
        long,
        value_name = "NAME,…",
        value_delimiter = ',',
        default_value = "auto"
    )]
    pub(crate) kernels: Vec<Kernels>,
    /// Where to compute: cpu, cuda, cuda:N or metal, if the program was built for it
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Cpu)]
    pub(crate) device: Device,
    /// Numbers to compute with: f32, f32 whose matrix products round their factors to TF32 (cuda), or bf16 with
    /// f32 masters
    #[arg(long, value_name = "PRECISION", default_value = "f32")]
    pub(crate) precision: Precision,
    /// Folder for speed.json and speed.md
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct UpdatesArgs {
    /// Which methods [default: all]
    #[arg(
        long,
        value_name = "NAME,…",
        value_delimiter = ',',
        hide_default_value = true,
        default_values_t = UpdateMethod::value_variants().to_vec()
    )]
    pub(crate) methods: Vec<UpdateMethod>,
    /// Numbers of parameters, such as 500k, 25M or 1G
    #[arg(
        long,
        value_name = "SIZE,…",
        value_delimiter = ',',
        default_value = "1M,10M,100M,1G"
    )]
    pub(crate) sizes: Vec<Size>,
    #[command(flatten)]
    pub(crate) timing: Timing,
}

#[derive(Debug, Args)]
pub(crate) struct SpeedCompareArgs {
    /// What was before
    #[arg(value_name = "A.json")]
    pub(crate) before: PathBuf,
    /// What came after
    #[arg(value_name = "B.json")]
    pub(crate) after: PathBuf,
}

/// This project's kernels, as `SALA_KERNELS` names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kernels {
    Auto,
    Composed,
}

#[derive(Debug, Args)]
pub(crate) struct SpeedWorkerArgs {
    /// What to time; without one and without a method, what the machine can do at most
    #[arg(long)]
    pub(crate) workload: Option<Workload>,
    /// Whose updates to time
    #[arg(long, conflicts_with = "workload", requires = "size")]
    pub(crate) method: Option<UpdateMethod>,
    /// Of how many parameters
    #[arg(long)]
    pub(crate) size: Option<Size>,
    #[arg(long, default_value_t = Device::Cpu)]
    pub(crate) device: Device,
    #[arg(long, default_value = "f32")]
    pub(crate) precision: Precision,
}
