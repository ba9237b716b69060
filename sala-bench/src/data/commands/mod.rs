//! `data`: what a data set holds, what augmentations make of it, and whether its batches come fast enough.

mod bench;
mod info;
mod preview;

use std::{num::NonZero, path::PathBuf};

use anyhow::Result;
use clap::{Args, Subcommand};

use super::{
    Split,
    augment::Pipeline,
    batches::{ChannelStats, Selection},
    feed::Feed,
};
use crate::{cli::Changes, spec::Experiment};

pub(crate) const EXAMPLES: &str = "\
Examples:
  sala-bench data info                            the embedded images
  sala-bench data info --data-dir DIR --json      any folder, for other programs
  sala-bench data preview --preset cifar-10 --data-dir DIR --augment cutmix --out cutmix.png
  sala-bench data bench --preset cifar-10 --data-dir DIR --rounds 12

All take an experiment and changes to it, as `compare` does.";

#[derive(Debug, Args)]
pub(crate) struct DataArgs {
    #[command(subcommand)]
    command: DataCommand,
}

#[derive(Debug, Subcommand)]
enum DataCommand {
    /// Print counts, shapes, channel statistics and checksums of the data of an experiment
    #[command(after_help = EXAMPLES)]
    Info(InfoArgs),
    /// Draw training images beside what the augmentations of some epochs make of them
    #[command(after_help = EXAMPLES)]
    Preview(PreviewArgs),
    /// Time training steps on batches as they are made, in turn with steps on a batch that is there
    #[command(after_help = EXAMPLES)]
    Bench(BenchArgs),
}

#[derive(Debug, Args)]
struct InfoArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    changes: Changes,
}

#[derive(Debug, Args)]
struct PreviewArgs {
    /// PNG file to write
    #[arg(long, value_name = "FILE", default_value = "preview.png")]
    out: PathBuf,
    /// Images, one a row
    #[arg(long, value_name = "N", default_value = "8")]
    images: NonZero<usize>,
    /// Epochs, one a column
    #[arg(long, value_name = "N", default_value = "8")]
    columns: NonZero<u32>,
    #[command(flatten)]
    changes: Changes,
}

#[derive(Debug, Args)]
struct BenchArgs {
    /// Pairs of steps that are timed
    #[arg(long, value_name = "N", default_value = "20")]
    rounds: NonZero<usize>,
    /// Folder for input-pipeline.json
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    changes: Changes,
}

/// Does what was asked for.
pub(crate) fn data(args: &DataArgs) -> Result<()> {
    match &args.command {
        DataCommand::Info(args) => info::info(args),
        DataCommand::Preview(args) => preview::preview(args),
        DataCommand::Bench(args) => bench::bench(args),
    }
}

/// These images of the training part, as the first seed's augmentations make batches of them.
fn feed(
    experiment: &Experiment,
    train: &Split,
    images: Vec<usize>,
    statistics: &ChannelStats,
    batch_size: usize,
) -> Result<Feed> {
    let seed = experiment.training.seeds[0];
    let device = candle_core::Device::Cpu;
    let selection = Selection::new(train.clone(), images, statistics, &device)?;
    let pipeline = Pipeline::new(&experiment.data.augment, seed)?;
    Feed::new(selection, pipeline, batch_size, seed)
}
