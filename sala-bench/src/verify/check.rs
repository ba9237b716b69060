//! One thing that is checked, and what came of it.

use std::fmt;

use candle_core::{DType, Device, Tensor};
use sala_core::testing::{
    DEVICE_F32, Deviation, FUSED_F32, HALF, TRAJECTORY_F32, TRAJECTORY_F64, Tolerance, read,
};
use serde::Serialize;

/// What is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Section {
    /// Gradients against central differences.
    Differences,
    /// Values and gradients of operations against the CPU.
    Operations,
    /// Weights after fifty steps of a method against the CPU.
    Trajectories,
    /// The same twice, and what is to be the same everywhere.
    Repetition,
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Differences => "gradients against differences",
            Self::Operations => "operations against the CPU in f64",
            Self::Trajectories => "50 steps against the CPU",
            Self::Repetition => "repetition",
        })
    }
}

/// How far a checked side was from its reference where it was furthest, by the share of what is allowed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Worst {
    /// Such as `gradient of x`.
    pub(super) part: String,
    pub(super) element: usize,
    pub(super) wanted: f64,
    pub(super) got: f64,
    pub(super) difference: f64,
    pub(super) allowed: f64,
}

impl Worst {
    fn new(part: &str, deviation: Deviation) -> Self {
        Self {
            part: part.into(),
            element: deviation.element,
            wanted: deviation.wanted,
            got: deviation.got,
            difference: deviation.off(),
            allowed: deviation.allowed,
        }
    }
}

impl fmt::Display for Worst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            part,
            element,
            wanted,
            got,
            difference,
            allowed,
        } = self;
        write!(
            f,
            "{part}, element {element}: wanted {wanted:e}, got {got:e}, off by {difference:.2e}, \
             {allowed:.2e} allowed"
        )
    }
}

/// What came of a check.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Verdict {
    /// The largest difference as a share of what is allowed there; nothing where numbers were not compared.
    pub(super) share: Option<f64>,
    pub(super) worst: Option<Worst>,
    /// Numbers that were compared.
    pub(super) compared: usize,
    /// What is wrong besides a difference, such as an operation that the device lacks.
    pub(super) error: Option<String>,
}

impl Verdict {
    pub(super) const fn empty() -> Self {
        Self {
            share: None,
            worst: None,
            compared: 0,
            error: None,
        }
    }

    pub(super) fn failed(error: impl Into<String>) -> Self {
        Self {
            error: Some(error.into()),
            ..Self::empty()
        }
    }

    pub(super) fn passed(&self) -> bool {
        self.error.is_none() && self.share.is_none_or(|share| share <= 1.0)
    }

    /// Compares one part of what is checked.
    pub(super) fn compare(
        &mut self,
        part: &str,
        tolerance: Tolerance,
        got: &[f64],
        wanted: &[f64],
    ) {
        if got.len() != wanted.len() {
            let (wanted, got) = (wanted.len(), got.len());
            self.error = Some(format!("{part}: {wanted} numbers wanted, got {got}"));
            return;
        }
        self.compared += got.len();
        let Some(deviation) = tolerance.of_largest(wanted).worst(got, wanted) else {
            return;
        };
        let share = deviation.share();
        if self.share.is_none_or(|before| share > before) {
            self.share = Some(share);
            self.worst = Some(Worst::new(part, deviation));
        }
    }
}

/// Compares everything that two sides computed, part by part.
pub(super) fn agree(
    got: &[(String, Tensor)],
    wanted: &[(String, Tensor)],
    tolerance: Tolerance,
) -> candle_core::Result<Verdict> {
    let mut verdict = Verdict::empty();
    for ((part, got), (_, wanted)) in got.iter().zip(wanted) {
        if got.dims() != wanted.dims() {
            let (wanted, got) = (wanted.dims(), got.dims());
            return Ok(Verdict::failed(format!(
                "{part}: shape {wanted:?} wanted, got {got:?}"
            )));
        }
        verdict.compare(part, tolerance, &read(got)?, &read(wanted)?);
    }
    Ok(verdict)
}

/// A check with its verdict.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Check {
    pub(super) section: Section,
    pub(super) name: String,
    pub(super) dtype: &'static str,
    /// `auto`: the kernels that the program takes; `composed`: plain operations.
    pub(super) kernels: &'static str,
    pub(super) passed: bool,
    #[serde(flatten)]
    pub(super) verdict: Verdict,
    pub(super) seconds: f64,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            section,
            name,
            dtype,
            kernels,
            verdict,
            ..
        } = self;
        write!(f, "{name} in {dtype}, kernels {kernels} ({section}): ")?;
        match (&verdict.error, &verdict.worst) {
            (Some(error), _) => f.write_str(error),
            (None, Some(worst)) => write!(f, "{worst}"),
            (None, None) => f.write_str("nothing was compared"),
        }
    }
}

/// Not by a bit.
pub(super) const SAME_BITS: Tolerance = Tolerance {
    atol: 0.0,
    rtol: 0.0,
};

/// How far results of operations may be from those of the CPU in f64. `exact` are the CPU's own kernels, whose
/// sums are kept in more digits than plain operations keep, but for those that are sums of products.
pub(super) fn of_operations(dtype: DType, exact: bool) -> Tolerance {
    match dtype {
        DType::F64 => TRAJECTORY_F64,
        DType::F32 if exact => FUSED_F32,
        DType::F32 => DEVICE_F32,
        _ => HALF,
    }
}

/// How far weights may be after fifty steps from those of the CPU, in the same dtype.
pub(super) fn of_trajectories(device: &Device, dtype: DType) -> Tolerance {
    match dtype {
        DType::F64 => TRAJECTORY_F64,
        DType::F32 if device.is_cpu() => TRAJECTORY_F32,
        DType::F32 => DEVICE_F32,
        _ => HALF,
    }
}
