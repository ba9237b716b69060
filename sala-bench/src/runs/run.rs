//! One run, from initial weights to final scores: the loop around what is trained, the same for every command.
//!
//! A run that was interrupted goes on from its last checkpoint and ends at the same bits: everything random
//! follows from seed, epoch and step.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use candle_core::DType;
use sala_core::{Resumable, StepReport, schedule::Schedule, state::State};
use sala_models::VarStore;
use sha2::{Digest, Sha256};

use super::{
    Observer, Step,
    cadence::Cadence,
    checkpoint::{self, Best, CheckpointFile, Progress},
};
use crate::{
    hex::hex,
    metrics::{Metric, Score},
    record::{PROGRAM, RunRecord},
    spec::{Budget, Optimizer},
};

/// What is trained: the data and the objective of a run.
pub(crate) trait Workload {
    /// What a step is taken on.
    type Batch;

    /// The batches of an epoch (from 1) without the first `skip`, which may be all.
    fn batches(
        &self,
        epoch: u64,
        skip: usize,
    ) -> Result<Box<dyn Iterator<Item = Result<Self::Batch>> + '_>>;

    /// Takes a step, the `step`-th from 0.
    fn step(
        &self,
        optimizer: &mut dyn Resumable,
        batch: &Self::Batch,
        step: u64,
    ) -> Result<StepReport>;

    /// Whether statistics that layers track in training are taken anew at slow weights.
    fn recalibrates(&self) -> bool {
        false
    }

    /// Takes them anew at the weights as they are.
    fn recalibrate(&self) -> Result<()> {
        Ok(())
    }

    /// Scores the weights as they are on the validation part.
    fn validate(&self) -> Result<Score>;

    /// Scores them on the test part, if that is to be read.
    fn test(&self) -> Result<Option<Score>>;

    /// Fingerprint of the test part, where it has been read and is no part of the data's.
    fn test_data(&self) -> Option<String> {
        None
    }

    /// Keeps the weights as they are after an epoch (from 1), if the way of training is wanted.
    fn keep_point(&self, _epoch: u64) -> Result<()> {
        Ok(())
    }

    /// Keeps the final ones, if that is wanted.
    fn save(&self) -> Result<()>;
}

/// A run before its first step.
pub(crate) struct Setup<W> {
    pub(crate) workload: W,
    /// The variables that `workload` has.
    pub(crate) store: VarStore,
    pub(crate) optimizer: Box<dyn Resumable>,
    /// Factor of the learning rate by what is spent of the budget.
    pub(crate) schedule: Box<dyn Schedule>,
    pub(crate) budget: Budget,
    /// Of the budget, in its unit.
    pub(crate) total: u64,
    pub(crate) early_stopping: Option<EarlyStopping>,
}

/// To stop once the validation part says enough, and to take the best epoch's weights.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EarlyStopping {
    /// Epochs without a better score.
    pub(crate) patience: u64,
    pub(crate) metric: Metric,
}

/// Where and under whose eyes a run is made.
pub(crate) struct Site<'a> {
    pub(crate) seed: u64,
    pub(crate) optimizer: &'a Optimizer,
    /// What is made and thrown away has none.
    pub(crate) checkpoint: Option<CheckpointFile>,
    pub(crate) cadence: Cadence,
    /// Set to stop after the step under way.
    pub(crate) stop: &'a AtomicBool,
    pub(crate) observer: &'a mut dyn Observer,
}

/// How a run stands when its loop returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Trained,
    AskedToStop,
}

/// Trains to the end and scores the final weights. Nothing when it was asked to stop in between; where it
/// stands is saved then.
pub(crate) fn make<W: Workload>(setup: Setup<W>, site: Site<'_>) -> Result<Option<RunRecord>> {
    let (optimizer, seed) = (&site.optimizer.name, site.seed);
    let _span = tracing::debug_span!("bench.run", optimizer, seed).entered();
    let Setup {
        workload,
        store,
        optimizer,
        schedule,
        budget,
        total,
        early_stopping,
    } = setup;
    let mut run = Run {
        workload: &workload,
        store,
        optimizer,
        schedule,
        budget,
        total,
        early_stopping,
        site,
        progress: Progress::default(),
        best: None,
        failure: None,
    };
    run.restore()?;
    match run.train() {
        Ok(Ended::Trained) => {}
        Ok(Ended::AskedToStop) => return Ok(None),
        Err(error) if diverged(&error) => run.failure = Some(error.to_string()),
        Err(error) => return Err(error),
    }
    run.finish().map(Some)
}

/// Whether an error says that the optimizer left the finite numbers, which is a result and no fault.
fn diverged(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref(),
        Some(sala_core::Error::NonFinite { .. })
    )
}

/// Why a run that trained on finite losses counts as diverged all the same.
fn not_finite(part: &str) -> String {
    format!("the loss on the {part} part is not finite")
}

/// A run under way.
struct Run<'w, 'a, W: Workload> {
    workload: &'w W,
    store: VarStore,
    optimizer: Box<dyn Resumable>,
    schedule: Box<dyn Schedule>,
    budget: Budget,
    total: u64,
    early_stopping: Option<EarlyStopping>,
    site: Site<'a>,
    progress: Progress,
    /// Weights of the best epoch, with early stopping.
    best: Option<State>,
    failure: Option<String>,
}

impl<W: Workload> Run<'_, '_, W> {
    /// Goes to where a checkpoint left off, and tells what had happened until there.
    fn restore(&mut self) -> Result<()> {
        if let Some(checkpoint) = &self.site.checkpoint
            && let Some(found) = checkpoint.load(&self.store, &mut *self.optimizer)?
        {
            (self.progress, self.best) = found;
        }
        self.site.observer.begin(&self.progress)
    }

    fn save_checkpoint(&mut self) -> Result<()> {
        let Some(checkpoint) = &self.site.checkpoint else {
            return Ok(());
        };
        let _span = tracing::debug_span!("bench.checkpoint").entered();
        let start = Instant::now();
        checkpoint.save(
            &self.progress,
            &self.store,
            &*self.optimizer,
            self.best.as_ref(),
        )?;
        self.site.cadence.saved(start.elapsed());
        Ok(())
    }

    /// Until the budget is spent or the validation part says enough. An epoch that was interrupted after its
    /// last step has still to be scored.
    fn train(&mut self) -> Result<Ended> {
        while (!self.is_over() && !self.has_stopped_early())
            || self.progress.tally.steps_of_epoch() > 0
        {
            let epoch = self.progress.epoch;
            let ended = self.epoch(epoch)?;
            if ended == Ended::AskedToStop || self.failure.is_some() {
                return Ok(ended);
            }
            if self.site.cadence.is_due_after_epoch(epoch) {
                self.save_checkpoint()?;
            }
        }
        Ok(Ended::Trained)
    }

    /// How much of the budget is spent.
    fn spent(&self) -> u64 {
        let tally = &self.progress.tally;
        self.budget.spent(tally.steps, tally.evaluations)
    }

    fn is_over(&self) -> bool {
        self.spent() >= self.total
    }

    fn has_stopped_early(&self) -> bool {
        match (self.early_stopping, &self.progress.best) {
            (Some(stopping), Some(best)) => self.progress.epoch > best.epoch + stopping.patience,
            _ => false,
        }
    }

    /// What remains of the epoch under way, or what the budget leaves of it, and its score on the validation part.
    fn epoch(&mut self, epoch: u64) -> Result<Ended> {
        let _span = tracing::debug_span!("bench.epoch", epoch).entered();
        let done = usize::try_from(self.progress.tally.steps_of_epoch())?;
        let mut batches = self.workload.batches(epoch, done)?;
        while !self.is_over() {
            let start = Instant::now();
            let Some(batch) = batches.next() else { break };
            let report = self.step(&batch?)?;
            self.progress.tally.add_time(start.elapsed());
            let lr = self.optimizer.learning_rate();
            self.site.observer.step(&Step { epoch, lr, report })?;
            if self.site.stop.load(Ordering::Relaxed) {
                self.save_checkpoint()?;
                return Ok(Ended::AskedToStop);
            }
            if self.site.cadence.is_due_after_step(report.step) {
                self.save_checkpoint()?;
            }
        }
        let score = self.validate()?;
        if !score.loss.is_finite() {
            self.failure = Some(not_finite("validation"));
            return Ok(Ended::Trained);
        }
        let lr = self.optimizer.learning_rate();
        let record = self.progress.tally.end_epoch(epoch, lr, score);
        self.site.observer.epoch(&record)?;
        self.progress.records.push(record);
        self.progress.epoch += 1;
        Ok(Ended::Trained)
    }

    fn step(&mut self, batch: &W::Batch) -> Result<StepReport> {
        let step = self.progress.tally.steps;
        let lr = self.site.optimizer.lr * self.schedule.factor(self.spent());
        self.optimizer.set_learning_rate(lr);
        let report = self.workload.step(&mut *self.optimizer, batch, step)?;
        self.progress.tally.observe(&report);
        Ok(report)
    }

    /// Scores the slow weights, if there are any, and remembers them where they are the best so far. Changing
    /// to them and back is part of the training time, because whoever uses the method pays for it.
    fn validate(&mut self) -> Result<Score> {
        let _span = tracing::debug_span!("bench.validation").entered();
        let ((score, best), time) = self.at_slow_weights(|| {
            let score = self.workload.validate()?;
            (self.workload.keep_point(self.progress.epoch))
                .context("cannot keep an epoch's weights")?;
            let stopping = self.early_stopping;
            let is_best =
                stopping.is_some_and(|s| is_best(s.metric, &score, self.progress.best.as_ref()));
            let weights = is_best.then(|| checkpoint::weights(&self.store));
            Ok((score, weights.transpose()?))
        })?;
        if best.is_some() {
            self.best = best;
            let epoch = self.progress.epoch;
            self.progress.best = Some(Best { epoch, score });
        }
        self.progress.tally.add_swap(time);
        Ok(score)
    }

    /// Looks at the slow weights, if there are any, with statistics of their own if the workload takes them, and
    /// puts everything back. Returns also how long changing took.
    fn at_slow_weights<T>(&self, look: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
        let start = Instant::now();
        let view = self.optimizer.slow_view()?;
        let mut tracked = Vec::new();
        if view.is_some() && self.workload.recalibrates() {
            for (_, buffer) in self.store.buffers() {
                let before = buffer.force_contiguous()?.detach();
                tracked.push((buffer, before));
            }
            self.workload.recalibrate()?;
        }
        let mut time = start.elapsed();
        let seen = look();
        let start = Instant::now();
        for (buffer, before) in tracked {
            buffer.set(&before)?;
        }
        if let Some(view) = view {
            view.restore()?;
        }
        time += start.elapsed();
        Ok((seen?, time))
    }

    /// Scores the chosen weights on the test part, which nothing has looked at before, and keeps them: the
    /// best epoch's with early stopping, else the last, slow ones where there are some.
    fn finish(self) -> Result<RunRecord> {
        let _span = tracing::debug_span!("bench.test").entered();
        match &self.best {
            Some(best) => {
                checkpoint::set_weights(&self.store, best)?;
                self.conclude()
            }
            None => self
                .at_slow_weights(|| self.conclude())
                .map(|(record, _)| record),
        }
    }

    /// The record of the run whose chosen weights are in place.
    fn conclude(&self) -> Result<RunRecord> {
        let mut record = self.record();
        record.parameters = fingerprint(&self.store)?;
        if record.failure.is_none() {
            record.test = self.workload.test()?;
            record.test_data = self.workload.test_data();
            if record.test.is_some_and(|score| !score.loss.is_finite()) {
                (record.test, record.failure) = (None, Some(not_finite("test")));
            }
        }
        if record.failure.is_some() {
            (record.validation, record.epoch) = (None, None);
        } else {
            self.workload.save().context("cannot keep the model")?;
        }
        Ok(record)
    }

    /// What the run says of itself so far.
    fn record(&self) -> RunRecord {
        let (optimizer, progress) = (self.site.optimizer, &self.progress);
        let tally = &progress.tally;
        RunRecord {
            optimizer: optimizer.name.clone(),
            seed: self.site.seed,
            failure: self.failure.clone(),
            steps: tally.steps,
            evaluations: tally.evaluations,
            ascents: tally.ascents,
            cycles: (optimizer.method.deciding_cycle()).map(|k| tally.steps / k),
            train_s: tally.train_s,
            epoch: progress.best.map(|best| best.epoch),
            validation: match progress.best {
                Some(best) => Some(best.score),
                None => progress.records.last().map(|last| last.validation),
            },
            test: None,
            parameters: String::new(),
            data: (self.site.checkpoint.as_ref()).map(|c| c.owner.data.clone()),
            test_data: None,
            program: Some(PROGRAM.into()),
        }
    }
}

fn is_best(metric: Metric, score: &Score, best: Option<&Best>) -> bool {
    let value = |score: &Score| metric.of(score).unwrap_or(f64::NAN);
    best.is_none_or(|best| metric.is_better(value(score), value(&best.score)))
}

/// SHA-256 over every variable, running statistics too, in the order of their names.
pub(crate) fn fingerprint(store: &VarStore) -> Result<String> {
    let mut hash = Sha256::new();
    for (name, var) in store.all() {
        hash.update(name.as_bytes());
        let values = var.flatten_all()?;
        if values.dtype() == DType::F64 {
            for value in values.to_vec1::<f64>()? {
                hash.update(value.to_le_bytes());
            }
        } else {
            // Half precision has its place within f32.
            for value in values.to_dtype(DType::F32)?.to_vec1::<f32>()? {
                hash.update(value.to_le_bytes());
            }
        }
    }
    Ok(hex(&hash.finalize()))
}
