//! Bootstrap intervals of a mean, corrected for bias and for skewness (`BCa`; Efron 1987,
//! doi:10.1080/01621459.1987.10478410).
//!
//! ```text
//! z₀ = Φ⁻¹( P(θ* < θ̂) + ½ P(θ* = θ̂) )
//! a  = Σ (xᵢ − x̄)³ / ( 6 (Σ (xᵢ − x̄)²)^{3/2} )
//! αᵣ = Φ( z₀ + (z₀ + z) / (1 − a (z₀ + z)) ),   z = Φ⁻¹((1 ∓ level) / 2)
//! interval = [ G⁻¹(α₁), G⁻¹(α₂) ]
//! ```
//!
//! `θ̂` is the mean of the sample `x₁ … xₙ`, `θ*` that of n values drawn from it with replacement and `G` its
//! distribution; `a` is the acceleration by the jackknife, which for a mean is a sixth of the skewness over √n.
//! Up to nine values, which is usual for seeds, `G` is exact: all multisets of n values with their multinomial
//! probabilities, 24,310 for nine. For more it is made of 20,000 seeded draws, so the same sample has the same
//! interval everywhere.
//!
//! `G⁻¹(α)` is the smallest mean below or at which at least a share α lies; nothing is interpolated.

use sala_models::Rng;
use statrs::distribution::{ContinuousCDF, Normal};

use super::sample::mean;

/// Largest sample whose resamples are all enumerated.
const ENUMERATED: usize = 9;
/// Resamples that are drawn from a larger one.
const DRAWS: usize = 20_000;
/// Share of the sample's range below which two means are the same: sums of the same values in another order.
const SAME: f64 = 1e-12;

/// Two-sided `BCa` interval of the mean; nothing for fewer than two values. Of width zero if all are equal.
pub(super) fn bca(x: &[f64], level: f64) -> Option<(f64, f64)> {
    let centre = mean(x).filter(|_| x.len() > 1)?;
    let range =
        x.iter().copied().fold(f64::MIN, f64::max) - x.iter().copied().fold(f64::MAX, f64::min);
    if range == 0.0 {
        return Some((centre, centre));
    }
    // Distances from the mean, so that a large common part costs no digits.
    let distances: Vec<f64> = x.iter().map(|xi| xi - centre).collect();
    let mut means = if x.len() <= ENUMERATED {
        enumerated(&distances)
    } else {
        drawn(&distances)
    };
    means.sort_by(|a, b| a.0.total_cmp(&b.0));
    let normal = Normal::standard();
    let below = share_below_zero(&means, SAME * range);
    let bias = normal.inverse_cdf(below);
    let squares: f64 = distances.iter().map(|d| d.powi(2)).sum();
    let cubes: f64 = distances.iter().map(|d| d.powi(3)).sum();
    let acceleration = cubes / (6.0 * squares.powf(1.5));
    let bound = |share: f64| {
        let z = bias + normal.inverse_cdf(share);
        let corrected = normal.cdf(bias + z / (1.0 - acceleration * z));
        centre + quantile(&means, corrected)
    };
    let tail = (1.0 - level) / 2.0;
    Some((bound(tail), bound(1.0 - tail)))
}

/// A mean and its probability.
type Weighted = (f64, f64);

/// The means of all multisets of as many values, with their multinomial probabilities.
fn enumerated(x: &[f64]) -> Vec<Weighted> {
    let n = x.len();
    let orders: f64 = (1..=n).map(|i| i as f64 / n as f64).product();
    let mut means = Vec::new();
    choose(x, n, 0.0, orders, &mut means);
    for (sum, _) in &mut means {
        *sum /= n as f64;
    }
    means
}

/// Takes the first value 0, 1, … times, then the others; a value taken c times divides the number of orders
/// by c!.
fn choose(x: &[f64], remaining: usize, sum: f64, weight: f64, means: &mut Vec<Weighted>) {
    let [value, others @ ..] = x else { return };
    let (mut sum, mut weight) = (sum, weight);
    for times in 0..=remaining {
        if times > 0 {
            sum += value;
            weight /= times as f64;
        }
        if times == remaining {
            means.push((sum, weight));
        } else {
            choose(others, remaining - times, sum, weight, means);
        }
    }
}

/// The means of seeded draws, equally probable.
fn drawn(x: &[f64]) -> Vec<Weighted> {
    let n = x.len();
    let stream = Rng::new(0).stream("stats/bootstrap");
    let one = |draw: usize| {
        let draws = stream.at(draw as u64);
        let place = |i: usize| usize::try_from(draws.below(i as u64, n as u64)).unwrap_or(0);
        let sum: f64 = (0..n).map(|i| x[place(i)]).sum();
        (sum / n as f64, 1.0 / DRAWS as f64)
    };
    (0..DRAWS).map(one).collect()
}

/// Probability below zero, with half of that at zero.
fn share_below_zero(means: &[Weighted], same: f64) -> f64 {
    let half = |&(mean, weight): &Weighted| match mean {
        m if m < -same => weight,
        m if m > same => 0.0,
        _ => weight / 2.0,
    };
    means.iter().map(half).sum()
}

/// The smallest of the sorted means up to which at least the share lies.
fn quantile(sorted: &[Weighted], share: f64) -> f64 {
    let mut sum = 0.0;
    for &(mean, weight) in sorted {
        sum += weight;
        // Sums of probabilities are short of one by a few roundings.
        if sum >= share - SAME {
            return mean;
        }
    }
    sorted.last().map_or(0.0, |last| last.0)
}

#[cfg(test)]
mod tests {
    use super::{super::assert_near, *};

    fn interval(x: &[f64], level: f64) -> (f64, f64) {
        bca(x, level).unwrap()
    }

    #[test]
    fn two_values_have_the_interval_that_one_counts_by_hand() {
        // Means 0, ½, 1 with probabilities ¼, ½, ¼: no bias, no skewness. A tail of 2.5 % ends at 0, one of
        // 30 % at ½.
        assert_eq!(interval(&[0.0, 1.0], 0.95), (0.0, 1.0));
        assert_eq!(interval(&[0.0, 1.0], 0.4), (0.5, 0.5));
    }

    #[test]
    fn the_correction_moves_a_skewed_interval_as_it_should() {
        // From an independent program that goes through all 5⁵ resamples in turn.
        let x = [0.1, 0.4, 0.5, 0.7, 2.4];
        let (low, high) = interval(&x, 0.95);
        assert_near(low, 0.34, 1e-12);
        assert_near(high, 2.0, 1e-12);
        // Without the two corrections it would be [0.28, 1.64].
    }

    #[test]
    fn all_resamples_are_counted_once() {
        for n in 2..=6 {
            let x: Vec<f64> = (0..n)
                .map(|i| f64::from(i) - 0.5 * f64::from(n - 1))
                .collect();
            let means = enumerated(&x);
            let total: f64 = means.iter().map(|m| m.1).sum();
            let mean: f64 = means.iter().map(|m| m.0 * m.1).sum();
            let variance: f64 = means.iter().map(|m| m.0.powi(2) * m.1).sum();
            assert_near(total, 1.0, 1e-12);
            assert_near(mean, 0.0, 1e-12);
            // Variance of a mean of n draws: that of the sample, with divisor n, over n.
            let wanted = x.iter().map(|xi| xi.powi(2)).sum::<f64>() / f64::from(n * n);
            assert_near(variance, wanted, 1e-12);
        }
    }

    #[test]
    fn draws_agree_with_counting() {
        let x = [0.1, 0.4, 0.5, 0.7, 2.4, 0.2, 0.3, 0.9, 1.1];
        let centre = mean(&x).unwrap();
        let distances: Vec<f64> = x.iter().map(|xi| xi - centre).collect();
        let (mut counted, mut drawn) = (enumerated(&distances), drawn(&distances));
        counted.sort_by(|a, b| a.0.total_cmp(&b.0));
        drawn.sort_by(|a, b| a.0.total_cmp(&b.0));
        for share in [0.025, 0.2, 0.5, 0.8, 0.975] {
            // Three standard errors of a quantile of 20,000 draws are below this.
            assert_near(quantile(&drawn, share), quantile(&counted, share), 0.015);
        }
    }

    #[test]
    fn a_shift_of_all_values_shifts_the_interval_and_nothing_else() {
        let x = [0.1, 0.4, 0.5, 0.7, 2.4, 0.2, 0.3, 0.9, 1.1, 1.9];
        let (low, high) = interval(&x, 0.95);
        let shifted: Vec<f64> = x.iter().map(|xi| 1000.0 + xi).collect();
        let there = interval(&shifted, 0.95);
        assert_near(there.0, 1000.0 + low, 1e-9);
        assert_near(there.1, 1000.0 + high, 1e-9);
        assert!(low < mean(&x).unwrap() && mean(&x).unwrap() < high);
    }

    #[test]
    fn samples_without_spread_or_of_one_value_are_no_special_trouble() {
        assert_eq!(bca(&[0.3], 0.95), None);
        assert_eq!(bca(&[], 0.95), None);
        assert_eq!(interval(&[0.1; 4], 0.95), (0.1, 0.1));
    }
}
