//! One run: a seed and an optimizer from initial weights to final scores.

use std::{num::NonZero, path::PathBuf, sync::OnceLock};

use anyhow::{Context, Result, ensure};
use candle_core::{D, DType, Device, Tensor};
use sala_core::{Differentiated, ParamSet, Pass, Resumable, StepReport};
use sala_models::{Mode, Network, Rng, VarStore, ops::cross_entropy};

use crate::{
    data::{
        self, Source, Split,
        augment::Pipeline,
        batches::{self, Batch, Selection},
        feed::Feed,
        noise, split,
    },
    metrics::Score,
    record::RunRecord,
    registry,
    runs::run::{self, Setup, Site, Workload},
    spec::{Amount, Experiment, Precision},
};

/// Images evaluated at a time.
const EVALUATION_BATCH: usize = 1000;

/// The data of an experiment.
pub(crate) struct Trainer<'a> {
    experiment: &'a Experiment,
    source: Source,
    train: Split,
    test: OnceLock<Split>,
    device: Device,
    fingerprint: String,
}

/// What a seed makes of the data; the same for every optimizer.
pub(crate) struct SeedData {
    seed: u64,
    train: Feed,
    validation: Selection,
    statistics: batches::ChannelStats,
}

impl SeedData {
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// What is trained on, without augmentation.
    pub(crate) fn train(&self) -> &Selection {
        self.train.selection()
    }
}

impl<'a> Trainer<'a> {
    /// Loads the training part and checks that the experiment fits it.
    pub(crate) fn new(experiment: &'a Experiment) -> Result<Self> {
        let device = experiment.device.open()?;
        experiment.precision.apply();
        let source = Source::of(&experiment.data)?;
        let train = data::load_train(&source)?;
        let (validation, images) = (experiment.data.validation, train.len());
        ensure!(
            validation < images,
            "data.validation must be below the {images} training images, got {validation}"
        );
        let trainer = Self {
            experiment,
            source,
            fingerprint: train.fingerprint(),
            train,
            test: OnceLock::new(),
            device,
        };
        experiment.training.phases(trainer.steps_per_epoch())?;
        Ok(trainer)
    }

    pub(crate) fn experiment(&self) -> &'a Experiment {
        self.experiment
    }

    /// Of the training part.
    pub(crate) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// What the images are, in words.
    pub(crate) fn title(&self) -> &str {
        self.train.title()
    }

    /// Optimizer steps of a run whose steps take one gradient evaluation each.
    pub(crate) fn steps(&self) -> u64 {
        let budget = self.experiment.training.budget;
        budget.steps(self.steps_per_epoch(), 1.0)
    }

    /// Epochs of such a run; the last may be cut short.
    pub(crate) fn epochs(&self) -> u64 {
        self.steps().div_ceil(self.steps_per_epoch())
    }

    pub(crate) fn steps_per_epoch(&self) -> u64 {
        let data = &self.experiment.data;
        let images = match data.train {
            None => self.train.len().saturating_sub(data.validation),
            Some(Amount::Total(n)) => n,
            Some(Amount::PerClass(n)) => n * self.train.classes(),
        };
        images.div_ceil(self.experiment.training.batch_size) as u64
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

    /// The experiment's network with the initial weights of a seed, and the store that they are in.
    pub(crate) fn network(&self, seed: u64, dtype: DType) -> Result<(VarStore, Box<dyn Network>)> {
        let store = VarStore::new(seed, dtype, &self.device);
        let (shape, classes) = (self.train.shape(), self.train.classes());
        let network = registry::network(&self.experiment.network, shape, classes, &store)?;
        Ok((store, network))
    }

    /// Of weights and images.
    pub(crate) fn dtype(&self) -> DType {
        self.experiment.precision.dtype()
    }

    /// Makes a run on the data of its seed.
    pub(crate) fn run(
        &self,
        data: &SeedData,
        ending: Ending,
        site: Site<'_>,
    ) -> Result<Option<RunRecord>> {
        let experiment = self.experiment;
        let (store, network) = self.network(data.seed, self.dtype())?;
        let mut params = ParamSet::new(store.trainable())?;
        if experiment.precision == Precision::Bf16 {
            params = params.with_f32_masters()?;
        }
        let training = &experiment.training;
        let phases = training.phases(self.steps_per_epoch())?;
        let (warm_up, total) = site.optimizer.phases(phases);
        let setup = Setup {
            optimizer: registry::optimizer(site.optimizer, params)?,
            schedule: registry::schedule(training.schedule, warm_up, total)?,
            budget: training.budget,
            total,
            early_stopping: None,
            workload: Images {
                trainer: self,
                data,
                dtype: self.dtype(),
                network,
                store: store.clone(),
                ending,
            },
            store,
        };
        run::make(setup, site)
    }
}

/// What becomes of the final weights.
pub(crate) struct Ending {
    /// Whether they are scored on the test part.
    pub(crate) test: bool,
    /// The file that keeps them.
    pub(crate) model: Option<PathBuf>,
    /// The folder that keeps the weights after each epoch.
    pub(crate) trajectory: Option<PathBuf>,
}

/// A network on the images of a seed.
struct Images<'a> {
    trainer: &'a Trainer<'a>,
    data: &'a SeedData,
    dtype: DType,
    network: Box<dyn Network>,
    store: VarStore,
    ending: Ending,
}

impl Workload for Images<'_> {
    type Batch = Batch;

    fn batches(
        &self,
        epoch: u64,
        skip: usize,
    ) -> Result<Box<dyn Iterator<Item = Result<Batch>> + '_>> {
        let batches = self.data.train.epoch(epoch, skip)?;
        Ok(Box::new(batches.map(|batch| batch?.in_dtype(self.dtype))))
    }

    fn step(&self, optimizer: &mut dyn Resumable, batch: &Batch, step: u64) -> Result<StepReport> {
        let loss = |pass: Pass| loss(&*self.network, batch, pass, step);
        let mut objective = Differentiated::by(sala_models::backward, loss);
        Ok(optimizer.step(&mut objective)?)
    }

    fn recalibrates(&self) -> bool {
        let training = &self.trainer.experiment.training;
        training.recalibrate_batch_norm.is_some()
    }

    fn recalibrate(&self) -> Result<()> {
        let training = &self.trainer.experiment.training;
        let wanted = training.recalibrate_batch_norm.map_or(0, NonZero::get);
        // Epochs are counted from 1, so these are batches of an order that no step takes.
        for (number, batch) in (1..=wanted).zip(self.batches(0, 0)?) {
            let images = batch?.images;
            let number = NonZero::new(number).context("batches are counted from 1")?;
            let mode = Mode::train(number.get()).as_batch_of_average(number);
            self.network.forward(&images, mode)?;
        }
        Ok(())
    }

    fn validate(&self) -> Result<Score> {
        evaluate(&*self.network, &self.data.validation, self.dtype)
    }

    fn test(&self) -> Result<Option<Score>> {
        if !self.ending.test {
            return Ok(None);
        }
        let test = self.trainer.test(self.data)?;
        evaluate(&*self.network, &test, self.dtype).map(Some)
    }

    fn test_data(&self) -> Option<String> {
        self.trainer.test.get().map(Split::fingerprint)
    }

    fn keep_point(&self, epoch: u64) -> Result<()> {
        match &self.ending.trajectory {
            Some(folder) => {
                Ok((self.store).save(folder.join(format!("epoch-{epoch:04}.safetensors")))?)
            }
            None => Ok(()),
        }
    }

    fn save(&self) -> Result<()> {
        match &self.ending.model {
            Some(path) => Ok(self.store.save(path)?),
            None => Ok(()),
        }
    }
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
pub(crate) fn loss(
    network: &dyn Network,
    batch: &Batch,
    pass: Pass,
    step: u64,
) -> candle_core::Result<Tensor> {
    let logits = network.forward(&pass.take(&batch.images)?, mode(pass, step))?;
    let (logits, targets) = (at_least_f32(&logits)?, pass.take(&batch.targets)?);
    if targets.dtype().is_float() {
        return cross_entropy(&logits, &targets.to_dtype(logits.dtype())?);
    }
    candle_nn::loss::cross_entropy(&logits, &targets)
}

/// Losses are sums over a batch, for which half precision is too coarse.
pub(crate) fn at_least_f32(logits: &Tensor) -> candle_core::Result<Tensor> {
    match logits.dtype() {
        DType::F64 => Ok(logits.clone()),
        _ => logits.to_dtype(DType::F32),
    }
}

/// The value of a scalar in any precision. Not every device knows f64.
pub(crate) fn scalar(loss: &Tensor) -> candle_core::Result<f64> {
    let loss = loss.to_device(&Device::Cpu)?;
    loss.to_dtype(DType::F64)?.to_scalar()
}

/// Mean loss and accuracy over a whole part.
fn evaluate(network: &dyn Network, part: &Selection, dtype: DType) -> Result<Score> {
    ensure!(part.len() > 0, "there is no image to evaluate");
    let (mut loss, mut correct) = (0.0, 0.0);
    for batch in part.in_order(EVALUATION_BATCH)? {
        let Batch { images, targets } = batch?.in_dtype(dtype)?;
        let logits = network.forward(&images, Mode::eval())?.detach();
        let logits = at_least_f32(&logits)?;
        let n = images.dim(0)? as f64;
        let mean = candle_nn::loss::cross_entropy(&logits, &targets)?;
        loss += n * scalar(&mean)?;
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
