//! The process that times this project's side of a workload.

use std::{
    io::{stdin, stdout},
    time::Instant,
};

use anyhow::Result;
use candle_core::Tensor;
use candle_nn::Optimizer;
use sala_core::{ParamSet, ParamsSgd, Sgd};
use sala_models::{Mode, ops::cross_entropy};

use super::{
    machine::peak_mib,
    protocol::{self, Hello, Round},
    workload::{Built, Workload},
};

/// Steps before the first round: the first ones touch fresh memory and make SGD's buffers.
const WARM_UP: usize = 2;
const LR: f64 = 0.01;
const MOMENTUM: f64 = 0.9;

/// Serves rounds of a workload on standard input and output, on a thread of those that share the work.
pub(super) fn serve(workload: Workload) -> Result<()> {
    rayon::scope(|_| rounds(workload))
}

fn rounds(workload: Workload) -> Result<()> {
    let start_mib = peak_mib();
    let mut training = Training::new(workload)?;
    for _ in 0..WARM_UP {
        training.step()?;
    }
    let hello = Hello {
        version: format!("candle {}", env!("CANDLE_VERSION")),
        parameters: training.built.store.num_parameters(),
        start_mib,
    };
    protocol::serve(Some(&hello), stdin().lock(), stdout(), || {
        training.round(workload.repeats())
    })
}

struct Training {
    built: Built,
    sgd: Sgd,
    steps: u64,
}

impl Training {
    fn new(workload: Workload) -> Result<Self> {
        let built = workload.build()?;
        let params = ParamSet::new(built.store.trainable())?;
        let config = ParamsSgd {
            lr: LR,
            momentum: MOMENTUM,
            ..ParamsSgd::default()
        };
        Ok(Self {
            sgd: Sgd::new(&params, config)?,
            built,
            steps: 0,
        })
    }

    fn round(&mut self, repeats: usize) -> Result<Round> {
        let mut forward_ms = Vec::with_capacity(repeats);
        let mut step_ms = Vec::with_capacity(repeats);
        let mut loss = f64::NAN;
        for _ in 0..repeats {
            // To free what was computed belongs to the time of both.
            let start = Instant::now();
            drop(self.loss()?);
            forward_ms.push(milliseconds(start));
            let start = Instant::now();
            loss = self.step()?;
            step_ms.push(milliseconds(start));
        }
        Ok(Round {
            forward_ms,
            step_ms,
            loss,
            peak_mib: peak_mib(),
        })
    }

    fn loss(&self) -> Result<Tensor> {
        let mode = Mode::train(self.steps);
        let logits = self.built.network.forward(&self.built.x, mode)?;
        Ok(cross_entropy(&logits, &self.built.labels)?)
    }

    fn step(&mut self) -> Result<f64> {
        let loss = self.loss()?;
        let gradients = sala_models::backward(&loss)?;
        self.sgd.step(&gradients)?;
        self.steps += 1;
        Ok(f64::from(loss.to_scalar::<f32>()?))
    }
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}
