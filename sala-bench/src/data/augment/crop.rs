//! Random crop: the image is padded on all sides by `p` pixels and cut to its own size again at a place drawn
//! uniformly from the (2p + 1)² there are, as for CIFAR since Lee et al. 2015 (arXiv:1409.5185).

use anyhow::{Result, ensure};
use sala_models::rng::Stream;
use serde::{Deserialize, Serialize};

use super::{OnFrame, below, frame::Frame};

/// What the padding holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Border {
    /// The image mirrored at its outermost pixels, which are not repeated: `c b | a b c | b a`.
    #[default]
    Reflect,
    /// Black.
    Zero,
}

impl Border {
    /// The place in `0..size` that stands at `place`, if one does.
    fn source(self, place: isize, size: usize) -> Option<usize> {
        match (usize::try_from(place), self) {
            (Ok(place), _) if place < size => Some(place),
            (Ok(place), Self::Reflect) => Some(2 * (size - 1) - place),
            (Err(_), Self::Reflect) => Some(place.unsigned_abs()),
            (_, Self::Zero) => None,
        }
    }
}

#[derive(Debug)]
pub(super) struct Crop {
    padding: usize,
    border: Border,
}

impl Crop {
    pub(super) fn new(padding: usize, border: Border) -> Result<Self> {
        ensure!(
            (1..=1024).contains(&padding),
            "data.augment: crop.padding must be in 1..=1024, got {padding}"
        );
        Ok(Self { padding, border })
    }

    /// Cuts at a place of the padded image, counted from its upper left corner.
    fn cut(&self, frame: &mut Frame, top: usize, left: usize) {
        self.move_along(&mut frame.rows, top);
        self.move_along(&mut frame.columns, left);
    }

    fn move_along(&self, places: &mut Vec<Option<usize>>, start: usize) {
        let start = start.cast_signed() - self.padding.cast_signed();
        let seen = |i: usize| {
            let source = self.border.source(start + i.cast_signed(), places.len())?;
            places[source]
        };
        *places = (0..places.len()).map(seen).collect();
    }
}

impl OnFrame for Crop {
    fn frame(&self, frame: &mut Frame, draws: Stream) {
        let places = 2 * self.padding + 1;
        self.cut(frame, below(draws, 0, places), below(draws, 1, places));
    }

    fn check(&self, [_, height, width]: [usize; 3]) -> Result<()> {
        ensure!(
            self.border == Border::Zero || self.padding < height.min(width),
            "data.augment: crop.padding must be below the sides of the images ({height}×{width}) to reflect \
             them, got {}",
            self.padding
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use sala_models::Rng;

    use super::{super::Image, *};

    /// 1 2 3 / 4 5 6 / 7 8 9, and the same and ten.
    fn image() -> Image {
        Image::new([2, 3, 3], (1..=9).chain(11..=19).collect())
    }

    fn cut(border: Border, top: usize, left: usize) -> Vec<u8> {
        let mut image = image();
        let mut frame = Frame::whole(image.size());
        Crop::new(2, border).unwrap().cut(&mut frame, top, left);
        frame.show(&mut image);
        image.pixels().to_vec()
    }

    #[test]
    fn the_middle_of_the_padded_image_is_the_image() {
        for border in [Border::Reflect, Border::Zero] {
            assert_eq!(cut(border, 2, 2), image().pixels());
        }
    }

    #[test]
    fn black_comes_in_from_the_sides() {
        let corner = [0, 0, 0, 0, 0, 0, 0, 0, 1];
        assert_eq!(cut(Border::Zero, 0, 0)[..9], corner);
        let lower_right = [9, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(cut(Border::Zero, 4, 4)[..9], lower_right);
        let up = [0, 0, 0, 1, 2, 3, 4, 5, 6];
        assert_eq!(cut(Border::Zero, 1, 2)[..9], up);
        assert_eq!(
            cut(Border::Zero, 1, 2)[9..],
            up.map(|p| if p > 0 { p + 10 } else { 0 })
        );
    }

    #[test]
    fn the_outermost_pixels_are_mirrors_and_not_repeated() {
        // Rows 3 2 1 of the mirrored image, columns likewise.
        let corner = [9, 8, 7, 6, 5, 4, 3, 2, 1];
        assert_eq!(cut(Border::Reflect, 0, 0)[..9], corner);
        let lower_right = [9, 8, 7, 6, 5, 4, 3, 2, 1];
        assert_eq!(cut(Border::Reflect, 4, 4)[..9], lower_right);
        let right = [2, 3, 2, 5, 6, 5, 8, 9, 8];
        assert_eq!(cut(Border::Reflect, 2, 3)[..9], right);
    }

    #[test]
    fn every_place_is_drawn_equally_often() {
        let crop = Crop::new(1, Border::Zero).unwrap();
        let stream = Rng::new(5).stream("crop");
        let mut counts = std::collections::BTreeMap::<Vec<u8>, u32>::new();
        for i in 0..9_000 {
            let mut image = image();
            crop.apply(&mut image, stream.at(i));
            *counts.entry(image.pixels().to_vec()).or_default() += 1;
        }
        assert_eq!(counts.len(), 9);
        // 1,000 expected, standard deviation 30.
        assert!(
            counts.values().all(|c| (850..1150).contains(c)),
            "{counts:?}"
        );
    }

    #[test]
    fn a_padding_that_reflects_too_much_is_refused() {
        assert!(Crop::new(0, Border::Zero).is_err());
        let crop = |border| Crop::new(3, border).unwrap();
        assert!(crop(Border::Reflect).check([1, 3, 9]).is_err());
        crop(Border::Zero).check([1, 3, 9]).unwrap();
    }
}
