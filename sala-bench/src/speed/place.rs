//! On what and in which numbers is computed.

use std::{fmt, str::FromStr};

use anyhow::{Result, bail, ensure};
use candle_core::{DType, Device};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::spec;

/// The numbers of weights, activations and products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Precision {
    #[default]
    F32,
    /// As f32, but matrix products round their factors to eleven bits.
    Tf32,
    /// Weights of bf16 with f32 masters; PyTorch computes under autocast.
    Bf16,
}

impl Precision {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        }
    }

    pub(super) const fn dtype(self) -> DType {
        match self {
            Self::F32 | Self::Tf32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }

    /// Refuses what the device does not have.
    pub(super) fn check(self, device: spec::Device) -> Result<()> {
        let cuda = matches!(device, spec::Device::Cuda(_));
        ensure!(
            self != Self::Tf32 || cuda,
            "--precision tf32: only the device cuda has TF32, got {device}"
        );
        Ok(())
    }
}

/// A device that is open, and the precision.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) device: Device,
    pub(super) precision: Precision,
}

impl Place {
    /// Opens the device and chooses how its matrix products round.
    pub(super) fn open(device: spec::Device, precision: Precision) -> Result<Self> {
        precision.check(device)?;
        candle_core::cuda::set_gemm_reduced_precision_f32(precision == Precision::Tf32);
        Ok(Self {
            device: device.open()?,
            precision,
        })
    }

    /// The processor, in f32.
    pub(super) const fn cpu() -> Self {
        Self {
            device: Device::Cpu,
            precision: Precision::F32,
        }
    }

    pub(super) fn dtype(&self) -> DType {
        self.precision.dtype()
    }

    /// Steps of a round before those that are timed: a graphics card lowers its clocks while other sides are timed.
    pub(super) fn waking_steps(&self) -> usize {
        if self.device.is_cpu() { 0 } else { 3 }
    }

    /// Waits until all that was asked of the device is done.
    pub(super) fn wait(&self) -> Result<()> {
        Ok(self.device.synchronize()?)
    }
}

/// A number of parameters, written with a k, an M or a G.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(usize);

impl Size {
    pub(super) const fn get(self) -> usize {
        self.0
    }
}

const UNITS: [(char, usize); 3] = [('G', 1_000_000_000), ('M', 1_000_000), ('k', 1_000)];

impl FromStr for Size {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let of_unit = |(letter, unit): &(char, usize)| Some((text.strip_suffix(*letter)?, *unit));
        let (number, unit) = UNITS.iter().find_map(of_unit).unwrap_or((text, 1));
        let number = number
            .parse::<usize>()
            .ok()
            .and_then(|n| n.checked_mul(unit));
        match number {
            Some(number) if number > 0 => Ok(Self(number)),
            _ => bail!("a number of parameters such as 500k, 25M or 1G wanted, got `{text}`"),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS.iter().find(|(_, unit)| self.0.is_multiple_of(*unit));
        match unit {
            Some((letter, unit)) => write!(f, "{}{letter}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_written() {
        for (text, number) in [
            ("1M", 1_000_000),
            ("25k", 25_000),
            ("7", 7),
            ("1G", 1_000_000_000),
        ] {
            let size: Size = text.parse().unwrap();
            assert_eq!((size.get(), size.to_string()), (number, text.into()));
        }
        for wrong in ["", "M", "0", "1.5M", "-1", "1T", "1MM"] {
            let error = wrong.parse::<Size>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{wrong}`")), "{error}");
        }
    }

    #[test]
    fn a_precision_is_refused_where_the_device_lacks_it() {
        let error = Precision::Tf32.check(spec::Device::Cpu).unwrap_err();
        assert!(
            error.to_string().contains("only the device cuda"),
            "{error}"
        );
        assert!(Precision::Tf32.check(spec::Device::Cuda(0)).is_ok());
        assert!(Precision::Bf16.check(spec::Device::Metal).is_ok());
    }
}
