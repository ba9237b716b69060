//! Cutout (`DeVries` and Taylor 2017, arXiv:1708.04552): a square of `size` pixels around a pixel drawn uniformly
//! from the whole image is replaced by the mean; what lies beyond the image is cut off.
//!
//! The authors' sizes are 16 for CIFAR-10 and 8 for CIFAR-100. For an odd size theirs is one pixel smaller.

use anyhow::{Result, ensure};
use sala_models::{images::Rectangle, rng::Stream};

use super::{OnValues, below, image::clipped};

#[derive(Debug)]
pub(super) struct Cutout {
    size: usize,
}

impl Cutout {
    pub(super) fn new(size: usize) -> Result<Self> {
        ensure!(
            size > 0,
            "data.augment: cutout.size must be >= 1, got {size}"
        );
        Ok(Self { size })
    }
}

impl OnValues for Cutout {
    fn cleared(&self, (height, width): (usize, usize), draws: Stream) -> Option<Rectangle> {
        let side = |i: u64, size: usize| {
            let start = below(draws, i, size).cast_signed() - (self.size / 2).cast_signed();
            clipped(start, self.size, size)
        };
        Some(Rectangle {
            rows: side(0, height),
            columns: side(1, width),
        })
    }
}

#[cfg(test)]
mod tests {
    use sala_models::Rng;

    use super::{super::Values, *};

    #[test]
    fn a_square_around_a_pixel_of_the_image_is_cleared_and_no_other() {
        let cutout = Cutout::new(2).unwrap();
        let stream = Rng::new(2).stream("cutout");
        let mut counts = std::collections::BTreeMap::<Vec<usize>, u32>::new();
        for i in 0..9_000 {
            let mut values = vec![1.0; 9];
            cutout.apply(&mut Values::new([1, 3, 3], &mut values), stream.at(i));
            let cleared = (0..9).filter(|&p| values[p] == 0.0).collect();
            *counts.entry(cleared).or_default() += 1;
        }
        // The square's pixels are those above and left of the drawn one and itself.
        let (sides, drawn) = ([vec![0], vec![0, 1], vec![1, 2]], 0..3);
        let squares = drawn.flat_map(|y| sides.each_ref().map(|columns| (y, columns)));
        let wanted: Vec<Vec<usize>> = squares
            .map(|(y, columns)| {
                let rows = sides[y].iter();
                rows.flat_map(|r| columns.iter().map(move |c| 3 * r + c))
                    .collect()
            })
            .collect();
        assert_eq!(counts.len(), 9);
        for square in wanted {
            // 1,000 expected, standard deviation 30.
            assert!(
                (850..1150).contains(&counts[&square]),
                "{square:?} {counts:?}"
            );
        }
        assert!(Cutout::new(0).is_err());
    }

    #[test]
    fn a_square_larger_than_the_image_clears_at_least_a_quarter() {
        let mut values = vec![1.0; 2 * 16];
        let draws = Rng::new(3).stream("cutout");
        let cutout = Cutout::new(100).unwrap();
        cutout.apply(&mut Values::new([2, 4, 4], &mut values), draws);
        assert_eq!(values, [0.0; 32]);
    }
}
