//! What the machine is, how much memory a process uses, and what the machine can do at most.

use std::{
    fs,
    io::{stdin, stdout},
    time::Instant,
};

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use rayon::{
    iter::{IndexedParallelIterator, ParallelIterator},
    slice::{ParallelSlice, ParallelSliceMut},
};
use serde::{Deserialize, Serialize};

use super::protocol;
use crate::record::Environment;

/// The machine and the program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    /// Vector instructions that the processor has and kernels here or in candle may use.
    pub(crate) instructions: Vec<String>,
    #[serde(flatten)]
    pub(crate) environment: Environment,
}

impl Machine {
    pub(crate) fn here() -> Self {
        Self::with("cpu")
    }

    /// The machine, for what is computed on a device of it.
    pub(crate) fn with(device: &str) -> Self {
        Self {
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".into()),
            instructions: instructions(),
            environment: Environment::here(device),
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

/// `1024 kB` in MiB.
fn mib(text: &str) -> Option<f64> {
    let kib: f64 = text.strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}

/// What the machine does at most with the threads given: once for each round.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ceilings {
    /// A product of 1024 × 1024 matrices in f32, by candle.
    pub(crate) gemm_gflops: Vec<f64>,
    /// SGD's update of 16 million parameters, in place: three arrays are read and two written, 10⁹ bytes a
    /// second.
    pub(crate) update_gb_s: Vec<f64>,
}

/// One measurement.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ceiling {
    pub(super) gemm_gflops: f64,
    pub(super) update_gb_s: f64,
}

const SIDE: usize = 1024;
const PARAMETERS: usize = 1 << 24;
/// Floats of a piece of work: three of them fit the second cache.
const PIECE: usize = 1 << 14;
const TRIES: usize = 5;

/// The worker that measures ceilings.
pub(super) fn serve_ceilings() -> Result<()> {
    let (a, b) = (matrix(1.0)?, matrix(2.0)?);
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
            update_gb_s: bytes as f64 / update / 1e9,
        })
    })
}

fn matrix(value: f64) -> Result<Tensor> {
    let ones = Tensor::ones((SIDE, SIDE), DType::F32, &Device::Cpu)?;
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
