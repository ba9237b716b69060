//! The trials of a search as its record has them: optimizers called `NAME.0`, `NAME.1`, ….

use super::load::Source;
use crate::{
    stats::{self, Sensitivity, Trial, sensitivity},
    sweep::name_of_trial,
};

/// Each optimizer's trials; empty for what is no search.
pub(super) fn trials(source: &Source) -> Vec<Sensitivity> {
    let mut groups: Vec<(&str, Vec<Trial>)> = Vec::new();
    for optimizer in &source.plan.optimizers {
        let Some(name) = name_of_trial(&optimizer.name) else {
            return Vec::new();
        };
        let trial = Trial {
            parameters: optimizer.numbers(),
            score: score(source, &optimizer.name),
        };
        match groups.iter_mut().find(|(n, _)| *n == name) {
            Some((_, trials)) => trials.push(trial),
            None => groups.push((name, vec![trial])),
        }
    }
    if groups.iter().all(|(_, trials)| trials.len() < 2) {
        return Vec::new();
    }
    let higher = source.plan.metric.is_better(1.0, 0.0);
    let sum_up = |(name, trials)| sensitivity(name, trials, higher);
    groups.into_iter().map(sum_up).collect()
}

/// Mean score of a trial on the validation part.
fn score(source: &Source, trial: &str) -> Option<f64> {
    let metric = source.plan.metric;
    stats::score_of_trial(source.of(trial).map(|r| r.record.validated(metric)))
}
