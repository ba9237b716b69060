//! An image as augmentations see it.

use std::ops::Range;

use sala_models::images::Rectangle;

/// The bytes of an image, channel by channel and row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Image {
    shape: [usize; 3],
    pixels: Vec<u8>,
}

impl Image {
    /// `pixels` are the C·H·W values of an image of `shape` `[C, H, W]`, none of which is 0.
    pub(crate) fn new(shape: [usize; 3], pixels: Vec<u8>) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), pixels.len());
        Self { shape, pixels }
    }

    /// Height and width.
    pub(super) const fn size(&self) -> (usize, usize) {
        (self.shape[1], self.shape[2])
    }

    pub(crate) fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// All values, to be changed one by one.
    pub(super) fn pixels_mut(&mut self) -> &mut [u8] {
        &mut self.pixels
    }

    /// The channels.
    pub(super) fn planes(&self) -> std::slice::ChunksExact<'_, u8> {
        self.pixels.chunks_exact(self.shape[1] * self.shape[2])
    }

    /// The channels, to be changed.
    pub(super) fn planes_mut(&mut self) -> std::slice::ChunksExactMut<'_, u8> {
        self.pixels.chunks_exact_mut(self.shape[1] * self.shape[2])
    }

    /// Replaces the values by as many others.
    pub(super) fn replace(&mut self, pixels: Vec<u8>) {
        debug_assert_eq!(pixels.len(), self.pixels.len());
        self.pixels = pixels;
    }

    /// The value of each pixel in grey, by the weights of ITU-R 601 in sixteen bits; the values themselves where
    /// there are not three channels.
    pub(super) fn grey(&self) -> Vec<u8> {
        let plane = self.shape[1] * self.shape[2];
        if self.shape[0] != 3 {
            return self.pixels[..plane].to_vec();
        }
        let (red, others) = self.pixels.split_at(plane);
        let (green, blue) = others.split_at(plane);
        let grey = |((&r, &g), &b): ((&u8, &u8), &u8)| {
            let sum = 19_595 * u32::from(r) + 38_470 * u32::from(g) + 7_471 * u32::from(b);
            // The weights add up to 2¹⁶, so this is at most 255.
            u8::try_from((sum + (1 << 15)) >> 16).unwrap_or(u8::MAX)
        };
        red.iter().zip(green).zip(blue).map(grey).collect()
    }
}

/// The normalised values of an image, channel by channel.
#[derive(Debug)]
pub(crate) struct Values<'a> {
    shape: [usize; 3],
    values: &'a mut [f32],
}

impl<'a> Values<'a> {
    /// `values` are the C·H·W values of an image of `shape` `[C, H, W]`.
    pub(crate) fn new(shape: [usize; 3], values: &'a mut [f32]) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), values.len());
        Self { shape, values }
    }

    /// Height and width.
    pub(super) const fn size(&self) -> (usize, usize) {
        (self.shape[1], self.shape[2])
    }

    /// Sets a rectangle of every channel to 0, the mean.
    pub(super) fn clear(&mut self, Rectangle { rows, columns }: &Rectangle) {
        let [_, height, width] = self.shape;
        for plane in self.values.chunks_exact_mut(height * width) {
            for row in plane
                .chunks_exact_mut(width)
                .take(rows.end)
                .skip(rows.start)
            {
                row[columns.clone()].fill(0.0);
            }
        }
    }
}

/// The part of `start..start + length` that lies in `0..size`.
pub(super) fn clipped(start: isize, length: usize, size: usize) -> Range<usize> {
    let inside = |place: isize| usize::try_from(place).unwrap_or(0).min(size);
    inside(start)..inside(start.saturating_add_unsigned(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grey_is_the_weighted_sum_of_three_channels_and_a_single_channel_itself() {
        // 0.299 · 100 + 0.587 · 200 + 0.114 · 50 = 153; white stays white.
        let colour = Image::new([3, 1, 2], vec![100, 255, 200, 255, 50, 255]);
        assert_eq!(colour.grey(), [153, 255]);
        assert_eq!(Image::new([1, 1, 2], vec![7, 9]).grey(), [7, 9]);
    }

    #[test]
    fn a_rectangle_is_cleared_in_every_channel() {
        let mut values = vec![1.0; 2 * 2 * 3];
        let part = Rectangle {
            rows: 1..2,
            columns: 0..2,
        };
        Values::new([2, 2, 3], &mut values).clear(&part);
        let plane = [1.0, 1.0, 1.0, 0.0, 0.0, 1.0];
        assert_eq!(values, [plane, plane].concat());
    }

    #[test]
    fn what_lies_outside_is_cut_off() {
        assert_eq!(clipped(-2, 5, 10), 0..3);
        assert_eq!(clipped(8, 5, 10), 8..10);
        assert_eq!(clipped(-9, 5, 10), 0..0);
        assert_eq!(clipped(3, 5, 10), 3..8);
    }
}
