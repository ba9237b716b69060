//! Batch norm over rows of channels, with what follows it in a residual block, in one operation.
//!
//! ```text
//! y = γ (x − μ) r + β         r = 1 / √(σ² + ε)         z = relu(y + residual)
//! ```
//!
//! With `g = ∂L/∂z` where `z > 0`, else 0, and sums over the `m` rows (Ioffe and Szegedy 2015,
//! arXiv:1502.03167, section 3):
//!
//! ```text
//! ∂L/∂residual = g        ∂L/∂β = Σ g        ∂L/∂γ = r Σ g (x − μ)
//! ∂L/∂x = γ r (g − (Σ g) / m − (x − μ) r² (Σ g (x − μ)) / m)        in evaluation: γ r g
//! ```
//!
//! Forward reads `x` twice and writes `z`; backward reads `g`, `x` and `z` twice and writes `∂L/∂x`.

mod loops;
mod sums;

use std::sync::{Arc, OnceLock};

use candle_core::{DType, Result, Tensor, bail};

pub(crate) use self::sums::Statistics;
use self::{
    loops::{Gradient, Map, Normalise, Passed},
    sums::{gradient_sums, statistics},
};
use super::{
    access,
    element::Element,
    graph::{self, Input, Operation},
    pieces, transpose,
};

/// One application of the layer.
#[derive(Debug, Clone)]
pub(crate) struct BatchNorm {
    pub(crate) channels: usize,
    /// Positions of an image whose channels come first, `(N, C, positions)`; else `(…, C)`.
    pub(crate) positions: Option<usize>,
    pub(crate) eps: f64,
    pub(crate) relu: bool,
    /// Statistics to normalise with; without them, those of the batch.
    pub(crate) given: Option<Statistics>,
}

/// Applies the layer to contiguous tensors of one dtype, γ and β of shape `(C)`. Yields also the
/// statistics that it normalised with.
pub(crate) fn batch_norm(
    x: &Tensor,
    [weight, bias]: [&Tensor; 2],
    residual: Option<&Tensor>,
    settings: BatchNorm,
) -> Result<(Tensor, Statistics)> {
    let inputs: Vec<&Tensor> = [x, weight, bias].into_iter().chain(residual).collect();
    match x.dtype() {
        DType::F64 => apply::<f64>(&inputs, settings),
        _ => apply::<f32>(&inputs, settings),
    }
}

fn apply<T: Element>(inputs: &[&Tensor], settings: BatchNorm) -> Result<(Tensor, Statistics)> {
    let used = Arc::new(OnceLock::new());
    let op = Op::<T> {
        settings,
        used: Arc::clone(&used),
        element: std::marker::PhantomData,
    };
    let y = graph::apply(op, inputs)?;
    match used.get() {
        Some(statistics) => Ok((y, statistics.clone())),
        None => bail!("batch_norm: the forward pass did not run"),
    }
}

struct Op<T> {
    settings: BatchNorm,
    /// What the forward pass normalised with.
    used: Arc<OnceLock<Statistics>>,
    element: std::marker::PhantomData<T>,
}

impl<T: Element> Operation for Op<T> {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let parameters = [access::view::<T>(inputs[1])?, access::view(inputs[2])?];
        let parameters = parameters.each_ref().map(|view| &**view);
        let x = access::view::<T>(inputs[0])?;
        let residual = inputs.get(3).map(|r| access::view(r)).transpose()?;
        let y = self.values(&x, parameters, residual.as_deref());
        access::tensor(y, inputs[0].shape())
    }

    fn backward(
        &self,
        inputs: &[Input],
        y: &Tensor,
        gradient: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let Some(statistics) = self.used.get() else {
            bail!("batch_norm: backward before forward");
        };
        let (x, weight) = (&inputs[0].value, &inputs[1].value);
        let wanted = Wanted {
            x: inputs[0].tracked,
            residual: inputs.get(3).is_some_and(|residual| residual.tracked),
        };
        let found = self.gradients(
            &access::view(x)?,
            &Map::new(statistics, &access::view(weight)?, &[], self.settings.eps),
            &access::view(y)?,
            &access::view(gradient)?,
            wanted,
        );
        let of = |values: Option<Vec<T>>| values.map(|v| access::tensor(v, x.shape())).transpose();
        Ok(vec![
            of(found.x)?,
            Some(access::tensor(found.weight, weight.shape())?),
            Some(access::tensor(found.bias, weight.shape())?),
            of(found.residual)?,
        ])
    }
}

impl<T: Element> Op<T> {
    fn values(&self, x: &[T], parameters: [&[T]; 2], residual: Option<&[T]>) -> Vec<T> {
        let channels = self.settings.channels;
        let Some(positions) = self.settings.positions else {
            return self.values_last(x, parameters, residual);
        };
        let last = |x| transpose::to_scratch(x, channels, positions);
        let residual = residual.map(last);
        let y = self.values_last(&last(x), parameters, residual.as_deref());
        transpose::batches(&y, positions, channels)
    }

    /// With the channels last.
    fn values_last(&self, x: &[T], [weight, bias]: [&[T]; 2], residual: Option<&[T]>) -> Vec<T> {
        let BatchNorm {
            channels,
            eps,
            relu,
            ref given,
            ..
        } = self.settings;
        let compute = || given.clone().unwrap_or_else(|| statistics(x, channels));
        let map = Map::new(self.used.get_or_init(compute), weight, bias, eps);
        let piece = piece(channels);
        pieces::filled(x.len(), piece, |i, y| {
            let range = i * piece..i * piece + y.len();
            let (x, residual) = (&x[range.clone()], residual.map(|r| &r[range]));
            pieces::compiled(Normalise, (&map, x, residual, relu, y));
        })
    }

    fn gradients(&self, x: &[T], map: &Map<T>, y: &[T], g: &[T], wanted: Wanted) -> Found<T> {
        let channels = self.settings.channels;
        let Some(positions) = self.settings.positions else {
            return self.gradients_last(x, map, y, g, wanted);
        };
        let last = |x| transpose::to_scratch(x, channels, positions);
        let found = self.gradients_last(&last(x), map, &last(y), &last(g), wanted);
        let first = |values: Vec<T>| transpose::batches(&values, positions, channels);
        Found {
            x: found.x.map(first),
            residual: found.residual.map(first),
            ..found
        }
    }

    fn gradients_last(&self, x: &[T], map: &Map<T>, y: &[T], g: &[T], wanted: Wanted) -> Found<T> {
        let BatchNorm { channels, relu, .. } = self.settings;
        let y = relu.then_some(y);
        let sums = gradient_sums(x, y, g, &map.mean);
        let rows = (x.len() / channels) as f64;
        let inverse = &map.inverse;
        // What is subtracted from g, per channel: a constant, and a multiple of x − μ. Given statistics are
        // constants: nothing is.
        let batch = self.settings.given.is_none();
        let share = |sum: f64| if batch { sum / rows } else { 0.0 };
        let constant = sums.gradients.iter().map(|&sum| T::of(share(sum)));
        let products = sums.products.iter().zip(inverse);
        let slope = products.clone().map(|(&p, r)| T::of(share(p) * r * r));
        let (constant, slope): (Vec<T>, Vec<T>) = (constant.collect(), slope.collect());
        let piece = piece(channels);
        let of_x = wanted.x.then(|| {
            pieces::filled(x.len(), piece, |i, out| {
                let range = i * piece..i * piece + out.len();
                let y = y.map(|y| &y[range.clone()]);
                let data = (&x[range.clone()], y, &g[range], out);
                pieces::compiled(Gradient, (map, &*constant, &*slope, data));
            })
        });
        let of_residual = wanted.residual.then(|| {
            pieces::filled(x.len(), piece, |i, out| {
                let range = i * piece..i * piece + out.len();
                let y = y.map(|y| &y[range.clone()]);
                pieces::compiled(Passed, (y, &g[range], out));
            })
        });
        Found {
            x: of_x,
            residual: of_residual,
            weight: products.map(|(&p, r)| T::of(p * r)).collect(),
            bias: sums.gradients.iter().map(|&sum| T::of(sum)).collect(),
        }
    }
}

/// Which gradients are needed, beside those of the parameters.
#[derive(Clone, Copy)]
struct Wanted {
    x: bool,
    residual: bool,
}

/// The gradients.
struct Found<T> {
    x: Option<Vec<T>>,
    residual: Option<Vec<T>>,
    weight: Vec<T>,
    bias: Vec<T>,
}

/// Elements of a piece: whole rows.
fn piece(channels: usize) -> usize {
    (pieces::PIECE / channels).max(1) * channels
}
