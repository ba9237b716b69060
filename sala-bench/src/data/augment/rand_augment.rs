//! `RandAugment` (Cubuk et al. 2020, arXiv:1909.13719): `N` operations, drawn uniformly from fourteen with
//! repetition, all with the same magnitude `M` of 30, `M / 30` of the full [strength](super::operations).

use anyhow::{Result, ensure};
use sala_models::rng::Stream;

use super::{
    Image, OnPixels, below,
    operations::Operation::{
        self, AutoContrast, Brightness, Color, Contrast, Equalize, Identity, Posterize, Rotate,
        Sharpness, ShearX, ShearY, Solarize, TranslateX, TranslateY,
    },
};

/// The largest magnitude.
const LARGEST: u32 = 30;

const OPERATIONS: [Operation; 14] = [
    Identity,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
    Brightness,
    Color,
    Contrast,
    Sharpness,
    Posterize,
    Solarize,
    AutoContrast,
    Equalize,
];

#[derive(Debug)]
pub(super) struct RandAugment {
    operations: usize,
    strength: f64,
}

impl RandAugment {
    pub(super) fn new(operations: usize, magnitude: u32) -> Result<Self> {
        ensure!(
            (1..=100).contains(&operations),
            "data.augment: randaugment.operations must be in 1..=100, got {operations}"
        );
        ensure!(
            magnitude <= LARGEST,
            "data.augment: randaugment.magnitude must be in 0..={LARGEST}, got {magnitude}"
        );
        Ok(Self {
            operations,
            strength: f64::from(magnitude) / f64::from(LARGEST),
        })
    }

    /// The operations for an image, and to which side each goes.
    fn chosen(&self, draws: Stream) -> impl Iterator<Item = (Operation, bool)> {
        let (which, side) = (draws.at(0), draws.at(1));
        (0..self.operations as u64).map(move |i| {
            let operation = OPERATIONS[below(which, i, OPERATIONS.len())];
            (operation, side.below(i, 2) == 1)
        })
    }
}

impl OnPixels for RandAugment {
    fn apply(&self, image: &mut Image, draws: Stream) {
        for (operation, negative) in self.chosen(draws) {
            operation.apply(image, self.strength, negative);
        }
    }
}

#[cfg(test)]
mod tests {
    use sala_models::Rng;

    use super::*;

    #[test]
    fn so_many_operations_are_drawn_and_each_equally_often() {
        let augment = RandAugment::new(3, 9).unwrap();
        let stream = Rng::new(13).stream("randaugment");
        let mut counts = std::collections::BTreeMap::<String, u32>::new();
        for i in 0..7_000 {
            let chosen: Vec<_> = augment.chosen(stream.at(i)).collect();
            assert_eq!(chosen.len(), 3);
            for (operation, negative) in chosen {
                *counts
                    .entry(format!("{operation:?} {negative}"))
                    .or_default() += 1;
            }
        }
        assert_eq!(counts.len(), 28);
        // 750 expected, standard deviation 27.
        assert!(
            counts.values().all(|c| (640..860).contains(c)),
            "{counts:?}"
        );
    }

    #[test]
    fn the_strength_is_the_magnitude_of_thirty() {
        assert!((RandAugment::new(2, 15).unwrap().strength - 0.5).abs() < 1e-15);
        assert!(RandAugment::new(0, 9).is_err());
        let message = RandAugment::new(2, 31).unwrap_err().to_string();
        assert!(message.contains("0..=30, got 31"), "{message}");
    }
}
