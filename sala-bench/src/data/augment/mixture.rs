//! Batches whose images are mixed with each other, and what becomes of their targets.

use sala_models::images::{Mixture, Rectangle};

/// For every image of a batch, what share of its target each class has.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Shares {
    classes: usize,
    values: Vec<f32>,
}

impl Shares {
    /// All of it for the class of each image, which lies below `classes`.
    pub(crate) fn of(labels: &[u32], classes: usize) -> Self {
        let mut values = vec![0.0; labels.len() * classes];
        for (row, &label) in values.chunks_exact_mut(classes).zip(labels) {
            row[label as usize] = 1.0;
        }
        Self { classes, values }
    }

    /// B·C values, image by image.
    pub(crate) fn into_values(self) -> Vec<f32> {
        self.values
    }

    #[cfg(test)]
    pub(super) fn values(&self) -> &[f32] {
        &self.values
    }

    /// Shares of images that are mixed so, of this height and width. Where a part is pasted, the partner has the part's
    /// share of the pixels.
    pub(crate) fn mix(&mut self, mixture: &Mixture, (height, width): (usize, usize)) {
        match mixture {
            Mixture::None => {}
            Mixture::Blend { order, share } => {
                blend(&mut self.values, self.classes, *share, order);
            }
            Mixture::Paste { order, rectangle } => {
                let pasted = rectangle.rows.len() * rectangle.columns.len();
                let replaced = pasted as f64 / (height * width) as f64;
                blend(&mut self.values, self.classes, 1.0 - replaced, order);
            }
        }
    }
}

/// Mixes images of `shape` `[C, H, W]` that lie one after the other.
pub(crate) fn mix(images: &mut [f32], shape: [usize; 3], mixture: &Mixture) {
    match mixture {
        Mixture::None => {}
        Mixture::Blend { order, share } => blend(images, shape.iter().product(), *share, order),
        Mixture::Paste { order, rectangle } => paste(images, shape, rectangle, order),
    }
}

/// `λ v_i + (1 − λ) v_π(i)` for all rows of a length.
#[expect(
    clippy::cast_possible_truncation,
    reason = "shares are rounded to the values' precision"
)]
fn blend(values: &mut [f32], length: usize, lambda: f64, order: &[usize]) {
    let (own, other) = (lambda as f32, (1.0 - lambda) as f32);
    let before = values.to_vec();
    for (row, &partner) in values.chunks_exact_mut(length).zip(order) {
        let partner = &before[partner * length..][..length];
        for (value, partner) in row.iter_mut().zip(partner) {
            *value = own * *value + other * partner;
        }
    }
}

fn paste(images: &mut [f32], shape: [usize; 3], part: &Rectangle, order: &[usize]) {
    let [channels, height, width] = shape;
    let before = images.to_vec();
    let size = channels * height * width;
    for (image, &partner) in images.chunks_exact_mut(size).zip(order) {
        let partner = before[partner * size..][..size].chunks_exact(width);
        let both = image.chunks_exact_mut(width).zip(partner);
        for (y, (row, partner)) in both.enumerate() {
            if part.rows.contains(&(y % height)) {
                row[part.columns.clone()].copy_from_slice(&partner[part.columns.clone()]);
            }
        }
    }
}
