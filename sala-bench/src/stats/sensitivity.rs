//! Sensitivity to hyper-parameters, from the trials of a search.
//!
//! A search gives one score (the mean over its seeds on the validation part) to each of N combinations of
//! hyper-parameters. How good a method is at its best says little about how hard that is to find; so beside the
//! best stand the median and the quartiles over all trials, which is what a user meets who draws one combination
//! from that grid (`DeepOBS`, Schneider, Balles and Hennig 2019, arXiv:1903.05499, shows the same as plots). And
//! for each hyper-parameter that takes several values, the best and the median score at each value, over
//! all values of the others. A trial that diverged is worse than every score: it takes part in the quartiles,
//! which are unknown where they would fall on it.

use serde::{Deserialize, Serialize};

use super::{mean, quantile};

/// A combination of hyper-parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Trial {
    /// Its numbers by their names.
    pub(crate) parameters: Vec<(String, f64)>,
    /// Mean score over seeds; nothing if a run diverged.
    pub(crate) score: Option<f64>,
}

/// One hyper-parameter at one of its values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct AtValue {
    pub(crate) value: f64,
    pub(crate) trials: usize,
    /// Best score of its trials.
    pub(crate) best: Option<f64>,
    /// Their median score.
    pub(crate) median: Option<f64>,
}

/// A method's trials, summed up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sensitivity {
    pub(crate) optimizer: String,
    pub(crate) trials: Vec<Trial>,
    pub(crate) diverged: usize,
    pub(crate) best: Option<f64>,
    pub(crate) median: Option<f64>,
    /// The quartiles: half of the trials lie between them.
    pub(crate) quartiles: (Option<f64>, Option<f64>),
    /// Hyper-parameters that took more than one value, each with its values from small to large.
    pub(crate) parameters: Vec<(String, Vec<AtValue>)>,
}

/// Sums up the trials of a method. `higher` says whether a larger score is better.
pub(crate) fn sensitivity(optimizer: &str, trials: Vec<Trial>, higher: bool) -> Sensitivity {
    let all: Vec<&Trial> = trials.iter().collect();
    let mut names: Vec<&String> = Vec::new();
    for (name, _) in trials.iter().flat_map(|t| &t.parameters) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let parameters = names.into_iter().filter_map(|name| {
        let values = at_values(&trials, name, higher);
        (values.len() > 1).then(|| (name.clone(), values))
    });
    Sensitivity {
        optimizer: optimizer.into(),
        diverged: trials.iter().filter(|t| t.score.is_none()).count(),
        best: best(&all, higher),
        median: share(&all, 0.5, higher),
        quartiles: (share(&all, 0.25, higher), share(&all, 0.75, higher)),
        parameters: parameters.collect(),
        trials,
    }
}

/// The trials by the values of one hyper-parameter.
fn at_values(trials: &[Trial], name: &str, higher: bool) -> Vec<AtValue> {
    let of = |trial: &Trial| {
        trial
            .parameters
            .iter()
            .find(|(n, _)| n == name)
            .map(|p| p.1)
    };
    let mut values: Vec<f64> = trials.iter().filter_map(of).collect();
    values.sort_by(f64::total_cmp);
    values.dedup();
    let at = |value: f64| {
        let here: Vec<&Trial> = trials.iter().filter(|t| of(t) == Some(value)).collect();
        AtValue {
            value,
            trials: here.len(),
            best: best(&here, higher),
            median: share(&here, 0.5, higher),
        }
    };
    values.into_iter().map(at).collect()
}

fn best(trials: &[&Trial], higher: bool) -> Option<f64> {
    let scores = trials.iter().filter_map(|t| t.score);
    scores.reduce(if higher { f64::max } else { f64::min })
}

fn share(trials: &[&Trial], p: f64, higher: bool) -> Option<f64> {
    let scores: Vec<Option<f64>> = trials.iter().map(|t| t.score).collect();
    quantile_of_trials(&scores, p, higher)
}

/// The score of a trial from those of its runs: their mean; nothing where one of them has none, because it diverged,
/// nor without any.
pub(crate) fn score_of_trial(runs: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let scores: Option<Vec<f64>> = runs.collect();
    mean(&scores?)
}

/// A quantile of scores, diverged ones at the worse end; nothing where it falls on one of those.
pub(crate) fn quantile_of_trials(scores: &[Option<f64>], p: f64, higher: bool) -> Option<f64> {
    // Turned so that worse is larger: what diverged is then infinite.
    let sign = if higher { -1.0 } else { 1.0 };
    let turned: Vec<f64> = (scores.iter())
        .map(|score| score.map_or(f64::INFINITY, |score| sign * score))
        .collect();
    let p = if higher { 1.0 - p } else { p };
    let value = quantile(&turned, p)?;
    value.is_finite().then_some(sign * value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_that_falls_on_what_diverged_is_unknown() {
        let median = |scores: &[Option<f64>]| quantile_of_trials(scores, 0.5, true);
        assert_eq!(median(&[None, Some(0.5), Some(0.9)]), Some(0.5));
        assert_eq!(median(&[None, Some(0.9)]), None);
        assert_eq!(median(&[Some(0.25), Some(0.75)]), Some(0.5));
        assert_eq!(
            score_of_trial([Some(0.25), Some(0.75)].into_iter()),
            Some(0.5)
        );
        assert_eq!(score_of_trial([Some(0.25), None].into_iter()), None);
        assert_eq!(score_of_trial(std::iter::empty()), None);
    }

    fn trial(lr: f64, rho: f64, score: impl Into<Option<f64>>) -> Trial {
        Trial {
            parameters: vec![("lr".into(), lr), ("rho".into(), rho), ("k".into(), 2.0)],
            score: score.into(),
        }
    }

    fn trials() -> Vec<Trial> {
        vec![
            trial(0.1, 1.0, 0.5),
            trial(0.01, 1.0, 0.7),
            trial(0.1, 2.0, 0.6),
            trial(0.01, 2.0, 0.9),
        ]
    }

    #[test]
    fn centre_and_spread_of_the_trials_by_hand() {
        let of = sensitivity("sala", trials(), true);
        assert_eq!((of.best, of.diverged), (Some(0.9), 0));
        // Sorted .5 .6 .7 .9: median .65, quartiles at places .75 and 2.25.
        assert!((of.median.unwrap() - 0.65).abs() < 1e-12);
        assert!((of.quartiles.0.unwrap() - 0.575).abs() < 1e-12);
        assert!((of.quartiles.1.unwrap() - 0.75).abs() < 1e-12);
    }

    #[test]
    fn each_parameter_is_seen_over_the_values_of_the_others() {
        let of = sensitivity("sala", trials(), true);
        let names: Vec<&str> = of.parameters.iter().map(|p| p.0.as_str()).collect();
        assert_eq!(names, ["lr", "rho"], "k never changes");
        let lr = &of.parameters[0].1;
        let row = |at: &AtValue| (at.value, at.trials, at.best, at.median.unwrap());
        assert_eq!(row(&lr[0]), (0.01, 2, Some(0.9), 0.8));
        assert_eq!(row(&lr[1]), (0.1, 2, Some(0.6), 0.55));
    }

    #[test]
    fn what_diverged_is_worse_than_everything() {
        let mut all = trials();
        all[0].score = None;
        all[2].score = None;
        let of = sensitivity("sala", all, true);
        assert_eq!((of.diverged, of.best), (2, Some(0.9)));
        // The median would weigh .7 against a trial that diverged.
        assert_eq!((of.median, of.quartiles.0), (None, None));
        assert!((of.quartiles.1.unwrap() - 0.75).abs() < 1e-12);
        assert_eq!(of.parameters[0].1[1].best, None);
    }

    #[test]
    fn a_loss_is_better_when_it_is_lower() {
        let of = sensitivity("sala", trials(), false);
        assert_eq!(of.best, Some(0.5));
        assert!((of.median.unwrap() - 0.65).abs() < 1e-12);
        assert!((of.quartiles.0.unwrap() - 0.575).abs() < 1e-12);
        let mut all = trials();
        all[3].score = None;
        let of = sensitivity("sala", all, false);
        assert!((of.quartiles.0.unwrap() - 0.575).abs() < 1e-12);
        assert_eq!(of.quartiles.1, None);
    }
}
