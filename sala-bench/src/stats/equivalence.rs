//! Whether two methods are as good as equal: two one-sided t tests (Schuirmann 1987, doi:10.1007/BF01068419).
//!
//! ```text
//! H₀: |δ| ≥ m   against   H₁: |δ| < m
//! p = max( P(T ≥ (d̄ + m) / e), P(T ≤ (d̄ − m) / e) ),   e = s_d / √n,   T ~ t with n − 1 degrees of freedom
//! ```
//!
//! `δ` is the true mean difference, `d̄` the observed one and `m` the margin: the largest difference that does not
//! matter, which has to be said before the numbers are seen. A large p value of the test of *no difference* is
//! no evidence for equality; this one is. `p ≤ 0.05` says the same as that the 90 % t interval of the mean
//! difference lies within ±m.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::{Paired, Summary, paired::standard_error, sample::t_cdf};

/// Level of each of the two tests.
const ALPHA: f64 = 0.05;

/// The outcome of the two tests.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Equivalence {
    /// Differences below it do not matter; in the unit of the metric.
    pub(crate) margin: f64,
    /// The larger of the two p values.
    pub(crate) p: f64,
    /// Interval that lies within the margin just when p is at most 0.05.
    pub(crate) ci90: (f64, f64),
    /// Whether the methods are equivalent at the level 0.05.
    pub(crate) equivalent: bool,
}

/// Tests whether paired differences lie within the margin; nothing for a single pair, nor without any spread between
/// pairs.
///
/// # Errors
/// For a margin that is not finite and above zero.
pub(crate) fn equivalence(paired: &Paired, margin: f64) -> Result<Option<Equivalence>> {
    ensure!(
        margin.is_finite() && margin > 0.0,
        "margin of equivalence: wanted a finite number above 0, got {margin}"
    );
    let summary = Summary {
        n: paired.n,
        mean: paired.mean,
        sd: paired.sd,
    };
    let sd = paired.sd.filter(|sd| *sd > 0.0);
    let (Some(sd), Some(ci90)) = (sd, summary.interval(1.0 - 2.0 * ALPHA)?) else {
        return Ok(None);
    };
    let error = standard_error(sd, paired.n);
    let upper_tail = |distance: f64| t_cdf(-distance / error, paired.n - 1);
    let p = f64::max(
        upper_tail(margin + paired.mean)?,
        upper_tail(margin - paired.mean)?,
    );
    Ok(Some(Equivalence {
        margin,
        p,
        ci90,
        equivalent: p <= ALPHA,
    }))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{assert_near, paired_difference},
        *,
    };

    fn test(differences: &[f64], margin: f64) -> Equivalence {
        let zeros = vec![0.0; differences.len()];
        let paired = paired_difference(differences, &zeros).unwrap();
        equivalence(&paired, margin).unwrap().unwrap()
    }

    #[test]
    fn p_is_the_larger_tail_in_closed_form() {
        // Differences −1, 0, 2: mean 1/3, s² = 7/3, e = √7/3. With margin 2 the nearer side is 5/3 away,
        // t = 5/√7 with two degrees of freedom, whose upper tail is (1 − t/√(2 + t²)) / 2.
        let t = 5.0 / 7.0_f64.sqrt();
        let wanted = 0.5 * (1.0 - t / (2.0 + t * t).sqrt());
        assert_near(test(&[-1.0, 0.0, 2.0], 2.0).p, wanted, 1e-12);
        assert_near(test(&[1.0, 0.0, -2.0], 2.0).p, wanted, 1e-12);
    }

    #[test]
    fn equivalence_is_a_90_percent_interval_within_the_margin() {
        let differences = [0.1, -0.2, 0.3, 0.0, 0.15];
        for step in 1..40 {
            let outcome = test(&differences, 0.02 * f64::from(step));
            let (low, high) = outcome.ci90;
            let within = -outcome.margin < low && high < outcome.margin;
            assert_eq!(outcome.equivalent, within, "{outcome:?}");
        }
        assert!(test(&differences, 0.78).equivalent && !test(&differences, 0.02).equivalent);
    }

    #[test]
    fn few_noisy_pairs_are_not_equivalent_however_small_their_mean() {
        let outcome = test(&[-3.0, 3.0], 0.5);
        assert!(!outcome.equivalent && outcome.p > 0.3, "{outcome:?}");
    }

    #[test]
    fn differences_without_spread_are_no_evidence_of_equality() {
        for differences in [&[0.1; 3][..], &[0.0; 2], &[0.1]] {
            let zeros = vec![0.0; differences.len()];
            let paired = paired_difference(differences, &zeros).unwrap();
            assert_eq!(equivalence(&paired, 0.2).unwrap(), None);
        }
    }

    #[test]
    fn a_margin_is_a_number_above_zero() {
        let paired = paired_difference(&[0.1, 0.2], &[0.0, 0.0]).unwrap();
        for margin in [0.0, -0.1, f64::NAN, f64::INFINITY] {
            let error = equivalence(&paired, margin).unwrap_err();
            assert!(error.to_string().contains("above 0"), "{error}");
        }
    }
}
