//! Horizontal flip: with probability `p` left and right change places.

use anyhow::Result;
use sala_models::rng::Stream;

use super::{OnFrame, check_probability, frame::Frame};

#[derive(Debug)]
pub(super) struct Flip {
    probability: f64,
}

impl Flip {
    pub(super) fn new(probability: f64) -> Result<Self> {
        check_probability("flip", probability)?;
        Ok(Self { probability })
    }
}

impl OnFrame for Flip {
    fn frame(&self, frame: &mut Frame, draws: Stream) {
        if draws.uniform(0) < self.probability {
            frame.columns.reverse();
        }
    }
}

#[cfg(test)]
mod tests {
    use sala_models::Rng;

    use super::{super::Image, *};

    #[test]
    fn rows_are_mirrored_in_every_channel() {
        let mut image = Image::new([2, 2, 3], (1..=12).collect());
        let draws = Rng::new(0).stream("flip");
        Flip::new(1.0).unwrap().apply(&mut image, draws);
        assert_eq!(image.pixels(), [3, 2, 1, 6, 5, 4, 9, 8, 7, 12, 11, 10]);
        Flip::new(0.0).unwrap().apply(&mut image, draws);
        assert_eq!(image.pixels()[..3], [3, 2, 1]);
    }

    #[test]
    fn as_many_are_flipped_as_the_probability_says() {
        let flip = Flip::new(0.3).unwrap();
        let stream = Rng::new(1).stream("flip");
        let flipped = (0..10_000).filter(|&i| {
            let mut image = Image::new([1, 1, 2], vec![0, 1]);
            flip.apply(&mut image, stream.at(i));
            image.pixels() == [1, 0]
        });
        // Standard deviation 46.
        assert!((2_800..3_200).contains(&flipped.count()));
        assert!(Flip::new(1.1).is_err() && Flip::new(f64::NAN).is_err());
    }
}
