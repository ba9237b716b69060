//! Convolution with channels last, as products of gathered rows (see [`matmul`](super::matmul)).
//!
//! With `y = conv(x, w)`:
//!
//! ```text
//! ∂L/∂x = conv(∂L/∂y, w turned by 180° and with inputs and outputs exchanged)       phase by phase
//! ∂L/∂w[o, c, u, v] = Σ over pixels of x[pixel + (u, v), c] ∂L/∂y[pixel, o]
//! ```
//!
//! Per call memory sees the images once to pad them (not at all without padding), and the weight once
//! to pack it. Sums over pixels are cut into parts that depend on the sizes alone, and the parts' sums are
//! added in order.

mod depthwise;
mod geometry;
pub(super) mod precision;
mod winograd;

use std::ops::Range;

use candle_core::{Result, Shape, Tensor};

use self::{
    geometry::{Padding, Phase, Plan},
    winograd::Tile,
};
use super::{
    access,
    element::Element,
    graph::{self, Input, Operation},
    matmul::{Outer, Panels, Product},
    pieces,
    scratch::Scratch,
    transpose,
};
use crate::ops::{ImageFormat, conv::Geometry};

/// Pixels of a piece of the product, at most and at least.
const PIXELS: (usize, usize) = (256, 32);

/// Pieces that the pixels are cut into, so that many threads find work.
const SHARES: usize = 16;

/// The convolution of contiguous tensors of one dtype.
pub(crate) fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    geometry: &Geometry,
) -> Result<Tensor> {
    match x.dtype() {
        candle_core::DType::F64 => apply::<f64>(x, weight, bias, geometry),
        _ => apply::<f32>(x, weight, bias, geometry),
    }
}

fn apply<T: Element>(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    geometry: &Geometry,
) -> Result<Tensor> {
    let (precision, forced) = precision::precision_of(x.dtype())?;
    let op = Conv::<T> {
        geometry: *geometry,
        tile: winograd::tile(geometry, precision, forced),
        element: std::marker::PhantomData,
    };
    let tensors: Vec<&Tensor> = [x, weight].into_iter().chain(bias).collect();
    graph::apply(op, &tensors)
}

struct Conv<T> {
    geometry: Geometry,
    /// Winograd's tile, if the convolution is computed with one: chosen here, for the backward, too.
    tile: Option<Tile>,
    element: std::marker::PhantomData<T>,
}

impl<T: Element> Operation for Conv<T> {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn forward(&self, tensors: &[&Tensor]) -> Result<Tensor> {
        let (x, weight) = (access::view::<T>(tensors[0])?, access::view(tensors[1])?);
        let y = match tensors.get(2) {
            Some(bias) => self.values(&x, &weight, Some(&access::view(bias)?)),
            None => self.values(&x, &weight, None),
        };
        access::tensor(y, self.geometry.result())
    }

    fn backward(
        &self,
        tensors: &[Input],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let geometry = &self.geometry;
        let gradient = access::view::<T>(gradient)?;
        let transposed;
        let gradient = match geometry.format {
            ImageFormat::ChannelsLast => &*gradient,
            ImageFormat::ChannelsFirst => {
                let pixels = geometry.rows.windows * geometry.columns.windows;
                transposed = transpose::to_scratch(&gradient, geometry.outputs, pixels);
                &*transposed
            }
        };
        let gradient_of = |i: usize, input: &Input| {
            let values = match i {
                0 => self.input_gradient(gradient, &access::view(&tensors[1].value)?),
                1 => self.weight_gradient(&access::view(&tensors[0].value)?, gradient),
                _ => pieces::column_sums(gradient, geometry.outputs),
            };
            access::tensor(values, input.value.shape())
        };
        (tensors.iter().enumerate())
            .map(|(i, input)| input.tracked.then(|| gradient_of(i, input)).transpose())
            .collect()
    }
}

impl<T: Element> Conv<T> {
    fn values(&self, x: &[T], weight: &[T], bias: Option<&[T]>) -> Vec<T> {
        let geometry = &self.geometry;
        match geometry.format {
            ImageFormat::ChannelsLast => self.forward_last(x, weight, bias),
            ImageFormat::ChannelsFirst => {
                let y = self.forward_last(&self.inputs_last(x), weight, bias);
                let pixels = geometry.rows.windows * geometry.columns.windows;
                transpose::batches(&y, pixels, geometry.outputs)
            }
        }
    }

    fn input_gradient(&self, gradient: &[T], weight: &[T]) -> Vec<T> {
        let geometry = &self.geometry;
        let of_x = match self.tile {
            Some(tile) => winograd::input_gradient(gradient, weight, geometry, tile),
            None => input_gradient(gradient, weight, geometry),
        };
        match geometry.format {
            ImageFormat::ChannelsLast => of_x,
            ImageFormat::ChannelsFirst => {
                let pixels = geometry.rows.size * geometry.columns.size;
                transpose::batches(&of_x, pixels, geometry.inputs)
            }
        }
    }

    fn weight_gradient(&self, x: &[T], gradient: &[T]) -> Vec<T> {
        match self.geometry.format {
            ImageFormat::ChannelsLast => self.weight_gradient_last(x, gradient),
            ImageFormat::ChannelsFirst => self.weight_gradient_last(&self.inputs_last(x), gradient),
        }
    }

    /// With channels last, as the following.
    fn forward_last(&self, x: &[T], weight: &[T], bias: Option<&[T]>) -> Vec<T> {
        match self.tile {
            Some(tile) => winograd::forward(x, weight, bias, &self.geometry, tile),
            None => forward(x, weight, bias, &self.geometry),
        }
    }

    fn weight_gradient_last(&self, x: &[T], gradient: &[T]) -> Vec<T> {
        match self.tile {
            Some(tile) => winograd::weight_gradient(x, gradient, &self.geometry, tile),
            None => weight_gradient(x, gradient, &self.geometry),
        }
    }

    /// `x (N, C, H, W)` with its channels last.
    fn inputs_last(&self, x: &[T]) -> Scratch<T> {
        let pixels = self.geometry.rows.size * self.geometry.columns.size;
        transpose::to_scratch(x, self.geometry.inputs, pixels)
    }
}

fn forward<T: Element>(x: &[T], weight: &[T], bias: Option<&[T]>, geometry: &Geometry) -> Vec<T> {
    let plan = Plan::forward(geometry);
    if geometry.is_depthwise() {
        return depthwise::product(x, weight, bias, geometry.batch, &plan);
    }
    let strides = geometry.weight_strides();
    product(x, weight, strides, bias, geometry.batch, &plan)
}

fn input_gradient<T: Element>(gradient: &[T], weight: &[T], geometry: &Geometry) -> Vec<T> {
    let plan = Plan::backward(geometry);
    if geometry.is_depthwise() {
        return depthwise::product(gradient, weight, None, geometry.batch, &plan);
    }
    let (read, written, entries) = geometry.weight_strides();
    product(
        gradient,
        weight,
        (written, read, entries),
        None,
        geometry.batch,
        &plan,
    )
}

/// Distances in a weight `(O, C, Kh, Kw)` between what is read, between what is written, and between rows
/// of the kernel.
type WeightStrides = (usize, usize, usize);

impl Geometry {
    fn result(&self) -> Shape {
        let (height, width) = (self.rows.windows, self.columns.windows);
        match self.format {
            ImageFormat::ChannelsFirst => (self.batch, self.outputs, height, width).into(),
            ImageFormat::ChannelsLast => (self.batch, height, width, self.outputs).into(),
        }
    }

    /// Forward, where inputs are read and outputs written.
    const fn weight_strides(&self) -> WeightStrides {
        let entries = self.rows.kernel * self.columns.kernel;
        (
            entries,
            entries * (self.inputs / self.groups),
            self.columns.kernel,
        )
    }

    /// One kernel for each channel.
    const fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.groups == self.inputs && self.groups == self.outputs
    }
}

/// The rows of targets that make a piece of work.
fn rows_of_piece(plan: &Plan, batch: usize) -> usize {
    let (height, width) = plan.targets;
    let pixels = (batch * height * width / SHARES).clamp(PIXELS.1, PIXELS.0);
    pixels.div_ceil(width).max(plan.phases.len())
}

/// `weight` is read by the strides: between channels read, channels written, and rows of the kernel.
fn product<T: Element>(
    sources: &[T],
    weight: &[T],
    strides: WeightStrides,
    bias: Option<&[T]>,
    batch: usize,
    plan: &Plan,
) -> Vec<T> {
    let padded = pad(sources, batch, plan.rows, plan.columns, plan.channels.0);
    let images = padded.as_deref().unwrap_or(sources);
    let written = plan.channels.1 / plan.groups;
    let packed: Vec<Vec<Panels<T>>> = (plan.phases.iter())
        .map(|phase| {
            let of_group = |group| pack(weight, strides, plan, phase, group);
            (0..plan.groups).map(of_group).collect()
        })
        .collect();
    let runs: Vec<_> = plan.phases.iter().map(|phase| plan.runs(phase)).collect();
    let (height, width) = plan.targets;
    let rows = rows_of_piece(plan, batch);
    let row_len = width * plan.channels.1;
    pieces::filled(batch * height * row_len, rows * row_len, |i, out| {
        let stretch = i * rows..(i * rows + out.len() / row_len);
        for ((phase, runs), packed) in plan.phases.iter().zip(&runs).zip(&packed) {
            let places = plan.places(phase, stretch.clone());
            for (group, right) in packed.iter().enumerate() {
                let columns = group * written..(group + 1) * written;
                let product = Product {
                    left: &images[group * plan.in_group()..],
                    places: &places,
                    runs,
                    right,
                    bias: bias.map(|bias| &bias[columns.clone()]),
                };
                product.write(&mut out[columns.start..]);
            }
        }
    })
}

/// The part of the weight that a phase and a group use, as a matrix from what is read to what is written.
fn pack<T: Element>(
    weight: &[T],
    (read, written, kernel_row): WeightStrides,
    plan: &Plan,
    phase: &Phase,
    group: usize,
) -> Panels<T> {
    let entries = phase.entries();
    let in_group = plan.in_group();
    let out_group = plan.channels.1 / plan.groups;
    let weight = &weight[group * weight.len() / plan.groups..];
    Panels::new(entries.len() * in_group, out_group, |columns, block| {
        let width = block.len() / (entries.len() * in_group).max(1);
        for (e, &(u, v)) in entries.iter().enumerate() {
            let from = &weight[u * kernel_row + v..];
            let rows = block[e * in_group * width..].chunks_exact_mut(width);
            for (c, row) in rows.take(in_group).enumerate() {
                let from = &from[c * read + columns.start * written..];
                let values = from.iter().step_by(written);
                for (value, &x) in row.iter_mut().zip(values).take(columns.len()) {
                    *value = x;
                }
            }
        }
    })
}

/// `sources (N, H, W, C)` with zeros around them, unless none are needed.
fn pad<T: Element>(
    sources: &[T],
    batch: usize,
    rows: Padding,
    columns: Padding,
    channels: usize,
) -> Option<Scratch<T>> {
    if rows.is_needless() && columns.is_needless() {
        return None;
    }
    let (row, source_row) = (columns.len() * channels, columns.size * channels);
    // Where one window sees nothing but padding, that is longer than what is seen.
    let start = if columns.is_needless() {
        0
    } else {
        (columns.before * channels).min(row)
    };
    let len = source_row.min(row - start);
    let mut padded = Scratch::new(batch * rows.len() * row);
    pieces::each_of(&mut padded, rows.len() * row, |image, padded| {
        let before = if rows.is_needless() { 0 } else { rows.before };
        for (i, to) in padded.chunks_exact_mut(row).enumerate() {
            match i.checked_sub(before).filter(|&i| i < rows.size) {
                Some(i) => {
                    let from = &sources[(image * rows.size + i) * source_row..][..len];
                    to[..start].fill(T::default());
                    to[start..start + len].copy_from_slice(from);
                    to[start + len..].fill(T::default());
                }
                None => to.fill(T::default()),
            }
        }
    });
    Some(padded)
}

/// The gradient of the weight, `(O, C / groups, Kh, Kw)`.
fn weight_gradient<T: Element>(x: &[T], gradient: &[T], geometry: &Geometry) -> Vec<T> {
    let plan = Plan::forward(geometry);
    if geometry.is_depthwise() {
        return depthwise::weight_gradient(x, gradient, geometry.batch, &plan);
    }
    let padded = pad(x, geometry.batch, plan.rows, plan.columns, geometry.inputs);
    let images = padded.as_deref().unwrap_or(x);
    let Some(phase) = plan.phases.first() else {
        return vec![];
    };
    let (runs, entries) = (plan.runs(phase), phase.entries());
    let outputs = geometry.outputs / geometry.groups;
    let of_group = |group: usize| {
        let outer = Outer {
            left: &images[group * plan.in_group()..],
            bases: |pixels: Range<usize>| plan.bases(phase, pixels),
            runs: &runs,
            right: &gradient[group * outputs..],
            stride: geometry.outputs,
            rows: geometry.batch * geometry.rows.windows * geometry.columns.windows,
            columns: outputs,
        };
        outer.sums()
    };
    let sums: Vec<_> = (0..geometry.groups).map(of_group).collect();
    let len = entries.len() * plan.in_group();
    pieces::filled(geometry.outputs * len, len, |o, weight| {
        for mut sums in sums[o / outputs].columns(o % outputs) {
            for &(u, v) in &entries {
                let entry = u * geometry.columns.kernel + v;
                let values = weight[entry..].iter_mut().step_by(entries.len());
                for (value, sum) in values.zip(sums.by_ref().take(plan.in_group())) {
                    *value += sum;
                }
            }
        }
    })
}
