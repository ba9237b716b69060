//! `data bench`: does making batches slow training steps?
//!
//! Steps on one batch that was made before, while the threads that make batches wait, in turn with steps that take the
//! next batch from them. Which comes first changes from pair to pair. Making a batch, which begins with its taking, is
//! part of the second.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};
use sala_core::{Differentiated, ParamSet, Resumable};
use sala_models::{Mode, Network, VarStore, ops::cross_entropy};
use serde::Serialize;

use super::{BenchArgs, feed};
use crate::{
    data::{
        self, Source,
        batches::{Batch, channel_stats},
        feed::Feed,
    },
    registry, shell,
    speed::Machine,
    stats,
};

/// Pairs of steps before the first that is counted.
const WARM_UP: usize = 2;

#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    version: &'static str,
    commit: &'static str,
    /// In TOML.
    experiment: String,
    loader_threads: usize,
    /// Making a batch, by itself on one thread.
    make_ms: Vec<f64>,
    /// Steps on a batch that is there.
    without_ms: Vec<f64>,
    /// Steps that take the next batch.
    with_ms: Vec<f64>,
    /// Of these, how long the batch was waited for.
    wait_ms: Vec<f64>,
}

pub(super) fn bench(args: &BenchArgs) -> Result<()> {
    let experiment = args.changes.experiment()?;
    let train = data::load_train(&Source::of(&experiment.data)?)?;
    let all: Vec<usize> = (0..train.len()).collect();
    let statistics = channel_stats(&train, &all)?;
    let batch_size = experiment.training.batch_size;
    ensure!(
        batch_size <= train.len(),
        "training.batch_size must be at most the {} training images there are, got {batch_size}",
        train.len()
    );
    let feed = feed(&experiment, &train, all, &statistics, batch_size)?;
    let store = VarStore::new(experiment.training.seeds[0], DType::F32, &Device::Cpu);
    let mut training = Training {
        network: registry::network(&experiment.network, train.shape(), train.classes(), &store)?,
        optimizer: registry::optimizer(
            &experiment.optimizers[0],
            ParamSet::new(store.trainable())?,
        )?,
        steps: 0,
    };
    let mut batches = Batches::new(&feed);
    let there = batches.next()?;
    let mut report = Report {
        machine: Machine::here(),
        version: env!("CARGO_PKG_VERSION"),
        commit: env!("SALA_COMMIT"),
        experiment: experiment.to_toml()?,
        loader_threads: feed.threads(),
        make_ms: making(&feed, args.rounds.get())?,
        without_ms: vec![],
        with_ms: vec![],
        wait_ms: vec![],
    };
    for pair in 0..WARM_UP + args.rounds.get() {
        for with in [pair % 2 == 0, pair % 2 != 0] {
            let start = Instant::now();
            let mut waited = Duration::ZERO;
            if with {
                let batch = batches.next()?;
                waited = start.elapsed();
                training.step(&batch)?;
            } else {
                training.step(&there)?;
            }
            let taken = milliseconds(start.elapsed());
            if pair < WARM_UP {
                continue;
            }
            if with {
                report.with_ms.push(taken);
                report.wait_ms.push(milliseconds(waited));
            } else {
                report.without_ms.push(taken);
            }
        }
    }
    shell::print(report.text() + "\n")?;
    if let Some(out) = &args.out {
        let path = out.join("input-pipeline.json");
        let save = || -> Result<()> {
            std::fs::create_dir_all(out)?;
            let json = serde_json::to_string_pretty(&report)?;
            Ok(sala_core::checkpoint::write_atomically(
                &path,
                json.as_bytes(),
            )?)
        };
        save().with_context(|| format!("cannot write {}", path.display()))?;
        shell::print(format!("Every time: {}\n", path.display()))?;
    }
    Ok(())
}

/// Batches without end, epoch after epoch.
struct Batches<'a> {
    feed: &'a Feed,
    epoch: u64,
    under_way: Option<data::feed::Epoch>,
}

impl<'a> Batches<'a> {
    const fn new(feed: &'a Feed) -> Self {
        Self {
            feed,
            epoch: 0,
            under_way: None,
        }
    }

    /// The next whole batch; a short last one is left out, because its step is shorter.
    fn next(&mut self) -> Result<Batch> {
        loop {
            let batches = match &mut self.under_way {
                Some(batches) => batches,
                none => {
                    self.epoch += 1;
                    none.insert(self.feed.epoch(self.epoch, 0)?)
                }
            };
            match batches.next() {
                Some(Ok(batch)) if batch.images.dim(0)? < self.feed.batch_size() => {}
                Some(batch) => return batch,
                None => self.under_way = None,
            }
        }
    }
}

struct Training {
    network: Box<dyn Network>,
    optimizer: Box<dyn Resumable>,
    steps: u64,
}

impl Training {
    fn step(&mut self, batch: &Batch) -> Result<()> {
        let (network, mode) = (&*self.network, Mode::train(self.steps));
        let loss = |_| {
            let logits = network.forward(&batch.images, mode)?;
            cross_entropy(&logits, &batch.targets)
        };
        let mut objective = Differentiated::by(sala_models::backward, loss);
        self.optimizer.step(&mut objective)?;
        self.steps += 1;
        Ok(())
    }
}

/// How long it takes to make each of some batches.
fn making(feed: &Feed, count: usize) -> Result<Vec<f64>> {
    let once = |epoch| {
        let start = Instant::now();
        black_box(feed.first_of(epoch)?);
        Ok(milliseconds(start.elapsed()))
    };
    (1..=count as u64).map(once).collect()
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

impl Report {
    /// The median of what each pair says.
    fn slower_percent(&self) -> f64 {
        let pairs = self.with_ms.iter().zip(&self.without_ms);
        let slower: Vec<f64> = pairs.map(|(with, without)| with / without - 1.0).collect();
        100.0 * stats::median(&slower).unwrap_or(f64::NAN)
    }

    fn text(&self) -> String {
        let median = |values: &[f64]| stats::median(values).unwrap_or(f64::NAN);
        format!(
            "{} pairs of steps, medians: {:.2} ms on a batch that is there, {:.2} ms with batches made beside it: \
             {:+.2} % (median of the pairs).\nA batch is made in {:.2} ms and was waited for {:.3} ms, {} thread(s).",
            self.with_ms.len(),
            median(&self.without_ms),
            median(&self.with_ms),
            self.slower_percent(),
            median(&self.make_ms),
            median(&self.wait_ms),
            self.loader_threads,
        )
    }
}
