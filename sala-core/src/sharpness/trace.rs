//! The trace of the Hessian, Σ λᵢ, by Hutchinson's estimator (1990, doi:10.1080/03610919008812866):
//!
//! ```text
//! tr H = E vᵀ H v,   v with elements ±1          sd(vᵀ H v) = √(2 (‖H‖²_F − Σ Hᵢᵢ²))
//! ```
//!
//! Cost: a Hessian-vector product for each v.

use super::{Cost, Surface, directions};
use crate::{
    error::{Result, check},
    vector,
};

/// How many random vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParamsTrace {
    /// Random vectors, at least 2 for an error bar.
    pub samples: usize,
    /// Of the random vectors.
    pub seed: u64,
}

impl Default for ParamsTrace {
    fn default() -> Self {
        Self {
            samples: 30,
            seed: 0,
        }
    }
}

/// An estimate of the trace.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// Mean over the samples.
    pub value: f64,
    /// Standard error of that mean; nothing for a single sample. The error is about normal, so that two of
    /// them hold the true trace in 95 of 100 cases.
    pub standard_error: Option<f64>,
    /// vᵀ H v of each random vector.
    pub samples: Vec<f64>,
    /// What it took.
    pub cost: Cost,
}

/// Hutchinson's estimate of the trace.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config), those of the objective and of
/// [`Surface::hessian_product`].
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use sala_core::{ParamSet, Pass, sharpness::{ParamsTrace, Surface, trace}};
///
/// let w = Var::new(&[1f64, 2.0, 3.0], &Device::Cpu)?;
/// let curvatures = Tensor::new(&[0.5f64, -4.0, 1.0], &Device::Cpu)?;
/// let params = ParamSet::new([("w", w.clone())])?;
/// let mut loss = |_pass: Pass| ((w.sqr()? * &curvatures)? * 0.5)?.sum_all();
/// let trace = trace(&mut Surface::new(&params, &mut loss), &ParamsTrace::default())?;
/// assert!((trace.value + 2.5).abs() < 1e-8); // a diagonal Hessian has no variance
/// # Ok::<(), sala_core::Error>(())
/// ```
pub fn trace(surface: &mut Surface, config: &ParamsTrace) -> Result<Trace> {
    check::at_least_one("ParamsTrace", "samples", config.samples as u64)?;
    let before = surface.cost();
    let mut samples = Vec::with_capacity(config.samples);
    for number in 0..config.samples {
        let v = directions::rademacher(surface.params(), config.seed, number as u64)?;
        let product = surface.hessian_product(&v)?;
        samples.push(vector::dot(&v, &product)?);
        surface.advance("trace", number + 1, config.samples);
    }
    let (value, standard_error) = super::mean_and_error(&samples);
    Ok(Trace {
        value,
        standard_error,
        samples,
        cost: surface.cost() - before,
    })
}
