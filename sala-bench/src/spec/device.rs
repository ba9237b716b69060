//! Where an experiment computes, and in which numbers.

use std::{fmt, str::FromStr};

use anyhow::{Context, Result, bail};
use candle_core::DType;
use serde::{Deserialize, Serialize};

/// `cpu`, `cuda`, `cuda:N` or `metal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum Device {
    #[default]
    Cpu,
    /// The graphics card of this number.
    Cuda(usize),
    Metal,
}

impl FromStr for Device {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once(':') {
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda(0)),
            None if text == "metal" => Ok(Self::Metal),
            Some(("cuda", number)) => {
                let number = number.parse();
                let number =
                    number.with_context(|| format!("no number of a device in `{text}`"))?;
                Ok(Self::Cuda(number))
            }
            _ => bail!("device: cpu, cuda, cuda:N or metal wanted, got `{text}`"),
        }
    }
}

impl TryFrom<String> for Device {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(0) => f.write_str("cuda"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

impl Device {
    pub(crate) fn is_cpu(&self) -> bool {
        *self == Self::Cpu
    }

    /// Opens it.
    ///
    /// # Errors
    /// When this build cannot use it or this machine has none, with a way out.
    pub(crate) fn open(self) -> Result<candle_core::Device> {
        crate::device::open(self)
    }
}

/// The numbers that weights, activations and gradients are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Precision {
    #[default]
    F32,
    F64,
    /// As f32, but matrix products and convolutions round their factors to eleven bits: on CUDA alone.
    Tf32,
    /// Weights have masters in f32, which the optimizer updates.
    Bf16,
}

impl Precision {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
    pub(crate) fn is_f32(&self) -> bool {
        *self == Self::F32
    }

    /// Refuses what a device does not have.
    pub(crate) fn check(self, device: Device) -> Result<()> {
        if self == Self::Tf32 && !matches!(device, Device::Cuda(_)) {
            bail!("precision: tf32 is for the device cuda alone, got `{device}`");
        }
        Ok(())
    }

    /// Chooses how matrix products of this process round; it has one experiment.
    pub(crate) fn apply(self) {
        candle_core::cuda::set_gemm_reduced_precision_f32(self == Self::Tf32);
    }

    pub(crate) fn dtype(self) -> DType {
        match self {
            Self::F32 | Self::Tf32 => DType::F32,
            Self::F64 => DType::F64,
            Self::Bf16 => DType::BF16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tf32_is_refused_where_there_is_none() {
        let error = Precision::Tf32
            .check(Device::Metal)
            .unwrap_err()
            .to_string();
        assert!(error.contains("cuda alone, got `metal`"), "{error}");
        assert!(Precision::Tf32.check(Device::Cuda(1)).is_ok());
        assert!(Precision::Bf16.check(Device::Cpu).is_ok());
    }

    #[test]
    fn a_device_is_read_as_it_is_written() {
        for text in ["cpu", "cuda", "cuda:3", "metal"] {
            assert_eq!(text.parse::<Device>().unwrap().to_string(), text);
        }
        assert_eq!("cuda:0".parse::<Device>().unwrap(), Device::Cuda(0));
        for wrong in ["gpu", "cuda:", "cuda:one", "cpu:1", ""] {
            assert!(wrong.parse::<Device>().is_err(), "{wrong}");
        }
    }
}
