//! Which examples go through the network together.
//!
//! Texts of one batch are filled up to the longest of them, so texts of like lengths should meet; but the
//! order must stay random. An epoch is a random permutation, cut into pools of [`POOL`] batches; within a
//! pool texts are sorted by length and cut into batches, and then all batches of the epoch are put into
//! random order, and the rows of each, so that a part of a batch is not its shorter texts. So each example is
//! there once an epoch, with other neighbours in another. Where all examples are equally long this is a plain
//! shuffle.

use sala_models::rng::Rng;

/// Batches that are sorted together: enough that lengths hardly differ within one, and few against the batches
/// of an epoch, so that the companions of an example stay random.
pub(crate) const POOL: usize = 50;

/// The batches of an epoch, each a list of places; a pure function of the arguments. The last to be cut may be
/// smaller than the others.
pub(crate) fn of_epoch(rng: Rng, epoch: u64, lengths: &[usize], size: usize) -> Vec<Vec<usize>> {
    let order = rng.stream("data/order").at(epoch);
    let mut order = order.permutation(lengths.len());
    let mut batches = Vec::with_capacity(lengths.len().div_ceil(size));
    for pool in order.chunks_mut(POOL * size) {
        // Stable: equally long texts stay in their random order.
        pool.sort_by_key(|&place| lengths[place]);
        batches.extend(pool.chunks(size).map(<[usize]>::to_vec));
    }
    let stream = rng.stream("data/batches").at(epoch);
    let rows = rng.stream("data/rows").at(epoch);
    let shuffled = |i: usize| {
        let rows = rows.at(i as u64).permutation(batches[i].len());
        rows.into_iter().map(|row| batches[i][row]).collect()
    };
    stream
        .permutation(batches.len())
        .into_iter()
        .map(shuffled)
        .collect()
}

/// All examples once, the shortest first, for evaluation.
pub(crate) fn in_order(lengths: &[usize], size: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&place| lengths[place]);
    order.chunks(size).map(<[usize]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(n: usize) -> Vec<usize> {
        let stream = Rng::new(5).stream("lengths");
        (0..n)
            .map(|i| 5 + usize::try_from(stream.below(i as u64, 60)).unwrap())
            .collect()
    }

    fn padding(batches: &[Vec<usize>], lengths: &[usize]) -> usize {
        let wasted = |batch: &Vec<usize>| {
            let longest = batch.iter().map(|&i| lengths[i]).max().unwrap();
            batch.iter().map(|&i| longest - lengths[i]).sum::<usize>()
        };
        batches.iter().map(wasted).sum()
    }

    #[test]
    fn every_example_is_there_once_and_only_one_batch_is_smaller() {
        let batches = of_epoch(Rng::new(1), 3, &lengths(1003), 16);
        let mut all = batches.concat();
        all.sort_unstable();
        assert_eq!(all, (0..1003).collect::<Vec<_>>());
        let smaller: Vec<_> = batches.iter().map(Vec::len).filter(|&n| n != 16).collect();
        assert_eq!(smaller, [1003 % 16]);
    }

    #[test]
    fn like_lengths_meet() {
        let lengths = lengths(4000);
        let shuffled: Vec<Vec<usize>> = Rng::new(1)
            .stream("x")
            .permutation(4000)
            .chunks(16)
            .map(<[usize]>::to_vec)
            .collect();
        let bucketed = of_epoch(Rng::new(1), 0, &lengths, 16);
        let (bucketed, shuffled) = (padding(&bucketed, &lengths), padding(&shuffled, &lengths));
        assert!(20 * bucketed < shuffled, "{bucketed} against {shuffled}");
    }

    #[test]
    fn batches_come_in_random_order_and_not_by_length() {
        let lengths = lengths(1600);
        let batches = of_epoch(Rng::new(1), 0, &lengths, 16);
        let longest = |b: &Vec<usize>| b.iter().map(|&i| lengths[i]).max();
        let longest: Vec<_> = batches.iter().map(longest).collect();
        let rises = longest.windows(2).filter(|w| w[1] > w[0]).count();
        assert!((30..70).contains(&rises), "{rises} of 99");
    }

    #[test]
    fn the_first_rows_of_a_batch_are_not_its_shorter_ones() {
        let lengths = lengths(1600);
        let batches = of_epoch(Rng::new(1), 0, &lengths, 160);
        let sum = |rows: &[usize]| rows.iter().map(|&i| lengths[i]).sum::<usize>();
        let first: usize = batches.iter().map(|b| sum(&b[..80])).sum();
        let all: usize = batches.iter().map(|b| sum(b)).sum();
        let share = first as f64 / all as f64;
        assert!((0.48..0.52).contains(&share), "{share}");
    }

    #[test]
    fn the_order_depends_on_seed_and_epoch_alone() {
        let lengths = lengths(100);
        let batches = |seed, epoch| of_epoch(Rng::new(seed), epoch, &lengths, 8);
        assert_eq!(batches(1, 1), batches(1, 1));
        assert_ne!(batches(1, 1), batches(1, 2));
        assert_ne!(batches(1, 1), batches(2, 1));
        // Companions change, too: not only the order of the same batches.
        let sorted = |mut batch: Vec<Vec<usize>>| {
            for rows in &mut batch {
                rows.sort_unstable();
            }
            batch.sort();
            batch
        };
        assert_ne!(
            sorted(of_epoch(Rng::new(1), 1, &[7; 100], 8)),
            sorted(of_epoch(Rng::new(1), 2, &[7; 100], 8))
        );
    }

    #[test]
    fn evaluation_goes_from_short_to_long() {
        assert_eq!(in_order(&[3, 1, 2, 1], 2), [vec![1, 3], vec![2, 0]]);
    }
}
