//! The plane that a training trajectory lies in as well as in any (Li et al. 2018, arXiv:1712.09913, section
//! 7): the two principal components of its points.
//!
//! ```text
//! xᵢ = θᵢ − θ̄,   Gᵢⱼ = ⟨xᵢ, xⱼ⟩,   G v = λ v,   d = Σ vᵢ xᵢ / √λ
//! ```
//!
//! T points have a Gram matrix of T rows, so nothing of the parameters' dimension is decomposed. Random walks
//! too have most of their variance in two components (Antognini and Sohl-Dickstein 2018, arXiv:1806.08805): a smooth
//! path in this plane is no sign of a simple one.

use candle_core::Tensor;

use super::slice::{difference, fitting_points, no_plane};
use crate::{error::Result, params::ParamSet, vector};

use super::symmetric::Symmetric;

/// Below this share of the first component's variance a second one is rounding.
const RANK_TOLERANCE: f64 = 1e-10;

/// The plane of a trajectory.
#[derive(Debug, Clone)]
pub struct PrincipalPlane {
    /// Two directions of length 1, orthogonal: one tensor for each parameter, in the order of their
    /// names.
    pub directions: [Vec<Tensor>; 2],
    /// Where each point lies in the plane; the last one is the origin.
    pub coordinates: Vec<[f64; 2]>,
    /// Share of the variance of the points along each direction.
    pub explained: [f64; 2],
}

/// The plane through the last point of a trajectory along its two principal components. `points` has the values of
/// the parameters at different times, one tensor for each parameter, in the order of their names; the
/// last point is where a [`Surface`](super::Surface) should be, for
/// [`losses_in_plane`](super::losses_in_plane). No evaluations.
///
/// # Errors
/// [`Error::Direction`](crate::Error::Direction) when a point does not fit the parameters, or they span no
/// plane.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use sala_core::{ParamSet, sharpness::principal_plane};
///
/// let params = ParamSet::new([("w", Var::new(&[0f64, 0.0, 5.0], &Device::Cpu)?)])?;
/// let point = |x: f64, y: f64| Ok::<_, candle_core::Error>(vec![Tensor::new(&[x, y, 5.0], &Device::Cpu)?]);
/// let points = [point(9.0, 1.0)?, point(4.0, -1.0)?, point(2.0, 1.0)?, point(0.0, 0.0)?];
/// let plane = principal_plane(&params, &points)?;
/// assert!((plane.explained[0] + plane.explained[1] - 1.0).abs() < 1e-12);
/// assert_eq!(plane.coordinates[3], [0.0, 0.0]);
/// # Ok::<(), sala_core::Error>(())
/// ```
pub fn principal_plane(params: &ParamSet, points: &[Vec<Tensor>]) -> Result<PrincipalPlane> {
    let points = fitting_points(params, points)?;
    let (Some(last), true) = (points.last(), points.len() > 2) else {
        return Err(no_plane(format!("{} points", points.len())));
    };
    let centred = centred(&points)?;
    let n = centred.len();
    let mut gram = Symmetric::zeros(n);
    let mut total = 0.0;
    for i in 0..n {
        for j in 0..=i {
            let dot = vector::dot(&centred[i], &centred[j])?;
            gram.set(i, j, dot);
            if i == j {
                total += dot;
            }
        }
    }
    let eigen = gram.eigen();
    let (first, second) = (eigen.values[0], eigen.values[1]);
    // NaN and infinity span no plane either.
    if !(second > RANK_TOLERANCE * first && first.is_finite()) {
        return Err(no_plane(format!("variances {first:.1e} and {second:.1e}")));
    }
    let component = |k: usize| -> Result<Vec<Tensor>> {
        let mut sum = vector::scaled(&centred[0], 0.0)?;
        for (x, &v) in centred.iter().zip(&eigen.vectors[k]) {
            vector::accumulate(&mut sum, x, v / eigen.values[k].sqrt())?;
        }
        Ok(sum)
    };
    let directions = [component(0)?, component(1)?];
    let place = |point: &Vec<Tensor>| -> Result<[f64; 2]> {
        let from_last = difference(point, last)?;
        let [x, y] = &directions;
        Ok([vector::dot(&from_last, x)?, vector::dot(&from_last, y)?])
    };
    let coordinates = points.iter().map(place).collect::<Result<_>>()?;
    Ok(PrincipalPlane {
        directions,
        coordinates,
        explained: [first / total, second / total],
    })
}

/// The points, from their mean.
fn centred(points: &[Vec<Tensor>]) -> Result<Vec<Vec<Tensor>>> {
    let mut mean = vector::scaled(&points[0], 0.0)?;
    for point in points {
        vector::accumulate(&mut mean, point, 1.0 / points.len() as f64)?;
    }
    points
        .iter()
        .map(|point| difference(point, &mean))
        .collect()
}
