//! Means, spreads and confidence intervals of a sample.
//!
//! Notation: a sample `x₁ … xₙ` of independent runs. The intervals assume that the values (or the
//! differences of pairs) are roughly normal, which accuracies over random seeds usually are; with
//! few runs they are wide, as they should be.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

use super::LEVEL;

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

/// The `p` quantile (0 < p < 1) of Student's t distribution: good to eight digits for up to a hundred
/// degrees of freedom and to four for a million.
pub(super) fn t_quantile(p: f64, degrees_of_freedom: usize) -> Result<f64> {
    Ok(StudentsT::new(0.0, 1.0, degrees_of_freedom as f64)?.inverse_cdf(p))
}

/// Student's t distribution with so many degrees of freedom, `P(T ≤ t)`.
pub(super) fn t_cdf(t: f64, degrees_of_freedom: usize) -> Result<f64> {
    Ok(StudentsT::new(0.0, 1.0, degrees_of_freedom as f64)?.cdf(t))
}

/// The `p` quantile (`0 ≤ p ≤ 1`) of a sample in any order; nothing for an empty one.
///
/// Between the order statistics `x₍₁₎ ≤ … ≤ x₍ₙ₎` it is linear, with `x₍₁₎` at 0 and `x₍ₙ₎` at 1: the
/// seventh definition of Hyndman and Fan (1996, doi:10.1080/00031305.1996.10473566), `NumPy`'s default.
/// Infinite values may stand in the sample (what was never reached); where one would have to be weighed
/// against a finite one the quantile is infinite.
pub(crate) fn quantile(x: &[f64], p: f64) -> Option<f64> {
    let mut sorted = x.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = p.clamp(0.0, 1.0) * (sorted.len().checked_sub(1)? as f64);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a place in a sample"
    )]
    let below = place.floor() as usize;
    let (low, share) = (sorted[below], place - below as f64);
    if share == 0.0 {
        return Some(low);
    }
    let high = sorted[below + 1];
    if high.is_infinite() {
        return Some(high);
    }
    Some(low + share * (high - low))
}

/// The middle value, or the mean of the two middle ones; nothing for an empty sample.
pub(crate) fn median(x: &[f64]) -> Option<f64> {
    quantile(x, 0.5)
}

#[cfg(test)]
mod tests {
    use super::{super::assert_near, *};

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
    fn a_diverged_run_is_an_error_and_not_a_number() {
        let error = Summary::of(&[1.0, f64::NAN]).unwrap_err();
        assert!(error.to_string().contains("value 1"), "{error}");
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
        let summary = Summary::of(&[0.5]).unwrap();
        let text = serde_json::to_string(&summary).unwrap();
        assert_eq!(text, r#"{"n":1,"mean":0.5,"sd":null}"#);
    }

    #[test]
    fn medians_are_of_sorted_values() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }
}
