//! `compare`: every optimizer with every seed, then the report.

use std::{
    collections::{HashMap, VecDeque},
    fs,
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
};

use anyhow::{Context, Result};
use candle_core::Device;

use crate::{
    progress::{Progress, RunProgress},
    record::{EpochRecord, RunDir, RunRecord, RunWriter},
    report::Report,
    spec::{Experiment, Optimizer},
    train::{Observer, SeedData, Trainer},
};

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Complete,
    /// Asked to stop; what was complete is kept.
    Interrupted,
}

/// Whether the test part may be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TestPart {
    /// Once a run, after its training has ended.
    AtTheEnd,
    Never,
}

/// Where an experiment's records go unless `--out` says otherwise.
pub(crate) fn default_directory(experiment: &Experiment) -> Result<PathBuf> {
    Ok(Path::new("runs").join(format!("{}-{}", experiment.name, experiment.fingerprint()?)))
}

/// Runs what is missing of an experiment in `out`, writes the report there and prints it.
pub(crate) fn compare(
    experiment: &Experiment,
    out: &Path,
    fresh: bool,
    work: &Work,
) -> Result<Outcome> {
    let trainer = Trainer::new(experiment, Device::Cpu, &work.stop)?;
    let dir = open(experiment, out, fresh)?;
    eprintln!("{}", experiment.description);
    let (records, outcome) = run_missing(trainer, &dir, TestPart::AtTheEnd, work.jobs)?;
    let report = Report::new(experiment, &records)?;
    dir.write_runs(&records)?;
    dir.write("summary.json", &serde_json::to_vec_pretty(&report)?)?;
    let heading = format!("# {}\n\n{}\n\n", experiment.name, experiment.description);
    dir.write(
        "summary.md",
        format!("{heading}{}", report.markdown()).as_bytes(),
    )?;
    println!("{}", report.terminal());
    println!("Records: {}", out.display());
    Ok(outcome)
}

/// Opens the run directory, after removing the records of an earlier comparison if that is wished.
pub(crate) fn open(experiment: &Experiment, out: &Path, fresh: bool) -> Result<RunDir> {
    if fresh && out.join("experiment.toml").is_file() {
        let runs = out.join("runs");
        if runs.is_dir() {
            fs::remove_dir_all(&runs)
                .with_context(|| format!("cannot remove {}", runs.display()))?;
        }
        fs::remove_file(out.join("experiment.toml"))
            .with_context(|| format!("cannot begin anew in {}", out.display()))?;
    }
    RunDir::open(out, experiment, "cpu")
}

/// How the runs are worked on.
pub(crate) struct Work {
    /// Runs at a time.
    pub(crate) jobs: usize,
    /// Set to stop after the step under way.
    pub(crate) stop: AtomicBool,
}

/// A run that is still to be made.
type Cell<'a> = (u64, &'a Optimizer);

/// Runs what is not complete yet and returns all complete records. Seeds go outside and optimizers
/// inside, so that the optimizers of one seed meet the same state of the machine.
pub(crate) fn run_missing(
    trainer: Trainer,
    dir: &RunDir,
    test: TestPart,
    jobs: usize,
) -> Result<(Vec<RunRecord>, Outcome)> {
    let experiment = trainer.experiment();
    let (mut records, mut missing) = (Vec::new(), VecDeque::new());
    for &seed in &experiment.training.seeds {
        for optimizer in &experiment.optimizers {
            match dir.finished(&optimizer.name, seed)? {
                Some(record) => records.push(record),
                None => missing.push_back((seed, optimizer)),
            }
        }
    }
    let (done, total) = (records.len(), records.len() + missing.len());
    if missing.is_empty() {
        let place = dir.path().display();
        eprintln!("All {total} runs are complete in {place}; --fresh runs them again.");
        return Ok((records, Outcome::Complete));
    }
    let (title, steps) = (trainer.title(), trainer.steps());
    eprintln!("{title}; {total} runs of {steps} steps, {done} complete already, {jobs} at a time");
    let progress = Progress::new(missing.iter().map(|(_, o)| *o), steps);
    let workers = jobs.min(missing.len());
    let queue = Queue {
        trainer,
        dir,
        test,
        progress,
        missing: Mutex::new(missing),
        data: Mutex::default(),
    };
    let outcomes = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(|| queue.work())).collect();
        workers
            .into_iter()
            .map(|w| w.join().unwrap_or_else(|panic| resume_unwind(panic)))
            .collect::<Vec<_>>()
    });
    queue.progress.clear();
    for outcome in outcomes {
        records.extend(outcome?);
    }
    let place = |name: &str| experiment.optimizers.iter().position(|o| o.name == name);
    records.sort_by_key(|r| (r.seed, place(&r.optimizer)));
    if records.len() < total {
        eprintln!("Stopped; {} of {total} runs are complete.", records.len());
        return Ok((records, Outcome::Interrupted));
    }
    Ok((records, Outcome::Complete))
}

/// The runs that are still to be made, for several threads to take from.
struct Queue<'a> {
    trainer: Trainer<'a>,
    dir: &'a RunDir,
    test: TestPart,
    progress: Progress,
    missing: Mutex<VecDeque<Cell<'a>>>,
    /// Data of the seeds that were begun last; every optimizer of a seed uses the same.
    data: Mutex<HashMap<u64, Arc<SeedData>>>,
}

impl<'a> Queue<'a> {
    /// Makes runs until none is left or it is asked to stop; an error makes the others stop too.
    fn work(&self) -> Result<Vec<RunRecord>> {
        let mut records = Vec::new();
        while let Some((seed, optimizer)) = self.next() {
            match self.make(seed, optimizer) {
                Ok(Some(record)) => records.push(record),
                Ok(None) => break,
                Err(error) => {
                    self.trainer.stop();
                    let run = format!("the run of {} with seed {seed}", optimizer.name);
                    return Err(error.context(run));
                }
            }
        }
        Ok(records)
    }

    /// In a function of its own, so that the lock is released before the run begins.
    fn next(&self) -> Option<Cell<'a>> {
        lock(&self.missing).pop_front()
    }

    fn make(&self, seed: u64, optimizer: &Optimizer) -> Result<Option<RunRecord>> {
        let data = self.seed_data(seed)?;
        let mut writer = self.dir.begin(&optimizer.name, seed)?;
        let bar = self.progress.begin(optimizer, seed);
        let mut watch = Watch {
            bar,
            writer: &mut writer,
        };
        let with_test = self.test == TestPart::AtTheEnd;
        let Some(record) = self.trainer.run(&data, optimizer, with_test, &mut watch)? else {
            return Ok(None);
        };
        writer.finish(&record)?;
        self.progress.finish(&record);
        Ok(Some(record))
    }

    fn seed_data(&self, seed: u64) -> Result<Arc<SeedData>> {
        let mut data = lock(&self.data);
        if let Some(found) = data.get(&seed) {
            return Ok(Arc::clone(found));
        }
        let made = Arc::new(self.trainer.seed_data(seed)?);
        // What no thread uses any more is of an earlier seed.
        data.retain(|_, earlier| Arc::strong_count(earlier) > 1);
        data.insert(seed, Arc::clone(&made));
        Ok(made)
    }
}

/// A poisoned lock means that another thread panicked, which ends the program when it is joined.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Shows a run's progress and writes its record.
struct Watch<'a> {
    bar: RunProgress<'a>,
    writer: &'a mut RunWriter,
}

impl Observer for Watch<'_> {
    fn step(&self) {
        self.bar.step();
    }

    fn epoch(&mut self, record: &EpochRecord) -> Result<()> {
        self.bar.epoch(record);
        self.writer.epoch(record)
    }
}
