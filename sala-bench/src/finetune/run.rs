//! One run: a seed and an optimizer, from pretrained weights to final scores.

use std::{path::PathBuf, sync::Mutex};

use anyhow::{Context, Result};
use candle_core::{DType, Device};
use sala_core::{
    Differentiated, MicroBatches, ParamSet, Pass, Resumable, StepReport,
    checkpoint::write_atomically,
};
use sala_models::{Rng, VarStore, pretrained::Built};

use super::{
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
    runs::{
        Maker, lock,
        run::{self, EarlyStopping, Setup, Site, Workload},
    },
    spec::{Budget, Precision},
    train::mode,
};

/// The file of a saved model that says how it was made.
pub(crate) const SPEC: &str = "finetune.toml";

/// What all runs of a fine-tuning share.
pub(crate) struct Trainer<'a> {
    pub(crate) spec: &'a FineTune,
    pub(crate) model: &'a Model,
    pub(crate) parts: &'a Parts,
    pub(crate) device: Device,
    /// Lengths of the training examples.
    pub(crate) lengths: Vec<usize>,
    /// Fingerprint of all examples.
    pub(crate) data: String,
    pub(crate) dir: &'a RunDir,
    pub(crate) keep: Keep,
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
        if self.keep != Keep::Best {
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
    fn data(&self) -> &str {
        &self.data
    }

    fn make(&self, site: Site<'_>) -> Result<Option<RunRecord>> {
        let (training, precision) = (&self.spec.training, self.spec.precision);
        let load = |dtype| self.model.network(site.seed, &self.device, dtype);
        let (store, network, _) = load(precision.dtype())?;
        let mut params = groups::params(&store, training)?;
        if precision == Precision::Bf16 {
            // The weights as published, which bf16 rounds.
            let (published, ..) = load(DType::F32)?;
            params = params.with_f32_masters_of(published.trainable())?;
        }
        let total = training.epochs * self.steps_per_epoch();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share in [0, 1) of a count of steps"
        )]
        let warm_up = (training.warm_up * total as f64) as u64;
        let metric = self.spec.metric();
        let (warm_up, total) = site.optimizer.phases((warm_up, total));
        let setup = Setup {
            optimizer: registry::optimizer(site.optimizer, params.clone())?,
            schedule: registry::schedule(training.schedule, warm_up, total)?,
            budget: Budget::Epochs(training.epochs),
            total,
            early_stopping: (training.early_stopping)
                .map(|patience| EarlyStopping { patience, metric }),
            workload: Pretrained {
                trainer: self,
                seed: site.seed,
                folder: self.model_folder(&site.optimizer.name, site.seed),
                store: store.clone(),
                network,
                params,
            },
            store,
        };
        run::make(setup, site)
    }

    fn recorded(&self, record: &RunRecord) -> Result<()> {
        lock(&self.complete).push(record.clone());
        self.prune()
    }
}

/// A pretrained network on the examples.
struct Pretrained<'a> {
    trainer: &'a Trainer<'a>,
    seed: u64,
    /// Where the model is kept.
    folder: PathBuf,
    store: VarStore,
    network: Built,
    params: ParamSet,
}

impl Workload for Pretrained<'_> {
    type Batch = Vec<Batch>;

    fn batches(
        &self,
        epoch: u64,
        skip: usize,
    ) -> Result<Box<dyn Iterator<Item = Result<Vec<Batch>>> + '_>> {
        let (trainer, training) = (self.trainer, &self.trainer.spec.training);
        let order = batches::of_epoch(
            Rng::new(self.seed),
            epoch,
            &trainer.lengths,
            training.batch_size,
        );
        let in_parts = move |places: Vec<usize>| {
            let size = places.len().div_ceil(training.accumulate);
            let dtype = trainer.spec.precision.dtype();
            let batch = move |places: &[usize]| {
                let batch = trainer.parts.train.batch(places, &trainer.device)?;
                Ok(batch.in_dtype(dtype)?)
            };
            places.chunks(size).map(batch).collect()
        };
        Ok(Box::new(order.into_iter().skip(skip).map(in_parts)))
    }

    /// On a batch in parts. Every pass of the step has the same masks, and every part its own.
    fn step(
        &self,
        optimizer: &mut dyn Resumable,
        parts: &Vec<Batch>,
        step: u64,
    ) -> Result<StepReport> {
        let most = self.trainer.spec.training.accumulate;
        let loss = |batch: &Batch, pass: Pass, index: usize| {
            let mode = mode(pass, step).part(index, most);
            objective::loss(&self.network, &batch.take(pass)?, mode)
        };
        if let [batch] = &parts[..] {
            let whole = |pass: Pass| loss(batch, pass, 0);
            let mut objective = Differentiated::by(sala_models::backward, whole);
            return Ok(optimizer.step(&mut objective)?);
        }
        // The mean over the parts becomes the mean over the batch where parts count differently.
        let counted: usize = parts.iter().map(|p| p.counted).sum();
        let mut part = |index: usize, pass: Pass| {
            let batch = &parts[index];
            let weight = (batch.counted * parts.len()) as f64 / counted as f64;
            loss(batch, pass, index)? * weight
        };
        let mut objective = MicroBatches::new(&self.params, parts.len(), &mut part)
            .differentiated_by(sala_models::backward);
        Ok(optimizer.step(&mut objective)?)
    }

    fn validate(&self) -> Result<Score> {
        self.evaluate(&self.trainer.parts.validation)
    }

    fn test(&self) -> Result<Option<Score>> {
        let test = self.trainer.parts.test.as_ref();
        test.map(|test| self.evaluate(test)).transpose()
    }

    fn save(&self) -> Result<()> {
        if self.trainer.keep == Keep::None {
            return Ok(());
        }
        self.trainer.model.save(&self.store, &self.folder)?;
        let path = self.folder.join(SPEC);
        write_atomically(&path, self.trainer.spec.to_toml()?.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Pretrained<'_> {
    fn evaluate(&self, examples: &Examples) -> Result<Score> {
        let trainer = self.trainer;
        let classes = trainer.model.labels().len();
        let on = (&trainer.device, trainer.spec.precision.dtype());
        objective::evaluate(&self.network, examples, classes, on)
    }
}
