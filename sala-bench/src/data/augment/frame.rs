//! Which rows and columns of an image are seen: what crops and flips change.

use super::Image;

/// For each row and column of the result the one of the image that it shows; nothing stands for black.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) rows: Vec<Option<usize>>,
    pub(crate) columns: Vec<Option<usize>>,
}

impl Frame {
    /// All of an image.
    pub(crate) fn whole((height, width): (usize, usize)) -> Self {
        Self {
            rows: (0..height).map(Some).collect(),
            columns: (0..width).map(Some).collect(),
        }
    }

    /// What it shows of an image.
    pub(super) fn show(&self, image: &mut Image) {
        let (_, width) = image.size();
        let mut shown = Vec::with_capacity(image.pixels().len());
        for plane in image.planes() {
            for row in &self.rows {
                let row = row.map(|y| &plane[y * width..][..width]);
                let pixel = |x: &Option<usize>| row.zip(*x).map_or(0, |(row, x)| row[x]);
                shown.extend(self.columns.iter().map(pixel));
            }
        }
        image.replace(shown);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_columns_are_chosen_in_every_channel_and_nothing_is_black() {
        let mut image = Image::new([2, 2, 3], (1..=12).collect());
        let frame = Frame {
            rows: vec![Some(1), Some(0)],
            columns: vec![Some(2), None, Some(2)],
        };
        frame.show(&mut image);
        assert_eq!(image.pixels(), [6, 0, 6, 3, 0, 3, 12, 0, 12, 9, 0, 9]);
        let before = image.clone();
        Frame::whole((2, 3)).show(&mut image);
        assert_eq!(image, before);
    }
}
