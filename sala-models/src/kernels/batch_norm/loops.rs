//! The loops over elements.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the chosen instruction set"
)]

use super::Statistics;
use crate::kernels::{element::Element, pieces::Kernel};

/// The normalisation, rounded to the tensors' precision: `(x − mean) scale + bias`.
pub(super) struct Map<T> {
    pub(super) mean: Vec<T>,
    /// r.
    pub(super) inverse: Vec<f64>,
    /// γ r.
    scale: Vec<T>,
    bias: Vec<T>,
}

impl<T: Element> Map<T> {
    pub(super) fn new(statistics: &Statistics, weight: &[T], bias: &[T], eps: f64) -> Self {
        let inverse = |variance: &f64| 1.0 / (variance + eps).sqrt();
        let scale = weight.iter().zip(&statistics.variance);
        Self {
            mean: statistics.mean.iter().map(|&mean| T::of(mean)).collect(),
            inverse: statistics.variance.iter().map(inverse).collect(),
            scale: scale
                .map(|(w, v)| T::of(w.wide() / (v + eps).sqrt()))
                .collect(),
            bias: bias.to_vec(),
        }
    }
}

/// z.
pub(super) struct Normalise;

/// The map, x, the residual, whether relu follows, and z.
type Values<'a, T> = (&'a Map<T>, &'a [T], Option<&'a [T]>, bool, &'a mut [T]);

impl<T: Element> Kernel<Values<'_, T>> for Normalise {
    #[inline(always)]
    fn run(self, (map, x, residual, relu, y): Values<T>) {
        let channels = map.mean.len();
        for (x, y) in x.chunks_exact(channels).zip(y.chunks_exact_mut(channels)) {
            let per_channel = map.mean.iter().zip(&map.scale).zip(&map.bias);
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
}

/// `scale (g − constant − slope (x − mean))`, where the result passed.
pub(super) struct Gradient;

/// x, z if relu followed, g, and the gradient of x.
type Data<'a, T> = (&'a [T], Option<&'a [T]>, &'a [T], &'a mut [T]);

impl<T: Element> Kernel<(&Map<T>, &[T], &[T], Data<'_, T>)> for Gradient {
    #[inline(always)]
    fn run(self, (map, constant, slope, (x, y, g, out)): (&Map<T>, &[T], &[T], Data<T>)) {
        Passed.run((y, g, &mut *out));
        let channels = map.mean.len();
        for (x, out) in x.chunks_exact(channels).zip(out.chunks_exact_mut(channels)) {
            let per_channel = map.mean.iter().zip(&map.scale).zip(constant).zip(slope);
            for ((out, &x), (((&mean, &scale), &constant), &slope)) in
                out.iter_mut().zip(x).zip(per_channel)
            {
                *out = (*out - constant - slope * (x - mean)) * scale;
            }
        }
    }
}

/// The gradient where the result passed relu; everywhere without one.
pub(super) struct Passed;

impl<T: Element> Kernel<(Option<&[T]>, &[T], &mut [T])> for Passed {
    #[inline(always)]
    fn run(self, (y, g, out): (Option<&[T]>, &[T], &mut [T])) {
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
}
