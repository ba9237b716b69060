//! Several tests at once: Holm's step-down procedure (Holm 1979, Scandinavian Journal of Statistics 6, 65–70).
//!
//! ```text
//! p₍₁₎ ≤ … ≤ p₍ₘ₎,   p̃₍ᵢ₎ = max over j ≤ i of min(1, (m − j + 1) p₍ⱼ₎)
//! ```
//!
//! Rejecting where `p̃ ≤ α` makes the probability of any false rejection among the m at most α, however the
//! tests depend on each other; it rejects whatever Bonferroni's `m p ≤ α` does, and more.

/// The adjusted p values, in the order of the given ones.
pub(crate) fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&i, &j| p[i].total_cmp(&p[j]));
    let mut adjusted = vec![0.0; p.len()];
    let mut highest: f64 = 0.0;
    for (rank, &i) in order.iter().enumerate() {
        let factor = (p.len() - rank) as f64;
        highest = highest.max((factor * p[i]).min(1.0));
        adjusted[i] = highest;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::{super::assert_near, *};

    #[test]
    fn adjusted_values_agree_with_those_by_hand() {
        // Sorted .005, .01, .03, .04 times 4, 3, 2, 1: .02, .03, .06, .04; the last is raised to .06.
        let adjusted = holm(&[0.01, 0.04, 0.03, 0.005]);
        for (got, wanted) in adjusted.iter().zip([0.03, 0.06, 0.06, 0.02]) {
            assert_near(*got, wanted, 1e-15);
        }
    }

    #[test]
    fn one_test_is_left_alone_and_none_exceeds_one() {
        assert_eq!(holm(&[0.2]), [0.2]);
        assert_eq!(holm(&[0.9, 0.6]), [1.0, 1.0]);
        assert!(holm(&[]).is_empty());
    }
}
