//! The fused kernels against the composed form, at every length where a loop could go wrong.

mod choice;
#[cfg(sala_emulated)]
mod guarded;
mod memory;
#[cfg(sala_emulated)]
mod recorded;
mod rules;
mod sums;

use candle_core::{DType, Device, Tensor, Var, backprop::GradStore};
use candle_nn::Optimizer;

#[cfg(any(feature = "cuda", sala_emulated))]
use super::batch::Batch;
use super::{
    Beside, Choice, Fast, Kernels, Pull, Scalar, Session, access, composed::Composed, cpu,
    with_choice,
};
use crate::{
    Adam, ParamSet, ParamsAdam, ParamsSgd, Sgd, Stateful, testing,
    testing::{FUSED_F32, TRAJECTORY_F64, Tolerance, assert_same_bits, values},
};

const CHUNK: usize = cpu::CHUNK;

/// Empty, one, around the lanes' and the registers' widths, around one chunk, several and a rest.
const LENGTHS: [usize; 13] = [
    0,
    1,
    7,
    63,
    64,
    65,
    CHUNK - 1,
    CHUNK,
    CHUNK + 1,
    2 * CHUNK,
    5 * CHUNK + 17,
    // A norm's piece is four chunks.
    4 * CHUNK + 1,
    9 * CHUNK + 33,
];

const DTYPES: [DType; 2] = [DType::F32, DType::F64];

fn tolerance(dtype: DType) -> Tolerance {
    match dtype {
        DType::F64 => TRAJECTORY_F64,
        DType::F32 => FUSED_F32,
        // Both forms compute in f32: a last bit may still fall the other way.
        _ => Tolerance {
            atol: 1e-3,
            rtol: 1e-2,
        },
    }
}

fn fused(dtype: DType) -> &'static dyn Kernels {
    if dtype == DType::F64 {
        &cpu::F64
    } else {
        &cpu::F32
    }
}

/// A fused implementation, where its tensors are, and what it computes.
struct Form {
    name: &'static str,
    device: Device,
    dtypes: &'static [DType],
    #[cfg(any(feature = "cuda", sala_emulated))]
    batch: Option<Batch>,
}

impl Form {
    fn cpu() -> Self {
        Self {
            name: "cpu",
            device: Device::Cpu,
            dtypes: &DTYPES,
            #[cfg(any(feature = "cuda", sala_emulated))]
            batch: None,
        }
    }

    #[cfg(any(feature = "cuda", sala_emulated))]
    fn batch(name: &'static str, device: Device, batch: Batch) -> Self {
        Self {
            name,
            device,
            dtypes: &[DType::F32, DType::F64, DType::BF16, DType::F16],
            batch: Some(batch.eager()),
        }
    }

    /// The graphics card of number 0.
    #[cfg(feature = "cuda")]
    fn card() -> candle_core::Result<Self> {
        let device = Device::new_cuda_with_stream(0)?;
        let Some(batch) = Batch::on_card(&device) else {
            candle_core::bail!("a CUDA device without kernels");
        };
        Ok(Self::batch("cuda", device, batch))
    }

    fn kernels(&self, dtype: DType) -> &dyn Kernels {
        #[cfg(any(feature = "cuda", sala_emulated))]
        if let Some(batch) = &self.batch {
            return batch;
        }
        fused(dtype)
    }

    fn wave(&self, len: usize, phase: f64, dtype: DType) -> Tensor {
        wave(len, phase, dtype).to_device(&self.device).unwrap()
    }

    /// As slow weights, buffers and directions are: f32 for half precision.
    fn wide(&self, len: usize, phase: f64, dtype: DType) -> Tensor {
        self.wave(len, phase, super::wide_dtype(dtype))
    }

    fn var(&self, len: usize, phase: f64, dtype: DType) -> Var {
        Var::from_tensor(&self.wave(len, phase, dtype)).unwrap()
    }
}

/// What the tests are for: the CPU's kernels; those for graphics cards, run on the processor; and on a card, if there
/// is one.
fn forms() -> Vec<Form> {
    #[cfg_attr(
        not(any(feature = "cuda", sala_emulated)),
        expect(unused_mut, reason = "there is only one form")
    )]
    let mut forms = vec![Form::cpu()];
    #[cfg(sala_emulated)]
    forms.push(Form::batch("emulated", Device::Cpu, Batch::emulated()));
    #[cfg(feature = "cuda")]
    forms.extend(Form::card());
    forms
}

// Says in every list of tests whether the others have been run on a card: without one they pass on the
// processor.
#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs an NVIDIA graphics card: on one run `cargo test -p sala-core --features cuda -- --include-ignored`"]
fn the_tests_of_kernels_have_been_run_on_a_graphics_card() {
    if let Err(error) = Form::card() {
        panic!("there is no graphics card: the other tests ran on the processor alone ({error})");
    }
    assert!(forms().iter().any(|form| form.name == "cuda"));
}

/// Values in (−1, 1) that do not repeat within a chunk.
fn wave(len: usize, phase: f64, dtype: DType) -> Tensor {
    let values: Vec<f64> = (0..len).map(|i| (0.37 * i as f64 + phase).sin()).collect();
    let tensor = Tensor::from_vec(values, len, &Device::Cpu).unwrap();
    tensor.to_dtype(dtype).unwrap()
}

fn var(len: usize, phase: f64, dtype: DType) -> Var {
    Var::from_tensor(&wave(len, phase, dtype)).unwrap()
}

fn for_all(work: impl Fn(&Form, usize, DType)) {
    for form in forms() {
        for &dtype in form.dtypes {
            for len in LENGTHS {
                work(&form, len, dtype);
            }
        }
    }
}

fn assert_near(what: &str, got: &Tensor, wanted: &Tensor) {
    tolerance(got.dtype()).assert_tensors(&format!("{what}, {:?}", got.shape()), got, wanted);
}

fn number(scalar: Scalar) -> f64 {
    match scalar {
        Scalar::Host(x) => x,
        Scalar::Device(t) => values(&t)[0],
        Scalar::Summed(sums, at) => values(sums.get().unwrap())[at],
    }
}

fn sgd_configs() -> Vec<ParamsSgd> {
    let plain = ParamsSgd {
        lr: 0.1,
        ..Default::default()
    };
    let decayed = ParamsSgd {
        weight_decay: 0.05,
        ..plain.clone()
    };
    let damped = ParamsSgd {
        momentum: 0.9,
        dampening: 0.3,
        weight_decay: 0.05,
        decoupled: true,
        ..plain.clone()
    };
    let nesterov = ParamsSgd {
        momentum: 0.9,
        nesterov: true,
        ..decayed.clone()
    };
    let decoupled = ParamsSgd {
        decoupled: true,
        ..decayed.clone()
    };
    vec![plain, decayed, decoupled, damped, nesterov]
}

fn adam_configs() -> Vec<ParamsAdam> {
    let coupled = ParamsAdam {
        lr: 0.01,
        weight_decay: 0.1,
        ..Default::default()
    };
    vec![ParamsAdam::default(), coupled, ParamsAdam::adamw()]
}
