//! Hessian-vector products from gradients.
//!
//! ```text
//! central differences   H v ≈ ‖v‖ (g(θ + h v̂) − g(θ − h v̂)) / 2h,   v̂ = v / ‖v‖
//! second backward       H v = ∇⟨g(θ), v⟩
//! ```
//!
//! **The step.** Too large a step h sees the third derivatives (an error like h²), too small a one the rounding of
//! the gradients (an error like ε/h). [`Step::Auto`] follows Stepleman and Winarsky (1979, Mathematics of Computation 33):
//! it takes the same product with a falling sequence of steps, whose changes first shrink with the one error and then grow
//! with the other, and keeps the step where they are smallest. The sequence starts at
//! 4 ε^⅓ (1 + ‖θ‖), with ε that of the dtype, and falls by 4 to ε^⅚ (1 + ‖θ‖). The product is one in which curvature is
//! large, that of H r for a random r, because there third derivatives are too. Cost, once for a surface: 18 gradients in
//! f32, 32 in f64.
//!
//! **Kinks.** The second derivative of a network of relus is that of its linear pieces, which is what a second
//! backward pass gives; a difference of gradients, whose step crosses kinks, sees the jumps of the gradient between them too,
//! as the loss does. In f32, where steps cannot be very small, the two differ; for smooth networks they agree. In f64 the
//! sequence goes on to steps that cross none, where the product no longer changes.
//!
//! **Exact products.** candle cuts the graph of gradients unless the environment variable
//! `CANDLE_GRAD_DO_NOT_DETACH=1` is set before the thread's first backward pass. Operations of one's own whose
//! backward pass is not made of differentiable operations cut it silently, too (the fast kernels of
//! `sala-models` do; `SALA_KERNELS=composed` avoids them). So the first exact product is compared with
//! differences, and refused if they disagree.

use candle_core::{Tensor, backprop::GradStore};

use super::{directions, surface::Surface};
use crate::{
    error::{Error, Result, check},
    kernels,
    objective::Evaluation,
    params::ParamSet,
    vector,
};

/// Seed of the direction that a step is chosen, or exact products are checked, with.
const PROBE_SEED: u64 = 0x5A1A;

/// How Hessian-vector products are taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Products {
    /// From two gradients: any model, any dtype, any device.
    Differences(Step),
    /// By a second backward pass, where the model has one.
    Exact {
        /// How far the first product may be from that of differences, relative to it.
        tolerance: f64,
    },
}

impl Default for Products {
    fn default() -> Self {
        Self::Differences(Step::default())
    }
}

/// Distance of the two points of a difference from the parameters.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Step {
    /// Chosen with the first product, by trying.
    #[default]
    Auto,
    /// Given, above 0.
    Fixed(f64),
}

/// The step of differences, and what is known of its error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ChosenStep {
    /// ‖h v̂‖.
    pub h: f64,
    /// How much the product changed, relative to itself, when this step was tried: an estimate of the
    /// error of products in directions of large curvature. Nothing for a given step.
    pub disagreement: Option<f64>,
}

/// H v for a direction that fits the parameters.
pub(super) fn product(surface: &mut Surface, v: &[Tensor]) -> Result<Vec<Tensor>> {
    match surface.products() {
        Products::Differences(_) => {
            let h = step(surface)?.h;
            difference(surface, v, h)
        }
        Products::Exact { tolerance } => {
            check::positive("Products::Exact", "tolerance", tolerance)?;
            if surface.step.is_none() {
                let chosen = choose(surface)?;
                compare(surface, chosen.h, tolerance)?;
                surface.step = Some(chosen);
            }
            exact(surface, v)
        }
    }
}

/// The step that the surface's products are taken with.
pub(super) fn step(surface: &mut Surface) -> Result<ChosenStep> {
    if let Some(chosen) = surface.step {
        return Ok(chosen);
    }
    let chosen = match surface.products() {
        Products::Differences(Step::Fixed(h)) => {
            check::positive("Step::Fixed", "h", h)?;
            ChosenStep {
                h,
                disagreement: None,
            }
        }
        Products::Differences(Step::Auto) | Products::Exact { .. } => choose(surface)?,
    };
    surface.step = Some(chosen);
    Ok(chosen)
}

/// ‖v‖ (g(θ + h v̂) − g(θ − h v̂)) / 2h.
fn difference(surface: &mut Surface, v: &[Tensor], h: f64) -> Result<Vec<Tensor>> {
    let norm = vector::norm(v)?;
    if norm == 0.0 {
        return vector::scaled(v, 0.0);
    }
    let distance = h / norm;
    let gradient = |surface: &mut Surface| surface.gradient_here(None);
    let above = surface.at(v, distance, gradient)?.gradients.into_tensors();
    let below = surface.at(v, -distance, gradient)?.gradients.into_tensors();
    let slope = |(above, below): (&Tensor, &Tensor)| Ok(((above - below)? * (0.5 / distance))?);
    above.iter().zip(&below).map(slope).collect()
}

/// A direction in which curvature is large: H r for a random r, or r itself where that vanishes.
fn curved(surface: &mut Surface, h: f64) -> Result<Vec<Tensor>> {
    let random = directions::rademacher(surface.params(), PROBE_SEED, 0)?;
    let turned = difference(surface, &random, h)?;
    Ok(directions::unit(&turned)?.unwrap_or(random))
}

/// The step at which the product depends least on the step.
fn choose(surface: &mut Surface) -> Result<ChosenStep> {
    let weights = vector::norm(&surface.weights()?)?;
    let middle = surface.epsilon().cbrt() * (1.0 + weights);
    let v = curved(surface, middle)?;
    let mut chosen = ChosenStep {
        h: middle,
        disagreement: None,
    };
    let mut last: Option<Vec<Tensor>> = None;
    for i in 0..tried(surface.epsilon()) {
        let h = middle * 4f64.powi(1 - i);
        let product = difference(surface, &v, h)?;
        if let Some(last) = &last {
            let change = relative_distance(last, &product)?;
            if chosen.disagreement.is_none_or(|least| change < least) {
                // The smaller step of the two: the error of the larger one is still falling fast.
                chosen = ChosenStep {
                    h,
                    disagreement: Some(change),
                };
            }
        }
        last = Some(product);
    }
    tracing::debug!(name: "sala.sharpness", h = chosen.h, disagreement = chosen.disagreement);
    Ok(chosen)
}

/// How many steps are tried, each a quarter of the one before, down to ε^⅚.
fn tried(epsilon: f64) -> i32 {
    let falls = -0.5 * epsilon.ln() / 4f64.ln();
    #[expect(clippy::cast_possible_truncation, reason = "a few steps")]
    let falls = falls.ceil() as i32;
    2 + falls
}

/// ‖x − y‖ / ‖y‖; 0 for two vectors of zeros.
fn relative_distance(x: &[Tensor], y: &[Tensor]) -> Result<f64> {
    let difference = |(x, y): (&Tensor, &Tensor)| Ok((x - y)?);
    let difference: Result<Vec<_>> = x.iter().zip(y).map(difference).collect();
    let (distance, norm) = (vector::norm(&difference?)?, vector::norm(y)?);
    Ok(if distance == 0.0 {
        0.0
    } else {
        distance / norm
    })
}

/// Compares a product by a second backward pass with the same by differences.
fn compare(surface: &mut Surface, h: f64, tolerance: f64) -> Result<()> {
    let v = curved(surface, h)?;
    let wanted = difference(surface, &v, h)?;
    let difference = relative_distance(&exact(surface, &v)?, &wanted)?;
    // NaN and infinity are disagreements.
    if difference <= tolerance {
        return Ok(());
    }
    Err(Error::ExactProduct {
        difference,
        tolerance,
    })
}

/// ∇⟨g, v⟩, the mean over micro-batches. Each counts as one evaluation and one more.
fn exact(surface: &mut Surface, v: &[Tensor]) -> Result<Vec<Tensor>> {
    let parts = surface.micro_batches();
    let mut sum = vector::scaled(v, 0.0)?;
    for part in 0..parts {
        let evaluation = surface.evaluate((parts > 1).then_some(part))?;
        let scale = evaluation.scale;
        let product = second_backward(surface.params(), evaluation, v)?;
        surface.count_gradients(1.0 / parts as f64);
        vector::accumulate(&mut sum, &product, 1.0 / (scale * parts as f64))?;
    }
    Ok(sum)
}

fn second_backward(params: &ParamSet, first: Evaluation, v: &[Tensor]) -> Result<Vec<Tensor>> {
    let mut dot: Option<Tensor> = None;
    for (param, v) in params.iter().zip(v) {
        if let Some(gradient) = first.grads.get(param.model_var()) {
            let v = v.to_dtype(gradient.dtype())?;
            let part = (gradient * v)?.sum_all()?;
            dot = Some(match dot {
                Some(dot) => (dot + part)?,
                None => part,
            });
        }
    }
    let second: Option<GradStore> = dot.map(|dot| dot.backward()).transpose()?;
    // A parameter that no gradient depends on has second derivatives of 0.
    let of = |(param, v): (&crate::Param, &Tensor)| {
        let found = second.as_ref().and_then(|s| s.get(param.model_var()));
        match found {
            Some(product) => Ok(kernels::wide(&product.detach())?),
            None => Ok(v.zeros_like()?),
        }
    };
    params.iter().zip(v).map(of).collect()
}
