//! `sweep` and `tune`: hyper-parameters are chosen on the validation part, with the same number of trials for
//! each optimizer, on seeds that the comparison does not use. The test part is never read. An optimizer
//! without values to try keeps those it has.
//!
//! ```text
//! DIR/experiment.toml     the trials, each an optimizer of its own; beside it what every run directory has
//! DIR/base.toml           the experiment whose hyper-parameters are searched
//! DIR/search.toml         the search
//! DIR/search.{md,json}    what was found
//! DIR/tuned.toml          the experiment with the best values
//! ```
//!
//! Any number of processes may work in the directory at once; each ends when all runs are complete.

mod choose;
mod search;
mod space;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{
    compare::{default_directory, run_missing},
    record::{Access, RunDir, Sharing},
    report,
    runs::{Outcome, Work},
    shell,
    spec::Experiment,
    train::Trainer,
};

use choose::Found;
pub(crate) use search::{Search, Strategy, name_of_trial};

const BASE: &str = "base.toml";
const SEARCH: &str = "search.toml";

/// An experiment, a search over it, and the trials that follow from both.
pub(crate) struct Sweep {
    experiment: Experiment,
    search: Search,
    trials: Experiment,
}

impl Sweep {
    pub(crate) fn new(experiment: Experiment, search: Search) -> Result<Self> {
        let trials = search.trials(&experiment)?;
        Ok(Self {
            experiment,
            search,
            trials,
        })
    }

    /// What was begun in a directory.
    pub(crate) fn begun(out: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = out.join(name);
            let text = fs::read_to_string(&path);
            let text = text
                .with_context(|| format!("no sweep to continue: cannot read {}", path.display()))?;
            Ok::<_, anyhow::Error>((text, path.display().to_string()))
        };
        let ((base, base_path), (search, search_path)) = (read(BASE)?, read(SEARCH)?);
        let experiment = Experiment::from_toml(&base, &base_path)?;
        Self::new(experiment, Search::from_toml(&search, &search_path)?)
    }

    /// Where records go unless `--out` says otherwise: the name tells experiments apart, and searches.
    pub(crate) fn default_directory(&self) -> Result<PathBuf> {
        let Experiment { name, .. } = &self.experiment;
        let fingerprint = format!("{}.search", self.trials.fingerprint()?);
        Ok(default_directory(name, &fingerprint))
    }

    /// Every trial as an optimizer of its own.
    pub(crate) fn trials(&self) -> &Experiment {
        &self.trials
    }

    /// Opens its directory, to share it with other processes.
    pub(crate) fn open(&self, out: &Path, fresh: bool) -> Result<RunDir> {
        let access = Access {
            device: &self.trials.device.to_string(),
            sharing: Sharing::Shared,
            fresh,
        };
        let dir = RunDir::open(out, &self.trials.to_toml()?, access)?;
        dir.write(BASE, self.experiment.to_toml()?.as_bytes())?;
        dir.write(SEARCH, self.search.to_toml()?.as_bytes())?;
        Ok(dir)
    }
}

/// Runs the trials that are missing; writes the tables and the experiment with the best values, and prints
/// them.
pub(crate) fn sweep(sweep: &Sweep, out: &Path, fresh: bool, work: &Work) -> Result<Outcome> {
    let Sweep {
        experiment,
        search,
        trials,
    } = sweep;
    let trainer = Trainer::new(trials)?;
    let dir = sweep.open(out, fresh)?;
    let (records, outcome) = run_missing(trainer, &dir, work)?;
    if outcome == Outcome::Interrupted {
        return Ok(outcome);
    }
    let found = Found::new(search, experiment, trials, &records);
    let table = found.markdown(trials, &records)?;
    report::conclude(&dir, &records, &trials.description)?;
    dir.write("search.json", &serde_json::to_vec_pretty(&found)?)?;
    dir.write("search.md", table.as_bytes())?;
    let tuned = found.tuned(experiment, trials);
    dir.write("tuned.toml", tuned.to_toml()?.as_bytes())?;
    let tuned = out.join("tuned.toml");
    shell::print(format!("{table}\nChosen: {}\n", tuned.display()).as_bytes())?;
    Ok(outcome)
}
