//! m-sharpness: how much the loss of a micro-batch of m rows can rise, or rises on average, within a
//! distance ρ of the weights (Foret et al. 2021, arXiv:2010.01412, section 4.1; Andriushchenko et al. 2023,
//! arXiv:2302.07011):
//!
//! ```text
//! worst:     E_B   max      L_B(w + δ) − L_B(w)            average:   E_B E_δ  L_B(w + δ) − L_B(w)
//!               ‖δ/c‖₂ ≤ ρ
//! ```
//!
//! with c = 1 (L2), or c = |w| + η element by element, which makes the measure invariant to a rescaling of weights that
//! leaves the function alone. B runs over the micro-batches of the objective, so m is their size; an objective of one batch is
//! measured as a whole.
//!
//! The maximum is sought by ascent, u = δ/c:
//!
//! ```text
//! u ← Π(u + ρ c g / ‖c g‖),   g = ∇L_B(w + c u),   Π onto ‖u‖₂ ≤ ρ
//! ```
//!
//! from u = 0, and at a stationary point in a random direction. The first step is the ascent of SAM (ASAM), so one step gives the rise that SAM sees; more turn
//! u towards where curvature is largest, as a power iteration does. The largest rise of all steps counts, a lower bound
//! of the maximum. Factors of the radius ([`ParamSet::with_rho_scale`](crate::ParamSet::with_rho_scale))
//! play no part; frozen parameters stay.

use candle_core::Tensor;

use super::{Cost, Surface, directions, mean_and_error, surface::require_finite};
use crate::{
    error::{Result, check},
    params::{Param, ParamSet},
    vector,
};

/// In which measure δ is bounded.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Ball {
    /// ‖δ‖₂.
    #[default]
    L2,
    /// ‖δ / (|w| + η)‖₂; parameters that are said not to be adaptive
    /// ([`ParamSet::with_adaptive`]) are divided by 1.
    Adaptive {
        /// η ≥ 0. With 0, weights that are zero stay.
        eta: f64,
    },
}

impl Ball {
    fn validate(self) -> Result<()> {
        match self {
            Self::L2 => Ok(()),
            Self::Adaptive { eta } => check::non_negative("Ball::Adaptive", "eta", eta),
        }
    }

    /// c; nothing where it is 1.
    fn scales(self, params: &ParamSet, weights: &[Tensor]) -> Result<Option<Vec<Tensor>>> {
        let Self::Adaptive { eta } = self else {
            return Ok(None);
        };
        let scale = |(param, w): (&Param, &Tensor)| {
            Ok(if param.adaptive().unwrap_or(true) {
                (w.abs()? + eta)?
            } else {
                w.ones_like()?
            })
        };
        params
            .iter()
            .zip(weights)
            .map(scale)
            .collect::<Result<_>>()
            .map(Some)
    }
}

/// Where the worst rise is sought.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParamsWorst {
    /// ρ ≥ 0.
    pub rho: f64,
    /// In which measure.
    pub ball: Ball,
    /// Steps of the ascent, at least 1; 1 is SAM's own.
    pub steps: usize,
}

impl Default for ParamsWorst {
    /// ρ 0.05 in L2, 10 steps.
    fn default() -> Self {
        Self {
            rho: 0.05,
            ball: Ball::L2,
            steps: 10,
        }
    }
}

/// How random displacements are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Spread {
    /// Uniformly over ‖δ/c‖₂ = ρ, the border of the ball that the worst rise is sought in; in many
    /// dimensions nearly all of the ball lies there.
    #[default]
    Sphere,
    /// Normally, each element with standard deviation ρ c, as in Andriushchenko et al. 2023: about the sphere of radius ρ √n
    /// in n dimensions.
    Gaussian,
}

/// What the average rise is taken over.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParamsAverage {
    /// ρ ≥ 0.
    pub rho: f64,
    /// In which measure.
    pub ball: Ball,
    /// How it is spread.
    pub spread: Spread,
    /// Pairs of displacements δ and −δ for each micro-batch, at least 1. Within a pair the slope cancels, which is what
    /// varies most.
    pub samples: usize,
    /// Of the random displacements, which are the same for every micro-batch.
    pub seed: u64,
}

impl Default for ParamsAverage {
    /// ρ 0.05 on the sphere in L2, 10 pairs.
    fn default() -> Self {
        Self {
            rho: 0.05,
            ball: Ball::L2,
            spread: Spread::Sphere,
            samples: 10,
            seed: 0,
        }
    }
}

/// A rise of the loss.
#[derive(Debug, Clone, PartialEq)]
pub struct LossRise {
    /// Mean over micro-batches.
    pub mean: f64,
    /// Of each micro-batch.
    pub batches: Vec<f64>,
    /// Standard error of the mean over micro-batches; for the average rise of a single one, over its
    /// pairs. Nothing where there is only one number.
    pub standard_error: Option<f64>,
    /// What it took.
    pub cost: Cost,
}

/// Worst-case m-sharpness. Cost: `steps` gradients and 1 loss.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config), those of the objective, and
/// [`Error::NonFinite`](crate::Error::NonFinite) where the loss overflows within ρ.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use sala_core::{ParamSet, Pass, sharpness::{ParamsWorst, Surface, worst_sharpness}};
///
/// let w = Var::new(&[0f64, 0.1], &Device::Cpu)?;
/// let curvatures = Tensor::new(&[100.0, 1.0], &Device::Cpu)?;
/// let params = ParamSet::new([("w", w.clone())])?;
/// let mut loss = |_pass: Pass| ((w.sqr()? * &curvatures)? * 0.5)?.sum_all();
/// let config = ParamsWorst { rho: 0.2, steps: 1, ..Default::default() };
/// let rise = worst_sharpness(&mut Surface::new(&params, &mut loss), &config)?;
/// // from (0, 0.1) the gradient points along the flat axis: to (0, 0.3)
/// assert!((rise.mean - (0.045 - 0.005)).abs() < 1e-12);
/// # Ok::<(), sala_core::Error>(())
/// ```
pub fn worst_sharpness(surface: &mut Surface, config: &ParamsWorst) -> Result<LossRise> {
    check::non_negative("ParamsWorst", "rho", config.rho)?;
    check::at_least_one("ParamsWorst", "steps", config.steps as u64)?;
    config.ball.validate()?;
    let before = surface.cost();
    let weights = surface.weights()?;
    let scales = config.ball.scales(surface.params(), &weights)?;
    drop(weights);
    let parts = surface.micro_batches();
    let mut batches = Vec::with_capacity(parts);
    for part in 0..parts {
        let place = (parts > 1).then_some(part);
        batches.push(climb(surface, config, scales.as_deref(), place)?);
        surface.advance("worst loss rise", part + 1, parts);
    }
    let (mean, standard_error) = mean_and_error(&batches);
    Ok(LossRise {
        mean,
        batches,
        standard_error,
        cost: surface.cost() - before,
    })
}

/// The largest rise that the ascent meets on one micro-batch.
fn climb(
    surface: &mut Surface,
    config: &ParamsWorst,
    scales: Option<&[Tensor]>,
    part: Option<usize>,
) -> Result<f64> {
    let start = surface.gradient_here(part)?;
    let (at_weights, mut gradient) = (start.loss, start.gradients.into_tensors());
    let mut u: Option<Vec<Tensor>> = None;
    // δ = 0 lies in the ball.
    let mut best = 0f64;
    for step in 1..=config.steps {
        let ahead = match (directions::unit(&times(&gradient, scales)?)?, &u) {
            (Some(ahead), _) => ahead,
            (None, Some(_)) => break,
            // A stationary point: every direction is as good.
            (None, None) => {
                let random = directions::gaussian(surface.params(), 0, 0)?;
                directions::unit(&random)?.unwrap_or(random)
            }
        };
        let mut next = vector::scaled(&ahead, config.rho)?;
        if let Some(u) = &u {
            vector::accumulate(&mut next, u, 1.0)?;
            let norm = vector::norm(&next)?;
            if norm > config.rho {
                next = vector::scaled(&next, config.rho / norm)?;
            }
        }
        let delta = times(&next, scales)?;
        let loss = if step == config.steps {
            let loss = surface.at(&delta, 1.0, |surface| surface.loss_here(part))?;
            require_finite(loss)?
        } else {
            let read = surface.at(&delta, 1.0, |surface| surface.gradient_here(part))?;
            gradient = read.gradients.into_tensors();
            read.loss
        };
        best = best.max(loss - at_weights);
        u = Some(next);
    }
    Ok(best)
}

/// c x.
fn times(x: &[Tensor], scales: Option<&[Tensor]>) -> Result<Vec<Tensor>> {
    match scales {
        None => Ok(x.to_vec()),
        Some(scales) => {
            let product = |(x, c): (&Tensor, &Tensor)| Ok((x * c)?);
            x.iter().zip(scales).map(product).collect()
        }
    }
}

/// Average-case m-sharpness. Cost: 1 + 2 `samples` losses.
///
/// # Errors
/// As for [`worst_sharpness`].
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use sala_core::{ParamSet, Pass, sharpness::{ParamsAverage, Surface, average_sharpness}};
///
/// let w = Var::new(&[1f64, 1.0, 1.0], &Device::Cpu)?;
/// let params = ParamSet::new([("w", w.clone())])?;
/// let mut loss = |_pass: Pass| w.sqr()?.sum_all();
/// let config = ParamsAverage { rho: 0.5, ..Default::default() };
/// let rise = average_sharpness(&mut Surface::new(&params, &mut loss), &config)?;
/// assert!((rise.mean - 0.25).abs() < 1e-12); // ‖w + δ‖² + ‖w − δ‖² = 2 ‖w‖² + 2 ρ²
/// # Ok::<(), sala_core::Error>(())
/// ```
pub fn average_sharpness(surface: &mut Surface, config: &ParamsAverage) -> Result<LossRise> {
    check::non_negative("ParamsAverage", "rho", config.rho)?;
    check::at_least_one("ParamsAverage", "samples", config.samples as u64)?;
    config.ball.validate()?;
    let before = surface.cost();
    let scales = config.ball.scales(surface.params(), &surface.weights()?)?;
    let parts = surface.micro_batches();
    let place = |part: usize| (parts > 1).then_some(part);
    let mut at_weights = Vec::with_capacity(parts);
    for part in 0..parts {
        let loss = surface.loss_here(place(part))?;
        at_weights.push(require_finite(loss)?);
    }
    // The displacement goes outside: to draw one costs more than a small forward pass.
    let mut rises = vec![Vec::with_capacity(config.samples); parts];
    for number in 0..config.samples {
        let delta = displacement(surface.params(), config, scales.as_deref(), number as u64)?;
        let mut sums = vec![0.0; parts];
        for sign in [1.0, -1.0] {
            let losses: Vec<f64> = surface.at(&delta, sign, |surface| {
                (0..parts)
                    .map(|part| surface.loss_here(place(part)))
                    .collect()
            })?;
            for (sum, loss) in sums.iter_mut().zip(losses) {
                *sum += require_finite(loss)?;
            }
        }
        for ((rises, sum), at_weights) in rises.iter_mut().zip(sums).zip(&at_weights) {
            rises.push(sum / 2.0 - at_weights);
        }
        surface.advance("average loss rise", number + 1, config.samples);
    }
    let batches: Vec<f64> = rises.iter().map(|rises| mean_and_error(rises).0).collect();
    let (mean, over_batches) = mean_and_error(&batches);
    let over_pairs = mean_and_error(&rises[0]).1;
    Ok(LossRise {
        mean,
        batches,
        standard_error: if parts > 1 { over_batches } else { over_pairs },
        cost: surface.cost() - before,
    })
}

/// δ.
fn displacement(
    params: &ParamSet,
    config: &ParamsAverage,
    scales: Option<&[Tensor]>,
    number: u64,
) -> Result<Vec<Tensor>> {
    let z = directions::gaussian(params, config.seed, number)?;
    let factor = match config.spread {
        Spread::Gaussian => config.rho,
        Spread::Sphere => config.rho / vector::norm(&z)?,
    };
    times(&vector::scaled(&z, factor)?, scales)
}
