//! Reads run directories, and merges those that hold parts of one comparison.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};

use super::plan::{OptimizerPlan, Plan};
use crate::{
    record::{Environment, EpochRecord, PLAN, RunRecord, read_run, run_name},
    sharpness::Saved,
};

/// A complete run with its epochs.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) record: RunRecord,
    /// Empty where only the last lines were kept.
    pub(crate) epochs: Vec<EpochRecord>,
    /// The directory it was found in, by its place in [`Source::places`]: times of different ones are not
    /// compared.
    pub(crate) place: usize,
}

/// A directory of a comparison.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) path: PathBuf,
    pub(crate) environment: Option<Environment>,
    /// What has been measured of its solutions.
    pub(crate) sharpness: Option<Saved>,
}

/// What is on disk of one comparison, from one directory or several.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// The first directory's, with the seeds and optimizers of all.
    pub(crate) plan: Plan,
    pub(crate) places: Vec<Place>,
    /// By seed, then in the order of the plan's optimizers.
    pub(crate) runs: Vec<Run>,
}

/// What is to be done where two directories hold different runs of the same optimizer and seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnConflict {
    Refuse,
    /// That of the directory that is named first counts.
    TakeFirst,
}

/// Reads the directories; those whose plans differ in seeds and optimizers alone become one comparison.
///
/// # Errors
/// When a directory or a record cannot be read, when an optimizer of the same name has other
/// hyper-parameters, and when there are two different runs of one optimizer and seed.
pub(crate) fn load(directories: &[PathBuf], on_conflict: OnConflict) -> Result<Vec<Source>> {
    let mut sources: Vec<Source> = Vec::new();
    for path in directories {
        let next = read(path)?;
        match sources
            .iter_mut()
            .find(|s| s.plan.setting == next.plan.setting)
        {
            Some(source) => source.merge(next, on_conflict)?,
            None => sources.push(next),
        }
    }
    for source in &mut sources {
        source.sort();
        source.check_data()?;
    }
    Ok(sources)
}

fn read(path: &Path) -> Result<Source> {
    let plan = Plan::read(&path.join(PLAN))?;
    let runs = match path.join("runs") {
        folder if folder.is_dir() => single_files(&folder, &plan)?,
        _ => last_lines(&path.join("runs.jsonl"), &plan)?,
    };
    let place = Place {
        path: path.into(),
        environment: environment(&path.join("environment.json"))?,
        sharpness: Saved::read(path)?,
    };
    Ok(Source {
        plan,
        places: vec![place],
        runs,
    })
}

/// The complete runs of the folder `runs`.
fn single_files(folder: &Path, plan: &Plan) -> Result<Vec<Run>> {
    let mut runs = Vec::new();
    for &seed in &plan.seeds {
        for name in plan.names() {
            let path = folder.join(format!("{}.jsonl", run_name(name, seed)));
            if let Some((epochs, record)) = read_run(&path)? {
                runs.push(Run {
                    record,
                    epochs,
                    place: 0,
                });
            }
        }
    }
    Ok(runs)
}

/// The runs of a directory that was kept without its epochs.
fn last_lines(path: &Path, plan: &Plan) -> Result<Vec<Run>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let mut runs = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let record: RunRecord = serde_json::from_str(line)
            .with_context(|| format!("{}, line {}, is no record", path.display(), number + 1))?;
        if plan.names().contains(&record.optimizer.as_str()) {
            runs.push(Run {
                record,
                epochs: Vec::new(),
                place: 0,
            });
        }
    }
    Ok(runs)
}

fn environment(path: &Path) -> Result<Option<Environment>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is no description of a machine", path.display()))
            .map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

impl Source {
    /// Whether every run of the plan is there.
    pub(crate) fn is_complete(&self) -> bool {
        self.runs.len() == self.plan.seeds.len() * self.plan.optimizers.len()
    }

    pub(crate) fn of<'a>(&'a self, optimizer: &'a str) -> impl Iterator<Item = &'a Run> {
        self.runs
            .iter()
            .filter(move |r| r.record.optimizer == optimizer)
    }

    fn merge(&mut self, other: Self, on_conflict: OnConflict) -> Result<()> {
        let place = self.places.len();
        for optimizer in other.plan.optimizers {
            self.add_optimizer(optimizer, &other.places[0].path)?;
        }
        for seed in other.plan.seeds {
            if !self.plan.seeds.contains(&seed) {
                self.plan.seeds.push(seed);
            }
        }
        self.places.extend(other.places);
        for run in other.runs {
            self.add_run(Run { place, ..run }, on_conflict)?;
        }
        Ok(())
    }

    fn add_optimizer(&mut self, new: OptimizerPlan, path: &Path) -> Result<()> {
        let Some(old) = self.plan.optimizers.iter().find(|o| o.name == new.name) else {
            self.plan.optimizers.push(new);
            return Ok(());
        };
        ensure!(
            *old == new,
            "the optimizer `{}` is another one in {} than in the directories before it ({}); rename it in one of them, or \
             report on them one by one",
            new.name,
            path.display(),
            difference(&old.settings, &new.settings)
        );
        Ok(())
    }

    /// Adds a run, unless it is there already.
    fn add_run(&mut self, new: Run, on_conflict: OnConflict) -> Result<()> {
        let cell = |r: &Run| (r.record.optimizer.clone(), r.record.seed);
        let Some(old) = self.runs.iter().find(|r| cell(r) == cell(&new)) else {
            self.runs.push(new);
            return Ok(());
        };
        if on_conflict == OnConflict::Refuse && !is_same(&old.record, &new.record) {
            bail!(
                "{} and {} hold different runs of {} with seed {}; leave one of them out, or take the first with \
                 --prefer-first",
                self.places[old.place].path.display(),
                self.places[new.place].path.display(),
                new.record.optimizer,
                new.record.seed
            );
        }
        Ok(())
    }

    /// Runs are compared in pairs, which share their data.
    fn check_data(&self) -> Result<()> {
        for (number, run) in self.runs.iter().enumerate() {
            let other = self.runs[..number].iter();
            let mut others = other.filter(|o| !o.record.shares_data_with(&run.record));
            if let Some(other) = others.next() {
                let name = |r: &Run| {
                    let place = self.places[r.place].path.display();
                    format!(
                        "{} of {place}",
                        run_name(&r.record.optimizer, r.record.seed)
                    )
                };
                bail!(
                    "{} and {} were made of different data and cannot be compared; leave one of the directories out, or \
                     make the runs of one of them anew",
                    name(other),
                    name(run)
                );
            }
        }
        Ok(())
    }

    fn sort(&mut self) {
        self.plan.seeds.sort_unstable();
        let names = self.plan.names();
        let place = |name: &str| names.iter().position(|n| *n == name);
        let key = |r: &Run| (r.record.seed, place(&r.record.optimizer));
        let mut runs = std::mem::take(&mut self.runs);
        runs.sort_by_key(key);
        self.runs = runs;
    }
}

/// Whether two records are of one run: everything but the time and the program. Those of earlier versions do not
/// say what their data were.
fn is_same(one: &RunRecord, other: &RunRecord) -> bool {
    let bare = |r: &RunRecord| RunRecord {
        train_s: 0.0,
        data: None,
        test_data: None,
        program: None,
        ..r.clone()
    };
    bare(one) == bare(other) && one.shares_data_with(other)
}

/// The first setting in which two optimizers differ.
fn difference(old: &toml::Table, new: &toml::Table) -> String {
    let keys = old.keys().chain(new.keys());
    let show =
        |value: Option<&toml::Value>| value.map_or_else(|| "nothing".into(), ToString::to_string);
    for key in keys {
        let (before, after) = (old.get(key), new.get(key));
        if before != after {
            return format!("{key} was {} and is {}", show(before), show(after));
        }
    }
    "in their order".into()
}
