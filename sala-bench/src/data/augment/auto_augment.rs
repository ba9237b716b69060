//! `AutoAugment` (Cubuk et al. 2019, arXiv:1805.09501) with the policy found on CIFAR-10 (their table 7), which is
//! used for CIFAR-100 as well: one of 25 pairs of operations is drawn, and each of the two is applied with its
//! probability and its magnitude of ten, `m / 9` of the full [strength](super::operations).

use sala_models::rng::Stream;

use super::{
    Image, OnPixels, below,
    operations::Operation::{
        self, AutoContrast, Brightness, Color, Contrast, Equalize, Invert, Posterize, Rotate,
        Sharpness, ShearY, Solarize, TranslateX, TranslateY,
    },
};

/// The largest magnitude.
const LARGEST: f64 = 9.0;

/// An operation, how probable it is in tenths, and its magnitude.
type Choice = (Operation, u32, u32);

const POLICY: [[Choice; 2]; 25] = [
    [(Invert, 1, 7), (Contrast, 2, 6)],
    [(Rotate, 7, 2), (TranslateX, 3, 9)],
    [(Sharpness, 8, 1), (Sharpness, 9, 3)],
    [(ShearY, 5, 8), (TranslateY, 7, 9)],
    [(AutoContrast, 5, 8), (Equalize, 9, 2)],
    [(ShearY, 2, 7), (Posterize, 3, 7)],
    [(Color, 4, 3), (Brightness, 6, 7)],
    [(Sharpness, 3, 9), (Brightness, 7, 9)],
    [(Equalize, 6, 5), (Equalize, 5, 1)],
    [(Contrast, 6, 7), (Sharpness, 6, 5)],
    [(Color, 7, 7), (TranslateX, 5, 8)],
    [(Equalize, 3, 7), (AutoContrast, 4, 8)],
    [(TranslateY, 4, 3), (Sharpness, 2, 6)],
    [(Brightness, 9, 6), (Color, 2, 8)],
    [(Solarize, 5, 2), (Invert, 0, 3)],
    [(Equalize, 2, 0), (AutoContrast, 6, 0)],
    [(Equalize, 2, 8), (Equalize, 6, 4)],
    [(Color, 9, 9), (Equalize, 6, 6)],
    [(AutoContrast, 8, 4), (Solarize, 2, 8)],
    [(Brightness, 1, 3), (Color, 7, 0)],
    [(Solarize, 4, 5), (AutoContrast, 9, 3)],
    [(TranslateY, 9, 9), (TranslateY, 7, 9)],
    [(AutoContrast, 9, 2), (Solarize, 8, 3)],
    [(Equalize, 8, 8), (Invert, 1, 3)],
    [(TranslateY, 7, 9), (AutoContrast, 9, 1)],
];

#[derive(Debug)]
pub(super) struct AutoAugment;

/// What is done to an image: operations with their strength and side.
fn chosen(draws: Stream) -> impl Iterator<Item = (Operation, f64, bool)> {
    let pair = POLICY[below(draws, 0, POLICY.len())];
    let choices = (1..).zip(pair);
    choices.filter_map(move |(i, (operation, tenths, magnitude))| {
        let applied = draws.uniform(i) < f64::from(tenths) / 10.0;
        let negative = draws.below(i + 2, 2) == 1;
        applied.then_some((operation, f64::from(magnitude) / LARGEST, negative))
    })
}

impl OnPixels for AutoAugment {
    fn apply(&self, image: &mut Image, draws: Stream) {
        for (operation, strength, negative) in chosen(draws) {
            operation.apply(image, strength, negative);
        }
    }
}

#[cfg(test)]
mod tests {
    use sala_models::Rng;

    use super::*;

    #[test]
    fn operations_are_as_frequent_as_the_policy_says() {
        let stream = Rng::new(11).stream("autoaugment");
        let n = 50_000;
        let mut counts = std::collections::BTreeMap::<String, u32>::new();
        let (mut negative, mut all) = (0, 0);
        for i in 0..n {
            for (operation, _, is_negative) in chosen(stream.at(i)) {
                *counts.entry(format!("{operation:?}")).or_default() += 1;
                negative += u32::from(is_negative);
                all += 1;
            }
        }
        for operation in [Invert, Equalize, AutoContrast, TranslateY, Posterize] {
            let choices = POLICY.iter().flatten().filter(|c| c.0 == operation);
            let tenths: u32 = choices.map(|c| c.1).sum();
            let wanted = n as f64 * f64::from(tenths) / 250.0;
            let got = f64::from(counts[&format!("{operation:?}")]);
            assert!(
                (got - wanted).abs() < 5.0 * wanted.sqrt(),
                "{operation:?} {got} {wanted}"
            );
        }
        let half = f64::from(all) / 2.0;
        assert!(
            (f64::from(negative) - half).abs() < 5.0 * half.sqrt(),
            "{negative} of {all}"
        );
    }

    #[test]
    fn strengths_are_ninths_of_the_whole() {
        let stream = Rng::new(12).stream("autoaugment");
        for (operation, strength, _) in (0..500).flat_map(|i| chosen(stream.at(i))) {
            let ninths = strength * 9.0;
            assert!((ninths - ninths.round()).abs() < 1e-12);
            // In all its places it is moved by the most there is, but one.
            if operation == TranslateX {
                assert!(ninths > 7.9, "{ninths}");
            }
        }
    }
}
