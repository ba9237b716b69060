//! The process that times this project's side of a workload.

use std::{
    io::{stdin, stdout},
    time::Instant,
};

use anyhow::Result;
use candle_core::Tensor;
use candle_nn::Optimizer;
use sala_core::{Descend, Differentiated, Minimizer, ParamSet, ParamsSgd, Pass, Sgd};
use sala_models::{
    Mode,
    kernels::{ConvSearch, conv_search},
    ops::cross_entropy,
};

use super::{
    machine::peak_mib,
    place::{Place, Precision},
    protocol::{self, Hello, Round},
    workload::{Built, Workload},
};

/// Steps before the first round: the first ones touch fresh memory and make SGD's buffers.
const WARM_UP: usize = 2;
const LR: f64 = 0.01;
const MOMENTUM: f64 = 0.9;

/// Serves rounds of a workload on standard input and output, on a thread of those that share the work.
pub(super) fn serve(workload: Workload, place: Place) -> Result<()> {
    rayon::scope(|_| rounds(workload, place))
}

fn rounds(workload: Workload, place: Place) -> Result<()> {
    let start_mib = peak_mib();
    let mut training = Training::new(workload, place)?;
    for _ in 0..WARM_UP {
        training.step()?;
    }
    let hello = Hello {
        version: version(&training.place)?,
        parameters: training.built.store.num_parameters(),
        start_mib,
    };
    protocol::serve(Some(&hello), stdin().lock(), stdout(), || {
        for _ in 0..training.place.waking_steps() {
            training.step()?;
        }
        training.round(workload.repeats(training.place.device.is_cpu()))
    })
}

/// What computes, and what its convolutions were told.
fn version(place: &Place) -> Result<String> {
    let candle = format!("candle {}", env!("CANDLE_VERSION"));
    let measured = conv_search()? == ConvSearch::Benchmark && place.device.is_cuda();
    let told = if measured {
        ", cuDNN's algorithms measured"
    } else {
        ""
    };
    Ok(candle + told)
}

struct Training {
    built: Built,
    place: Place,
    sgd: Update,
    steps: u64,
}

/// SGD alone, or where there are f32 masters, with the step around it that publishes their rounded values.
enum Update {
    Alone(Sgd),
    OfMasters(Descend<Sgd>),
}

impl Training {
    fn new(workload: Workload, place: Place) -> Result<Self> {
        let built = workload.build(&place)?;
        let params = ParamSet::new(built.store.trainable())?;
        let config = ParamsSgd {
            lr: LR,
            momentum: MOMENTUM,
            ..ParamsSgd::default()
        };
        let sgd = if place.precision == Precision::Bf16 {
            let params = params.with_f32_masters()?;
            let sgd = Sgd::new(&params, config)?;
            Update::OfMasters(Descend::new(params, sgd))
        } else {
            Update::Alone(Sgd::new(&params, config)?)
        };
        Ok(Self {
            built,
            place,
            sgd,
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
            self.place.wait()?;
            forward_ms.push(milliseconds(start));
            let start = Instant::now();
            loss = self.step()?;
            self.place.wait()?;
            step_ms.push(milliseconds(start));
        }
        Ok(Round {
            forward_ms,
            step_ms,
            loss,
            // The memory of a device is not the process's.
            peak_mib: peak_mib().filter(|_| self.place.device.is_cpu()),
        })
    }

    fn loss(&self) -> Result<Tensor> {
        Ok(loss(&self.built, self.steps)?)
    }

    fn step(&mut self) -> Result<f64> {
        let (built, step) = (&self.built, self.steps);
        let loss = match &mut self.sgd {
            Update::Alone(sgd) => {
                let loss = loss(built, step)?;
                sgd.step(&sala_models::backward(&loss)?)?;
                f64::from(loss.to_scalar::<f32>()?)
            }
            Update::OfMasters(descend) => {
                let pass = |_: Pass| loss(built, step);
                let mut objective = Differentiated::by(sala_models::backward, pass);
                Minimizer::step(descend, &mut objective)?.loss
            }
        };
        self.steps += 1;
        Ok(loss)
    }
}

fn loss(built: &Built, step: u64) -> candle_core::Result<Tensor> {
    let logits = built.network.forward(&built.x, Mode::train(step))?;
    cross_entropy(&logits, &built.labels)
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Device;

    // Catches masters that are updated and never reach the network.
    #[test]
    fn a_step_trains_in_f32_and_in_bf16() {
        for precision in [Precision::F32, Precision::Bf16] {
            let place = Place::open(Device::Cpu, precision).unwrap();
            let mut training = Training::new(Workload::SmallCnn, place).unwrap();
            let losses: Vec<f64> = (0..4).map(|_| training.step().unwrap()).collect();
            assert!(losses[3] < losses[0], "{precision:?}: {losses:?}");
        }
    }
}
