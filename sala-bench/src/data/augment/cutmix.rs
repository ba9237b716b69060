//! `CutMix` (Yun et al. 2019, arXiv:1905.04899): with probability `p` a rectangle of every image of a batch is replaced
//! by that of the image that stands in its place in another order `π`,
//!
//! ```text
//! λ ~ Beta(α, α)        r_h = ⌊H √(1 − λ)⌋, r_w = ⌊W √(1 − λ)⌋ around a uniformly drawn pixel
//! ỹ_i = λ′ y_i + (1 − λ′) y_π(i)        λ′ = 1 − what remains of the rectangle within the image / (H W)
//! ```
//!
//! with one rectangle and one uniformly drawn order a batch, as the authors do it.

use anyhow::Result;
use sala_models::{
    images::{Mixture, Rectangle},
    rng::Stream,
};

use super::{OnBatch, below, check_probability, image::clipped, mixup::Lambda};

#[derive(Debug)]
pub(super) struct CutMix {
    lambda: Lambda,
    probability: f64,
}

impl CutMix {
    pub(super) fn new(alpha: f64, probability: f64) -> Result<Self> {
        check_probability("cutmix", probability)?;
        Ok(Self {
            lambda: Lambda::new("cutmix", alpha)?,
            probability,
        })
    }
}

/// The rectangle of a share λ.
fn rectangle(lambda: f64, (height, width): (usize, usize), draws: Stream) -> Rectangle {
    let side = |i: u64, size: usize| {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "at most the size"
        )]
        let length = (size as f64 * (1.0 - lambda).sqrt()) as usize;
        let start = below(draws, i, size).cast_signed() - (length / 2).cast_signed();
        clipped(start, length, size)
    };
    Rectangle {
        rows: side(0, height),
        columns: side(1, width),
    }
}

impl OnBatch for CutMix {
    fn mixture(&self, images: usize, size: (usize, usize), draws: Stream) -> Mixture {
        if draws.at(2).uniform(0) >= self.probability {
            return Mixture::None;
        }
        let lambda = self.lambda.draw(draws.at(0));
        Mixture::Paste {
            order: draws.at(1).permutation(images),
            rectangle: rectangle(lambda, size, draws.at(3)),
        }
    }
}

#[cfg(test)]
mod tests {
    use sala_models::Rng;

    use super::{super::Shares, *};

    const SHAPE: [usize; 3] = [2, 6, 8];
    const SIZE: usize = 96;

    #[test]
    fn a_target_has_the_shares_of_the_pixels() {
        let cutmix = CutMix::new(1.0, 1.0).unwrap();
        let stream = Rng::new(8).stream("cutmix");
        let (mut whole, mut mean) = (0, 0.0);
        for batch in 0..500 {
            // Every pixel of image i is i.
            let before: Vec<f32> = (0_u8..5).flat_map(|i| [f32::from(i); SIZE]).collect();
            let mut images = before.clone();
            let mut shares = Shares::of(&[0, 1, 2, 3, 4], 5);
            cutmix.apply(&mut images, SHAPE, &mut shares, stream.at(batch));
            let shares = shares.into_values();
            for (image, row) in images.chunks(SIZE).zip(shares.chunks(5)) {
                for (i, share) in (0_u8..).zip(row) {
                    let pixels = image
                        .iter()
                        .filter(|&&p| (p - f32::from(i)).abs() < 0.5)
                        .count();
                    assert!(
                        (pixels as f32 / SIZE as f32 - share).abs() < 1e-6,
                        "{row:?}"
                    );
                }
                // The same rectangle in both channels.
                let (one, other) = image.split_at(SIZE / 2);
                assert_eq!(one, other);
            }
            let own = shares[..5].iter().fold(0_f32, |a, &b| a.max(b));
            whole += usize::from(own > 0.999);
            mean += f64::from(shares[0]) / 500.0;
        }
        assert!(whole < 250, "{whole}");
        // λ is uniform, a fifth of the images keep all, and a part of the rectangle is often cut off.
        assert!((0.55..0.85).contains(&mean), "{mean}");
    }

    #[test]
    fn a_rectangle_has_the_sides_that_its_share_says() {
        let stream = Rng::new(9).stream("rectangle");
        let mut largest = (0, 0);
        for i in 0..500 {
            let Rectangle { rows, columns } = rectangle(0.75, (10, 20), stream.at(i));
            assert!(rows.end <= 10 && columns.end <= 20);
            largest = (largest.0.max(rows.len()), largest.1.max(columns.len()));
        }
        // √(1 − 0.75) of 10 and 20.
        assert_eq!(largest, (5, 10));
        let Rectangle { rows, columns } = rectangle(1.0, (10, 20), stream);
        assert_eq!((rows.len(), columns.len()), (0, 0));
    }

    #[test]
    fn as_many_batches_are_mixed_as_the_probability_says() {
        let cutmix = CutMix::new(1.0, 0.25).unwrap();
        let stream = Rng::new(10).stream("cutmix");
        let mixed = (0..1_000).filter(|&batch| {
            let mut images: Vec<f32> = (0_u8..2).flat_map(|i| [f32::from(i); 400]).collect();
            let mut shares = Shares::of(&[0, 1], 2);
            cutmix.apply(&mut images, [1, 20, 20], &mut shares, stream.at(batch));
            shares != Shares::of(&[0, 1], 2)
        });
        // In half of a quarter the order of two is another one; standard deviation 10.
        let mixed = mixed.count();
        assert!((80..170).contains(&mixed), "{mixed}");
        assert!(CutMix::new(0.0, 1.0).is_err() && CutMix::new(1.0, 2.0).is_err());
    }
}
