//! One run: a seed and an optimizer, from pretrained weights to final scores.

use std::{
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use anyhow::{Context, Result};
use candle_core::Device;
use sala_core::{
    Differentiated, MicroBatches, Minimizer, ParamSet, Pass, Resumable, StepReport,
    checkpoint::write_atomically, schedule::Schedule, state::State,
};
use sala_models::{Rng, VarStore, pretrained::Built};

use super::{
    checkpoint::{self, Best, Progress},
    data::{Batch, Examples, Parts, batches},
    groups,
    model::Model,
    objective,
    spec::{FineTune, Keep},
};
use crate::{
    metrics::Score,
    record::{RunDir, RunRecord, run_name},
    registry,
    runs::{Maker, Observer, lock},
    spec::Optimizer,
    train::{diverged, fingerprint, mode},
};

/// The file of a saved model that says how it was made.
pub(crate) const SPEC: &str = "finetune.toml";

/// What all runs of a fine-tuning share.
pub(crate) struct Trainer<'a> {
    pub(crate) spec: &'a FineTune,
    pub(crate) model: &'a Model,
    pub(crate) parts: &'a Parts,
    /// Lengths of the training examples.
    pub(crate) lengths: Vec<usize>,
    /// Fingerprint of all examples.
    pub(crate) data: String,
    pub(crate) dir: &'a RunDir,
    pub(crate) stop: &'a AtomicBool,
    /// Complete runs, the best of which keeps its model.
    pub(crate) complete: Mutex<Vec<RunRecord>>,
}

impl Trainer<'_> {
    /// Optimizer steps of an epoch.
    pub(crate) fn steps_per_epoch(&self) -> u64 {
        self.lengths.len().div_ceil(self.spec.training.batch_size) as u64
    }

    /// Where the model of a run is kept.
    pub(crate) fn model_folder(&self, optimizer: &str, seed: u64) -> PathBuf {
        let models = self.dir.path().join("models");
        models.join(run_name(optimizer, seed))
    }

    /// The complete run that is best on the validation part; the first of equals.
    pub(crate) fn best(&self) -> Option<RunRecord> {
        let metric = self.spec.metric();
        let value = |run: &RunRecord| run.validation.and_then(|score| metric.of(&score));
        let mut best: Option<(f64, RunRecord)> = None;
        for run in lock(&self.complete).iter() {
            if let Some(value) = value(run)
                && (best.as_ref()).is_none_or(|(highest, _)| metric.is_better(value, *highest))
            {
                best = Some((value, run.clone()));
            }
        }
        best.map(|(_, run)| run)
    }

    /// Removes the models of complete runs that are not to be kept.
    fn prune(&self) -> Result<()> {
        if self.spec.training.keep != Keep::Best {
            return Ok(());
        }
        let best = self.best();
        for run in lock(&self.complete).iter() {
            let is_best = (best.as_ref())
                .is_some_and(|b| (&b.optimizer, b.seed) == (&run.optimizer, run.seed));
            let folder = self.model_folder(&run.optimizer, run.seed);
            if !is_best && folder.exists() {
                std::fs::remove_dir_all(&folder)
                    .with_context(|| format!("cannot remove {}", folder.display()))?;
            }
        }
        Ok(())
    }
}

impl Maker for Trainer<'_> {
    fn make(
        &self,
        seed: u64,
        optimizer: &Optimizer,
        observer: &mut dyn Observer,
    ) -> Result<Option<RunRecord>> {
        let mut run = Run::new(self, seed, optimizer)?;
        run.restore(observer)?;
        match run.train(observer) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) if diverged(&error) => run.failure = Some(error.to_string()),
            Err(error) => return Err(error),
        }
        run.finish().map(Some)
    }

    fn recorded(&self, record: &RunRecord) -> Result<()> {
        let checkpoint = self.dir.checkpoint_file(&record.optimizer, record.seed);
        if checkpoint.exists() {
            std::fs::remove_file(&checkpoint)
                .with_context(|| format!("cannot remove {}", checkpoint.display()))?;
        }
        lock(&self.complete).push(record.clone());
        self.prune()
    }
}

/// Why a run that trained on finite losses counts as diverged all the same.
fn not_finite(part: &str) -> String {
    format!("the loss on the {part} part is not finite")
}

/// A run under way.
struct Run<'a> {
    trainer: &'a Trainer<'a>,
    seed: u64,
    name: &'a Optimizer,
    store: VarStore,
    network: Built,
    params: ParamSet,
    optimizer: Box<dyn Resumable>,
    schedule: Box<dyn Schedule>,
    progress: Progress,
    /// Weights of the best epoch, with early stopping.
    best: Option<State>,
    failure: Option<String>,
    checkpoint: PathBuf,
    device: Device,
}

impl<'a> Run<'a> {
    fn new(trainer: &'a Trainer<'a>, seed: u64, name: &'a Optimizer) -> Result<Self> {
        let (device, training) = (Device::Cpu, &trainer.spec.training);
        let (store, network, _) = trainer.model.network(seed, &device)?;
        let params = groups::params(&store, training)?;
        let total = training.epochs * trainer.steps_per_epoch();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share in [0, 1) of a count of steps"
        )]
        let warm_up = (training.warm_up * total as f64) as u64;
        Ok(Self {
            checkpoint: trainer.dir.checkpoint_file(&name.name, seed),
            optimizer: registry::optimizer(name, params.clone())?,
            schedule: registry::schedule(training.schedule, warm_up, total)?,
            progress: Progress::default(),
            best: None,
            failure: None,
            trainer,
            seed,
            name,
            store,
            network,
            params,
            device,
        })
    }

    /// Goes to where a checkpoint left off, and tells what had happened until there.
    fn restore(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let data = &self.trainer.data;
        let found = checkpoint::load(&self.checkpoint, data, &self.store, &mut *self.optimizer)?;
        let Some((progress, best)) = found else {
            return Ok(());
        };
        (self.progress, self.best) = (progress, best);
        for _ in 0..self.progress.tally.steps {
            observer.step();
        }
        for record in &self.progress.records {
            observer.epoch(record)?;
        }
        Ok(())
    }

    fn save_checkpoint(&self) -> Result<()> {
        checkpoint::save(
            &self.checkpoint,
            &self.trainer.data,
            &self.progress,
            &self.store,
            &*self.optimizer,
            self.best.as_ref(),
        )
    }

    /// All epochs, or until the validation part says enough. False when it was asked to stop.
    fn train(&mut self, observer: &mut dyn Observer) -> Result<bool> {
        let training = &self.trainer.spec.training;
        while self.progress.epoch <= training.epochs && !self.has_stopped_early() {
            if !self.epoch(observer)? {
                self.save_checkpoint()?;
                return Ok(false);
            }
            if self.failure.is_some() {
                break;
            }
            self.save_checkpoint()?;
        }
        Ok(true)
    }

    fn has_stopped_early(&self) -> bool {
        let training = &self.trainer.spec.training;
        match (training.early_stopping, &self.progress.best) {
            (Some(patience), Some(best)) => self.progress.epoch > best.epoch + patience,
            _ => false,
        }
    }

    /// What remains of the epoch under way, and its score on the validation part. False when it was asked to
    /// stop.
    fn epoch(&mut self, observer: &mut dyn Observer) -> Result<bool> {
        let epoch = self.progress.epoch;
        let training = &self.trainer.spec.training;
        let order = batches::of_epoch(
            Rng::new(self.seed),
            epoch,
            &self.trainer.lengths,
            training.batch_size,
        );
        let done = usize::try_from(self.progress.tally.steps_of_epoch())?;
        for places in order.iter().skip(done) {
            let start = Instant::now();
            self.step(places)?;
            self.progress.tally.add_time(start.elapsed());
            observer.step();
            if self.trainer.stop.load(Ordering::Relaxed) {
                return Ok(false);
            }
            let every = training.checkpoint_every;
            if every.is_some_and(|n| self.progress.tally.steps.is_multiple_of(n)) {
                self.save_checkpoint()?;
            }
        }
        let score = self.validate()?;
        if !score.loss.is_finite() {
            self.failure = Some(not_finite("validation"));
            return Ok(true);
        }
        let lr = self.optimizer.learning_rate();
        let record = self.progress.tally.end_epoch(epoch, lr, score);
        observer.epoch(&record)?;
        self.progress.records.push(record);
        self.progress.epoch += 1;
        Ok(true)
    }

    fn step(&mut self, places: &[usize]) -> Result<()> {
        let step = self.progress.tally.steps;
        let lr = self.name.lr * self.schedule.factor(step);
        self.optimizer.set_learning_rate(lr);
        let parts = self.trainer.spec.training.accumulate;
        let size = places.len().div_ceil(parts);
        let batch = |places: &[usize]| self.trainer.parts.train.batch(places, &self.device);
        let batches: Vec<Batch> = places.chunks(size).map(batch).collect::<Result<_>>()?;
        let report = self.step_on(&batches, step * parts as u64)?;
        self.progress.tally.observe(&report);
        Ok(())
    }

    /// A step on a batch in parts; `draw` is the number of the first part's masks. Every pass of the step
    /// has the same.
    fn step_on(&mut self, parts: &[Batch], draw: u64) -> Result<StepReport> {
        let network = &self.network;
        let loss = |batch: &Batch, pass: Pass, draw: u64| {
            objective::loss(network, &batch.take(pass)?, mode(pass, draw))
        };
        if let [batch] = parts {
            let whole = |pass: Pass| loss(batch, pass, draw);
            let mut objective = Differentiated::by(sala_models::backward, whole);
            return Ok(self.optimizer.step(&mut objective)?);
        }
        // The mean over the parts becomes the mean over the batch where parts count differently.
        let counted: usize = parts.iter().map(|p| p.counted).sum();
        let mut part = |index: usize, pass: Pass| {
            let batch = &parts[index];
            let weight = (batch.counted * parts.len()) as f64 / counted as f64;
            loss(batch, pass, draw + index as u64)? * weight
        };
        let mut objective = MicroBatches::new(&self.params, parts.len(), &mut part)
            .differentiated_by(sala_models::backward);
        Ok(self.optimizer.step(&mut objective)?)
    }

    /// Scores the slow weights, if there are any, and remembers them where they are the best so far. Changing
    /// to them and back is part of the training time.
    fn validate(&mut self) -> Result<Score> {
        let start = Instant::now();
        let view = self.optimizer.slow_view()?;
        let mut training = start.elapsed();
        let parts = self.trainer.parts;
        let score = self.evaluate(&parts.validation)?;
        if self.is_best(&score) {
            self.best = Some(checkpoint::weights(&self.store)?);
            let epoch = self.progress.epoch;
            self.progress.best = Some(Best { epoch, score });
        }
        let start = Instant::now();
        if let Some(view) = view {
            view.restore()?;
        }
        training += start.elapsed();
        self.progress.tally.add_time(training);
        Ok(score)
    }

    fn evaluate(&self, examples: &Examples) -> Result<Score> {
        let classes = self.trainer.model.labels().len();
        objective::evaluate(&self.network, examples, classes, &self.device)
    }

    fn is_best(&self, score: &Score) -> bool {
        let spec = self.trainer.spec;
        if spec.training.early_stopping.is_none() {
            return false;
        }
        let metric = spec.metric();
        let value = |score: &Score| metric.of(score).unwrap_or(f64::NAN);
        (self.progress.best).is_none_or(|best| metric.is_better(value(score), value(&best.score)))
    }

    /// Scores the chosen weights on the test part, which nothing has looked at before, and saves the model.
    fn finish(self) -> Result<RunRecord> {
        let (trainer, tally) = (self.trainer, &self.progress.tally);
        let mut record = RunRecord {
            optimizer: self.name.name.clone(),
            seed: self.seed,
            failure: self.failure.clone(),
            steps: tally.steps,
            evaluations: tally.evaluations,
            ascents: tally.ascents,
            cycles: (self.name.method.deciding_cycle()).map(|k| tally.steps / k),
            train_s: tally.train_s,
            epoch: self.progress.best.map(|best| best.epoch),
            validation: match self.progress.best {
                Some(best) => Some(best.score),
                None => self.progress.records.last().map(|last| last.validation),
            },
            test: None,
            parameters: String::new(),
        };
        let view = match &self.best {
            Some(best) => {
                checkpoint::set_weights(&self.store, best)?;
                None
            }
            None => self.optimizer.slow_view()?,
        };
        record.parameters = fingerprint(&self.store)?;
        if let (None, Some(test)) = (&self.failure, &trainer.parts.test) {
            let score = self.evaluate(test)?;
            if score.loss.is_finite() {
                record.test = Some(score);
            } else {
                record.failure = Some(not_finite("test"));
            }
        }
        if record.failure.is_some() {
            (record.validation, record.epoch) = (None, None);
        } else if trainer.spec.training.keep != Keep::None {
            self.save(&trainer.model_folder(&record.optimizer, self.seed))?;
        }
        if let Some(view) = view {
            view.restore()?;
        }
        Ok(record)
    }

    fn save(&self, folder: &Path) -> Result<()> {
        self.trainer.model.save(&self.store, folder)?;
        let path = folder.join(SPEC);
        write_atomically(&path, self.trainer.spec.to_toml()?.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))
    }
}
