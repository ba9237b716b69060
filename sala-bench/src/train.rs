//! One run: a seed and an optimizer from initial weights to final scores.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use candle_core::{D, DType, Device, Tensor};
use sala_core::{Differentiated, Minimizer, ParamSet, Pass, Resumable, schedule::Schedule};
use sala_models::{Mode, Network, Rng, VarStore, ops::cross_entropy};
use sha2::{Digest, Sha256};

use crate::{
    data::{
        self, Source, Split,
        augment::Pipeline,
        batches::{self, Batch, Selection},
        feed::Feed,
        noise, split,
    },
    hex::hex,
    metrics::Score,
    record::RunRecord,
    registry,
    runs::Observer,
    spec::{Amount, Experiment, Optimizer, Training},
    tally::Tally,
};

/// Images evaluated at a time.
const EVALUATION_BATCH: usize = 1000;

/// The data of an experiment, and whether to stop.
pub(crate) struct Trainer<'a> {
    experiment: &'a Experiment,
    source: Source,
    train: Split,
    test: OnceLock<Split>,
    device: Device,
    stop: &'a AtomicBool,
}

/// What a seed makes of the data; the same for every optimizer.
pub(crate) struct SeedData {
    seed: u64,
    train: Feed,
    validation: Selection,
    statistics: batches::ChannelStats,
}

impl<'a> Trainer<'a> {
    /// Loads the training part and checks that the experiment fits it.
    pub(crate) fn new(
        experiment: &'a Experiment,
        device: Device,
        stop: &'a AtomicBool,
    ) -> Result<Self> {
        let source = Source::of(&experiment.data)?;
        let train = data::load_train(&source)?;
        let (validation, images) = (experiment.data.validation, train.len());
        ensure!(
            validation < images,
            "data.validation must be below the {images} training images, got {validation}"
        );
        Ok(Self {
            experiment,
            source,
            train,
            test: OnceLock::new(),
            device,
            stop,
        })
    }

    pub(crate) fn experiment(&self) -> &'a Experiment {
        self.experiment
    }

    /// What the images are, in words.
    pub(crate) fn title(&self) -> &str {
        self.train.title()
    }

    /// Optimizer steps of one run.
    pub(crate) fn steps(&self) -> u64 {
        let data = &self.experiment.data;
        let images = match data.train {
            None => self.train.len().saturating_sub(data.validation),
            Some(Amount::Total(n)) => n,
            Some(Amount::PerClass(n)) => n * self.train.classes(),
        };
        let batches = images.div_ceil(self.experiment.training.batch_size) as u64;
        batches * self.experiment.training.epochs
    }

    /// Cuts the validation part, keeps what is wanted of the rest, and spoils labels of that.
    pub(crate) fn seed_data(&self, seed: u64) -> Result<SeedData> {
        let spec = &self.experiment.data;
        let rng = Rng::new(seed);
        let classes = self.train.classes();
        let labels = self.train.labels();
        let places: Vec<_> = labels.iter().copied().map(usize::from).collect();
        let (train, validation) = split::hold_out(
            &places,
            classes,
            spec.validation,
            rng.stream("data/validation"),
        )?;
        let train = match spec.train {
            Some(amount) => {
                let stream = rng.stream("data/subset");
                split::subset(&places, classes, &train, amount, stream)?
            }
            None => train,
        };
        let noisy = noise::spoil(
            labels,
            &train,
            classes,
            spec.label_noise,
            rng.stream("data/label-noise"),
        )?;
        tracing::debug!(
            seed,
            changed = noisy.changed,
            of = train.len(),
            "labels spoiled"
        );
        let spoiled = self.train.clone().with_labels(noisy.labels)?;
        let statistics = batches::channel_stats(&spoiled, &train)?;
        let select = |images| Selection::new(spoiled.clone(), images, &statistics, &self.device);
        let pipeline = Pipeline::new(&spec.augment, seed)?;
        let batch_size = self.experiment.training.batch_size;
        Ok(SeedData {
            seed,
            train: Feed::new(select(train)?, pipeline, batch_size, seed)?,
            validation: select(validation)?,
            statistics,
        })
    }

    /// The test part, read on the first call, normalised like the seed's training images.
    fn test(&self, data: &SeedData) -> Result<Selection> {
        if self.test.get().is_none() {
            let test = data::load_test(&self.source)?;
            self.train.ensure_like(&test)?;
            // When another thread was first, its copy is the same.
            let _ = self.test.set(test);
        }
        let test = self.test.get().context("the test part was just loaded")?;
        let all = (0..test.len()).collect();
        Selection::new(test.clone(), all, &data.statistics, &self.device)
    }

    /// Trains to the end and scores the final weights; the test part is read only `with_test`.
    /// Nothing when it was asked to stop in between.
    pub(crate) fn run(
        &self,
        data: &SeedData,
        optimizer: &Optimizer,
        with_test: bool,
        observer: &mut dyn Observer,
    ) -> Result<Option<RunRecord>> {
        let mut run = Run::new(self, data, optimizer)?;
        for epoch in 1..=self.experiment.training.epochs {
            match run.epoch(epoch, observer) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(error) if diverged(&error) => {
                    run.failure = Some(error.to_string());
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        let test = if with_test && run.failure.is_none() {
            let test = self.test(data)?;
            Some(
                run.optimizer
                    .with_slow_weights(|| evaluate(&*run.network, &test))?,
            )
        } else {
            None
        };
        run.finish(optimizer, test).map(Some)
    }
}

/// Whether an error says that the optimizer left the finite numbers, which is a result and no fault.
pub(crate) fn diverged(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref(),
        Some(sala_core::Error::NonFinite { .. })
    )
}

/// A run under way.
struct Run<'a> {
    data: &'a SeedData,
    stop: &'a AtomicBool,
    store: VarStore,
    network: Box<dyn Network>,
    optimizer: Box<dyn Resumable>,
    peak_lr: f64,
    schedule: Box<dyn Schedule>,
    tally: Tally,
    validation: Option<Score>,
    failure: Option<String>,
}

impl<'a> Run<'a> {
    fn new(trainer: &'a Trainer<'a>, data: &'a SeedData, optimizer: &Optimizer) -> Result<Self> {
        let experiment = trainer.experiment;
        let store = VarStore::new(data.seed, DType::F32, &trainer.device);
        let (shape, classes) = (trainer.train.shape(), trainer.train.classes());
        let network = registry::network(&experiment.network, shape, classes, &store)?;
        let params = ParamSet::new(store.trainable())?;
        let steps_per_epoch = data.train.batches() as u64;
        Ok(Self {
            data,
            stop: trainer.stop,
            network,
            optimizer: registry::optimizer(optimizer, params)?,
            store,
            peak_lr: optimizer.lr,
            schedule: schedule(&experiment.training, steps_per_epoch)?,
            tally: Tally::default(),
            validation: None,
            failure: None,
        })
    }

    /// One pass over the training images and a score on the validation images. False when it was
    /// asked to stop.
    fn epoch(&mut self, epoch: u64, observer: &mut dyn Observer) -> Result<bool> {
        let mut batches = self.data.train.epoch(epoch, 0)?;
        loop {
            let start = Instant::now();
            let Some(batch) = batches.next() else { break };
            self.step(&batch?)?;
            self.tally.add_time(start.elapsed());
            observer.step();
            if self.stop.load(Ordering::Relaxed) {
                return Ok(false);
            }
        }
        let validation = self.validate()?;
        self.validation = Some(validation);
        let lr = self.optimizer.learning_rate();
        observer.epoch(&self.tally.end_epoch(epoch, lr, validation))?;
        Ok(true)
    }

    fn step(&mut self, batch: &Batch) -> Result<()> {
        let (network, step) = (&*self.network, self.tally.steps);
        self.optimizer
            .set_learning_rate(self.peak_lr * self.schedule.factor(step));
        let loss = |pass: Pass| loss(network, batch, pass, step);
        let mut objective = Differentiated::by(sala_models::backward, loss);
        let report = self.optimizer.step(&mut objective)?;
        self.tally.observe(&report);
        Ok(())
    }

    /// Scores the slow weights, if there are any; changing to them and back is part of the training
    /// time, because whoever uses the method pays for it.
    fn validate(&mut self) -> Result<Score> {
        let start = Instant::now();
        let view = self.optimizer.slow_view()?;
        self.tally.add_time(start.elapsed());
        let score = evaluate(&*self.network, &self.data.validation)?;
        let start = Instant::now();
        if let Some(view) = view {
            view.restore()?;
        }
        self.tally.add_time(start.elapsed());
        Ok(score)
    }

    fn finish(self, optimizer: &Optimizer, test: Option<Score>) -> Result<RunRecord> {
        Ok(RunRecord {
            optimizer: optimizer.name.clone(),
            seed: self.data.seed,
            steps: self.tally.steps,
            evaluations: self.tally.evaluations,
            ascents: self.tally.ascents,
            cycles: (optimizer.method.deciding_cycle()).map(|k| self.tally.steps / k),
            train_s: self.tally.train_s,
            epoch: None,
            validation: self.validation.filter(|_| self.failure.is_none()),
            failure: self.failure,
            test,
            parameters: fingerprint(&self.store)?,
        })
    }
}

/// The factor of the learning rate by optimizer step.
fn schedule(spec: &Training, steps_per_epoch: u64) -> Result<Box<dyn Schedule>> {
    let warm_up = spec.warm_up_epochs * steps_per_epoch;
    registry::schedule(spec.schedule, warm_up, spec.epochs * steps_per_epoch)
}

/// How the network behaves in a pass of a step: the same masks in every pass, statistics tracked at
/// unperturbed weights only.
pub(crate) fn mode(pass: Pass, draw: u64) -> Mode {
    let mode = Mode::train(draw);
    if pass.tracks_statistics() {
        mode
    } else {
        mode.without_stats()
    }
}

/// The loss of one pass, on a fraction of the batch for the direction.
fn loss(
    network: &dyn Network,
    batch: &Batch,
    pass: Pass,
    step: u64,
) -> candle_core::Result<Tensor> {
    let logits = network.forward(&pass.take(&batch.images)?, mode(pass, step))?;
    let targets = pass.take(&batch.targets)?;
    if targets.dtype().is_float() {
        return cross_entropy(&logits, &targets);
    }
    candle_nn::loss::cross_entropy(&logits, &targets)
}

/// Mean loss and accuracy over a whole part.
fn evaluate(network: &dyn Network, part: &Selection) -> Result<Score> {
    ensure!(part.len() > 0, "there is no image to evaluate");
    let (mut loss, mut correct) = (0.0, 0.0);
    for batch in part.in_order(EVALUATION_BATCH)? {
        let Batch { images, targets } = batch?;
        let logits = network.forward(&images, Mode::eval())?.detach();
        let n = images.dim(0)? as f64;
        let mean = candle_nn::loss::cross_entropy(&logits, &targets)?;
        loss += n * f64::from(mean.to_scalar::<f32>()?);
        let hits = logits
            .argmax(D::Minus1)?
            .eq(&targets)?
            .to_dtype(DType::F32)?
            .sum_all()?;
        correct += f64::from(hits.to_scalar::<f32>()?);
    }
    let n = part.len() as f64;
    Ok(Score {
        loss: loss / n,
        accuracy: Some(correct / n),
        ..Score::default()
    })
}

/// SHA-256 over every variable, running statistics too, in the order of their names.
pub(crate) fn fingerprint(store: &VarStore) -> Result<String> {
    let mut hash = Sha256::new();
    for (name, var) in store.all() {
        hash.update(name.as_bytes());
        for value in var.flatten_all()?.to_vec1::<f32>()? {
            hash.update(value.to_le_bytes());
        }
    }
    Ok(hex(&hash.finalize()))
}
