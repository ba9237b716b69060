//! What the machine is, how much memory a process uses, and what the machine can do at most.

use std::{
    fs,
    io::{stdin, stdout},
    time::Instant,
};

use anyhow::Result;
use candle_core::{DType, Tensor};
use rayon::{
    iter::{IndexedParallelIterator, ParallelIterator},
    slice::{ParallelSlice, ParallelSliceMut},
};
use serde::{Deserialize, Serialize};

use super::{place::Place, protocol};
use crate::{device, record::Environment, spec::Device};

/// The machine and the program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    /// Vector instructions that the processor has and kernels here or in candle may use.
    pub(crate) instructions: Vec<String>,
    /// What the device says of itself, where it is not the processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) device_is: Option<String>,
    #[serde(flatten)]
    pub(crate) environment: Environment,
}

impl Machine {
    pub(crate) fn here() -> Self {
        Self::with(Device::Cpu)
    }

    /// The machine, for what is computed on a device of it.
    pub(crate) fn with(device: Device) -> Self {
        let described = || device::describe(device).ok();
        Self {
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".into()),
            instructions: instructions(),
            device_is: (device != Device::Cpu).then(described).flatten(),
            environment: Environment::here(&device.to_string()),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn instructions() -> Vec<String> {
    let all = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
    ];
    let there = all.into_iter().filter(|(_, there)| *there);
    there.map(|(name, _)| name.to_owned()).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn instructions() -> Vec<String> {
    vec![]
}

/// The most memory that this process has used so far; nothing where the system does not say.
pub(super) fn peak_mib() -> Option<f64> {
    mib(&field("/proc/self/status", "VmHWM")?)
}

/// The first value that a file of `name : value` lines has for a name.
fn field(path: &str, name: &str) -> Option<String> {
    value(&fs::read_to_string(path).ok()?, name)
}

fn value(text: &str, name: &str) -> Option<String> {
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    let mut of_name = pairs.filter(|(key, _)| key.trim() == name);
    of_name.next().map(|(_, value)| value.trim().to_owned())
}

/// The MiB that a text of `name : 1024 kB` lines has for a name.
pub(super) fn mib_of(text: &str, name: &str) -> Option<f64> {
    mib(&value(text, name)?)
}

/// `1024 kB` in MiB.
fn mib(text: &str) -> Option<f64> {
    let kib: f64 = text.strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}

/// What the machine does at most with the threads given, or the device: once for each round.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ceilings {
    /// A product of square matrices by candle, in the precision of the measurement: of 1024 rows in f32 on the
    /// CPU, of 8192 on other devices.
    pub(crate) gemm_gflops: Vec<f64>,
    /// On the CPU: SGD's update of 16 million parameters, in place: three arrays are read and two written, 10⁹
    /// bytes a second.
    #[serde(default)]
    pub(crate) update_gb_s: Vec<f64>,
    /// On other devices: a copy of 256 MiB within the device, what is read and what is written counted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) copy_gb_s: Vec<f64>,
}

impl Ceilings {
    /// 10⁹ bytes a second that updates can be held against.
    pub(crate) fn bandwidth(&self) -> &[f64] {
        if self.copy_gb_s.is_empty() {
            &self.update_gb_s
        } else {
            &self.copy_gb_s
        }
    }
}

/// One measurement.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ceiling {
    pub(super) gemm_gflops: f64,
    pub(super) update_gb_s: Option<f64>,
    pub(super) copy_gb_s: Option<f64>,
}

const SIDE: usize = 1024;
const SIDE_OF_DEVICES: usize = 8192;
const PARAMETERS: usize = 1 << 24;
/// Floats that are copied.
const COPIED: usize = 1 << 26;
/// Floats of a piece of work: three of them fit the second cache.
const PIECE: usize = 1 << 14;
const TRIES: usize = 5;

/// The worker that measures ceilings.
pub(super) fn serve_ceilings(place: &Place) -> Result<()> {
    if place.device.is_cpu() {
        serve_ceilings_of_cpu()
    } else {
        serve_ceilings_of_device(place)
    }
}

fn serve_ceilings_of_cpu() -> Result<()> {
    let cpu = Place::cpu();
    let (a, b) = (matrix(1.0, SIDE, &cpu)?, matrix(2.0, SIDE, &cpu)?);
    let mut weights = vec![1.0_f32; PARAMETERS];
    let mut momenta = vec![0.0_f32; PARAMETERS];
    let gradients = vec![1e-3_f32; PARAMETERS];
    protocol::serve(None, stdin().lock(), stdout(), || {
        let product = fastest(|| {
            a.matmul(&b)?;
            Ok(())
        })?;
        let update = fastest(|| {
            update(&mut weights, &mut momenta, &gradients);
            Ok(())
        })?;
        let bytes = 5 * size_of::<f32>() * PARAMETERS;
        Ok(Ceiling {
            gemm_gflops: 2.0 * (SIDE as f64).powi(3) / product / 1e9,
            update_gb_s: Some(bytes as f64 / update / 1e9),
            copy_gb_s: None,
        })
    })
}

fn serve_ceilings_of_device(place: &Place) -> Result<()> {
    let side = SIDE_OF_DEVICES;
    let (a, b) = (matrix(1.0, side, place)?, matrix(2.0, side, place)?);
    let array = Tensor::zeros(COPIED, DType::F32, &place.device)?;
    let multiply = || -> Result<()> {
        let product = a.matmul(&b)?;
        place.wait()?;
        drop(product);
        Ok(())
    };
    let copy = || -> Result<()> {
        let copied = array.force_contiguous()?;
        place.wait()?;
        drop(copied);
        Ok(())
    };
    // Kernels are compiled and memory is found the first time.
    multiply()?;
    copy()?;
    protocol::serve(None, stdin().lock(), stdout(), || {
        let (product, copied) = (fastest(multiply)?, fastest(copy)?);
        let bytes = 2 * size_of::<f32>() * COPIED;
        Ok(Ceiling {
            gemm_gflops: 2.0 * (side as f64).powi(3) / product / 1e9,
            update_gb_s: None,
            copy_gb_s: Some(bytes as f64 / copied / 1e9),
        })
    })
}

fn matrix(value: f64, side: usize, place: &Place) -> Result<Tensor> {
    let ones = Tensor::ones((side, side), place.dtype(), &place.device)?;
    Ok(ones.affine(value, 0.0)?)
}

/// Seconds of the fastest of some tries.
fn fastest(mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..TRIES {
        let start = Instant::now();
        work()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn update(weights: &mut [f32], momenta: &mut [f32], gradients: &[f32]) {
    weights
        .par_chunks_mut(PIECE)
        .zip(momenta.par_chunks_mut(PIECE))
        .zip(gradients.par_chunks(PIECE))
        .for_each(|((weights, momenta), gradients)| {
            for ((w, m), g) in weights.iter_mut().zip(momenta).zip(gradients) {
                *m = 0.9 * *m + g;
                *w -= 1e-3 * *m;
            }
        });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_sizes_are_read() {
        let text = "Name:\tx\nVmPeak:\t  9 kB\nVmHWM:\t    2048 kB\n";
        assert_eq!(value(text, "VmHWM").unwrap(), "2048 kB");
        assert_eq!(mib("2048 kB"), Some(2.0));
        assert_eq!(value(text, "Vm"), None);
        assert_eq!(mib("2048"), None);
    }

    #[test]
    fn the_update_is_sgds() {
        let (mut weights, mut momenta) = (vec![1.0; 3], vec![1.0, 0.0, -1.0]);
        update(&mut weights, &mut momenta, &[0.1, 1.0, 0.9]);
        assert_eq!(momenta, [1.0, 1.0, 0.0]);
        assert_eq!(weights, [0.999, 0.999, 1.0]);
    }
}
