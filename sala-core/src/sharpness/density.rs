//! The density of the Hessian's eigenvalues by stochastic Lanczos quadrature (Lin, Saad and Yang 2016,
//! arXiv:1308.5467; Ghorbani et al. 2019, arXiv:1901.10159):
//!
//! ```text
//! φ(t) = 1/n Σᵢ δ(t − λᵢ)  ≈  1/p Σ_l Σₖ (s_k1)² N(t; θₖ, σ²)
//! ```
//!
//! over p random vectors, with θ and s the eigenvalues and eigenvectors of each one's T
//! (see [`lanczos`](super::lanczos)), of whose s the first element counts. Moments of the density up to twice the
//! number of steps are exact for each vector; the variance between vectors falls with the
//! dimension.
//!
//! Cost: steps × vectors Hessian-vector products. Memory: a copy of the parameters for each step.

use super::{Cost, Surface, directions, lanczos::Krylov};
use crate::error::{Result, check};

/// How many random vectors, and how fine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParamsDensity {
    /// Random vectors, at least 1.
    pub samples: usize,
    /// Products for each, at least 1.
    pub steps: usize,
    /// Of the random vectors.
    pub seed: u64,
}

impl Default for ParamsDensity {
    /// Three vectors of 40 products each.
    fn default() -> Self {
        Self {
            samples: 3,
            steps: 40,
            seed: 0,
        }
    }
}

/// A point mass of the density.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Node {
    /// A Ritz value θ.
    pub eigenvalue: f64,
    /// Its share of all eigenvalues; those of a vector add up to 1.
    pub weight: f64,
}

/// The density of eigenvalues, as point masses.
#[derive(Debug, Clone, PartialEq)]
pub struct Density {
    /// For each random vector, the largest eigenvalue first.
    pub samples: Vec<Vec<Node>>,
    /// Number of eigenvalues: the parameters' scalars.
    pub dimension: usize,
    /// What it took.
    pub cost: Cost,
}

impl Density {
    /// The smallest and the largest Ritz value.
    pub fn range(&self) -> (f64, f64) {
        let values = self.samples.iter().flatten().map(|node| node.eigenvalue);
        let start = (f64::INFINITY, f64::NEG_INFINITY);
        values.fold(start, |(low, high), x| (low.min(x), high.max(x)))
    }

    /// φ(t), every point mass widened to a normal distribution of standard deviation `sigma` > 0. It
    /// integrates to 1.
    pub fn at(&self, t: f64, sigma: f64) -> f64 {
        let normal = |x: f64| {
            let z = (t - x) / sigma;
            (-0.5 * z * z).exp() / (sigma * (2.0 * std::f64::consts::PI).sqrt())
        };
        let nodes = self.samples.iter().flatten();
        let sum: f64 = nodes
            .map(|node| node.weight * normal(node.eigenvalue))
            .sum();
        sum / self.samples.len() as f64
    }

    /// Σ λᵢᵏ / n for each random vector: their mean is the density's moment, their spread its error. The
    /// first times the dimension is the trace.
    pub fn moments(&self, k: i32) -> Vec<f64> {
        let moment = |nodes: &Vec<Node>| {
            let terms = nodes
                .iter()
                .map(|node| node.weight * node.eigenvalue.powi(k));
            terms.sum()
        };
        self.samples.iter().map(moment).collect()
    }
}

/// The density of eigenvalues.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config), those of the objective and of
/// [`Surface::hessian_product`].
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use sala_core::{ParamSet, Pass, sharpness::{ParamsDensity, Surface, spectral_density}};
///
/// let w = Var::new(&[1f64, 2.0, 3.0], &Device::Cpu)?;
/// let curvatures = Tensor::new(&[0.5f64, -4.0, 1.0], &Device::Cpu)?;
/// let params = ParamSet::new([("w", w.clone())])?;
/// let mut loss = |_pass: Pass| ((w.sqr()? * &curvatures)? * 0.5)?.sum_all();
/// let density = spectral_density(&mut Surface::new(&params, &mut loss), &ParamsDensity::default())?;
/// let thirds = &density.samples[0];
/// assert!(thirds.iter().all(|node| (node.weight - 1.0 / 3.0).abs() < 1e-8));
/// # Ok::<(), sala_core::Error>(())
/// ```
pub fn spectral_density(surface: &mut Surface, config: &ParamsDensity) -> Result<Density> {
    check::at_least_one("ParamsDensity", "samples", config.samples as u64)?;
    check::at_least_one("ParamsDensity", "steps", config.steps as u64)?;
    let before = surface.cost();
    let dimension = surface.params().num_elements();
    let steps = config.steps.min(dimension);
    let total = config.samples * steps;
    let mut samples = Vec::with_capacity(config.samples);
    for number in 0..config.samples {
        let start = directions::rademacher(surface.params(), config.seed, number as u64)?;
        let mut krylov = Krylov::new(start)?;
        while krylov.extend(surface)? && krylov.diagonal.len() < steps {
            let done = number * steps + krylov.diagonal.len();
            surface.advance("spectral density", done, total);
        }
        surface.advance("spectral density", (number + 1) * steps, total);
        samples.push(nodes(&krylov));
    }
    Ok(Density {
        samples,
        dimension,
        cost: surface.cost() - before,
    })
}

fn nodes(krylov: &Krylov) -> Vec<Node> {
    let eigen = krylov.tridiagonal().eigen();
    let node = |(eigenvalue, vector): (f64, Vec<f64>)| Node {
        eigenvalue,
        weight: vector.first().map_or(0.0, |x| x * x),
    };
    eigen
        .values
        .into_iter()
        .zip(eigen.vectors)
        .map(node)
        .collect()
}
