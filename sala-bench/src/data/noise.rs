//! Wrong labels, put in on purpose.

use anyhow::{Result, ensure};
use sala_models::rng::Stream;

use super::set::check_labels;
use crate::spec::{LabelNoise, NoiseKind};

/// Labels after noise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Noisy {
    /// A label for every image, in the order of the original labels.
    pub(crate) labels: Vec<u8>,
    /// How many of them differ from the original ones.
    pub(crate) changed: usize,
}

/// Label noise on the images listed in `only`: with probability `p`, the share of the noise, the label of an image is
///
/// - *symmetric*: drawn anew, uniformly from all `classes`, independently of what it was;
/// - *pair flip*: replaced by the next class, `(y + 1) mod C` (Han et al. 2018, arXiv:1804.06872).
///
/// A drawn label is the old one with probability 1/C, so the expected share of wrong labels under symmetric noise is
/// `p · (C − 1) / C` and not `p`: for p = 0.2 and ten classes 18 in a hundred. [`Noisy::changed`]
/// says how many it really became. Images outside `only` (a validation part, for example) keep
/// their labels.
///
/// What happens to an image is a pure function of `stream` and of its own number: it does not depend
/// on which other images are listed or in which order. Two values of `p` share their draws, so
/// raising `p` only adds wrong labels.
pub(crate) fn spoil(
    labels: &[u8],
    only: &[usize],
    classes: usize,
    noise: LabelNoise,
    stream: Stream,
) -> Result<Noisy> {
    let p = noise.share;
    ensure!(
        (0.0..=1.0).contains(&p),
        "probability of a wrong label: wanted a number from 0 to 1, got {p}"
    );
    check_labels(labels, classes)?;
    // Two streams, because `uniform(i)` and `below(i)` of one stream are made of the same bits.
    let (whether, which) = (stream.at(0), stream.at(1));
    let mut noisy = labels.to_vec();
    for &image in only {
        let n = labels.len();
        ensure!(
            image < n,
            "image number: wanted less than the {n} labels, got {image}"
        );
        if whether.uniform(image as u64) < p {
            noisy[image] = match noise.kind {
                NoiseKind::Symmetric => u8::try_from(which.below(image as u64, classes as u64))?,
                NoiseKind::PairFlip => u8::try_from((usize::from(labels[image]) + 1) % classes)?,
            };
        }
    }
    let changed = noisy.iter().zip(labels).filter(|(new, old)| new != old);
    Ok(Noisy {
        changed: changed.count(),
        labels: noisy,
    })
}

#[cfg(test)]
mod tests {
    use sala_models::rng::Rng;

    use super::*;

    const N: usize = 20_000;

    fn symmetric(
        labels: &[u8],
        only: &[usize],
        classes: usize,
        share: f64,
        stream: Stream,
    ) -> Result<Noisy> {
        let kind = NoiseKind::Symmetric;
        spoil(labels, only, classes, LabelNoise { kind, share }, stream)
    }

    fn stream() -> Stream {
        Rng::new(17).stream("label noise")
    }

    fn labels() -> Vec<u8> {
        (0..N).map(|i| u8::try_from(i % 10).unwrap()).collect()
    }

    fn all() -> Vec<usize> {
        (0..N).collect()
    }

    fn counts(labels: &[u8]) -> [usize; 10] {
        let mut counts = [0; 10];
        for &label in labels {
            counts[usize::from(label)] += 1;
        }
        counts
    }

    #[test]
    fn the_share_of_wrong_labels_is_p_times_nine_tenths() {
        for p in [0.1, 0.4, 1.0] {
            let noisy = symmetric(&labels(), &all(), 10, p, stream()).unwrap();
            let wrong = noisy
                .labels
                .iter()
                .zip(labels())
                .filter(|(a, b)| *a != b)
                .count();
            assert_eq!(noisy.changed, wrong);
            let q = p * 0.9;
            let sd = (N as f64 * q * (1.0 - q)).sqrt();
            let distance = (wrong as f64 - N as f64 * q).abs();
            assert!(
                distance < 4.0 * sd,
                "p = {p}: {wrong} wrong, {distance} off"
            );
        }
    }

    #[test]
    fn new_labels_are_uniform_whatever_the_old_one_was() {
        // All of class 3: with p = 1 every class must come up equally often, class 3 included.
        let noisy = symmetric(&vec![3; N], &all(), 10, 1.0, stream()).unwrap();
        let counts = counts(&noisy.labels);
        let expected = N as f64 / 10.0;
        let chi2: f64 = counts
            .iter()
            .map(|&c| (c as f64 - expected).powi(2) / expected)
            .sum();
        assert!(chi2 < 27.9, "{counts:?}"); // 9 degrees of freedom, p = 0.001
    }

    #[test]
    fn being_redrawn_says_nothing_about_the_new_label() {
        // If one draw served both purposes, p = 0.1 would only ever give class 0.
        let noisy = symmetric(&vec![9; N], &all(), 10, 0.1, stream()).unwrap();
        let counts = counts(&noisy.labels);
        // 200 expected in each of the other classes, standard deviation 14.
        let even = counts[..9].iter().all(|count| (140..260).contains(count));
        assert!(even, "{counts:?}");
    }

    #[test]
    fn the_noise_of_an_image_does_not_depend_on_the_list_or_its_order() {
        let whole = symmetric(&labels(), &all(), 10, 0.5, stream()).unwrap();
        let some: Vec<usize> = (0..N).rev().filter(|i| i % 3 == 0).collect();
        let part = symmetric(&labels(), &some, 10, 0.5, stream()).unwrap();
        for (i, &original) in labels().iter().enumerate() {
            let wanted = if i % 3 == 0 {
                whole.labels[i]
            } else {
                original
            };
            assert_eq!(part.labels[i], wanted, "image {i}");
        }
        let twice = [some.clone(), some].concat();
        assert_eq!(
            symmetric(&labels(), &twice, 10, 0.5, stream()).unwrap(),
            part
        );
    }

    #[test]
    fn more_noise_keeps_the_wrong_labels_of_less_noise() {
        let less = symmetric(&labels(), &all(), 10, 0.2, stream()).unwrap();
        let more = symmetric(&labels(), &all(), 10, 0.4, stream()).unwrap();
        for (i, original) in labels().into_iter().enumerate() {
            if less.labels[i] != original {
                assert_eq!(more.labels[i], less.labels[i], "image {i}");
            }
        }
        assert!(more.changed > less.changed);
    }

    #[test]
    fn a_pair_flip_gives_the_next_class_to_as_many_as_it_says() {
        let noise = LabelNoise {
            kind: NoiseKind::PairFlip,
            share: 0.3,
        };
        let noisy = spoil(&labels(), &all(), 10, noise, stream()).unwrap();
        for (old, new) in labels().into_iter().zip(&noisy.labels) {
            assert!(*new == old || *new == (old + 1) % 10, "{old} → {new}");
        }
        // 6,000 expected, standard deviation 65.
        assert!((5_740..6_260).contains(&noisy.changed), "{}", noisy.changed);
        // The same images as under symmetric noise are hit.
        let symmetric = symmetric(&labels(), &all(), 10, 0.3, stream()).unwrap();
        let hit = |i: &usize| symmetric.labels[*i] != labels()[*i];
        let also = all().into_iter().step_by(50).filter(hit);
        assert!(also.into_iter().all(|i| noisy.labels[i] != labels()[i]));
    }

    #[test]
    fn no_noise_changes_nothing() {
        let noisy = symmetric(&labels(), &all(), 10, 0.0, stream()).unwrap();
        assert_eq!((noisy.changed, noisy.labels), (0, labels()));
    }

    #[test]
    fn another_stream_gives_other_noise() {
        let one = symmetric(&labels(), &all(), 10, 0.3, stream()).unwrap();
        let other = Rng::new(18).stream("label noise");
        assert_ne!(one, symmetric(&labels(), &all(), 10, 0.3, other).unwrap());
    }

    #[test]
    fn a_probability_outside_zero_to_one_is_refused() {
        for p in [-0.1, 1.000_001, f64::NAN, f64::INFINITY] {
            let error = symmetric(&labels(), &all(), 10, p, stream()).unwrap_err();
            assert!(error.to_string().contains(&format!("got {p}")), "{error}");
        }
    }

    #[test]
    fn an_image_number_beyond_the_end_is_refused() {
        let error = symmetric(&[0, 1], &[2], 10, 0.5, stream()).unwrap_err();
        assert!(error.to_string().contains("got 2"), "{error}");
    }
}
