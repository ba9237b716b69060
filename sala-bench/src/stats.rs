//! Means, spreads and confidence intervals of repeated runs.
//!
//! Notation: a sample `x₁ … xₙ` of independent runs. The intervals assume that the values (or the
//! differences of pairs) are roughly normal, which accuracies over random seeds usually are; with
//! few runs they are wide, as they should be.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

/// Confidence level of the intervals that are called `ci95`.
const LEVEL: f64 = 0.95;

/// Arithmetic mean `x̄ = (1/n) Σ xᵢ`; nothing for an empty sample.
///
/// Summed as distances from the first value: a sample of equal values then has exactly that value
/// as its mean, and exactly zero spread.
pub(crate) fn mean(x: &[f64]) -> Option<f64> {
    let first = *x.first()?;
    let distance: f64 = x.iter().map(|xi| xi - first).sum();
    Some(first + distance / x.len() as f64)
}

/// Sample standard deviation `s = √( Σ (xᵢ − x̄)² / (n − 1) )`; nothing for fewer than two values.
///
/// The divisor n − 1 makes s² unbiased for the variance. Two passes (Chan, Golub and `LeVeque` 1983,
/// doi:10.1080/00031305.1983.10483115): squares of small distances do not cancel as `Σx² − n·x̄²` does.
pub(crate) fn sample_sd(x: &[f64]) -> Option<f64> {
    if x.len() < 2 {
        return None;
    }
    let mean = mean(x)?;
    let squares: f64 = x.iter().map(|xi| (xi - mean).powi(2)).sum();
    Some((squares / (x.len() - 1) as f64).sqrt())
}

/// Size, centre and spread of a sample, in the unit of its values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    /// Number of values.
    pub(crate) n: usize,
    /// Arithmetic mean.
    pub(crate) mean: f64,
    /// Sample standard deviation (divisor n − 1); nothing for a single value.
    pub(crate) sd: Option<f64>,
}

impl Summary {
    /// Fails for an empty sample and for values that are not finite: a run that diverged has to be
    /// dealt with by the caller, not averaged away.
    pub(crate) fn of(x: &[f64]) -> Result<Self> {
        if let Some(i) = x.iter().position(|xi| !xi.is_finite()) {
            anyhow::bail!(
                "value {i} of a sample of {}: wanted a finite number, got {}",
                x.len(),
                x[i]
            );
        }
        let Some(mean) = mean(x) else {
            anyhow::bail!("a summary wants at least one value, got none");
        };
        Ok(Self {
            n: x.len(),
            mean,
            sd: sample_sd(x),
        })
    }

    /// Two-sided confidence interval of the mean, `x̄ ± t · s / √n`, where `t` is the
    /// `(1 + level) / 2` quantile of Student's t distribution with n − 1 degrees of freedom
    /// (Student 1908, doi:10.1093/biomet/6.1.1). Nothing for a single value.
    ///
    /// `level` lies strictly between 0 and 1.
    pub(crate) fn interval(&self, level: f64) -> Result<Option<(f64, f64)>> {
        ensure!(
            0.0 < level && level < 1.0,
            "confidence level: wanted more than 0 and less than 1, got {level}"
        );
        let Some(sd) = self.sd else { return Ok(None) };
        let t = t_quantile(f64::midpoint(1.0, level), self.n - 1)?;
        let half = t * sd / (self.n as f64).sqrt();
        Ok(Some((self.mean - half, self.mean + half)))
    }

    /// [`interval`](Self::interval) at the level 0.95.
    pub(crate) fn ci95(&self) -> Result<Option<(f64, f64)>> {
        self.interval(LEVEL)
    }
}

/// The differences of paired runs, `dᵢ = aᵢ − bᵢ`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Paired {
    /// Number of pairs.
    pub(crate) n: usize,
    /// Mean difference; above zero where `a` is larger.
    pub(crate) mean: f64,
    /// Sample standard deviation of the differences (divisor n − 1); nothing for a single pair.
    pub(crate) sd: Option<f64>,
    /// 95 % confidence interval of the mean difference; nothing for a single pair, of width zero if
    /// all differences are equal.
    pub(crate) ci95: Option<(f64, f64)>,
}

/// Compares two methods run in pairs: `a[i]` and `b[i]` shared everything but the method.
///
/// This is the interval of the paired t test: what a pair has in common (an easy split, a lucky
/// initialisation) cancels in the difference, so the interval is narrower than that of two
/// independent samples.
pub(crate) fn paired_difference(a: &[f64], b: &[f64]) -> Result<Paired> {
    ensure!(
        a.len() == b.len(),
        "paired samples want equally many values, got {} and {}",
        a.len(),
        b.len()
    );
    let differences: Vec<f64> = a.iter().zip(b).map(|(ai, bi)| ai - bi).collect();
    let summary = Summary::of(&differences)?;
    Ok(Paired {
        n: summary.n,
        mean: summary.mean,
        sd: summary.sd,
        ci95: summary.ci95()?,
    })
}

/// The `p` quantile (0 < p < 1) of Student's t distribution: good to eight digits for up to a hundred
/// degrees of freedom and to four for a million.
fn t_quantile(p: f64, degrees_of_freedom: usize) -> Result<f64> {
    Ok(StudentsT::new(0.0, 1.0, degrees_of_freedom as f64)?.inverse_cdf(p))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_near(got: f64, wanted: f64, tolerance: f64) {
        assert!(
            (got - wanted).abs() <= tolerance,
            "got {got}, wanted {wanted}"
        );
    }

    #[test]
    fn mean_and_spread_agree_with_a_sum_by_hand() {
        // Sum 40, mean 5; squared distances 9+1+1+1+0+0+4+16 = 32, so s² = 32/7.
        let x = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0];
        assert_near(mean(&x).unwrap(), 5.0, 1e-15);
        // Divisor 8 would give 2.
        assert_near(sample_sd(&x).unwrap(), (32.0_f64 / 7.0).sqrt(), 1e-15);
    }

    #[test]
    fn a_large_offset_does_not_eat_the_spread() {
        // 1e9 + {4, 7, 13, 16}: mean offset 10, squares 36+9+9+36 = 90, s² = 30.
        let x = [4.0, 7.0, 13.0, 16.0].map(|v| 1e9 + v);
        assert_near(mean(&x).unwrap(), 1e9 + 10.0, 0.0);
        assert_near(sample_sd(&x).unwrap(), 30.0_f64.sqrt(), 1e-12);
    }

    #[test]
    fn samples_that_are_too_small_have_no_mean_or_spread() {
        assert_eq!(mean(&[]), None);
        assert_eq!(sample_sd(&[]), None);
        assert_eq!(sample_sd(&[1.0]), None);
        assert_eq!(mean(&[1.5]), Some(1.5));
        assert!(Summary::of(&[]).is_err());
    }

    #[test]
    fn t_quantiles_agree_with_their_closed_forms_and_the_printed_table() {
        // One degree of freedom: tan(π(p − ½)). Two: α = 4p(1 − p), t = 2(p − ½)√(2/α).
        for p in [0.6_f64, 0.8, 0.95, 0.975, 0.995] {
            let one = (std::f64::consts::PI * (p - 0.5)).tan();
            assert_near(t_quantile(p, 1).unwrap(), one, 1e-10 * one);
            let two = 2.0 * (p - 0.5) * (2.0 / (4.0 * p * (1.0 - p))).sqrt();
            assert_near(t_quantile(p, 2).unwrap(), two, 1e-11 * two);
        }
        // Tables of Student's t at 0.975, as printed with seven decimals.
        assert_near(t_quantile(0.975, 2).unwrap(), 4.302_652_7, 5e-8);
        assert_near(t_quantile(0.975, 4).unwrap(), 2.776_445_1, 5e-8);
        assert_near(t_quantile(0.975, 9).unwrap(), 2.262_157_2, 5e-8);
        assert_near(t_quantile(0.975, 29).unwrap(), 2.045_229_6, 5e-8);
        assert_near(t_quantile(0.975, 99).unwrap(), 1.984_217_0, 5e-8);
        // Far beyond any number of runs: the normal quantile, as near as the library gets there.
        assert_near(t_quantile(0.975, 1_000_000).unwrap(), 1.959_966, 2e-4);
    }

    #[test]
    fn an_interval_is_mean_plus_and_minus_t_standard_errors() {
        // n = 5, s = √2.5, standard error √0.5, t = 2.7764451052.
        let summary = Summary::of(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        let (low, high) = summary.ci95().unwrap().unwrap();
        let half = 2.776_445_105_2 * 0.5_f64.sqrt();
        assert_near(low, 3.0 - half, 1e-9);
        assert_near(high, 3.0 + half, 1e-9);
        // A lower level gives a narrower interval: t(0.75; 4) = 0.7406971.
        let (low, high) = summary.interval(0.5).unwrap().unwrap();
        assert_near(high - low, 2.0 * 0.740_697_1 * 0.5_f64.sqrt(), 1e-6);
    }

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
        };
        assert_eq!(paired, wanted);
    }

    #[test]
    fn equal_differences_have_an_interval_of_width_zero() {
        // 0.1 has no exact binary form; a plain sum of three would leave a spread of 1e-17.
        let paired = paired_difference(&[0.1; 3], &[0.0; 3]).unwrap();
        assert_eq!(paired.sd, Some(0.0));
        assert_eq!(paired.ci95, Some((0.1, 0.1)));
    }

    #[test]
    fn samples_of_different_length_are_no_pairs() {
        let error = paired_difference(&[1.0, 2.0], &[1.0]).unwrap_err();
        assert!(error.to_string().contains("got 2 and 1"), "{error}");
        assert!(paired_difference(&[], &[]).is_err());
    }

    #[test]
    fn a_diverged_run_is_an_error_and_not_a_number() {
        let error = Summary::of(&[1.0, f64::NAN]).unwrap_err();
        assert!(error.to_string().contains("value 1"), "{error}");
        assert!(paired_difference(&[f64::INFINITY], &[1.0]).is_err());
    }

    #[test]
    fn a_level_outside_zero_to_one_is_refused() {
        let summary = Summary::of(&[1.0, 2.0]).unwrap();
        for level in [0.0, 1.0, -0.5, f64::NAN] {
            assert!(summary.interval(level).is_err(), "{level}");
        }
    }

    #[test]
    fn records_survive_the_way_through_json() {
        let paired = paired_difference(&[0.3, 0.7, 0.9], &[0.1, 0.2, 0.4]).unwrap();
        let text = serde_json::to_string(&paired).unwrap();
        assert_eq!(serde_json::from_str::<Paired>(&text).unwrap(), paired);
        let summary = Summary::of(&[0.5]).unwrap();
        let text = serde_json::to_string(&summary).unwrap();
        assert_eq!(text, r#"{"n":1,"mean":0.5,"sd":null}"#);
    }
}
