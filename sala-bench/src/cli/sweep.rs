//! What was typed after `sweep` and `tune`.

use std::{num::NonZero, path::PathBuf};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use super::{Changes, Dry, Place, read};
use crate::{
    presets,
    slurm::Request,
    spec::Running,
    sweep::{Search, Strategy, Sweep},
};

/// The search of the experiment that runs when none is named.
const DEFAULT_SEARCH: &str = include_str!("../../experiments/fashion-mnist-noise.search.toml");

pub(super) const EXAMPLES: &str = "\
Examples:
  sala-bench sweep --strategy sobol --trials 8    eight quasi-random trials of each optimizer
  sala-bench sweep --experiment my.toml --search space.toml --out results/search
  sala-bench sweep --resume --out results/search  go on; in several terminals at once if you like
  sala-bench sweep --emit slurm --out results/search   a job array for a cluster
  sala-bench compare --experiment results/search/tuned.toml

A search file says how trials are drawn and from what:
  strategy = \"sobol\"        grid (the default), random or sobol
  trials = 16               of each optimizer in a study; a grid has its combinations
  studies = 5               searches of that budget, reported by the median of what they find
  seeds = [100]             of every trial; none of the experiment's
  [space.\"*\"]              for every optimizer that has the field
  lr = { min = 1e-3, max = 1.0, scale = \"log\" }
  [space.sala]
  rho = [0.1, 0.2, 0.4]

Choices are made on the validation part; the test part is never read.";

pub(super) const TUNE_EXAMPLES: &str = "\
Examples:
  sala-bench tune                                 54 trials of the default experiment, some ten minutes
  sala-bench tune --experiment my.toml --search my.search.toml --out results/search
  sala-bench compare --experiment results/search/tuned.toml";

pub(super) const CELL_EXAMPLES: &str = "\
Examples:
  sala-bench sweep --emit slurm --out results/search
  sbatch results/search/slurm/array-0.sh
  seq 0 53 | xargs -P 4 -n 1 sala-bench cell --out results/search --index   without Slurm

slurm/cells.tsv in that folder says which run has which index. Afterwards the command that prepared the folder
(or `sweep --resume`) collects what was found.";

#[derive(Debug, Args)]
pub(crate) struct SweepArgs {
    #[command(flatten)]
    pub(crate) tune: TuneArgs,
    /// How trials are taken from the space, in place of what the search file says
    #[arg(long)]
    pub(crate) strategy: Option<Strategy>,
    /// Trials of each optimizer in a study
    #[arg(long, value_name = "N")]
    pub(crate) trials: Option<usize>,
    /// How often the search is made anew
    #[arg(long, value_name = "N")]
    pub(crate) studies: Option<usize>,
    /// What decides which trials are drawn
    #[arg(long, value_name = "SEED")]
    pub(crate) search_seed: Option<u64>,
    /// Continue what was begun in --out, as it was begun
    #[arg(
        long,
        requires = "out",
        // `Changes` is the group of all options that change an experiment.
        conflicts_with_all = ["Changes", "search", "fresh", "strategy", "trials", "studies", "search_seed"]
    )]
    pub(crate) resume: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TuneArgs {
    /// TOML file with the values to try; for the default experiment its own search by default
    #[arg(long, value_name = "FILE")]
    pub(crate) search: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) changes: Changes,
    #[command(flatten)]
    pub(crate) place: Place,
    #[command(flatten)]
    pub(crate) emission: Emission,
    #[command(flatten)]
    pub(crate) dry: Dry,
}

/// For a scheduler in place of this process.
#[derive(Debug, Args)]
#[command(next_help_heading = "Clusters")]
pub(crate) struct Emission {
    /// Write a job array in which each task makes one run, and run nothing
    #[arg(long, value_enum)]
    pub(crate) emit: Option<Scheduler>,
    /// Processors of each task
    #[arg(long, value_name = "N", default_value = "2", requires = "emit")]
    cpus_per_task: NonZero<usize>,
    /// Tasks at a time [default: all that fit]
    #[arg(long, value_name = "N", requires = "emit")]
    tasks_at_once: Option<NonZero<usize>>,
    /// An option of sbatch, such as --sbatch=--partition=short; can be given several times
    #[arg(
        long,
        value_name = "OPTION",
        requires = "emit",
        allow_hyphen_values = true
    )]
    sbatch: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scheduler {
    Slurm,
}

#[derive(Debug, Args)]
pub(crate) struct CellArgs {
    /// Folder that was prepared
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Which run of its plan, from 0
    #[arg(long, value_name = "N")]
    pub(crate) index: usize,
    #[command(flatten)]
    pub(crate) running: Running,
}

impl Emission {
    pub(crate) fn request(&self) -> Request {
        Request {
            processors: self.cpus_per_task.get(),
            at_once: self.tasks_at_once.map(NonZero::get),
            options: self.sbatch.clone(),
        }
    }
}

impl TuneArgs {
    /// The search over the experiment, which is a grid unless the file says otherwise.
    pub(crate) fn sweep(&self) -> Result<Sweep> {
        Sweep::new(self.changes.experiment()?, self.search()?)
    }

    fn search(&self) -> Result<Search> {
        let changes = &self.changes;
        match (&self.search, &changes.experiment, changes.preset.as_deref()) {
            (Some(path), ..) => Search::from_toml(&read(path)?, &path.display().to_string()),
            (None, None, None | Some(presets::DEFAULT)) => {
                Search::from_toml(DEFAULT_SEARCH, "that is built in")
            }
            (None, ..) => bail!("--search FILE is needed with any but the default experiment"),
        }
    }
}

impl SweepArgs {
    pub(crate) fn sweep(&self) -> Result<Sweep> {
        if let (true, Some(out)) = (self.resume, &self.tune.place.out) {
            return Sweep::begun(out);
        }
        let mut search = self.tune.search()?;
        if let Some(strategy) = self.strategy {
            search.strategy = strategy;
            if strategy == Strategy::Grid {
                (search.trials, search.studies) = (None, 1);
            }
        }
        search.trials = self.trials.or(search.trials);
        search.studies = self.studies.unwrap_or(search.studies);
        search.seed = self.search_seed.unwrap_or(search.seed);
        Sweep::new(self.tune.changes.experiment()?, search)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{
        super::{Cli, Command},
        *,
    };

    fn args(words: &[&str]) -> SweepArgs {
        let words = [&["sala-bench", "sweep"], words].concat();
        match Cli::try_parse_from(words).unwrap().command {
            Some(Command::Sweep(args)) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_built_in_search_is_a_grid_of_nine_trials_an_optimizer() {
        let sweep = args(&[]).sweep().unwrap();
        assert_eq!(sweep.trials().optimizers.len(), 6 * 9);
    }

    #[test]
    fn the_quasi_random_search_of_the_experiments_is_valid() {
        let text = include_str!("../../experiments/fashion-mnist-noise.sobol.toml");
        let search = Search::from_toml(text, "the folder").unwrap();
        let experiment = args(&[]).tune.changes.experiment().unwrap();
        let sweep = Sweep::new(experiment, search).unwrap();
        assert_eq!(sweep.trials().optimizers.len(), 9 * 3 * 8);
    }

    // Catches an option beside --resume that would be left out of account without a word.
    #[test]
    fn what_is_continued_is_not_changed() {
        let resumed = ["sala-bench", "sweep", "--resume", "--out", "x"];
        let read = |more: &[&str]| Cli::try_parse_from([&resumed[..], more].concat());
        for more in [
            &["--epochs", "50"][..],
            &["--trials", "7"],
            &["--strategy", "grid"],
            &["--studies", "2"],
            &["--search-seed", "1"],
            &["--set", "training.batch_size=3"],
            &["--preset", "cifar-10"],
            &["--fresh"],
        ] {
            let message = read(more).unwrap_err().to_string();
            assert!(
                message.contains("cannot be used with"),
                "{more:?}: {message}"
            );
        }
        read(&["--jobs", "1", "--checkpoint-seconds", "5"]).unwrap();
        read(&["--emit", "slurm", "--cpus-per-task", "3"]).unwrap();
    }

    #[test]
    fn what_is_typed_goes_before_what_the_search_file_says() {
        let words = ["--strategy", "random", "--trials", "2", "--studies", "3"];
        let first = args(&words).sweep().unwrap();
        assert_eq!(first.trials().optimizers.len(), 6 * 2 * 3);
        let other = args(&[&words[..], &["--search-seed", "1"]].concat());
        assert_ne!(other.sweep().unwrap().trials(), first.trials());
    }
}
