//! The eigenvalues of largest magnitude, one after the other, by power iteration with deflation:
//!
//! ```text
//! v ← P H v / ‖P H v‖,   λ = vᵀ H v,   P = I − Σ uᵢ uᵢᵀ over the eigenvectors found before
//! ```
//!
//! This is what `PyHessian` (Yao et al. 2020, arXiv:1912.07145) calls its top eigenvalues. It needs two vectors
//! and one more for each eigenvalue, where [`lanczos`](super::lanczos) keeps one for each product, and many
//! more products. Cost: a Hessian-vector product for each iteration.

use candle_core::Tensor;

use super::{Cost, Surface, directions};
use crate::{
    error::{Result, check},
    vector,
};

/// How many eigenvalues, and how well.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParamsPower {
    /// Eigenvalues, at least 1.
    pub count: usize,
    /// Products for each at most, at least 1.
    pub max_steps: usize,
    /// Stops when an eigenvalue changes by less than this share of itself, above 0.
    pub tolerance: f64,
    /// Of the random starting vectors.
    pub seed: u64,
}

impl Default for ParamsPower {
    /// One eigenvalue in at most 100 products to 1e-3, as in `PyHessian`.
    fn default() -> Self {
        Self {
            count: 1,
            max_steps: 100,
            tolerance: 1e-3,
            seed: 0,
        }
    }
}

impl ParamsPower {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config), naming the field.
    pub fn validate(&self) -> Result<()> {
        check::at_least_one("ParamsPower", "count", self.count as u64)?;
        check::at_least_one("ParamsPower", "max_steps", self.max_steps as u64)?;
        check::positive("ParamsPower", "tolerance", self.tolerance)
    }
}

/// An eigenvalue and its eigenvector.
#[derive(Debug, Clone)]
pub struct Eigenpair {
    /// λ = vᵀ H v.
    pub value: f64,
    /// ‖H v − λ v‖: an eigenvalue of H lies within this distance of λ.
    pub residual: f64,
    /// v, of length 1: one tensor for each parameter, in the order of their names.
    pub vector: Vec<Tensor>,
    /// Products that it took.
    pub steps: usize,
    /// Whether λ had settled within the steps that were allowed.
    pub converged: bool,
}

/// The eigenvalues of largest magnitude, in the order in which they were found.
#[derive(Debug, Clone)]
pub struct TopEigenvalues {
    /// Fewer than asked for when the parameters have fewer dimensions.
    pub pairs: Vec<Eigenpair>,
    /// What it took.
    pub cost: Cost,
}

/// Power iteration.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config), those of the objective and of
/// [`Surface::hessian_product`].
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use sala_core::{ParamSet, Pass, sharpness::{ParamsPower, Surface, power_iteration}};
///
/// let w = Var::new(&[1f64, 2.0, 3.0], &Device::Cpu)?;
/// let curvatures = Tensor::new(&[0.5f64, -4.0, 1.0], &Device::Cpu)?;
/// let params = ParamSet::new([("w", w.clone())])?;
/// let mut loss = |_pass: Pass| ((w.sqr()? * &curvatures)? * 0.5)?.sum_all();
/// let top = power_iteration(&mut Surface::new(&params, &mut loss), &ParamsPower::default())?;
/// assert!((top.pairs[0].value + 4.0).abs() < 0.01);
/// # Ok::<(), sala_core::Error>(())
/// ```
pub fn power_iteration(surface: &mut Surface, config: &ParamsPower) -> Result<TopEigenvalues> {
    config.validate()?;
    let before = surface.cost();
    let count = config.count.min(surface.params().num_elements());
    let mut pairs = Vec::with_capacity(count);
    for number in 0..count {
        let Some(pair) = one(surface, config, number, &pairs)? else {
            break;
        };
        pairs.push(pair);
    }
    Ok(TopEigenvalues {
        pairs,
        cost: surface.cost() - before,
    })
}

/// The largest one outside the space of those found; nothing when that space is all.
fn one(
    surface: &mut Surface,
    config: &ParamsPower,
    number: usize,
    found: &[Eigenpair],
) -> Result<Option<Eigenpair>> {
    let start = directions::gaussian(surface.params(), config.seed, number as u64)?;
    let Some(mut v) = directions::unit(&outside(start, found)?)? else {
        return Ok(None);
    };
    let mut last: Option<f64> = None;
    for step in 1..=config.max_steps {
        let product = outside(surface.hessian_product(&v)?, found)?;
        surface.advance("power iteration", step, config.max_steps);
        let value = vector::dot(&v, &product)?;
        let settled =
            last.is_some_and(|last| (value - last).abs() <= config.tolerance * value.abs());
        let next = directions::unit(&product)?;
        if settled || step == config.max_steps || next.is_none() {
            return Ok(Some(Eigenpair {
                value,
                residual: residual(&product, &v, value)?,
                vector: v,
                steps: step,
                converged: settled || next.is_none(),
            }));
        }
        last = Some(value);
        v = next.unwrap_or(v);
    }
    Ok(None)
}

/// ‖H v − λ v‖.
fn residual(product: &[Tensor], v: &[Tensor], value: f64) -> Result<f64> {
    let mut rest = vector::scaled(product, 1.0)?;
    vector::accumulate(&mut rest, v, -value)?;
    vector::norm(&rest)
}

/// x without its parts along the eigenvectors.
fn outside(x: Vec<Tensor>, found: &[Eigenpair]) -> Result<Vec<Tensor>> {
    if found.is_empty() {
        return Ok(x);
    }
    let mut x = vector::scaled(&x, 1.0)?;
    for pair in found {
        let along = vector::dot(&x, &pair.vector)?;
        vector::accumulate(&mut x, &pair.vector, -along)?;
    }
    Ok(x)
}
