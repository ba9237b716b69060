//! What scores cost: at equal epochs, gradient evaluations and seconds, and to the base's final score.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{
    curves::{Measure, course},
    load::{Run, Source},
};
use crate::stats::{self, Curve, Reach, Summary};

/// The budgets of a view, as shares of what the base's runs cost.
pub(crate) const SHARES: [f64; 5] = [0.5, 1.0, 1.25, 1.5, 2.0];

/// Scores on the validation part at equal cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct View {
    pub(crate) measure: Measure,
    /// One for each of the shares: what that is, in the mean over the base's seeds.
    pub(crate) budgets: Vec<f64>,
    pub(crate) rows: Vec<ViewRow>,
}

/// One optimizer at each budget.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ViewRow {
    pub(crate) optimizer: String,
    pub(crate) scores: Vec<Option<AtCost>>,
}

/// What its seeds had reached at a budget.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct AtCost {
    #[serde(flatten)]
    pub(crate) score: Summary,
    /// Whether all runs were at their end by then.
    pub(crate) ended: bool,
}

/// Cost to the target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Target {
    /// Median over the base's seeds of the final score on the validation part.
    pub(crate) score: f64,
    pub(crate) rows: Vec<TargetRow>,
}

/// One optimizer on its way to the target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TargetRow {
    pub(crate) optimizer: String,
    pub(crate) evaluations: Reach,
    /// Nothing where its runs are from several directories, whose times are not compared.
    pub(crate) seconds: Option<Reach>,
}

/// The courses of an optimizer's runs by their seeds. Nothing if one of them diverged or has no epochs on
/// record.
fn courses(source: &Source, name: &str, measure: Measure) -> Option<Vec<(u64, Curve)>> {
    let whole = |run: &Run| match run.record.failure {
        Some(_) => None,
        None => Some((run.record.seed, course(source, run, measure)?)),
    };
    let courses: Vec<_> = source.of(name).map(whole).collect::<Option<_>>()?;
    (!courses.is_empty()).then_some(courses)
}

fn curves(courses: Vec<(u64, Curve)>) -> Vec<Curve> {
    courses.into_iter().map(|(_, curve)| curve).collect()
}

/// Whether all runs were made in one directory, so that their times can be compared.
fn in_one_place(source: &Source) -> bool {
    let mut places = source.runs.iter().map(|r| r.place);
    let first = places.next();
    places.all(|p| Some(p) == first)
}

/// The views at equal cost; none without the base's epochs.
pub(super) fn views(source: &Source, base: &str) -> Result<Vec<View>> {
    let mut views = Vec::new();
    for measure in Measure::ALL {
        if measure == Measure::Seconds && !in_one_place(source) {
            continue;
        }
        let Some(courses_of_base) = courses(source, base, measure) else {
            continue;
        };
        let costs: Vec<(u64, f64)> = (courses_of_base.iter())
            .filter_map(|(seed, course)| Some((*seed, course.cost()?)))
            .collect();
        let all: Vec<f64> = costs.iter().map(|(_, cost)| *cost).collect();
        let Some(mean) = stats::mean(&all) else {
            continue;
        };
        let budgets: Vec<f64> = SHARES.iter().map(|share| share * mean).collect();
        let mut rows = Vec::new();
        for name in source.plan.names() {
            let courses = courses(source, name, measure).unwrap_or_default();
            let scores = SHARES.iter().map(|share| at_cost(&courses, &costs, *share));
            rows.push(ViewRow {
                optimizer: name.into(),
                scores: scores.collect::<Result<_>>()?,
            });
        }
        views.push(View {
            measure,
            budgets,
            rows,
        });
    }
    Ok(views)
}

/// What runs had reached at a share of what the base's run of the same seed cost; runs without one are left
/// out.
fn at_cost(courses: &[(u64, Curve)], costs: &[(u64, f64)], share: f64) -> Result<Option<AtCost>> {
    let paired = courses.iter().filter_map(|(seed, course)| {
        let (_, cost) = costs.iter().find(|(s, _)| s == seed)?;
        Some((course, share * cost))
    });
    let reached: Option<Vec<_>> = paired.map(|(course, budget)| course.at(budget)).collect();
    let Some(reached) = reached.filter(|r| !r.is_empty()) else {
        return Ok(None);
    };
    let values: Vec<f64> = reached.iter().map(|at| at.value).collect();
    Ok(Some(AtCost {
        score: Summary::of(&values)?,
        ended: reached.iter().all(|at| at.ended),
    }))
}

/// Every optimizer's cost to the median of the base's final scores.
pub(super) fn target(source: &Source, base: &str) -> Option<Target> {
    let metric = source.plan.metric;
    let of_base = courses(source, base, Measure::Evaluations)?;
    let finals: Vec<f64> = (of_base.iter())
        .filter_map(|(_, c)| c.points().last())
        .map(|p| p.value)
        .collect();
    let score = stats::quantile(&finals, 0.5)?;
    let enough = |value: f64| !metric.is_better(score, value);
    let timed = in_one_place(source);
    let row = |name: &str| {
        let reach = |m| courses(source, name, m).map(|c| stats::reach(&curves(c), enough));
        Some(TargetRow {
            optimizer: name.into(),
            evaluations: reach(Measure::Evaluations)?,
            seconds: timed.then(|| reach(Measure::Seconds)).flatten(),
        })
    };
    Some(Target {
        score,
        rows: source.plan.names().into_iter().filter_map(row).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::source;
    use super::*;

    #[test]
    fn at_equal_evaluations_a_costlier_method_is_still_on_its_way() {
        // SGD: .4, .5 after 32 and 64 evaluations (and .1 more on seed 1); SALA .5, .7 after 40 and 80.
        let views = views(&source(), "sgd").unwrap();
        let view = views
            .iter()
            .find(|v| v.measure == Measure::Evaluations)
            .unwrap();
        assert_eq!(view.budgets, [32.0, 64.0, 80.0, 96.0, 128.0]);
        let row = |i: usize| {
            view.rows[i]
                .scores
                .iter()
                .map(|s| s.map(|s| (s.score.mean, s.ended)))
        };
        let sgd: Vec<_> = row(0).collect();
        assert!((sgd[0].unwrap().0 - 0.45).abs() < 1e-7 && !sgd[0].unwrap().1);
        assert!((sgd[1].unwrap().0 - 0.55).abs() < 1e-7 && sgd[1].unwrap().1);
        let sala: Vec<_> = row(1).collect();
        assert_eq!(sala[0], None, "its first epoch is not over");
        // Three fifths of the way from .55 to .75.
        assert!((sala[1].unwrap().0 - 0.67).abs() < 1e-7 && !sala[1].unwrap().1);
        assert!((sala[2].unwrap().0 - 0.75).abs() < 1e-7 && sala[2].unwrap().1);
    }

    #[test]
    fn the_target_is_the_median_of_the_base_and_the_first_epoch_there_counts() {
        // Final scores of SGD .5 and .6: target .55. SGD gets there on seed 1 alone, SALA on both: on seed 0
        // in its second epoch, on seed 1 in its first.
        let target = target(&source(), "sgd").unwrap();
        assert!((target.score - 0.55).abs() < 1e-12);
        let reach = target.rows[0].evaluations;
        assert_eq!((reach.reached, reach.runs, reach.median), (1, 2, None));
        let reach = target.rows[1].evaluations;
        assert_eq!((reach.reached, reach.median), (2, Some(60.0)));
        assert_eq!(target.rows[1].seconds.unwrap().median, Some(3.0));
    }

    #[test]
    fn times_of_different_machines_are_not_compared() {
        let mut source = source();
        source.runs[3].place = 1;
        let measures: Vec<_> = views(&source, "sgd")
            .unwrap()
            .iter()
            .map(|v| v.measure)
            .collect();
        assert_eq!(measures, [Measure::Epochs, Measure::Evaluations]);
        let target = target(&source, "sgd").unwrap();
        assert!(target.rows.iter().all(|row| row.seconds.is_none()));
    }

    #[test]
    fn a_method_that_diverged_has_no_scores_at_equal_cost() {
        let mut source = source();
        source.runs[1].record.failure = Some("not finite".into());
        let views = views(&source, "sgd").unwrap();
        assert!(views[0].rows[1].scores.iter().all(Option::is_none));
        assert_eq!(target(&source, "sgd").unwrap().rows.len(), 1);
    }
}
