//! Differences of paired runs.
//!
//! ```text
//! dᵢ = aᵢ − bᵢ,   t = d̄ / (s_d / √n),   p = 2 P(T_{n−1} ≥ |t|)
//! ```
//!
//! `aᵢ` and `bᵢ` are two methods on seed i, `T_{n−1}` follows Student's t distribution with n − 1 degrees of
//! freedom (Student 1908, doi:10.1093/biomet/6.1.1). What a pair has in common (an easy split, a lucky
//! initialisation) cancels in the difference, so the interval is narrower than that of two independent
//! samples. It assumes that the differences are roughly normal; the bootstrap interval beside it does not,
//! but it never leaves the range of the differences that were seen, so with a handful of pairs it is too
//! narrow. Where the two disagree, the t interval is the careful one.
//!
//! Differences that are all equal (which a few seeds on a small part easily are: its scores are steps of 1/n) have no
//! spread to judge the mean by. That is no certainty, so there is neither interval nor p then.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::{
    LEVEL,
    bootstrap::bca,
    sample::{Summary, t_cdf},
};

/// Spread relative to the values up to which differences count as equal: 0.75 − 0.5 and 0.85 − 0.6 differ in their
/// last bits alone.
const ROUNDING: f64 = 1e-12;

/// The differences of paired runs, `dᵢ = aᵢ − bᵢ`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Paired {
    /// Number of pairs.
    pub(crate) n: usize,
    /// Mean difference; above zero where `a` is larger.
    pub(crate) mean: f64,
    /// Sample standard deviation of the differences (divisor n − 1); nothing for a single pair.
    pub(crate) sd: Option<f64>,
    /// 95 % confidence interval of the mean difference; nothing for a single pair, nor if all differences are
    /// equal.
    pub(crate) ci95: Option<(f64, f64)>,
    /// 95 % `BCa` bootstrap interval of the mean difference; nothing where there is no other one.
    pub(crate) bootstrap95: Option<(f64, f64)>,
    /// Two-sided p value of the paired t test of no difference; nothing where there is no interval.
    pub(crate) p: Option<f64>,
}

/// Compares two methods run in pairs: `a[i]` and `b[i]` shared everything but the method.
pub(crate) fn paired_difference(a: &[f64], b: &[f64]) -> Result<Paired> {
    ensure!(
        a.len() == b.len(),
        "paired samples want equally many values, got {} and {}",
        a.len(),
        b.len()
    );
    let differences: Vec<f64> = a.iter().zip(b).map(|(ai, bi)| ai - bi).collect();
    let summary = Summary::of(&differences)?;
    let size = a.iter().chain(b).fold(0.0_f64, |size, x| size.max(x.abs()));
    let difference = Paired {
        n: summary.n,
        mean: summary.mean,
        sd: summary.sd,
        ci95: None,
        bootstrap95: None,
        p: None,
    };
    let Some(sd) = summary.sd.filter(|sd| *sd > ROUNDING * size) else {
        // A spread that is made of roundings alone is none either.
        let sd = summary.sd.map(|_| 0.0);
        return Ok(Paired { sd, ..difference });
    };
    let error = standard_error(sd, summary.n);
    Ok(Paired {
        ci95: summary.ci95()?,
        bootstrap95: bca(&differences, LEVEL),
        p: Some(two_sided(summary.mean, error, summary.n - 1)?),
        ..difference
    })
}

/// Standard error of the mean of n values, `s / √n`.
pub(super) fn standard_error(sd: f64, n: usize) -> f64 {
    sd / (n as f64).sqrt()
}

/// `P(|T| ≥ |mean / error|)`.
fn two_sided(mean: f64, error: f64, degrees_of_freedom: usize) -> Result<f64> {
    Ok(2.0 * t_cdf(-(mean / error).abs(), degrees_of_freedom)?)
}

#[cfg(test)]
mod tests {
    use super::{super::assert_near, *};

    #[test]
    fn pairs_are_compared_by_their_differences() {
        // Differences 1, 2, 3 under a common part that varies a hundred times as much.
        let b = [100.0, -250.0, 700.0];
        let a = [101.0, -248.0, 703.0];
        let paired = paired_difference(&a, &b).unwrap();
        assert_eq!((paired.n, paired.mean, paired.sd), (3, 2.0, Some(1.0)));
        // t = 4.3026527297 with 2 degrees of freedom, standard error 1/√3.
        let half = 4.302_652_729_7 / 3.0_f64.sqrt();
        let (low, high) = paired.ci95.unwrap();
        assert_near(low, 2.0 - half, 1e-9);
        assert_near(high, 2.0 + half, 1e-9);
        // The sign says which one is larger.
        assert_near(paired_difference(&b, &a).unwrap().mean, -2.0, 0.0);
    }

    #[test]
    fn one_pair_has_a_difference_but_no_interval() {
        let paired = paired_difference(&[0.75], &[0.5]).unwrap();
        let wanted = Paired {
            n: 1,
            mean: 0.25,
            sd: None,
            ci95: None,
            bootstrap95: None,
            p: None,
        };
        assert_eq!(paired, wanted);
    }

    #[test]
    fn samples_of_different_length_are_no_pairs() {
        let error = paired_difference(&[1.0, 2.0], &[1.0]).unwrap_err();
        assert!(error.to_string().contains("got 2 and 1"), "{error}");
        assert!(paired_difference(&[], &[]).is_err());
    }

    #[test]
    fn p_values_agree_with_closed_forms() {
        // Differences 1, 2, 3: t = 2√3 with two degrees of freedom, p = 1 − t/√(2 + t²) = 1 − √12/√14.
        let paired = paired_difference(&[1.0, 2.0, 3.0], &[0.0; 3]).unwrap();
        let wanted = 1.0 - (12.0_f64 / 14.0).sqrt();
        assert_near(paired.p.unwrap(), wanted, 1e-12);
        // Differences 0 and 2: t = 1 with one degree of freedom, whose two tails hold one half.
        let paired = paired_difference(&[0.0, 2.0], &[0.0; 2]).unwrap();
        assert_near(paired.p.unwrap(), 0.5, 1e-12);
        // The sign of the difference does not matter.
        let paired = paired_difference(&[0.0; 3], &[1.0, 2.0, 3.0]).unwrap();
        assert_near(paired.p.unwrap(), wanted, 1e-12);
    }

    #[test]
    fn differences_without_spread_say_nothing_but_their_mean() {
        // 0.1 has no exact binary form, and 0.85 − 0.6 is another number than 0.75 − 0.5.
        for (a, b, mean) in [
            (&[0.5; 3][..], &[0.5; 3][..], 0.0),
            (&[0.75; 2], &[0.5; 2], 0.25),
            (&[0.1; 3], &[0.0; 3], 0.1),
            (&[0.75, 0.85], &[0.5, 0.6], 0.25),
        ] {
            let paired = paired_difference(a, b).unwrap();
            assert_near(paired.mean, mean, 1e-15);
            assert_eq!(paired.sd, Some(0.0));
            assert_eq!(
                (paired.p, paired.ci95, paired.bootstrap95),
                (None, None, None)
            );
        }
        // One example of a million more is a spread.
        let paired = paired_difference(&[0.750_001, 0.85], &[0.5, 0.6]).unwrap();
        assert!(paired.p.is_some() && paired.ci95.is_some());
    }

    #[test]
    fn a_difference_survives_the_way_through_json() {
        let paired = paired_difference(&[0.3, 0.7, 0.9], &[0.1, 0.2, 0.4]).unwrap();
        let text = serde_json::to_string(&paired).unwrap();
        assert_eq!(serde_json::from_str::<Paired>(&text).unwrap(), paired);
    }

    #[test]
    fn a_value_that_is_not_finite_is_refused() {
        assert!(paired_difference(&[f64::INFINITY], &[1.0]).is_err());
    }
}
