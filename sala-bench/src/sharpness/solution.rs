//! A saved solution: the network of its experiment with its weights, and images of its seed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Tensor};
use sala_core::{MicroBatches, Objective, ParamSet, Pass};
use sala_models::Network;

use crate::{
    data::batches::Batch,
    record::{read_run, run_file, run_name},
    runs::run::fingerprint,
    train::{SeedData, Trainer, loss},
};

/// Solutions are measured in f64, whatever they were trained in: differences of gradients then have steps so small that
/// they cross none of a relu's kinks, which in f32 would be most of what they see.
const DTYPE: DType = DType::F64;

/// The network that a run has left, with the images that its loss is measured on.
pub(crate) struct Solution {
    network: Box<dyn Network>,
    pub(crate) params: ParamSet,
    /// SHA-256 of the parameters, as in the run's record.
    pub(crate) fingerprint: String,
    batch: Batch,
    m: usize,
    folder: PathBuf,
    name: String,
}

/// How a run has ended.
pub(crate) enum State {
    /// With a solution, of which weights are there; the fingerprint of its parameters.
    Solved(String),
    /// In words.
    Diverged(String),
}

impl State {
    /// Of one run of `dir`.
    ///
    /// # Errors
    /// When it is not complete, or its weights were not kept.
    pub(crate) fn of(dir: &Path, optimizer: &str, seed: u64) -> Result<Self> {
        let (folder, name) = (dir.join("models"), run_name(optimizer, seed));
        let record = read_run(&run_file(dir, optimizer, seed))?.map(|(_, run)| run);
        let record =
            record.with_context(|| format!("{} has no complete run {name}", dir.display()))?;
        if let Some(failure) = record.failure {
            return Ok(Self::Diverged(failure));
        }
        ensure!(
            folder.join(format!("{name}.safetensors")).is_file(),
            "there are no weights of {name} in {}; `compare` keeps them with --save-models",
            folder.display()
        );
        Ok(Self::Solved(record.parameters))
    }
}

impl Solution {
    /// Reads the weights of one run of `dir`.
    pub(crate) fn load(
        dir: &Path,
        trainer: &Trainer<'_>,
        data: &SeedData,
        optimizer: &str,
        (images, m): (usize, usize),
    ) -> Result<Self> {
        let seed = data.seed();
        let (folder, name) = (dir.join("models"), run_name(optimizer, seed));
        let file = folder.join(format!("{name}.safetensors"));
        let record = match State::of(dir, optimizer, seed)? {
            State::Diverged(failure) => bail!("{name} has no solution: {failure}"),
            State::Solved(record) => record,
        };
        let (saved, _) = trainer.network(seed, trainer.dtype())?;
        saved.load(&file)?;
        let fingerprint = fingerprint(&saved)?;
        ensure!(
            fingerprint == record,
            "{} has other weights than the run's record tells of; run the comparison again with --fresh",
            file.display()
        );
        let (store, network) = trainer.network(seed, DTYPE)?;
        for ((_, var), (_, saved)) in store.all().into_iter().zip(saved.all()) {
            var.set(&saved.to_dtype(DTYPE)?)?;
        }
        let params = ParamSet::new(store.trainable())?;
        let available = data.train().len();
        ensure!(
            images <= available,
            "--images must be at most the {available} training images, got {images}"
        );
        let batch = data.train().in_order(images)?.next();
        let batch = batch.context("no images to measure on")??;
        Ok(Self {
            network,
            params,
            fingerprint,
            batch: batch.in_dtype(DTYPE)?,
            m,
            folder,
            name,
        })
    }

    /// Runs `work` on the loss: cross entropy in training mode (batch statistics, which are tracked nowhere, and one
    /// fixed dropout mask), in micro-batches.
    pub(crate) fn with_objective<T>(
        &self,
        work: impl FnOnce(&mut dyn Objective) -> T,
    ) -> Result<T> {
        let parts = self.batch.images.dim(0)? / self.m;
        let mut of_part = |part: usize, pass: Pass| {
            let rows = |x: &Tensor| x.narrow(0, part * self.m, self.m);
            let batch = Batch {
                images: rows(&self.batch.images)?,
                targets: rows(&self.batch.targets)?,
            };
            loss(&*self.network, &batch, pass, 0)
        };
        let objective = MicroBatches::new(&self.params, parts, &mut of_part);
        Ok(work(
            &mut objective.differentiated_by(sala_models::backward),
        ))
    }

    /// The weights after each epoch, if they were kept, ending with the solution; else none.
    pub(crate) fn trajectory(&self) -> Result<Vec<Vec<Tensor>>> {
        let folder = self.folder.join(&self.name);
        if !folder.is_dir() {
            return Ok(Vec::new());
        }
        let entries = std::fs::read_dir(&folder)
            .with_context(|| format!("cannot read {}", folder.display()))?;
        let mut files: Vec<PathBuf> = entries
            .map(|entry| Ok(entry?.path()))
            .collect::<std::io::Result<_>>()?;
        files.retain(|file| file.extension().is_some_and(|e| e == "safetensors"));
        files.sort();
        // The last one is the solution itself.
        files.pop();
        let names: Vec<&str> = self.params.names().collect();
        let device = self.batch.images.device();
        let mut points = Vec::with_capacity(files.len() + 1);
        for file in &files {
            let mut all = candle_core::safetensors::load(file, device)
                .with_context(|| format!("cannot read {}", file.display()))?;
            let take = |name: &&str| {
                let missing = || format!("{} has no `{name}`", file.display());
                let value = all.remove(*name).with_context(missing)?;
                Ok(value.to_dtype(DTYPE)?)
            };
            points.push(names.iter().map(take).collect::<Result<Vec<_>>>()?);
        }
        let own = self.params.vars();
        points.push(own.iter().map(|v| v.as_tensor().detach()).collect());
        Ok(points)
    }
}
