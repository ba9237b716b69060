//! Makes the runs of a plan that are missing, several at a time.

use std::{
    collections::VecDeque,
    panic::resume_unwind,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Result;

use crate::{
    metrics::Metric,
    progress::{Progress, RunProgress},
    record::{EpochRecord, RunDir, RunRecord, RunWriter},
    spec::Optimizer,
};

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Complete,
    /// Asked to stop; what was complete is kept.
    Interrupted,
}

/// How the runs are worked on.
pub(crate) struct Work {
    /// Runs at a time.
    pub(crate) jobs: usize,
    /// Set to stop after the step under way.
    pub(crate) stop: AtomicBool,
}

/// What watches a run.
pub(crate) trait Observer {
    /// After every step.
    fn step(&self);
    /// After every epoch.
    fn epoch(&mut self, record: &EpochRecord) -> Result<()>;
}

/// Every optimizer with every seed.
pub(crate) struct Plan<'a> {
    pub(crate) seeds: &'a [u64],
    pub(crate) optimizers: &'a [Optimizer],
    /// What is run, in words.
    pub(crate) title: String,
    /// Steps of a run, for its bar.
    pub(crate) steps: u64,
    /// What its progress is measured by.
    pub(crate) metric: Metric,
    /// Whether runs are so long that every epoch is told of where there is no terminal.
    pub(crate) long: bool,
}

/// What makes runs; several threads ask it at once.
pub(crate) trait Maker: Sync {
    /// Makes a run. Nothing when it was asked to stop in between.
    fn make(
        &self,
        seed: u64,
        optimizer: &Optimizer,
        observer: &mut dyn Observer,
    ) -> Result<Option<RunRecord>>;

    /// After the record of a run is complete on disk.
    fn recorded(&self, _record: &RunRecord) -> Result<()> {
        Ok(())
    }
}

/// How long to wait for what another process is making before looking again.
const PATIENCE: Duration = Duration::from_millis(250);

/// What became of a run that was to be made.
enum Taken {
    Complete(Box<RunRecord>),
    /// Another process is at it.
    Elsewhere,
    Stopped,
}

/// A run that is still to be made.
type Cell<'a> = (u64, &'a Optimizer);

/// Runs what is not complete yet and returns all complete records. Seeds go outside and optimizers
/// inside, so that the optimizers of one seed meet the same state of the machine.
pub(crate) fn run_missing(
    plan: &Plan<'_>,
    maker: &dyn Maker,
    dir: &RunDir,
    work: &Work,
) -> Result<(Vec<RunRecord>, Outcome)> {
    let (mut records, mut missing) = (Vec::new(), VecDeque::new());
    for &seed in plan.seeds {
        for optimizer in plan.optimizers {
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
    let (title, steps, jobs) = (&plan.title, plan.steps, work.jobs);
    eprintln!("{title}; {total} runs of {steps} steps, {done} complete already, {jobs} at a time");
    let progress = Progress::new(
        missing.iter().map(|(_, o)| *o),
        steps,
        plan.metric,
        plan.long,
    );
    let workers = jobs.min(missing.len());
    let queue = Queue {
        maker,
        dir,
        stop: &work.stop,
        progress,
        missing: Mutex::new(missing),
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
    let place = |name: &str| plan.optimizers.iter().position(|o| o.name == name);
    records.sort_by_key(|r| (r.seed, place(&r.optimizer)));
    if records.len() < total {
        eprintln!("Stopped; {} of {total} runs are complete.", records.len());
        return Ok((records, Outcome::Interrupted));
    }
    Ok((records, Outcome::Complete))
}

/// The runs that are still to be made, for several threads to take from.
struct Queue<'a> {
    maker: &'a dyn Maker,
    dir: &'a RunDir,
    stop: &'a AtomicBool,
    progress: Progress,
    missing: Mutex<VecDeque<Cell<'a>>>,
}

impl<'a> Queue<'a> {
    /// Makes runs until none is left or it is asked to stop; an error makes the others stop too. What another
    /// process is making is waited for, and made here should that process end without a record.
    fn work(&self) -> Result<Vec<RunRecord>> {
        let (mut records, mut in_vain) = (Vec::new(), 0);
        while let Some((seed, optimizer)) = self.next() {
            match self.take(seed, optimizer) {
                Ok(Taken::Complete(record)) => records.push(*record),
                Ok(Taken::Stopped) => break,
                Ok(Taken::Elsewhere) => {
                    in_vain += 1;
                    if self.put_back((seed, optimizer)) <= in_vain {
                        std::thread::sleep(PATIENCE);
                        in_vain = 0;
                    }
                    if self.stop.load(Ordering::Relaxed) {
                        break;
                    }
                    continue;
                }
                Err(error) => {
                    self.stop.store(true, Ordering::Relaxed);
                    let run = format!("the run of {} with seed {seed}", optimizer.name);
                    return Err(error.context(run));
                }
            }
            in_vain = 0;
        }
        Ok(records)
    }

    /// In a function of its own, so that the lock is released before the run begins.
    fn next(&self) -> Option<Cell<'a>> {
        lock(&self.missing).pop_front()
    }

    /// Puts a run behind all others; how many there are now.
    fn put_back(&self, cell: Cell<'a>) -> usize {
        let mut missing = lock(&self.missing);
        missing.push_back(cell);
        missing.len()
    }

    fn take(&self, seed: u64, optimizer: &Optimizer) -> Result<Taken> {
        let Some(claim) = self.dir.claim_run(&optimizer.name, seed)? else {
            return Ok(Taken::Elsewhere);
        };
        let record = match self.dir.finished(&optimizer.name, seed)? {
            Some(record) => {
                self.progress.finish(&record);
                Some(record)
            }
            None => self.make(seed, optimizer)?,
        };
        let Some(record) = record else {
            return Ok(Taken::Stopped);
        };
        claim.complete();
        Ok(Taken::Complete(Box::new(record)))
    }

    fn make(&self, seed: u64, optimizer: &Optimizer) -> Result<Option<RunRecord>> {
        let mut writer = self.dir.begin(&optimizer.name, seed)?;
        let bar = self.progress.begin(optimizer, seed);
        let mut watch = Watch {
            bar,
            writer: &mut writer,
        };
        let Some(record) = self.maker.make(seed, optimizer, &mut watch)? else {
            return Ok(None);
        };
        writer.finish(&record)?;
        self.maker.recorded(&record)?;
        self.progress.finish(&record);
        Ok(Some(record))
    }
}

/// A poisoned lock means that another thread panicked, which ends the program when it is joined.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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
