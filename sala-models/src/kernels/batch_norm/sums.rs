//! Sums over the rows.
//!
//! The mean and the variance need one pass over memory: each piece is centred on its own mean while it is
//! in the cache, and pieces are merged by their means and sums of squares (Chan, Golub and `LeVeque` 1979,
//! Stanford STAN-CS-79-773), in f64 and in order.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the chosen instruction set"
)]

use super::piece;
use crate::kernels::{
    element::Element,
    pieces::{self, Kernel},
};

/// Means and biased variances of the channels, in f64.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Statistics {
    pub(crate) mean: Vec<f64>,
    pub(crate) variance: Vec<f64>,
}

/// The means and variances over rows.
pub(super) fn statistics<T: Element>(x: &[T], channels: usize) -> Statistics {
    let piece = piece(channels);
    let parts = pieces::map(x.len().div_ceil(piece), |i| {
        let part = &x[i * piece..x.len().min((i + 1) * piece)];
        let (mut mean, mut squares) = (vec![T::default(); channels], vec![T::default(); channels]);
        pieces::compiled(Moments, (part, &mut *mean, &mut *squares));
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
struct Moments;

impl<T: Element> Kernel<(&[T], &mut [T], &mut [T])> for Moments {
    #[inline(always)]
    fn run(self, (x, mean, squares): (&[T], &mut [T], &mut [T])) {
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
}

/// Σ g and Σ g (x − μ) of each channel.
pub(super) struct GradientSums {
    pub(super) gradients: Vec<f64>,
    pub(super) products: Vec<f64>,
}

/// `y` is the result, if relu made it.
pub(super) fn gradient_sums<T: Element>(
    x: &[T],
    y: Option<&[T]>,
    g: &[T],
    mean: &[T],
) -> GradientSums {
    let channels = mean.len();
    let piece = piece(channels);
    let parts = pieces::map(x.len().div_ceil(piece), |i| {
        let range = i * piece..x.len().min((i + 1) * piece);
        let data = (
            &x[range.clone()],
            y.map(|y| &y[range.clone()]),
            &g[range.clone()],
        );
        let mut sums = vec![T::default(); 2 * channels];
        let (gradients, products) = sums.split_at_mut(channels);
        pieces::compiled(SumGradients, (data, mean, gradients, products));
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

struct SumGradients;

/// x, the result if relu made it, and g.
type Data<'a, T> = (&'a [T], Option<&'a [T]>, &'a [T]);

impl<T: Element> Kernel<(Data<'_, T>, &[T], &mut [T], &mut [T])> for SumGradients {
    #[inline(always)]
    fn run(self, ((x, y, g), mean, gradients, products): (Data<T>, &[T], &mut [T], &mut [T])) {
        let (channels, zero) = (mean.len(), T::default());
        let rows = x.chunks_exact(channels).zip(g.chunks_exact(channels));
        for (i, (x, g)) in rows.enumerate() {
            let sums = gradients.iter_mut().zip(&mut *products);
            let values = x.iter().zip(g).zip(mean);
            if let Some(y) = y {
                let y = &y[i * channels..][..channels];
                for (((sum, product), ((&x, &g), &mean)), &y) in sums.zip(values).zip(y) {
                    let g = if y <= zero { zero } else { g };
                    *sum += g;
                    *product += g * (x - mean);
                }
            } else {
                for ((sum, product), ((&x, &g), &mean)) in sums.zip(values) {
                    *sum += g;
                    *product += g * (x - mean);
                }
            }
        }
    }
}
