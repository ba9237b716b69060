//! The differences of all optimizers to one of them, and what may be said of them.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{
    load::Source,
    workload::{Values, pairs},
};
use crate::{
    metrics::Metric,
    stats::{self, Equivalence, Paired},
};

/// Level of all tests.
const ALPHA: f64 = 0.05;

/// The differences to a reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Comparison {
    pub(crate) reference: String,
    /// Largest difference that does not matter, if one was named.
    pub(crate) margin: Option<f64>,
    /// In the order of the optimizers, without the reference itself and those without a pair.
    pub(crate) differences: Vec<Difference>,
}

impl Comparison {
    pub(crate) fn of(&self, optimizer: &str) -> Option<&Difference> {
        self.differences.iter().find(|d| d.optimizer == optimizer)
    }
}

/// An optimizer minus the reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Difference {
    pub(crate) optimizer: String,
    #[serde(flatten)]
    pub(crate) paired: Paired,
    /// The p value, adjusted for all differences of this comparison (Holm).
    pub(crate) p_holm: Option<f64>,
    pub(crate) equivalence: Option<Equivalence>,
    pub(crate) verdict: Verdict,
}

/// What the tests say at the level 0.05.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    /// Different from the reference, and better.
    Better,
    Worse,
    /// Better, by less than the margin.
    BetterWithinMargin,
    WorseWithinMargin,
    /// Not distinguishable, and within the margin.
    Equivalent,
    /// Not distinguishable, which is no evidence for equality.
    Undecided,
    /// The part that is compared chose what it scores.
    NotGiven,
}

impl Verdict {
    fn of(metric: Metric, mean: f64, p: Option<f64>, equivalence: Option<&Equivalence>) -> Self {
        let different = p.is_some_and(|p| p <= ALPHA);
        let within = equivalence.is_some_and(|e| e.equivalent);
        let better = metric.is_better(mean, 0.0);
        match (different, within, better) {
            (true, false, true) => Self::Better,
            (true, false, false) => Self::Worse,
            (true, true, true) => Self::BetterWithinMargin,
            (true, true, false) => Self::WorseWithinMargin,
            (false, true, _) => Self::Equivalent,
            (false, false, _) => Self::Undecided,
        }
    }

    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::BetterWithinMargin => "better, within margin",
            Self::WorseWithinMargin => "worse, within margin",
            Self::Equivalent => "equivalent",
            Self::Undecided => "undecided",
            Self::NotGiven => "not given",
        }
    }
}

/// Every optimizer against the reference, paired by seed.
pub(super) fn comparison(
    source: &Source,
    values: Values,
    reference: &str,
    margin: Option<f64>,
) -> Result<Comparison> {
    let mut found: Vec<(String, Paired)> = Vec::new();
    for name in source.plan.names().into_iter().filter(|n| *n != reference) {
        let scores: Option<Vec<(f64, f64)>> = pairs(source, name, reference)
            .into_iter()
            .map(|(own, other)| Some((values.compared(own)?, values.compared(other)?)))
            .collect();
        if let Some(scores) = scores.filter(|s| !s.is_empty()) {
            let (own, other): (Vec<f64>, Vec<f64>) = scores.into_iter().unzip();
            let paired = stats::paired_difference(&own, &other)?;
            found.push((name.into(), judged(paired, values)));
        }
    }
    let p: Vec<f64> = found.iter().filter_map(|(_, paired)| paired.p).collect();
    let mut adjusted = stats::holm(&p).into_iter();
    let difference = |(optimizer, paired): (String, Paired)| {
        let p_holm = paired.p.and_then(|_| adjusted.next());
        let margin = margin.filter(|_| !values.are_chosen());
        let equivalence = margin.map(|m| stats::equivalence(&paired, m)).transpose()?;
        let equivalence = equivalence.flatten();
        let metric = values.metric();
        let verdict = if values.are_chosen() {
            Verdict::NotGiven
        } else {
            Verdict::of(metric, paired.mean, p_holm, equivalence.as_ref())
        };
        Ok(Difference {
            optimizer,
            paired,
            p_holm,
            equivalence,
            verdict,
        })
    };
    Ok(Comparison {
        reference: reference.into(),
        margin,
        differences: found.into_iter().map(difference).collect::<Result<_>>()?,
    })
}

/// What a difference is judged by: maxima over epochs on the part that is compared tell nothing that an interval or
/// a test could be right about.
fn judged(paired: Paired, values: Values) -> Paired {
    if !values.are_chosen() {
        return paired;
    }
    Paired {
        ci95: None,
        bootstrap95: None,
        p: None,
        ..paired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn equivalence(equivalent: bool) -> Equivalence {
        Equivalence {
            margin: 0.005,
            p: 0.01,
            ci90: (-0.001, 0.001),
            equivalent,
        }
    }

    #[test]
    fn a_difference_that_is_not_seen_is_only_equal_if_that_was_tested() {
        let of = |p, e: Option<&Equivalence>| Verdict::of(Metric::Accuracy, 0.01, Some(p), e);
        assert_eq!(of(0.2, None), Verdict::Undecided);
        assert_eq!(of(0.2, Some(&equivalence(false))), Verdict::Undecided);
        assert_eq!(of(0.2, Some(&equivalence(true))), Verdict::Equivalent);
        assert_eq!(
            of(0.01, Some(&equivalence(true))),
            Verdict::BetterWithinMargin
        );
        assert_eq!(of(0.01, None), Verdict::Better);
        assert_eq!(
            Verdict::of(Metric::Accuracy, 0.5, None, None),
            Verdict::Undecided
        );
    }

    #[test]
    fn a_loss_that_is_lower_is_better() {
        let of = |metric, mean| Verdict::of(metric, mean, Some(0.01), None);
        assert_eq!(of(Metric::Loss, -0.1), Verdict::Better);
        assert_eq!(of(Metric::Loss, 0.1), Verdict::Worse);
        assert_eq!(of(Metric::Accuracy, -0.1), Verdict::Worse);
    }
}
