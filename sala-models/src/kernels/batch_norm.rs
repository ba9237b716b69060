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
//! The mean and the variance need one pass over memory: each piece is centred on its own mean while it is
//! in the cache, and pieces are merged by their means and sums of squares (Chan, Golub and `LeVeque` 1979,
//! Stanford STAN-CS-79-773), in f64 and in order. Forward reads `x` twice and writes `z`; backward reads
//! `g`, `x` and `z` twice and writes `∂L/∂x`.

use std::sync::{Arc, OnceLock};

use candle_core::{DType, Result, Shape, Tensor, bail};

use super::{
    access,
    custom::{Gradients, Inputs, Operation},
    element::Element,
    pieces, transpose,
};

/// Means and biased variances of the channels, in f64.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Statistics {
    pub(crate) mean: Vec<f64>,
    pub(crate) variance: Vec<f64>,
}

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

/// Applies the layer to contiguous tensors of one dtype; `parameters (2, C)` are γ and β. Yields also
/// the statistics that it normalised with.
pub(crate) fn batch_norm(
    x: &Tensor,
    parameters: &Tensor,
    residual: Option<&Tensor>,
    settings: BatchNorm,
) -> Result<(Tensor, Statistics)> {
    match x.dtype() {
        DType::F64 => apply::<f64>(x, parameters, residual, settings),
        _ => apply::<f32>(x, parameters, residual, settings),
    }
}

fn apply<T: Element>(
    x: &Tensor,
    parameters: &Tensor,
    residual: Option<&Tensor>,
    settings: BatchNorm,
) -> Result<(Tensor, Statistics)> {
    let used = Arc::new(OnceLock::new());
    let op = Op::<T> {
        settings,
        used: Arc::clone(&used),
        element: std::marker::PhantomData,
    };
    let y = op.apply(x, parameters, residual)?;
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
    type Element = T;

    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn forward(
        &self,
        x: &[T],
        shape: &Shape,
        parameters: &[T],
        residual: Option<&[T]>,
    ) -> (Vec<T>, Shape) {
        let channels = self.settings.channels;
        let Some(positions) = self.settings.positions else {
            return (self.forward_last(x, parameters, residual), shape.clone());
        };
        let last = |x| transpose::to_scratch(x, channels, positions);
        let residual = residual.map(last);
        let y = self.forward_last(&last(x), parameters, residual.as_deref());
        (transpose::batches(&y, positions, channels), shape.clone())
    }

    fn backward(&self, inputs: Inputs, y: &Tensor, gradient: &Tensor) -> Result<Gradients> {
        let (x, parameters, residual) = (inputs.first, inputs.second, inputs.third);
        let wanted = Wanted {
            x: x.track_op(),
            residual: residual.is_some_and(Tensor::track_op),
        };
        let found = access::read::<T, _>(x, |x| {
            access::read(parameters, |parameters| {
                access::read(y, |y| {
                    access::read(
                        gradient,
                        |g| Ok(self.gradients(x, parameters, y, g, wanted)),
                    )
                })
            })
        })?;
        let of = |values: Option<Vec<T>>| values.map(|v| access::tensor(v, x.shape())).transpose();
        let of_parameters = access::tensor(found.parameters, parameters.shape())?;
        Ok((
            of(found.x)?,
            parameters.track_op().then_some(of_parameters),
            of(found.residual)?,
        ))
    }
}

impl<T: Element> Op<T> {
    /// With the channels last.
    fn forward_last(&self, x: &[T], parameters: &[T], residual: Option<&[T]>) -> Vec<T> {
        let BatchNorm {
            channels,
            eps,
            relu,
            ref given,
            ..
        } = self.settings;
        let statistics = match given {
            Some(statistics) => statistics.clone(),
            None => statistics(x, channels),
        };
        let statistics = self.used.get_or_init(|| statistics);
        let map = Map::new(statistics, parameters, eps);
        let piece = piece(channels);
        pieces::filled(x.len(), piece, |i, y| {
            let range = i * piece..i * piece + y.len();
            let (x, residual) = (&x[range.clone()], residual.map(|r| &r[range.clone()]));
            pieces::vectorised(
                #[inline(always)]
                || map.apply(x, residual, relu, y),
            );
        })
    }

    fn gradients(&self, x: &[T], parameters: &[T], y: &[T], g: &[T], wanted: Wanted) -> Found<T> {
        let channels = self.settings.channels;
        let Some(positions) = self.settings.positions else {
            return self.gradients_last(x, parameters, y, g, wanted);
        };
        let last = |x| transpose::to_scratch(x, channels, positions);
        let found = self.gradients_last(&last(x), parameters, &last(y), &last(g), wanted);
        let first = |values: Vec<T>| transpose::batches(&values, positions, channels);
        Found {
            x: found.x.map(first),
            residual: found.residual.map(first),
            ..found
        }
    }

    fn gradients_last(
        &self,
        x: &[T],
        parameters: &[T],
        y: &[T],
        g: &[T],
        wanted: Wanted,
    ) -> Found<T> {
        let BatchNorm {
            channels,
            eps,
            relu,
            ..
        } = self.settings;
        let empty = Statistics {
            mean: vec![],
            variance: vec![],
        };
        let statistics = self.used.get().unwrap_or(&empty);
        let map = Map::new(statistics, parameters, eps);
        let y = relu.then_some(y);
        let sums = gradient_sums(x, y, g, &map);
        let rows = (x.len() / channels) as f64;
        let inverse = |c: usize| 1.0 / (statistics.variance[c] + eps).sqrt();
        let of_weight = (0..channels).map(|c| T::of(sums.products[c] * inverse(c)));
        let of_bias = sums.gradients.iter().map(|&sum| T::of(sum));
        let parameters = of_weight.chain(of_bias).collect();
        // What is subtracted from g, per channel: a constant, and a multiple of x − μ.
        let batch = self.settings.given.is_none();
        let share = |sum: f64| if batch { sum / rows } else { 0.0 };
        let constant: Vec<T> = sums
            .gradients
            .iter()
            .map(|&sum| T::of(share(sum)))
            .collect();
        let slope = (0..channels).map(|c| T::of(share(sums.products[c]) * inverse(c).powi(2)));
        let slope: Vec<T> = slope.collect();
        let piece = piece(channels);
        let of_x = wanted.x.then(|| {
            pieces::filled(x.len(), piece, |i, out| {
                let range = i * piece..i * piece + out.len();
                let (x, g) = (&x[range.clone()], &g[range.clone()]);
                let y = y.map(|y| &y[range.clone()]);
                pieces::vectorised(
                    #[inline(always)]
                    || map.gradient((x, y, g), &constant, &slope, out),
                );
            })
        });
        let of_residual = wanted.residual.then(|| {
            pieces::filled(x.len(), piece, |i, out| {
                let range = i * piece..i * piece + out.len();
                let (y, g) = (y.map(|y| &y[range.clone()]), &g[range.clone()]);
                pieces::vectorised(
                    #[inline(always)]
                    || passed(y, g, out),
                );
            })
        });
        Found {
            x: of_x,
            residual: of_residual,
            parameters,
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
    parameters: Vec<T>,
}

/// Elements of a piece: whole rows.
fn piece(channels: usize) -> usize {
    (pieces::PIECE / channels).max(1) * channels
}

/// The means and variances over rows.
fn statistics<T: Element>(x: &[T], channels: usize) -> Statistics {
    let piece = piece(channels);
    let parts = pieces::map(x.len().div_ceil(piece), |i| {
        let part = &x[i * piece..x.len().min((i + 1) * piece)];
        let (mut mean, mut squares) = (vec![T::default(); channels], vec![T::default(); channels]);
        pieces::vectorised(
            #[inline(always)]
            || moments(part, &mut mean, &mut squares),
        );
        (part.len() / channels, mean, squares)
    });
    let mut mean = vec![0.0; channels];
    let mut squares = vec![0.0; channels];
    let mut count = 0.0;
    for (rows, part_mean, part_squares) in parts {
        let rows = rows as f64;
        let whole = count + rows;
        for c in 0..channels {
            let away = part_mean[c].wide() - mean[c];
            mean[c] += away * rows / whole;
            squares[c] += part_squares[c].wide() + away * away * (count * rows / whole);
        }
        count = whole;
    }
    let variance = squares.into_iter().map(|s| s / count).collect();
    Statistics { mean, variance }
}

/// The mean of some rows, and the sum of squares around it.
#[expect(
    clippy::inline_always,
    reason = "compiled for the instruction set at hand"
)]
#[inline(always)]
fn moments<T: Element>(x: &[T], mean: &mut [T], squares: &mut [T]) {
    let channels = mean.len();
    for row in x.chunks_exact(channels) {
        for (sum, &x) in mean.iter_mut().zip(row) {
            *sum += x;
        }
    }
    let rows = T::of((x.len() / channels) as f64);
    for sum in &mut *mean {
        *sum /= rows;
    }
    for row in x.chunks_exact(channels) {
        for ((sum, &x), &mean) in squares.iter_mut().zip(row).zip(&*mean) {
            let away = x - mean;
            *sum += away * away;
        }
    }
}

/// The normalisation, rounded to the tensors' precision: `(x − mean) scale + bias`.
struct Map<T> {
    mean: Vec<T>,
    scale: Vec<T>,
    bias: Vec<T>,
}

impl<T: Element> Map<T> {
    fn new(statistics: &Statistics, parameters: &[T], eps: f64) -> Self {
        let channels = statistics.mean.len();
        let (weight, bias) = parameters.split_at(channels.min(parameters.len()));
        let scale = weight.iter().zip(&statistics.variance);
        Self {
            mean: statistics.mean.iter().map(|&mean| T::of(mean)).collect(),
            scale: scale
                .map(|(w, v)| T::of(w.wide() / (v + eps).sqrt()))
                .collect(),
            bias: bias.to_vec(),
        }
    }

    #[expect(
        clippy::inline_always,
        reason = "compiled for the instruction set at hand"
    )]
    #[inline(always)]
    fn apply(&self, x: &[T], residual: Option<&[T]>, relu: bool, y: &mut [T]) {
        let channels = self.mean.len();
        for (x, y) in x.chunks_exact(channels).zip(y.chunks_exact_mut(channels)) {
            let per_channel = self.mean.iter().zip(&self.scale).zip(&self.bias);
            for ((y, &x), ((&mean, &scale), &bias)) in y.iter_mut().zip(x).zip(per_channel) {
                *y = (x - mean) * scale + bias;
            }
        }
        if let Some(residual) = residual {
            for (y, &r) in y.iter_mut().zip(residual) {
                *y += r;
            }
        }
        if relu {
            let zero = T::default();
            for y in y {
                *y = if *y <= zero { zero } else { *y };
            }
        }
    }

    /// `scale (g − constant − slope (x − mean))`, where the result passed.
    #[expect(
        clippy::inline_always,
        reason = "compiled for the instruction set at hand"
    )]
    #[inline(always)]
    fn gradient(
        &self,
        (x, y, g): (&[T], Option<&[T]>, &[T]),
        constant: &[T],
        slope: &[T],
        out: &mut [T],
    ) {
        passed(y, g, out);
        let channels = self.mean.len();
        for (x, out) in x.chunks_exact(channels).zip(out.chunks_exact_mut(channels)) {
            let per_channel = self.mean.iter().zip(&self.scale).zip(constant).zip(slope);
            for ((out, &x), (((&mean, &scale), &constant), &slope)) in
                out.iter_mut().zip(x).zip(per_channel)
            {
                *out = (*out - constant - slope * (x - mean)) * scale;
            }
        }
    }
}

/// The gradient where the result passed relu; everywhere without one.
#[expect(
    clippy::inline_always,
    reason = "compiled for the instruction set at hand"
)]
#[inline(always)]
fn passed<T: Element>(y: Option<&[T]>, g: &[T], out: &mut [T]) {
    match y {
        Some(y) => {
            let zero = T::default();
            for ((out, &y), &g) in out.iter_mut().zip(y).zip(g) {
                *out = if y <= zero { zero } else { g };
            }
        }
        None => out.copy_from_slice(g),
    }
}

/// Σ g and Σ g (x − μ) of each channel.
struct GradientSums {
    gradients: Vec<f64>,
    products: Vec<f64>,
}

fn gradient_sums<T: Element>(x: &[T], y: Option<&[T]>, g: &[T], map: &Map<T>) -> GradientSums {
    let channels = map.mean.len();
    let piece = piece(channels);
    let parts = pieces::map(x.len().div_ceil(piece), |i| {
        let range = i * piece..x.len().min((i + 1) * piece);
        let (x, g, y) = (
            &x[range.clone()],
            &g[range.clone()],
            y.map(|y| &y[range.clone()]),
        );
        let mut sums = vec![T::default(); 2 * channels];
        let (gradients, products) = sums.split_at_mut(channels);
        pieces::vectorised(
            #[inline(always)]
            || sum_gradients(x, y, g, &map.mean, gradients, products),
        );
        sums
    });
    let mut whole = vec![0.0; 2 * channels];
    for part in parts {
        for (sum, part) in whole.iter_mut().zip(part) {
            *sum += part.wide();
        }
    }
    let products = whole.split_off(channels);
    GradientSums {
        gradients: whole,
        products,
    }
}

#[expect(
    clippy::inline_always,
    reason = "compiled for the instruction set at hand"
)]
#[inline(always)]
fn sum_gradients<T: Element>(
    x: &[T],
    y: Option<&[T]>,
    g: &[T],
    mean: &[T],
    gradients: &mut [T],
    products: &mut [T],
) {
    let channels = mean.len();
    let zero = T::default();
    for (i, (x, g)) in x
        .chunks_exact(channels)
        .zip(g.chunks_exact(channels))
        .enumerate()
    {
        let sums = gradients.iter_mut().zip(&mut *products);
        let values = x.iter().zip(g).zip(mean);
        match y {
            Some(y) => {
                let y = &y[i * channels..][..channels];
                for (((sum, product), ((&x, &g), &mean)), &y) in sums.zip(values).zip(y) {
                    let g = if y <= zero { zero } else { g };
                    *sum += g;
                    *product += g * (x - mean);
                }
            }
            None => {
                for ((sum, product), ((&x, &g), &mean)) in sums.zip(values) {
                    *sum += g;
                    *product += g * (x - mean);
                }
            }
        }
    }
}
