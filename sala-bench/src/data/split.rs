//! Holding out a validation part, and keeping a part of the rest.

use anyhow::{Context, Result, bail, ensure};
use sala_models::rng::Stream;

use crate::spec::Amount;

/// Splits the images `0..labels.len()` into `(training, validation)`, both as ascending lists.
///
/// The two lists share no image and together hold every image. The validation part takes the same
/// fraction of every class, as near as whole images allow: class `c` with `N_c` of the `N` images
/// gives `⌊n_validation · N_c / N⌋`, and the images still missing come one each from the classes
/// with the largest remainders (Hamilton's method; `stream` breaks ties, so that no class is
/// favoured by its number). Which images of a class go is random.
///
/// The result is a pure function of the arguments.
pub(crate) fn hold_out(
    labels: &[usize],
    classes: usize,
    n_validation: usize,
    stream: Stream,
) -> Result<(Vec<usize>, Vec<usize>)> {
    let n = labels.len();
    ensure!(
        0 < n_validation && n_validation < n,
        "validation images: wanted 1 or more and fewer than the {n} images there are, \
         got {n_validation}"
    );
    if let Some(image) = labels.iter().position(|&label| label >= classes) {
        let got = labels[image];
        bail!("label of image {image}: wanted less than {classes}, got {got}");
    }
    let members = by_class(labels, classes);
    let counts: Vec<usize> = members.iter().map(Vec::len).collect();
    let quotas = quotas(&counts, n_validation, stream)?;

    let mut held = vec![false; n];
    for (class, (images, quota)) in members.iter().zip(quotas).enumerate() {
        let order = stream.at(class as u64).permutation(images.len());
        for place in order.into_iter().take(quota) {
            held[images[place]] = true;
        }
    }
    let (validation, training) = (0..n).partition(|&image| held[image]);
    Ok((training, validation))
}

/// Keeps some of the images `among`, as an ascending list: of every class the same share, or the same number.
/// `labels` are those of all images.
///
/// The result is a pure function of the arguments.
///
/// # Errors
/// When there are fewer than wanted, of all or of a class.
pub(crate) fn subset(
    labels: &[usize],
    classes: usize,
    among: &[usize],
    amount: Amount,
    stream: Stream,
) -> Result<Vec<usize>> {
    let there: Vec<usize> = among.iter().map(|&image| labels[image]).collect();
    let places = match amount {
        Amount::Total(n) if n == among.len() => return Ok(among.to_vec()),
        Amount::Total(n) => {
            ensure!(
                n < among.len(),
                "data.train: wanted {n} images, but validation leaves {}",
                among.len()
            );
            hold_out(&there, classes, n, stream)?.1
        }
        Amount::PerClass(n) => {
            let mut places = Vec::with_capacity(n * classes);
            for (class, members) in by_class(&there, classes).into_iter().enumerate() {
                ensure!(
                    n <= members.len(),
                    "data.train: wanted {n} images of every class, but validation leaves {} of class {class}",
                    members.len()
                );
                let order = stream.at(class as u64).permutation(members.len());
                places.extend(order.into_iter().take(n).map(|place| members[place]));
            }
            places.sort_unstable();
            places
        }
    };
    Ok(places.into_iter().map(|place| among[place]).collect())
}

/// Images of each class, in ascending order.
fn by_class(labels: &[usize], classes: usize) -> Vec<Vec<usize>> {
    let mut members = vec![Vec::new(); classes];
    for (image, &label) in labels.iter().enumerate() {
        members[label].push(image);
    }
    members
}

/// How many images each class gives, so that they add up to `total`. No class is asked for more
/// than it has: `total` is below the sum of the counts, so each share rounds up to at most its count.
fn quotas(counts: &[usize], total: usize, stream: Stream) -> Result<Vec<usize>> {
    let n = counts.iter().sum::<usize>() as u128;
    let products = counts.iter().map(|&count| total as u128 * count as u128);
    let (mut quotas, remainders): (Vec<usize>, Vec<u128>) = products
        .map(|product| Ok((usize::try_from(product / n)?, product % n)))
        .collect::<Result<Vec<_>>>()
        .context("the share of a class does not fit this machine's address space")?
        .into_iter()
        .unzip();
    let missing = total - quotas.iter().sum::<usize>();
    // The classes themselves use the sub-streams below `counts.len()`.
    let mut order = stream.at(counts.len() as u64).permutation(counts.len());
    order.sort_by_key(|&class| std::cmp::Reverse(remainders[class]));
    for class in order.into_iter().take(missing) {
        quotas[class] += 1;
    }
    Ok(quotas)
}

#[cfg(test)]
mod tests {
    use sala_models::rng::Rng;

    use super::*;

    fn stream(seed: u64) -> Stream {
        Rng::new(seed).stream("validation")
    }

    /// `counts[c]` labels of each class, interleaved so that position says nothing about class.
    fn labels(counts: &[usize]) -> Vec<usize> {
        let longest = counts.iter().copied().max().unwrap();
        (0..longest)
            .flat_map(|round| (0..counts.len()).filter(move |&c| round < counts[c]))
            .collect()
    }

    fn per_class(labels: &[usize], chosen: &[usize], classes: usize) -> Vec<usize> {
        let mut counts = vec![0; classes];
        for &i in chosen {
            counts[labels[i]] += 1;
        }
        counts
    }

    #[test]
    fn every_image_is_on_exactly_one_side_and_lists_ascend() {
        let labels = labels(&[30, 50, 20]);
        let (training, validation) = hold_out(&labels, 3, 33, stream(1)).unwrap();
        assert_eq!((training.len(), validation.len()), (67, 33));
        assert!(training.is_sorted() && validation.is_sorted());
        let mut all = [training, validation].concat();
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn balanced_classes_give_equal_shares_up_to_one_image() {
        let labels = labels(&[500; 10]);
        let (_, validation) = hold_out(&labels, 10, 1_000, stream(2)).unwrap();
        assert_eq!(per_class(&labels, &validation, 10), [100; 10]);
        let (_, validation) = hold_out(&labels, 10, 1_003, stream(2)).unwrap();
        let mut counts = per_class(&labels, &validation, 10);
        counts.sort_unstable();
        assert_eq!(counts, [100, 100, 100, 100, 100, 100, 100, 101, 101, 101]);
    }

    #[test]
    fn unbalanced_classes_give_the_same_fraction() {
        // Shares of 10 in 100: 6.1, 2.9 and 1.0, so the one missing image comes from class 1.
        let labels = labels(&[61, 29, 10]);
        let (_, validation) = hold_out(&labels, 3, 10, stream(3)).unwrap();
        assert_eq!(per_class(&labels, &validation, 3), [6, 3, 1]);
    }

    #[test]
    fn no_class_is_asked_for_more_than_it_has() {
        let labels = labels(&[1, 2, 97, 0]);
        for n_validation in 1..100 {
            let (training, validation) = hold_out(&labels, 4, n_validation, stream(4)).unwrap();
            assert_eq!(validation.len(), n_validation);
            assert_eq!(training.len(), 100 - n_validation);
        }
    }

    #[test]
    fn ties_do_not_favour_the_first_class() {
        let labels = labels(&[10; 4]);
        let mut chosen = [0; 4];
        for seed in 0..200 {
            let (_, validation) = hold_out(&labels, 4, 1, stream(seed)).unwrap();
            chosen[labels[validation[0]]] += 1;
        }
        // 50 expected, standard deviation 6.1.
        assert!(
            chosen.iter().all(|count| (20..80).contains(count)),
            "{chosen:?}"
        );
    }

    #[test]
    fn the_choice_depends_on_the_stream_and_on_nothing_else() {
        let labels = labels(&[100; 5]);
        let one = hold_out(&labels, 5, 50, stream(5)).unwrap();
        assert_eq!(one, hold_out(&labels, 5, 50, stream(5)).unwrap());
        assert_ne!(one, hold_out(&labels, 5, 50, stream(6)).unwrap());
    }

    #[test]
    fn every_image_can_be_held_out() {
        // A choice of the first images of each class would never pick the last ones.
        let labels = labels(&[4; 2]);
        let mut ever = [false; 8];
        for seed in 0..100 {
            let (_, validation) = hold_out(&labels, 2, 2, stream(seed)).unwrap();
            for image in validation {
                ever[image] = true;
            }
        }
        assert_eq!(ever, [true; 8]);
    }

    #[test]
    fn classes_are_permuted_independently() {
        // With one permutation for all classes the same place would be held out in each.
        let labels = labels(&[100; 2]);
        let (_, validation) = hold_out(&labels, 2, 100, stream(7)).unwrap();
        let places = |class: usize| -> Vec<usize> {
            let of_class = validation.iter().filter(|&&i| labels[i] == class);
            of_class.map(|&i| i / 2).collect()
        };
        assert_ne!(places(0), places(1));
    }

    #[test]
    fn an_empty_side_is_refused() {
        let labels = labels(&[5, 5]);
        for n_validation in [0, 10, 11] {
            let error = hold_out(&labels, 2, n_validation, stream(0)).unwrap_err();
            assert!(
                error.to_string().contains(&format!("got {n_validation}")),
                "{error}"
            );
        }
        assert!(hold_out(&[], 2, 1, stream(0)).is_err());
    }

    #[test]
    fn a_label_out_of_range_is_an_error_and_not_a_panic() {
        let error = hold_out(&[0, 1, 2], 2, 1, stream(0)).unwrap_err();
        assert!(error.to_string().contains("image 2"), "{error}");
    }

    #[test]
    fn a_subset_has_the_same_share_or_number_of_every_class() {
        let labels = labels(&[60, 30, 10]);
        let among: Vec<usize> = (0..100).filter(|i| i % 10 != 3).collect();
        let keep = |amount| subset(&labels, 3, &among, amount, stream(8));
        let total = keep(Amount::Total(45)).unwrap();
        let left = per_class(&labels, &among, 3);
        let kept = per_class(&labels, &total, 3);
        for (kept, left) in kept.iter().zip(left) {
            assert!(
                (*kept as f64 - left as f64 / 2.0).abs() < 1.0,
                "{kept} of {left}"
            );
        }
        let each = keep(Amount::PerClass(5)).unwrap();
        assert_eq!(per_class(&labels, &each, 3), [5; 3]);
        for kept in [total, each] {
            assert!(kept.is_sorted() && kept.iter().all(|i| among.contains(i)));
        }
        assert_eq!(keep(Amount::Total(90)).unwrap(), among);
        let other = subset(&labels, 3, &among, Amount::PerClass(5), stream(9)).unwrap();
        assert_ne!(keep(Amount::PerClass(5)).unwrap(), other);
        for (amount, words) in [
            (Amount::Total(91), "leaves 90"),
            (Amount::PerClass(11), "of class 2"),
        ] {
            let message = keep(amount).unwrap_err().to_string();
            assert!(message.contains(words), "{message}");
        }
    }
}
