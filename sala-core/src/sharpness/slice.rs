//! The loss along lines and in planes through the space of the parameters.
//!
//! A single line is [`Surface::losses_along`], with a random direction scaled by
//! [`filter_normalised`](super::filter_normalised) or with an eigenvector. A slice shows a few of very many
//! dimensions: it can look flat where the loss is not.

use candle_core::Tensor;

use super::{Cost, Surface, directions};
use crate::{
    error::{Error, Result},
    params::ParamSet,
    vector,
};

/// Losses on a grid in a plane.
#[derive(Debug, Clone, PartialEq)]
pub struct Grid {
    /// Coordinates along the first direction.
    pub xs: Vec<f64>,
    /// Coordinates along the second.
    pub ys: Vec<f64>,
    /// `losses[j][i]` at θ + xᵢ d₁ + yⱼ d₂; infinite or NaN where it overflows.
    pub losses: Vec<Vec<f64>>,
    /// What it took: a loss for each point.
    pub cost: Cost,
}

/// The loss at θ + x d₁ + y d₂ for all pairs of coordinates. Cost: 1 loss a point.
///
/// # Errors
/// [`Error::Direction`], and those of the objective.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use sala_core::{ParamSet, Pass, sharpness::{Surface, losses_in_plane}};
///
/// let w = Var::new(&[1f64, 2.0], &Device::Cpu)?;
/// let params = ParamSet::new([("w", w.clone())])?;
/// let mut loss = |_pass: Pass| w.sqr()?.sum_all();
/// let axis = |v: [f64; 2]| Ok::<_, candle_core::Error>(vec![Tensor::new(&v, &Device::Cpu)?]);
/// let (x, y) = (axis([1.0, 0.0])?, axis([0.0, 1.0])?);
/// let grid = losses_in_plane(&mut Surface::new(&params, &mut loss), [&x, &y], &[-1.0, 0.0], &[0.0, 1.0])?;
/// assert_eq!(grid.losses, [[4.0, 5.0], [9.0, 10.0]]);
/// # Ok::<(), sala_core::Error>(())
/// ```
pub fn losses_in_plane(
    surface: &mut Surface,
    [first, second]: [&[Tensor]; 2],
    xs: &[f64],
    ys: &[f64],
) -> Result<Grid> {
    let first = directions::fitting(surface.params(), first)?;
    let second = directions::fitting(surface.params(), second)?;
    let before = surface.cost();
    let (total, mut done) = (xs.len() * ys.len(), 0);
    let mut losses = Vec::with_capacity(ys.len());
    for &y in ys {
        let mut row = Vec::with_capacity(xs.len());
        for &x in xs {
            let mut direction = vector::scaled(&first, x)?;
            vector::accumulate(&mut direction, &second, y)?;
            row.push(surface.at(&direction, 1.0, |surface| surface.loss_here(None))?);
            done += 1;
            surface.advance("loss in a plane", done, total);
        }
        losses.push(row);
    }
    Ok(Grid {
        xs: xs.to_vec(),
        ys: ys.to_vec(),
        losses,
        cost: surface.cost() - before,
    })
}

/// Losses on the line between two solutions.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Shares of the other solution, 0 at the parameters and 1 there.
    pub ts: Vec<f64>,
    /// At (1 − t) θ + t θ'.
    pub losses: Vec<f64>,
    /// How far the loss rises above the straight line between the losses at both ends, at most, over the
    /// points with t in [0, 1]: about 0 for two solutions of one valley (Frankle et al. 2020,
    /// arXiv:1912.05671, for equal losses).
    pub barrier: f64,
    /// What it took.
    pub cost: Cost,
}

/// The loss on the line from the parameters (t = 0) to other values of them (t = 1), one tensor for
/// each, in the order of their names. Cost: 1 loss for each t and 2.
///
/// With batch norm read what [`Surface`] says of statistics.
///
/// # Errors
/// [`Error::Direction`], and those of the objective.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use sala_core::{ParamSet, Pass, sharpness::{Surface, losses_between}};
///
/// let w = Var::new(-1f64, &Device::Cpu)?;
/// let params = ParamSet::new([("w", w.clone())])?;
/// let mut loss = |_pass: Pass| (w.sqr()? - 1.0)?.sqr(); // minima at −1 and 1
/// let other = [Tensor::new(1f64, &Device::Cpu)?];
/// let line = losses_between(&mut Surface::new(&params, &mut loss), &other, &[0.0, 0.5, 1.0])?;
/// assert_eq!((line.losses, line.barrier), (vec![0.0, 1.0, 0.0], 1.0));
/// # Ok::<(), sala_core::Error>(())
/// ```
pub fn losses_between(surface: &mut Surface, other: &[Tensor], ts: &[f64]) -> Result<Line> {
    let before = surface.cost();
    let other = directions::fitting(surface.params(), other)?;
    let direction = difference(&other, &surface.weights()?)?;
    let ends = surface.losses_along(&direction, &[0.0, 1.0])?;
    let losses = surface.losses_along(&direction, ts)?;
    let rise = |(t, loss): (&f64, &f64)| loss - ((1.0 - t) * ends[0] + t * ends[1]);
    let inside = ts
        .iter()
        .zip(&losses)
        .filter(|(t, _)| (0.0..=1.0).contains(*t));
    let barrier = inside.map(rise).fold(0.0, f64::max);
    Ok(Line {
        ts: ts.to_vec(),
        losses,
        barrier,
        cost: surface.cost() - before,
    })
}

/// x − y, in storage of its own.
pub(super) fn difference(x: &[Tensor], y: &[Tensor]) -> Result<Vec<Tensor>> {
    let difference = |(x, y): (&Tensor, &Tensor)| Ok((x - y)?);
    x.iter().zip(y).map(difference).collect()
}

/// The error for a trajectory that spans no plane.
pub(super) fn no_plane(got: String) -> Error {
    Error::Direction {
        what: "a trajectory".into(),
        wanted: "at least three points that do not lie on one line".into(),
        got,
    }
}

/// Checks that every point of a trajectory fits the parameters.
pub(super) fn fitting_points(
    params: &ParamSet,
    points: &[Vec<Tensor>],
) -> Result<Vec<Vec<Tensor>>> {
    points
        .iter()
        .map(|p| directions::fitting(params, p))
        .collect()
}
