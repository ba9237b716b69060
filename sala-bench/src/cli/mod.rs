//! The command line, as it is typed.

mod report;
mod speed;
mod sweep;
mod tools;
mod verify;

use std::{num::NonZero, path::PathBuf, str::FromStr};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::{
    data::commands::{self as data, DataArgs},
    finetune::args::{self as finetune, FinetuneArgs, PredictArgs},
    logs::LogArgs,
    presets,
    sharpness::{self, SharpnessArgs},
    spec::{
        Amount, Augmentation, Budget, Device, Experiment, LabelNoise, Network, Precision, Running,
        Schedule,
        set::{self, Setting},
    },
};

pub(crate) use report::ReportArgs;
pub(crate) use speed::{Kernels, SpeedArgs, SpeedCommand, SpeedWorkerArgs, Timing, UpdatesArgs};
pub(crate) use sweep::{CellArgs, Emission, SweepArgs, TuneArgs};
pub(crate) use tools::DoctorArgs;
pub(crate) use verify::VerifyArgs;

const EXAMPLES: &str = "\
Examples:
  sala-bench                                      compare on the embedded images, about two minutes
  sala-bench --seeds 0,1 --epochs 5               a quicker look
  sala-bench --optimizers sgd,sala --label-noise 0
  sala-bench --data-dir /usr/share/datasets/fashion-mnist --validation 5000
  sala-bench compare --experiment my.toml --dry-run
  sala-bench compare --experiment my.toml --set 'optimizers.*.lr=0.1' --set training.schedule=linear
  sala-bench --preset cifar-10 --data-dir DIR --network wrn-28-10 --augment cutmix
  sala-bench compare --experiment my.toml --out results/mine
  sala-bench tune                                 choose the hyper-parameters on the validation part

Records go to runs/NAME-FINGERPRINT. Ctrl-C keeps what is complete; the same command continues.

Exit codes: 0 done, 1 an error (what, where and a way out on standard error), 2 a wrong command line,
130 interrupted. Environment: RUST_LOG=debug shows what the optimizers do, step by step; NO_COLOR turns colours
off; SALA_KERNELS, SALA_CONV, SALA_CUDNN, RAYON_NUM_THREADS and CANDLE_NUM_THREADS as `sala-bench doctor` shows them.";

const TRAIN_EXAMPLES: &str = "\
Examples:
  sala-bench train --optimizer sala --seed 3      the embedded images; weights in models/sala-seed3.safetensors
  sala-bench train --experiment my.toml --epochs 5 --tensorboard";

/// Compares sharpness-aware optimizers on real data, with paired seeds.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) compare: CompareArgs,
    #[command(flatten)]
    pub(crate) logs: LogArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run every optimizer with every seed and print the table (the default command)
    #[command(after_help = EXAMPLES)]
    Compare(Box<CompareArgs>),
    /// Train one network: one optimizer of an experiment with one seed; keeps its weights
    #[command(
        after_help = TRAIN_EXAMPLES,
        mut_arg("optimizers", |a| a.hide(true)),
        mut_arg("seeds", |a| a.hide(true))
    )]
    Train(Box<TrainArgs>),
    /// Search hyper-parameters on the validation part: a grid, random or quasi-random, with equal budgets
    #[command(after_help = sweep::EXAMPLES)]
    Sweep(Box<SweepArgs>),
    /// Search every combination of values that a file lists, which is `sweep` with a grid
    #[command(after_help = sweep::TUNE_EXAMPLES)]
    Tune(Box<TuneArgs>),
    /// Fine-tune a pretrained model on data of your own, and compare optimizers on it
    #[command(after_help = finetune::EXAMPLES, args_override_self = true)]
    Finetune(Box<FinetuneArgs>),
    /// Print the names of the built-in experiments and what they are
    Presets,
    /// Look at a data set, at augmentations, and at how fast batches are made
    #[command(after_help = data::EXAMPLES)]
    Data(Box<DataArgs>),
    /// Print what a trained model says of new texts or images
    #[command(after_help = finetune::PREDICT_EXAMPLES)]
    Predict(PredictArgs),
    /// Make tables and an HTML page of run directories, of several machines or comparisons too
    #[command(after_help = report::EXAMPLES)]
    Report(ReportArgs),
    /// Measure how the training loss lies around the solutions of comparisons: eigenvalues, m-sharpness, slices
    #[command(after_help = sharpness::EXAMPLES)]
    Sharpness(SharpnessArgs),
    /// Time forward passes, training steps and updates, in turn with PyTorch where it is installed
    #[command(after_help = speed::EXAMPLES)]
    Speed(SpeedArgs),
    /// Make one run of a directory that `--emit slurm` prepared, beside other processes that make others
    #[command(after_help = sweep::CELL_EXAMPLES)]
    Cell(CellArgs),
    /// Print version, devices, features, threads, instructions and data found, and what is wrong
    #[command(after_help = tools::DOCTOR_EXAMPLES)]
    Doctor(DoctorArgs),
    /// Check that a device computes what the CPU does: every operation, every method, determinism
    #[command(after_help = verify::EXAMPLES)]
    Verify(VerifyArgs),
    /// Print a script that completes commands and options in a shell
    #[command(after_help = tools::COMPLETIONS_EXAMPLES)]
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Print the manual page, or write one for each command into a folder
    #[command(after_help = tools::MAN_EXAMPLES)]
    Man {
        /// Folder for the pages
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// The process that `speed` times
    #[command(hide = true)]
    SpeedWorker(SpeedWorkerArgs),
}

#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    /// Which optimizer of the experiment [default: its first]
    #[arg(long, value_name = "NAME", conflicts_with = "optimizers")]
    pub(crate) optimizer: Option<String>,
    /// Decides validation part, label noise, initial weights, order and masks [default: the experiment's first]
    #[arg(long, value_name = "SEED", conflicts_with = "seeds")]
    pub(crate) seed: Option<u64>,
    #[command(flatten)]
    pub(crate) changes: Changes,
    #[command(flatten)]
    pub(crate) place: Place,
}

#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    #[command(flatten)]
    pub(crate) changes: Changes,
    #[command(flatten)]
    pub(crate) place: Place,
    #[command(flatten)]
    pub(crate) emission: Emission,
    #[command(flatten)]
    pub(crate) dry: Dry,
}

/// Which experiment, and what to change in it.
#[derive(Debug, Args)]
pub(crate) struct Changes {
    /// TOML file of the experiment [default: the embedded images with label noise]
    #[arg(long, value_name = "FILE")]
    pub(crate) experiment: Option<PathBuf>,
    /// A built-in experiment; `sala-bench presets` lists them
    #[arg(long, value_name = "NAME", conflicts_with = "experiment")]
    pub(crate) preset: Option<String>,
    /// Only these optimizers of the experiment; the first is the base of the comparison
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub(crate) optimizers: Option<Vec<String>>,
    /// Seeds, one run of each optimizer for each
    #[arg(long, value_name = "SEED,…", value_delimiter = ',')]
    pub(crate) seeds: Option<Vec<u64>>,
    /// Passes over the training images
    #[arg(long, value_name = "N", group = "budget")]
    pub(crate) epochs: Option<u64>,
    /// Optimizer steps of a run, in place of epochs
    #[arg(long, value_name = "N", group = "budget")]
    pub(crate) steps: Option<u64>,
    /// Gradient evaluations of a run, in place of epochs: what costs more a step takes fewer steps
    #[arg(long, value_name = "N", group = "budget")]
    pub(crate) evaluations: Option<u64>,
    /// How the learning rate moves
    #[arg(long)]
    pub(crate) schedule: Option<Schedule>,
    /// Epochs in which the learning rate rises to its value, before the schedule
    #[arg(long, value_name = "N")]
    pub(crate) warm_up_epochs: Option<u64>,
    /// Images in a batch
    #[arg(long, value_name = "N")]
    pub(crate) batch_size: Option<usize>,
    /// Share of training labels drawn anew from all classes, 0 to 1; with `pair-flip:` before it, the share that
    /// gets the next class
    #[arg(long, value_name = "SHARE")]
    pub(crate) label_noise: Option<LabelNoise>,
    /// Training images held out for validation
    #[arg(long, value_name = "N")]
    pub(crate) validation: Option<usize>,
    /// Training images that are used, of those that validation leaves; with `per-class:` before it, of each class
    #[arg(long, value_name = "N")]
    pub(crate) train: Option<Amount>,
    /// Augmentations besides those of the experiment; `none` first leaves its own out
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub(crate) augment: Vec<Augment>,
    /// Another network, such as resnet18, resnet10-16 (of width 16), wrn-28-10, pyramidnet-110-270,
    /// efficientnet-lite0, mlp-512-256 or cnn-32-64
    #[arg(long, value_name = "NAME")]
    pub(crate) network: Option<Network>,
    /// Folder with the data: IDX files, CIFAR's binary files or sprites, Parquet files, or pictures in folders
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Fashion-MNIST from the Hugging Face hub (needs a build with `--features hub`)
    #[arg(long, conflicts_with = "data_dir")]
    pub(crate) hub: bool,
    /// Where to compute: cpu, cuda, cuda:N or metal, if the program was built for it
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<Device>,
    /// Numbers to compute with
    #[arg(long)]
    pub(crate) precision: Option<Precision>,
    /// Any field of the experiment by its path, such as training.schedule=linear or optimizers.sala.rho=0.3 (`*` for
    /// all optimizers); can be given several times
    #[arg(long, value_name = "PATH=VALUE")]
    pub(crate) set: Vec<Setting>,
}

/// An augmentation of the command line.
#[derive(Debug, Clone)]
pub(crate) enum Augment {
    None,
    Also(Augmentation),
}

impl FromStr for Augment {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "none" => Ok(Self::None),
            name => name.parse().map(Self::Also),
        }
    }
}

/// Where records go, and how the runs are made.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// Folder for the records [default: runs/NAME-FINGERPRINT]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Forget the records of an earlier run in that folder
    #[arg(long)]
    pub(crate) fresh: bool,
    /// Runs at a time, which share the processors; 1 for the steadiest times [default: all processors]
    #[arg(long, value_name = "N")]
    pub(crate) jobs: Option<NonZero<usize>>,
    #[command(flatten)]
    pub(crate) running: Running,
}

/// Whether the plan is only told of.
#[derive(Debug, Args)]
pub(crate) struct Dry {
    /// Print what would be run and about how long it takes, and run nothing but a few steps of the base
    #[arg(long, conflicts_with = "emit")]
    pub(crate) dry_run: bool,
    /// The same as JSON
    #[arg(long, requires = "dry_run")]
    pub(crate) json: bool,
}

impl Place {
    /// Runs at a time.
    pub(crate) fn jobs(&self) -> NonZero<usize> {
        self.jobs.unwrap_or_else(processors)
    }
}

pub(crate) fn processors() -> NonZero<usize> {
    std::thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN)
}

impl TrainArgs {
    /// The experiment of this one run, which keeps its weights.
    pub(crate) fn experiment(&self) -> Result<Experiment> {
        let mut experiment = self.changes.experiment()?;
        match &self.optimizer {
            Some(name) => experiment.select(std::slice::from_ref(name))?,
            None => experiment.optimizers.truncate(1),
        }
        let seeds = &mut experiment.training.seeds;
        seeds.truncate(1);
        replace(seeds, self.seed.map(|seed| vec![seed]));
        experiment.running.save_models = true;
        Ok(experiment)
    }
}

impl Changes {
    /// The experiment with the changes made.
    pub(crate) fn experiment(&self) -> Result<Experiment> {
        let (text, origin) = match (&self.experiment, &self.preset) {
            (Some(path), _) => (read(path)?, path.display().to_string()),
            (None, preset) => {
                let text = presets::text(preset.as_deref().unwrap_or(presets::DEFAULT))?;
                (text.to_owned(), "that is built in".to_owned())
            }
        };
        let mut experiment = Experiment::from_toml(&text, &origin)?;
        if !self.set.is_empty() {
            experiment = set::with(&experiment, &self.set)?;
        }
        replace(&mut experiment.device, self.device);
        replace(&mut experiment.precision, self.precision);
        let training = &mut experiment.training;
        replace(&mut training.seeds, self.seeds.clone());
        replace(&mut training.budget, self.budget());
        replace(&mut training.schedule, self.schedule);
        replace(&mut training.warm_up_epochs, self.warm_up_epochs);
        replace(&mut training.batch_size, self.batch_size);
        let data = &mut experiment.data;
        replace(&mut data.label_noise, self.label_noise);
        replace(&mut data.validation, self.validation);
        data.train = self.train.or(data.train);
        for augment in &self.augment {
            match augment {
                Augment::None => data.augment.clear(),
                Augment::Also(augmentation) => data.augment.push(augmentation.clone()),
            }
        }
        replace(
            &mut data.source,
            self.data_dir.as_ref().map(|dir| dir.display().to_string()),
        );
        replace(&mut data.source, self.hub.then(|| "hub".to_owned()));
        replace(&mut experiment.network, self.network.clone());
        if let Some(names) = &self.optimizers {
            experiment.select(names)?;
        }
        experiment
            .validate()
            .context("the experiment with the options given cannot be run")?;
        Ok(experiment)
    }

    fn budget(&self) -> Option<Budget> {
        let epochs = self.epochs.map(Budget::Epochs);
        let steps = self.steps.map(Budget::Steps);
        let evaluations = self.evaluations.map(Budget::Evaluations);
        epochs.or(steps).or(evaluations)
    }
}

fn read(path: &std::path::Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn replace<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

#[cfg(test)]
mod tests;
