//! What is measured of one solution.

use anyhow::Result;
use candle_core::Tensor;
use sala_core::{
    Objective, ParamSet,
    sharpness::{
        self, Advance, Ball, ParamsAverage, ParamsDensity, ParamsLanczos, ParamsTrace, ParamsWorst,
        Spread, Surface,
    },
};
use serde::{Deserialize, Serialize};

/// How everything is measured; the same for every solution of a table.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// Training images that the loss is taken on, the first of the seed's training part.
    pub(crate) images: usize,
    /// Images of a micro-batch: the m of m-sharpness.
    pub(crate) m: usize,
    /// Radius of the worst rise in L2.
    pub(crate) rho: f64,
    /// Radius of the worst rise relative to the weights.
    pub(crate) rho_adaptive: f64,
    /// Standard deviation of the random displacements of the average rise, for each weight.
    pub(crate) sigma: f64,
    /// Steps of the ascent to the worst rise.
    pub(crate) ascent_steps: usize,
    /// Hessian-vector products of the method of Lanczos at most.
    pub(crate) lanczos_steps: usize,
    /// Random vectors of the trace.
    pub(crate) trace_samples: usize,
    /// Random displacements of the average rise.
    pub(crate) average_samples: usize,
    /// Of all random directions.
    pub(crate) seed: u64,
}

/// Offset of the magnitudes of the adaptive ball, as in ASAM.
const ETA: f64 = 0.01;

/// How many times smaller than the largest eigenvalue its error is to be.
const EIGENVALUE_TOLERANCE: f64 = 1e-2;

/// The numbers of one solution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measures {
    pub(crate) optimizer: String,
    pub(crate) seed: u64,
    /// On the images measured, without weight decay.
    pub(crate) loss: f64,
    pub(crate) grad_norm: f64,
    /// Simple noise scale in images; nothing where noise drowns the gradient.
    pub(crate) noise_scale: Option<f64>,
    pub(crate) lambda_max: f64,
    /// An eigenvalue lies within this distance.
    pub(crate) lambda_max_error: f64,
    pub(crate) lambda_min: f64,
    pub(crate) trace: f64,
    pub(crate) trace_error: Option<f64>,
    /// Rise of a micro-batch's loss at the worst place within ρ.
    pub(crate) worst: f64,
    /// The same, ρ relative to the weights.
    pub(crate) worst_adaptive: f64,
    /// Mean rise under random displacements.
    pub(crate) average: f64,
    pub(crate) average_error: Option<f64>,
    /// Relative change of a Hessian-vector product with the step of its difference.
    pub(crate) product_error: Option<f64>,
    /// Gradient evaluations on the images measured, and evaluations of the loss alone.
    pub(crate) gradients: f64,
    pub(crate) losses: f64,
    /// SHA-256 of the parameters, as in the run's record.
    pub(crate) parameters: String,
}

/// Measures the loss around the parameters as they are. `name` is optimizer, seed and fingerprint.
pub(crate) fn measure(
    (optimizer, seed, parameters): (&str, u64, String),
    params: &ParamSet,
    objective: &mut dyn Objective,
    settings: &Settings,
    observer: impl FnMut(Advance),
) -> Result<Measures> {
    let mut surface = Surface::new(params, objective).observed_by(observer);
    let loss = surface.loss()?;
    let noise = sharpness::gradient_noise(&mut surface, settings.m)?;
    let worst = |ball, rho| ParamsWorst {
        rho,
        ball,
        steps: settings.ascent_steps,
    };
    let plain = sharpness::worst_sharpness(&mut surface, &worst(Ball::L2, settings.rho))?;
    let adaptive = worst(Ball::Adaptive { eta: ETA }, settings.rho_adaptive);
    let adaptive = sharpness::worst_sharpness(&mut surface, &adaptive)?;
    let average = ParamsAverage {
        rho: settings.sigma,
        ball: Ball::L2,
        spread: Spread::Gaussian,
        samples: settings.average_samples,
        seed: settings.seed,
    };
    let average = sharpness::average_sharpness(&mut surface, &average)?;
    let ends = ParamsLanczos {
        max_steps: settings.lanczos_steps,
        tolerance: EIGENVALUE_TOLERANCE,
        seed: settings.seed,
        ..Default::default()
    };
    let ends = sharpness::lanczos(&mut surface, &ends)?;
    let trace = ParamsTrace {
        samples: settings.trace_samples,
        seed: settings.seed,
    };
    let trace = sharpness::trace(&mut surface, &trace)?;
    let step = surface.difference_step()?;
    let cost = surface.cost();
    Ok(Measures {
        optimizer: optimizer.into(),
        seed,
        loss,
        grad_norm: noise.norm,
        noise_scale: noise.scale,
        lambda_max: ends.largest[0].value,
        lambda_max_error: ends.largest[0].error,
        lambda_min: ends.smallest.value,
        trace: trace.value,
        trace_error: trace.standard_error,
        worst: plain.mean,
        worst_adaptive: adaptive.mean,
        average: average.mean,
        average_error: average.standard_error,
        product_error: step.disagreement,
        gradients: cost.gradients,
        losses: cost.losses,
        parameters,
    })
}

/// What the figures show of one solution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Slices {
    pub(crate) optimizer: String,
    pub(crate) seed: u64,
    /// Ritz values and weights of the spectral density.
    pub(crate) density: Vec<(f64, f64)>,
    /// Places along a random direction, filter-normalised: 1 is as long as the weights.
    pub(crate) ts: Vec<f64>,
    /// Nothing where the loss is not finite.
    pub(crate) losses: Vec<Option<f64>>,
    pub(crate) map: Map,
}

/// Losses in a plane.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Map {
    pub(crate) xs: Vec<f64>,
    pub(crate) ys: Vec<f64>,
    /// A row for each y; nothing where the loss is not finite.
    pub(crate) losses: Vec<Vec<Option<f64>>>,
    /// Where training was after each epoch, ending at the solution; none in a random plane.
    pub(crate) trajectory: Vec<[f64; 2]>,
    /// Share of the trajectory's variance along each axis.
    pub(crate) explained: Option<[f64; 2]>,
}

/// Points of a profile, and of each side of a map.
const PROFILE_POINTS: usize = 31;
const MAP_POINTS: usize = 17;
/// How far a profile and a map in a random plane reach.
const REACH: f64 = 1.0;
/// Part of its extent by which a trajectory's map is larger on every side.
const MARGIN: f64 = 0.25;
/// Products of the spectral density, for one random vector.
const DENSITY_STEPS: usize = 50;

/// Measures what the figures show.
pub(crate) fn slices(
    (optimizer, seed): (&str, u64),
    params: &ParamSet,
    objective: &mut dyn Objective,
    points: &[Vec<Tensor>],
    settings: &Settings,
    observer: impl FnMut(Advance),
) -> Result<Slices> {
    let mut surface = Surface::new(params, objective).observed_by(observer);
    let density = ParamsDensity {
        samples: 1,
        steps: DENSITY_STEPS,
        seed: settings.seed,
    };
    let density = sharpness::spectral_density(&mut surface, &density)?;
    let nodes = density.samples.iter().flatten();
    let random = |number| {
        let direction = sharpness::gaussian(params, settings.seed, number)?;
        sharpness::filter_normalised(params, &direction)
    };
    let (first, second) = (random(0)?, random(1)?);
    let ts = evenly(-REACH, REACH, PROFILE_POINTS);
    let losses = surface.losses_along(&first, &ts)?;
    let map = if points.len() > 2 {
        let plane = sharpness::principal_plane(params, points)?;
        let axis = |i: usize| {
            let along = plane.coordinates.iter().map(|c| c[i]);
            let low = along.clone().fold(f64::INFINITY, f64::min);
            let high = along.fold(f64::NEG_INFINITY, f64::max);
            let margin = MARGIN * (high - low);
            evenly(low - margin, high + margin, MAP_POINTS)
        };
        let [x, y] = &plane.directions;
        let grid = sharpness::losses_in_plane(&mut surface, [x, y], &axis(0), &axis(1))?;
        Map {
            xs: grid.xs,
            ys: grid.ys,
            losses: grid.losses.into_iter().map(finite).collect(),
            trajectory: plane.coordinates,
            explained: Some(plane.explained),
        }
    } else {
        let axis = evenly(-REACH, REACH, MAP_POINTS);
        let grid = sharpness::losses_in_plane(&mut surface, [&first, &second], &axis, &axis)?;
        Map {
            xs: grid.xs,
            ys: grid.ys,
            losses: grid.losses.into_iter().map(finite).collect(),
            trajectory: Vec::new(),
            explained: None,
        }
    };
    Ok(Slices {
        optimizer: optimizer.into(),
        seed,
        density: nodes.map(|node| (node.eigenvalue, node.weight)).collect(),
        ts,
        losses: finite(losses),
        map,
    })
}

/// JSON has no infinity.
fn finite(losses: Vec<f64>) -> Vec<Option<f64>> {
    losses
        .into_iter()
        .map(|l| l.is_finite().then_some(l))
        .collect()
}

/// So many numbers, both ends among them.
fn evenly(low: f64, high: f64, count: usize) -> Vec<f64> {
    let step = (high - low) / (count - 1) as f64;
    (0..count).map(|i| low + step * i as f64).collect()
}
