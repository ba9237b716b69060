//! Cost to a target.
//!
//! The target of a comparison is the median over its base's seeds of the score on the validation part after
//! the last epoch, in the manner of `AlgoPerf` (Dahl et al. 2023, arXiv:2306.07179), whose targets are set by
//! baseline runs too. The cost of a run is what it had spent at the end of the first epoch whose score is at
//! least the target; of the base's own runs about half get there. A run that never does is *censored*: its cost
//! counts as infinite, so the median over seeds is known as long as more than half reach the target, and no
//! failure is averaged away.

use serde::{Deserialize, Serialize};

use super::{Curve, quantile};

/// How a method's seeds came to the target.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Reach {
    /// Runs with a score.
    pub(crate) runs: usize,
    /// Of those, the ones that reached the target.
    pub(crate) reached: usize,
    /// Median cost over all runs, those that did not reach it as infinite; nothing if it is infinite.
    pub(crate) median: Option<f64>,
}

/// The cost of every curve to its first point that `is_enough`, together.
pub(crate) fn reach(curves: &[Curve], is_enough: impl Fn(f64) -> bool) -> Reach {
    let cost = |curve: &Curve| {
        let first = curve.points().iter().find(|p| is_enough(p.value));
        first.map_or(f64::INFINITY, |point| point.cost)
    };
    let costs: Vec<f64> = curves.iter().map(cost).collect();
    Reach {
        runs: costs.len(),
        reached: costs.iter().filter(|c| c.is_finite()).count(),
        median: quantile(&costs, 0.5).filter(|m| m.is_finite()),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Point, *};

    fn curves(values: &[&[f64]]) -> Vec<Curve> {
        let curve = |values: &&[f64]| {
            let points = values.iter().enumerate();
            Curve::new(points.map(|(i, &value)| Point {
                cost: 10.0 * (i + 1) as f64,
                value,
            }))
        };
        values.iter().map(curve).collect()
    }

    #[test]
    fn the_first_epoch_counts_even_if_the_score_falls_again() {
        let reach = reach(&curves(&[&[0.1, 0.8, 0.7, 0.9]]), |v| v >= 0.8);
        assert_eq!(
            (reach.runs, reach.reached, reach.median),
            (1, 1, Some(20.0))
        );
    }

    #[test]
    fn a_run_that_never_gets_there_counts_as_infinite() {
        let three = curves(&[&[0.9], &[0.1, 0.9], &[0.1, 0.1]]);
        let all = reach(&three, |v| v >= 0.9);
        assert_eq!((all.runs, all.reached, all.median), (3, 2, Some(20.0)));
        // One of two: the median would weigh 10 against infinity.
        let half = reach(&three[1..], |v| v >= 0.9);
        assert_eq!((half.reached, half.median), (1, None));
        assert_eq!(reach(&[], |_| true).median, None);
    }

    #[test]
    fn lower_can_be_better() {
        let losses = curves(&[&[2.0, 1.0, 0.5]]);
        assert_eq!(reach(&losses, |v| v <= 1.0).median, Some(20.0));
    }
}
