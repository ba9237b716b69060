//! Both ends of the Hessian's spectrum by the method of Lanczos:
//!
//! ```text
//! βⱼ qⱼ₊₁ = H qⱼ − αⱼ qⱼ − βⱼ₋₁ qⱼ₋₁,   αⱼ = qⱼᵀ H qⱼ          T = tridiag(β, α, β),  T s = θ s
//! ```
//!
//! The eigenvalues θ of T (Ritz values) approach those of H from within, the extreme ones first, and `|β s_last|`
//! bounds the distance to one. In floating point the vectors q lose their orthogonality as soon as a Ritz
//! value has converged, and copies of it appear; so each is made orthogonal to all before it, twice
//! (Giraud et al. 2005: twice is enough).
//!
//! Cost: a Hessian-vector product a step. Memory: a copy of the parameters for each step. For the same accuracy it
//! needs a fraction of the products of power iteration, and it is not confused by a negative eigenvalue of large
//! magnitude.

use candle_core::Tensor;

use super::{Cost, Surface, directions, symmetric::Symmetric};
use crate::{
    error::{Result, check},
    vector,
};

/// Convergence is looked at once in so many steps, since it costs as much as the cube of their number.
const CHECK_EVERY: usize = 4;

/// How many eigenvalues, and how well.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParamsLanczos {
    /// How many of the largest eigenvalues, at least 1.
    pub count: usize,
    /// Products at most, and copies of the parameters in memory, at least 1.
    pub max_steps: usize,
    /// Stops when the bounds of the errors of those eigenvalues are below this share of the largest
    /// magnitude, above 0. It cannot become smaller than the error of the products
    /// ([`Surface::difference_step`]).
    pub tolerance: f64,
    /// Whether eigenvectors are wanted.
    pub vectors: bool,
    /// Of the random starting vector.
    pub seed: u64,
}

impl Default for ParamsLanczos {
    /// The largest eigenvalue in at most 60 products to 1e-3, without its vector.
    fn default() -> Self {
        Self {
            count: 1,
            max_steps: 60,
            tolerance: 1e-3,
            vectors: false,
            seed: 0,
        }
    }
}

impl ParamsLanczos {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config), naming the field.
    pub fn validate(&self) -> Result<()> {
        check::at_least_one("ParamsLanczos", "count", self.count as u64)?;
        check::at_least_one("ParamsLanczos", "max_steps", self.max_steps as u64)?;
        check::positive("ParamsLanczos", "tolerance", self.tolerance)
    }
}

/// An approximate eigenvalue.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ritz {
    /// θ.
    pub value: f64,
    /// An eigenvalue lies within this distance of θ, but for the error of the products.
    pub error: f64,
}

/// Ends of the spectrum.
#[derive(Debug, Clone)]
pub struct SpectrumEnds {
    /// The largest eigenvalues, the largest first; fewer than asked for when the Krylov space has fewer
    /// dimensions.
    pub largest: Vec<Ritz>,
    /// The smallest eigenvalue, negative at a saddle; converged or not, as its error tells.
    pub smallest: Ritz,
    /// Eigenvectors of `largest`, of length 1, if they were asked for.
    pub vectors: Vec<Vec<Tensor>>,
    /// Products that were taken.
    pub steps: usize,
    /// Whether the largest eigenvalues are within the tolerance.
    pub converged: bool,
    /// What it took.
    pub cost: Cost,
}

/// The largest eigenvalues and the smallest one.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config), those of the objective and of
/// [`Surface::hessian_product`].
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use sala_core::{ParamSet, Pass, sharpness::{ParamsLanczos, Surface, lanczos}};
///
/// let w = Var::new(&[1f64, 2.0, 3.0], &Device::Cpu)?;
/// let curvatures = Tensor::new(&[0.5f64, -4.0, 1.0], &Device::Cpu)?;
/// let params = ParamSet::new([("w", w.clone())])?;
/// let mut loss = |_pass: Pass| ((w.sqr()? * &curvatures)? * 0.5)?.sum_all();
/// let ends = lanczos(&mut Surface::new(&params, &mut loss), &ParamsLanczos::default())?;
/// assert!((ends.largest[0].value - 1.0).abs() < 1e-8);
/// assert!((ends.smallest.value + 4.0).abs() < 1e-8);
/// # Ok::<(), sala_core::Error>(())
/// ```
pub fn lanczos(surface: &mut Surface, config: &ParamsLanczos) -> Result<SpectrumEnds> {
    config.validate()?;
    let before = surface.cost();
    let start = directions::gaussian(surface.params(), config.seed, 0)?;
    let mut krylov = Krylov::new(start)?;
    let most = config.max_steps.min(surface.params().num_elements());
    loop {
        let goes_on = krylov.extend(surface)?;
        let steps = krylov.diagonal.len();
        surface.advance("Lanczos", steps, most);
        let last = !goes_on || steps >= most;
        if !last && (steps < config.count || !steps.is_multiple_of(CHECK_EVERY)) {
            continue;
        }
        let ends = Ends::of(&krylov, config.count);
        let converged = !goes_on || ends.within(config.tolerance);
        if !last && !converged {
            continue;
        }
        let vectors = if config.vectors {
            ends.vectors
                .iter()
                .map(|s| krylov.combine(s))
                .collect::<Result<_>>()?
        } else {
            Vec::new()
        };
        return Ok(SpectrumEnds {
            largest: ends.largest,
            smallest: ends.smallest,
            vectors,
            steps,
            converged,
            cost: surface.cost() - before,
        });
    }
}

/// Ritz values at the ends of T's spectrum.
struct Ends {
    largest: Vec<Ritz>,
    smallest: Ritz,
    /// Eigenvectors of T for `largest`.
    vectors: Vec<Vec<f64>>,
}

impl Ends {
    fn of(krylov: &Krylov, count: usize) -> Self {
        let mut eigen = krylov.tridiagonal().eigen();
        let beta = krylov.beside.last().copied().unwrap_or(0.0);
        let ritz = |value: f64, vector: &[f64]| Ritz {
            value,
            error: beta * vector.last().map_or(0.0, |x| x.abs()),
        };
        let pairs = eigen.values.iter().zip(&eigen.vectors);
        let all: Vec<Ritz> = pairs.map(|(&value, vector)| ritz(value, vector)).collect();
        let none = Ritz {
            value: 0.0,
            error: 0.0,
        };
        eigen.vectors.truncate(count);
        Self {
            smallest: all.last().copied().unwrap_or(none),
            largest: all.into_iter().take(count).collect(),
            vectors: eigen.vectors,
        }
    }

    fn within(&self, tolerance: f64) -> bool {
        let ends = self.largest.first().map_or(0.0, |r| r.value.abs());
        let magnitude = ends.max(self.smallest.value.abs());
        self.largest
            .iter()
            .all(|r| r.error <= tolerance * magnitude)
    }
}

/// An orthonormal basis of span {v, H v, H² v, …}, and H in it.
pub(super) struct Krylov {
    basis: Vec<Vec<Tensor>>,
    /// αⱼ.
    pub(super) diagonal: Vec<f64>,
    /// βⱼ, one for each α; the last one leads out of the space.
    pub(super) beside: Vec<f64>,
}

impl Krylov {
    /// From a vector that is not zero.
    pub(super) fn new(start: Vec<Tensor>) -> Result<Self> {
        let start = directions::unit(&start)?.unwrap_or(start);
        Ok(Self {
            basis: vec![start],
            diagonal: Vec::new(),
            beside: Vec::new(),
        })
    }

    /// One product more. False when the space is invariant: T then has eigenvalues of H itself.
    pub(super) fn extend(&mut self, surface: &mut Surface) -> Result<bool> {
        let Some(last) = self.basis.last() else {
            return Ok(false);
        };
        let mut product = vector::scaled(&surface.hessian_product(last)?, 1.0)?;
        self.diagonal.push(vector::dot(last, &product)?);
        for _ in 0..2 {
            self.make_orthogonal(&mut product)?;
        }
        let beta = vector::norm(&product)?;
        // Below what differences of gradients can resolve there is no direction left, only noise.
        let size = self.diagonal.iter().chain(&self.beside);
        let size = size.fold(0.0, |most: f64, x| most.max(x.abs()));
        let goes_on = beta > surface.epsilon().cbrt().powi(2) * size;
        self.beside.push(if goes_on { beta } else { 0.0 });
        if goes_on {
            self.basis.push(vector::scaled(&product, 1.0 / beta)?);
        }
        Ok(goes_on)
    }

    /// x ← x − Σ qᵢ qᵢᵀ x, all products from the same x.
    fn make_orthogonal(&self, x: &mut [Tensor]) -> Result<()> {
        let mut dots = Vec::new();
        for q in &self.basis {
            dots.extend(vector::dots(q, x)?);
        }
        let dots = vector::read_scalars(dots)?;
        for (q, dots) in self.basis.iter().zip(dots.chunks(x.len())) {
            vector::accumulate(x, q, -dots.iter().sum::<f64>())?;
        }
        Ok(())
    }

    pub(super) fn tridiagonal(&self) -> Symmetric {
        Symmetric::tridiagonal(&self.diagonal, &self.beside)
    }

    /// Σ sᵢ qᵢ.
    fn combine(&self, s: &[f64]) -> Result<Vec<Tensor>> {
        let mut sum = vector::scaled(&self.basis[0], 0.0)?;
        for (q, &s) in self.basis.iter().zip(s) {
            vector::accumulate(&mut sum, q, s)?;
        }
        Ok(sum)
    }
}
