//! Convolution of each channel with a kernel of its own: all channels of a pixel side by side.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the chosen instruction set"
)]

use super::{
    geometry::{Phase, Plan},
    pad,
};
use crate::kernels::{
    element::Element,
    matmul::{Place, Run},
    pieces::{self, Kernel},
    scratch::Scratch,
};

/// `weight` is `(C, 1, Kh, Kw)`.
pub(super) fn product<T: Element>(
    sources: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    batch: usize,
    plan: &Plan,
) -> Vec<T> {
    let channels = plan.channels.0;
    let padded = pad(sources, batch, plan.rows, plan.columns, channels);
    let images = padded.as_deref().unwrap_or(sources);
    let phases: Vec<_> = (plan.phases.iter())
        .map(|phase| (phase, plan.pixel_runs(phase), kernels(weight, plan, phase)))
        .collect();
    let (height, width) = plan.targets;
    let rows = super::rows_of_piece(plan, batch);
    let row_len = width * channels;
    pieces::filled(batch * height * row_len, rows * row_len, |i, out| {
        let stretch = i * rows..(i * rows + out.len() / row_len);
        for (phase, runs, kernels) in &phases {
            let places = plan.places(phase, stretch.clone());
            pieces::compiled(
                Weigh,
                (images, &*places, &**runs, &**kernels, bias, &mut *out),
            );
        }
    })
}

/// The kernels of a phase, `(entries, C)`.
fn kernels<T: Element>(weight: &[T], plan: &Plan, phase: &Phase) -> Scratch<T> {
    let channels = plan.channels.0;
    let size = weight.len() / channels;
    let entries = phase.entries();
    let mut kernels = Scratch::new(entries.len() * channels);
    for (row, &(u, v)) in kernels.chunks_exact_mut(channels).zip(&entries) {
        let entry = u * plan.kernel_columns() + v;
        for (c, value) in row.iter_mut().enumerate() {
            *value = weight[c * size + entry];
        }
    }
    kernels
}

/// `out[pixel, c] = bias[c] + Σ_entry images[pixel + entry, c] kernels[entry, c]`.
struct Weigh;

/// Images, pixels, the entries' offsets, kernels, bias, and the result.
type Weighed<'a, T> = (
    &'a [T],
    &'a [Place],
    &'a [Run],
    &'a [T],
    Option<&'a [T]>,
    &'a mut [T],
);

impl<T: Element> Kernel<Weighed<'_, T>> for Weigh {
    #[inline(always)]
    fn run(self, (images, places, runs, kernels, bias, out): Weighed<T>) {
        let channels = kernels.len() / runs.len().max(1);
        for place in places {
            let sums = &mut out[place.out..][..channels];
            match bias {
                Some(bias) => sums.copy_from_slice(&bias[..channels]),
                None => sums.fill(T::default()),
            }
            for (run, kernel) in runs.iter().zip(kernels.chunks_exact(channels.max(1))) {
                let from = &images[place.base + run.offset..][..channels];
                for ((sum, &x), &w) in sums.iter_mut().zip(from).zip(kernel) {
                    *sum += x * w;
                }
            }
        }
    }
}

/// `sums[entry, c] += Σ_pixel images[pixel + entry, c] gradient[pixel, c]`.
struct Correlate;

/// Images, pixels, the entries' offsets, the gradient, and the sums.
type Correlated<'a, T> = (&'a [T], &'a [Place], &'a [Run], &'a [T], &'a mut [T]);

impl<T: Element> Kernel<Correlated<'_, T>> for Correlate {
    #[inline(always)]
    fn run(self, (images, places, runs, gradient, sums): Correlated<T>) {
        let channels = sums.len() / runs.len().max(1);
        for (place, pixel) in places.iter().zip(gradient.chunks_exact(channels.max(1))) {
            for (run, sums) in runs.iter().zip(sums.chunks_exact_mut(channels)) {
                let from = &images[place.base + run.offset..][..channels];
                for ((sum, &x), &g) in sums.iter_mut().zip(from).zip(pixel) {
                    *sum += x * g;
                }
            }
        }
    }
}

/// The gradient of the weight, `(C, 1, Kh, Kw)`.
pub(super) fn weight_gradient<T: Element>(
    x: &[T],
    gradient: &[T],
    batch: usize,
    plan: &Plan,
) -> Vec<T> {
    let channels = plan.channels.0;
    let padded = pad(x, batch, plan.rows, plan.columns, channels);
    let images = padded.as_deref().unwrap_or(x);
    let Some(phase) = plan.phases.first() else {
        return vec![];
    };
    let (runs, entries) = (plan.pixel_runs(phase), phase.entries());
    let rows = super::rows_of_piece(plan, batch);
    let (height, width) = plan.targets;
    let all = batch * height;
    let parts = pieces::map(all.div_ceil(rows), |i| {
        let stretch = i * rows..all.min((i + 1) * rows);
        let pixels = &gradient[stretch.start * width * channels..];
        let places = plan.places(phase, stretch);
        let mut sums = vec![T::default(); entries.len() * channels];
        pieces::compiled(Correlate, (images, &*places, &*runs, pixels, &mut *sums));
        sums
    });
    let size = entries.len();
    let mut weight = vec![T::default(); size * channels];
    for part in parts {
        for (sums, &(u, v)) in part.chunks_exact(channels).zip(&entries) {
            let entry = u * plan.kernel_columns() + v;
            for (c, &sum) in sums.iter().enumerate() {
                weight[c * size + entry] += sum;
            }
        }
    }
    weight
}
