//! Makes the runs of a plan that are missing, several at a time.
//!
//! `run` is the loop of one of them; `cadence` says when it is saved, `checkpoint` how; `tally` adds up, `watch`
//! tells of it.

pub(crate) mod cadence;
pub(crate) mod checkpoint;
pub(crate) mod run;
pub(crate) mod tally;
mod watch;

use std::{
    collections::VecDeque,
    panic::resume_unwind,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::ScopedJoinHandle,
    time::Duration,
};

use anyhow::{Result, bail};
use sala_core::StepReport;

use crate::{
    metrics::Metric,
    progress,
    record::{EpochRecord, PROGRAM, RunDir, RunRecord, run_name},
    spec::{Optimizer, Running},
    tensorboard::EventWriter,
};
use cadence::Cadence;
use checkpoint::Progress;
use run::Site;
use watch::{Stage, Watch};

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
    /// What is kept of them.
    pub(crate) running: Running,
    /// Set to stop after the step under way.
    pub(crate) stop: AtomicBool,
}

/// A step, for those who watch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    /// From 1.
    pub(crate) epoch: u64,
    /// Learning rate.
    pub(crate) lr: f64,
    pub(crate) report: StepReport,
}

/// What watches a run.
pub(crate) trait Observer {
    /// Before the first step of this process; earlier ones have got the run so far.
    fn begin(&mut self, progress: &Progress) -> Result<()>;
    /// After every step.
    fn step(&mut self, step: &Step) -> Result<()>;
    /// After every epoch.
    fn epoch(&mut self, record: &EpochRecord) -> Result<()>;
}

/// Every optimizer with every seed.
pub(crate) struct Plan<'a> {
    pub(crate) seeds: &'a [u64],
    pub(crate) optimizers: &'a [Optimizer],
    /// What is run, in words.
    pub(crate) title: String,
    /// Epochs of a run, at most.
    pub(crate) epochs: u64,
    /// Steps of a run, at most.
    pub(crate) steps: u64,
    /// What its progress is measured by.
    pub(crate) metric: Metric,
    /// Whether runs are so long that every epoch is told of where there is no terminal.
    pub(crate) long: bool,
}

/// What makes runs; several threads ask it at once.
pub(crate) trait Maker: Sync {
    /// Fingerprint of the data.
    fn data(&self) -> &str;

    /// Makes a run. Nothing when it was asked to stop in between.
    fn make(&self, site: Site<'_>) -> Result<Option<RunRecord>>;

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
                Some(record) => {
                    // One that was killed between its record and this leaves its checkpoint.
                    let checkpoint = dir.checkpoint(&optimizer.name, seed, maker.data());
                    checkpoint.remove()?;
                    records.push(record);
                }
                None => missing.push_back((seed, optimizer)),
            }
        }
    }
    check_data(dir, maker.data(), &records)?;
    let (done, total) = (records.len(), records.len() + missing.len());
    if missing.is_empty() {
        let place = dir.path().display();
        progress::say(&format!(
            "All {total} runs are complete in {place}; the command that began them runs them again with --fresh."
        ));
        return Ok((records, Outcome::Complete));
    }
    warn_of_other_programs(&records);
    dir.describe_environment()?;
    let (title, steps, jobs) = (&plan.title, plan.steps, work.jobs);
    progress::say(&format!(
        "{title}; {total} runs of {steps} steps, {done} complete already, {jobs} at a time"
    ));
    let progress = progress::Progress::new(plan, missing.iter().copied());
    let workers = jobs.min(missing.len());
    let queue = Queue {
        maker,
        dir,
        work,
        progress,
        steps,
        missing: Mutex::new(missing),
        complete: Mutex::new(records.clone()),
    };
    let outcomes = queue.work_on(workers);
    queue.progress.clear();
    for outcome in outcomes {
        records.extend(outcome?);
    }
    let place = |name: &str| plan.optimizers.iter().position(|o| o.name == name);
    records.sort_by_key(|r| (r.seed, place(&r.optimizer)));
    if records.len() < total {
        let complete = records.len();
        progress::say(&format!(
            "Stopped; {complete} of {total} runs are complete. The same command goes on."
        ));
        return Ok((records, Outcome::Interrupted));
    }
    Ok((records, Outcome::Complete))
}

/// Makes sure that complete runs were made of what is there now: differences are paired, and a pair
/// shares its data.
fn check_data(dir: &RunDir, data: &str, complete: &[RunRecord]) -> Result<()> {
    let other = |r: &&RunRecord| r.data.as_deref().is_some_and(|there| there != data);
    let Some(record) = complete.iter().find(other) else {
        return Ok(());
    };
    bail!(
        "{} was made of other data, or from other weights: the fingerprint of its run {} is {}, that of what is there now \
         {data}; put back what was there then, or begin anew: the command that began them, with --fresh or another --out",
        dir.path().display(),
        run_name(&record.optimizer, record.seed),
        record.data.as_deref().unwrap_or_default(),
    )
}

/// The same of the test part, which is known only after a run's last step.
fn check_test_data(record: &RunRecord, complete: &[RunRecord]) -> Result<()> {
    let other = complete.iter().find(|r| !r.shares_data_with(record));
    other.map_or(Ok(()), |other| {
        bail!(
            "the test part is another one than that of the run {}; put the data of then back, or begin anew with \
             --fresh or another --out",
            run_name(&other.optimizer, other.seed)
        )
    })
}

fn warn_of_other_programs(complete: &[RunRecord]) {
    let other = |r: &&RunRecord| r.program.as_deref().is_some_and(|p| p != PROGRAM);
    let mut others = complete.iter().filter(other);
    if let Some(record) = others.next() {
        tracing::warn!(
            run = run_name(&record.optimizer, record.seed),
            made_by = record.program,
            this = PROGRAM,
            "{} of the complete runs were made by another version of the program: what differs between versions will \
             look like a difference between runs",
            1 + others.count()
        );
    }
}

/// The runs that are still to be made, for several threads to take from.
struct Queue<'a> {
    maker: &'a dyn Maker,
    dir: &'a RunDir,
    work: &'a Work,
    progress: progress::Progress,
    /// Steps of a run.
    steps: u64,
    missing: Mutex<VecDeque<Cell<'a>>>,
    /// What new runs must share their data with.
    complete: Mutex<Vec<RunRecord>>,
}

impl<'a> Queue<'a> {
    /// Runs are made by so many threads. One alone is of those that share the work within a step: to hand over
    /// every operation to them, and to wait for its end, takes a few per cent of a step's time. Several are
    /// not: one that waits for a part of its step might begin a whole run of another.
    fn work_on(&self, workers: usize) -> Vec<Result<Vec<RunRecord>>> {
        if workers == 1 {
            return vec![rayon::scope(|_| self.work())];
        }
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..workers).map(|_| scope.spawn(|| self.work())).collect();
            let join =
                |w: ScopedJoinHandle<'_, _>| w.join().unwrap_or_else(|panic| resume_unwind(panic));
            workers.into_iter().map(join).collect()
        })
    }

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
                    let missing = self.put_back((seed, optimizer));
                    if missing <= in_vain {
                        self.progress.wait(missing);
                        std::thread::sleep(PATIENCE);
                        in_vain = 0;
                    }
                    if self.work.stop.load(Ordering::Relaxed) {
                        break;
                    }
                    continue;
                }
                Err(error) => {
                    self.work.stop.store(true, Ordering::Relaxed);
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
                check_data(self.dir, self.maker.data(), std::slice::from_ref(&record))?;
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
        let writer = self.dir.begin(&optimizer.name, seed)?;
        let checkpoint = (self.dir).checkpoint(&optimizer.name, seed, self.maker.data());
        let events = self.work.running.tensorboard.then(|| {
            let folder = self.dir.tensorboard(&optimizer.name, seed);
            EventWriter::open(&folder, self.steps)
        });
        let mut watch = Watch {
            bar: self.progress.begin(optimizer, seed),
            writer,
            events: events.transpose()?,
            stage: optimizer.method.deciding_cycle().map(Stage::new),
        };
        let site = Site {
            seed,
            optimizer,
            checkpoint: Some(checkpoint.clone()),
            cadence: Cadence::new(&self.work.running),
            stop: &self.work.stop,
            observer: &mut watch,
        };
        let Some(record) = self.maker.make(site)? else {
            return Ok(None);
        };
        {
            let mut complete = lock(&self.complete);
            check_test_data(&record, &complete)?;
            complete.push(record.clone());
        }
        watch.writer.finish(&record)?;
        checkpoint.remove()?;
        self.maker.recorded(&record)?;
        self.progress.finish(&record);
        Ok(Some(record))
    }
}

/// A poisoned lock means that another thread panicked, which ends the program when it is joined.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
