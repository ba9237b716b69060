//! `compare`: every optimizer with every seed, then the report.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use anyhow::{Context, Result};

use crate::{
    metrics::Metric,
    progress,
    record::{Access, RunDir, RunRecord, run_name},
    report,
    runs::{self, Maker, Outcome, Plan, Work, lock, run::Site},
    shell,
    spec::{Experiment, TestPart},
    train::{Ending, SeedData, Trainer},
};

/// Where records go unless `--out` says otherwise.
pub(crate) fn default_directory(name: &str, fingerprint: &str) -> PathBuf {
    Path::new("runs").join(format!("{name}-{fingerprint}"))
}

/// Runs what is missing of an experiment in `out`, writes the report there and prints it.
pub(crate) fn compare(
    experiment: &Experiment,
    out: &Path,
    fresh: bool,
    work: &Work,
) -> Result<Outcome> {
    let trainer = Trainer::new(experiment)?;
    let device = experiment.device.to_string();
    let dir = RunDir::open(out, &experiment.to_toml()?, Access::alone(&device, fresh))?;
    progress::say(&experiment.description);
    let (records, outcome) = run_missing(trainer, &dir, work)?;
    let table = report::conclude(&dir, &records, &experiment.description)?;
    shell::print(format!("{table}\nRecords: {}\n", out.display()))?;
    if work.running.keeps_models() {
        shell::print(format!("Models:  {}\n", dir.models()?.display()))?;
    }
    Ok(outcome)
}

/// Runs what is not complete yet of a trainer's experiment and returns all complete records.
pub(crate) fn run_missing(
    trainer: Trainer,
    dir: &RunDir,
    work: &Work,
) -> Result<(Vec<RunRecord>, Outcome)> {
    let experiment = trainer.experiment();
    let plan = Plan {
        seeds: &experiment.training.seeds,
        optimizers: &experiment.optimizers,
        title: trainer.title().into(),
        epochs: trainer.epochs(),
        steps: trainer.steps(),
        metric: Metric::Accuracy,
        long: false,
    };
    let maker = Cells {
        trainer,
        models: (work.running.keeps_models())
            .then(|| dir.models())
            .transpose()?,
        trajectory: work.running.save_trajectory,
        data: Mutex::default(),
    };
    runs::run_missing(&plan, &maker, dir, work)
}

/// A trainer, with the data of the seeds that were begun last; every optimizer of a seed uses the same.
struct Cells<'a> {
    trainer: Trainer<'a>,
    /// The folder of the models, if they are kept.
    models: Option<PathBuf>,
    /// Whether the weights after every epoch are kept there, in a folder of each run.
    trajectory: bool,
    data: Mutex<HashMap<u64, Arc<SeedData>>>,
}

impl Cells<'_> {
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

impl Maker for Cells<'_> {
    fn data(&self) -> &str {
        self.trainer.fingerprint()
    }

    fn make(&self, site: Site<'_>) -> Result<Option<RunRecord>> {
        let data = self.seed_data(site.seed)?;
        let name = run_name(&site.optimizer.name, site.seed);
        let models = self.models.as_ref();
        let trajectory = models.filter(|_| self.trajectory).map(|m| m.join(&name));
        if let Some(folder) = &trajectory {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        }
        let ending = Ending {
            test: self.trainer.experiment().test == TestPart::AtTheEnd,
            model: models.map(|folder| folder.join(format!("{name}.safetensors"))),
            trajectory,
        };
        self.trainer.run(&data, ending, site)
    }
}
