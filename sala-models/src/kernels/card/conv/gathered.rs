//! Convolutions as matrix products of gathered rows: for each pixel of the result, what the kernel sees, entry by entry
//! (Chellapilla, Puri and Simard 2006).
//!
//! ```text
//! Y = G(x) Wᵀ        ∂L/∂W = ∂L/∂Yᵀ G(x)        ∂L/∂x = G*(∂L/∂Y W)
//! ```
//!
//! `G*` adds to each place of `x` what the rows that saw it hold. Images are taken a few at a time, so that the gathered
//! rows take a bounded part of the card's memory.

use candle_core::{Result, Tensor};

use super::super::{Call, Card, product::product};
use crate::ops::conv::Geometry;

/// Bytes of gathered rows at a time, at most, unless one image has more.
const MOST: usize = 1 << 30;

/// Elements that a block gathers; `device/conv.cuh` has the same number.
const CHUNK: usize = 1024;

/// A convolution of some images.
struct Part<'a> {
    card: &'a Card,
    geometry: &'a Geometry,
    images: usize,
}

/// `x (N, H, W, C)`, `weight (O, Kh, Kw, C / groups)` to `(N, Hw, Ww, O)`.
pub(super) fn forward(
    card: &Card,
    x: &Tensor,
    weight: &Tensor,
    geometry: &Geometry,
) -> Result<Tensor> {
    let parts = parts(card, x, geometry);
    let parts: Vec<Tensor> = parts
        .map(|(part, first)| part.values(&x.narrow(0, first, part.images)?, weight))
        .collect::<Result<_>>()?;
    joined(parts)
}

/// The gradient of `x`, from that of the result.
pub(super) fn input_gradient(
    card: &Card,
    dy: &Tensor,
    weight: &Tensor,
    geometry: &Geometry,
) -> Result<Tensor> {
    let parts = parts(card, dy, geometry);
    let parts: Vec<Tensor> = parts
        .map(|(part, first)| part.input_gradient(&dy.narrow(0, first, part.images)?, weight))
        .collect::<Result<_>>()?;
    joined(parts)
}

/// The gradient of the weight `(O, Kh, Kw, C / groups)`.
pub(super) fn weight_gradient(
    card: &Card,
    x: &Tensor,
    dy: &Tensor,
    geometry: &Geometry,
) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (part, first) in parts(card, x, geometry) {
        let of = |t: &Tensor| t.narrow(0, first, part.images);
        let gradient = part.weight_gradient(&of(x)?, &of(dy)?)?;
        sum = Some(match sum {
            Some(sum) => (sum + gradient)?,
            None => gradient,
        });
    }
    match sum {
        Some(sum) => Ok(sum),
        None => candle_core::bail!("conv2d: no images"),
    }
}

/// Some images at a time, and the number of the first one.
fn parts<'a>(
    card: &'a Card,
    x: &Tensor,
    geometry: &'a Geometry,
) -> impl Iterator<Item = (Part<'a>, usize)> {
    let batch = geometry.batch;
    let image = geometry.seen() * geometry.groups * geometry.pixels() * x.dtype().size_in_bytes();
    let at_once = (MOST / image.max(1)).clamp(1, batch.max(1));
    (0..batch).step_by(at_once).map(move |first| {
        let images = at_once.min(batch - first);
        let part = Part {
            card,
            geometry,
            images,
        };
        (part, first)
    })
}

fn joined(parts: Vec<Tensor>) -> Result<Tensor> {
    match &parts[..] {
        [only] => Ok(only.clone()),
        _ => Tensor::cat(&parts, 0),
    }
}

impl Geometry {
    /// Entries of `x` that a pixel of the result sees within a group.
    const fn seen(&self) -> usize {
        self.rows.kernel * self.columns.kernel * (self.inputs / self.groups)
    }

    /// Pixels of the result of an image.
    const fn pixels(&self) -> usize {
        self.rows.windows * self.columns.windows
    }

    /// Whether a pixel of the result sees one pixel, which is at the same place.
    const fn is_pointwise(&self) -> bool {
        let (rows, columns) = (&self.rows, &self.columns);
        rows.kernel == 1
            && columns.kernel == 1
            && rows.stride == 1
            && columns.stride == 1
            && rows.padding == 0
            && columns.padding == 0
            && self.groups == 1
    }
}

impl Part<'_> {
    fn values(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let Geometry {
            groups,
            outputs,
            rows,
            columns,
            ..
        } = *self.geometry;
        let weight = weight.reshape((groups, outputs / groups, ()))?;
        let y = product(&self.gathered(x)?, &weight.transpose(1, 2)?)?;
        // (G, pixels, O / G) to (pixels, G, O / G).
        y.transpose(0, 1)?.contiguous()?.reshape((
            self.images,
            rows.windows,
            columns.windows,
            outputs,
        ))
    }

    fn input_gradient(&self, dy: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let Geometry {
            groups, outputs, ..
        } = *self.geometry;
        let weight = weight.reshape((groups, outputs / groups, ()))?;
        self.scattered(&product(&self.groups_first(dy)?, &weight)?)
    }

    fn weight_gradient(&self, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let Geometry {
            groups,
            inputs,
            outputs,
            rows,
            columns,
            ..
        } = *self.geometry;
        let dy = self.groups_first(dy)?;
        let gradient = product(&dy.transpose(1, 2)?, &self.gathered(x)?)?;
        gradient.reshape((outputs, rows.kernel, columns.kernel, inputs / groups))
    }

    /// `(pixels, O)` as `(G, pixels, O / G)`.
    fn groups_first(&self, y: &Tensor) -> Result<Tensor> {
        let Geometry {
            groups, outputs, ..
        } = *self.geometry;
        y.reshape(((), groups, outputs / groups))?
            .transpose(0, 1)?
            .contiguous()
    }

    /// `(G, pixels, entries · C / G)`: what each pixel of the result sees, 0 beyond the border.
    fn gathered(&self, x: &Tensor) -> Result<Tensor> {
        let geometry = self.geometry;
        let pixels = self.images * geometry.pixels();
        let shape = (geometry.groups, pixels, geometry.seen());
        if geometry.is_pointwise() {
            return x.reshape(shape);
        }
        let rows = self.card.empty(shape, x.dtype())?;
        self.launch("gather", &[Some(x), Some(&rows)], &rows)?;
        Ok(rows)
    }

    /// `(images, H, W, C)`: for each place the sum over the rows that saw it.
    fn scattered(&self, rows: &Tensor) -> Result<Tensor> {
        let geometry = self.geometry;
        let (height, width) = (geometry.rows.size, geometry.columns.size);
        let shape = (self.images, height, width, geometry.inputs);
        if geometry.is_pointwise() {
            return rows.reshape(shape);
        }
        let dx = self.card.empty(shape, rows.dtype())?;
        self.launch("scatter", &[Some(rows), Some(&dx)], &dx)?;
        Ok(dx)
    }

    /// A kernel that makes the elements of `made`.
    fn launch(
        &self,
        kernel: &'static str,
        tensors: &[Option<&Tensor>],
        made: &Tensor,
    ) -> Result<()> {
        let Geometry {
            groups,
            inputs,
            rows,
            columns,
            ..
        } = *self.geometry;
        let mut numbers = vec![self.images, inputs, groups];
        for axis in [rows, columns] {
            numbers.extend([
                axis.size,
                axis.kernel,
                axis.stride,
                axis.padding,
                axis.dilation,
                axis.windows,
            ]);
        }
        self.card.launch(Call {
            kernel,
            dtype: made.dtype(),
            blocks: made.elem_count().div_ceil(CHUNK),
            tensors,
            numbers: &numbers,
            factors: &[],
        })
    }
}
