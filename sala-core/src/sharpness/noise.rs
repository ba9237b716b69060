//! Norm and noise of the gradient. With gᵢ the gradients of n micro-batches of b rows each,
//!
//! ```text
//! Ḡ = 1/n Σ gᵢ      S = 1/(n − 1) Σ ‖gᵢ − Ḡ‖²      |G|² = ‖Ḡ‖² − S/n      B = b S / |G|²
//! ```
//!
//! S is the trace of the covariance of a micro-batch's gradient, `|G|²` an estimate of the squared norm of the
//! expected gradient, without what noise adds to that of the mean, and B the simple noise scale (`McCandlish`
//! et al. 2018, arXiv:1812.06162, appendix A.1): the batch size at which noise and gradient are equally large.
//! Near a minimum the gradient vanishes and B grows without bound. Cost: 1 gradient.

use candle_core::Tensor;

use super::{Cost, Surface};
use crate::{
    error::{Error, Result, check},
    vector,
};

/// What gradients of micro-batches tell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GradientNoise {
    /// ‖Ḡ‖₂ of the mean gradient.
    pub norm: f64,
    /// |G|², free of bias, so that it can be negative where noise drowns the gradient.
    pub squared_signal: f64,
    /// b S: the trace of the covariance of a single row's gradient.
    pub variance: f64,
    /// B in rows; nothing where |G|² is not above zero.
    pub scale: Option<f64>,
    /// What it took.
    pub cost: Cost,
}

/// The gradient's norm and noise, from the micro-batches of the objective
/// ([`MicroBatches`](crate::MicroBatches)), of `rows` rows each.
///
/// # Errors
/// [`Error::TooFewMicroBatches`] for fewer than two, [`Error::Config`] for 0 rows, those of the
/// objective and of an amiss gradient.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use sala_core::{MicroBatches, ParamSet, Pass, sharpness::{Surface, gradient_noise}};
///
/// let w = Var::new(0f64, &Device::Cpu)?;
/// let params = ParamSet::new([("w", w.clone())])?;
/// // gradients 1, 2 and 6: mean 3, variance 7
/// let mut loss = |part: usize, _pass: Pass| w.affine([1.0, 2.0, 6.0][part], 0.0);
/// let mut parts = MicroBatches::new(&params, 3, &mut loss);
/// let noise = gradient_noise(&mut Surface::new(&params, &mut parts), 10)?;
/// assert!((noise.variance - 70.0).abs() < 1e-12);
/// assert!((noise.squared_signal - (9.0 - 7.0 / 3.0)).abs() < 1e-12);
/// # Ok::<(), sala_core::Error>(())
/// ```
pub fn gradient_noise(surface: &mut Surface, rows: usize) -> Result<GradientNoise> {
    check::at_least_one("gradient_noise", "rows", rows as u64)?;
    let parts = surface.micro_batches();
    if parts < 2 {
        return Err(Error::TooFewMicroBatches {
            what: "the noise of the gradient",
            wanted: 2,
            got: parts,
        });
    }
    let before = surface.cost();
    let n = parts as f64;
    let mut mean: Option<Vec<Tensor>> = None;
    let mut squares = 0.0;
    for part in 0..parts {
        let gradients = surface.gradient_here(Some(part))?.gradients;
        squares += gradients.norm().powi(2);
        match &mut mean {
            Some(mean) => vector::accumulate(mean, gradients.tensors(), 1.0 / n)?,
            None => mean = Some(vector::scaled(gradients.tensors(), 1.0 / n)?),
        }
        surface.advance("gradient noise", part + 1, parts);
    }
    let norm = vector::norm(&mean.unwrap_or_default())?;
    // Rounding can take it below zero where all gradients are the same.
    let spread = ((squares - n * norm.powi(2)) / (n - 1.0)).max(0.0);
    let squared_signal = norm.powi(2) - spread / n;
    let variance = rows as f64 * spread;
    Ok(GradientNoise {
        norm,
        squared_signal,
        variance,
        scale: (squared_signal > 0.0).then(|| variance / squared_signal),
        cost: surface.cost() - before,
    })
}
