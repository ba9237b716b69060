//! What a search found: on the validation part, study by study.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use serde::Serialize;

use super::search::Search;
use crate::{
    record::RunRecord,
    spec::{Experiment, Optimizer},
    stats,
};

/// A search in numbers. Accuracies are shares.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Found {
    pub(crate) optimizers: Vec<Best>,
}

/// What was found of an optimizer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Best {
    pub(crate) optimizer: String,
    /// Trials of a study.
    pub(crate) trials: usize,
    /// Trials of all studies with a run that diverged.
    pub(crate) diverged: usize,
    /// The best mean validation accuracy of each study; nothing where every trial diverged.
    pub(crate) studies: Vec<Option<f64>>,
    /// Their median, a study without one counting as the worst: what a search of this budget finds.
    pub(crate) median: Option<f64>,
    /// The best trial of all, the first of equals.
    pub(crate) chosen: String,
    pub(crate) score: f64,
}

impl Found {
    /// Scores every trial.
    ///
    /// # Errors
    /// When every trial of an optimizer diverged.
    pub(crate) fn new(
        search: &Search,
        experiment: &Experiment,
        trials: &Experiment,
        records: &[RunRecord],
    ) -> Result<Self> {
        let mut optimizers = Vec::new();
        for optimizer in &experiment.optimizers {
            let own = trials.optimizers.iter();
            let own: Vec<_> = own.filter(|t| is_trial_of(t, optimizer)).collect();
            if !own.is_empty() {
                optimizers.push(Best::of(optimizer, &own, search.studies, records)?);
            }
        }
        Ok(Self { optimizers })
    }

    /// The experiment with, for each optimizer that was searched, the values of its best trial.
    pub(crate) fn tuned(&self, experiment: &Experiment, trials: &Experiment) -> Experiment {
        let mut tuned = experiment.clone();
        for best in &self.optimizers {
            let chosen = trials.optimizers.iter().find(|t| t.name == best.chosen);
            let place = tuned
                .optimizers
                .iter_mut()
                .find(|o| o.name == best.optimizer);
            if let (Some(chosen), Some(place)) = (chosen, place) {
                let name = std::mem::take(&mut place.name);
                *place = Optimizer {
                    name,
                    ..chosen.clone()
                };
            }
        }
        tuned
    }

    /// What each optimizer's studies found, and all trials, as Markdown.
    pub(crate) fn markdown(&self, trials: &Experiment, records: &[RunRecord]) -> Result<String> {
        let mut text = String::new();
        if self.optimizers.iter().any(|best| best.studies.len() > 1) {
            text.push_str(
                "| optimizer | studies × trials | validation %, median of the studies' best | from | to |\n\
                 |---|---|---|---|---|\n",
            );
            for best in &self.optimizers {
                writeln!(text, "{}", best.row())?;
            }
            text.push('\n');
        }
        text.push_str(
            "| trial | lr | weight decay | method | validation % |\n|---|---|---|---|---|\n",
        );
        for trial in &trials.optimizers {
            let score = per_cent(score(trial, records));
            let method = serde_json::to_value(trial.method)?;
            let fields = method.as_object().into_iter().flatten();
            let fields: Vec<_> = fields
                .map(|(name, value)| match value.as_f64() {
                    Some(number) => format!("{name} {}", short(number)),
                    None => format!("{name} {value}"),
                })
                .collect();
            let fields = fields.join(", ").replace('"', "");
            let (name, lr, decay) = (&trial.name, short(trial.lr), short(trial.weight_decay));
            writeln!(text, "| {name} | {lr} | {decay} | {fields} | {score} |")?;
        }
        Ok(text)
    }
}

impl Best {
    fn of(
        optimizer: &Optimizer,
        trials: &[&Optimizer],
        studies: usize,
        records: &[RunRecord],
    ) -> Result<Self> {
        let scores: Vec<_> = trials.iter().map(|trial| score(trial, records)).collect();
        let best = |scores: &[Option<f64>]| {
            let mut best: Option<(usize, f64)> = None;
            for (place, score) in scores.iter().enumerate() {
                if let Some(score) = *score
                    && best.is_none_or(|(_, highest)| score > highest)
                {
                    best = Some((place, score));
                }
            }
            best
        };
        let (place, highest) = best(&scores)
            .with_context(|| format!("every trial of `{}` diverged", optimizer.name))?;
        let per_study = trials.len() / studies;
        let studies: Vec<_> = scores
            .chunks(per_study)
            .map(|s| best(s).map(|(_, b)| b))
            .collect();
        Ok(Self {
            optimizer: optimizer.name.clone(),
            trials: per_study,
            diverged: scores.iter().filter(|s| s.is_none()).count(),
            median: median(&studies),
            studies,
            chosen: trials[place].name.clone(),
            score: highest,
        })
    }

    fn row(&self) -> String {
        let order = |a: &Option<f64>, b: &Option<f64>| compare(*a, *b);
        let worst = self.studies.iter().copied().min_by(order).flatten();
        let best = self.studies.iter().copied().max_by(order).flatten();
        format!(
            "| {} | {} × {} | {} | {} | {} |",
            self.optimizer,
            self.studies.len(),
            self.trials,
            per_cent(self.median),
            per_cent(worst),
            per_cent(best)
        )
    }
}

/// Four digits, which is enough for a table; the files have all of them.
fn short(number: f64) -> String {
    let rounded = format!("{number:.3e}").parse().unwrap_or(number);
    rounded.to_string()
}

fn per_cent(score: Option<f64>) -> String {
    score.map_or_else(|| "diverged".into(), |s| format!("{:.2}", 100.0 * s))
}

/// Diverged first.
fn compare(a: Option<f64>, b: Option<f64>) -> std::cmp::Ordering {
    let rank = |x: Option<f64>| x.unwrap_or(f64::NEG_INFINITY);
    rank(a).total_cmp(&rank(b))
}

/// The middle one, or the mean of the middle two; nothing when one of them has diverged.
fn median(studies: &[Option<f64>]) -> Option<f64> {
    let mut sorted = studies.to_vec();
    sorted.sort_by(|a, b| compare(*a, *b));
    let (low, high) = ((sorted.len() - 1) / 2, sorted.len() / 2);
    Some(f64::midpoint(sorted[low]?, sorted[high]?))
}

/// Mean validation accuracy of a trial; a trial with a diverged run has none.
fn score(trial: &Optimizer, records: &[RunRecord]) -> Option<f64> {
    let runs = records.iter().filter(|r| r.optimizer == trial.name);
    let scores: Option<Vec<f64>> = runs
        .map(|r| r.validation.and_then(|s| s.accuracy))
        .collect();
    stats::mean(&scores?)
}

fn is_trial_of(trial: &Optimizer, optimizer: &Optimizer) -> bool {
    let name = trial.name.rsplit_once('.');
    name.is_some_and(|(name, _)| name == optimizer.name)
}

#[cfg(test)]
mod tests {
    use super::{
        super::search::tests::{SEARCH, experiment, search},
        *,
    };
    use crate::record::tests::{run, score as accuracy_of};

    /// Records of all trials on two seeds, whose accuracies are given by trial number and seed.
    fn records(
        trials: &Experiment,
        accuracy: impl Fn(usize, u64) -> Option<f64>,
    ) -> Vec<RunRecord> {
        let mut records = Vec::new();
        for trial in &trials.optimizers {
            let number = trial.name.rsplit('.').next().unwrap().parse().unwrap();
            for seed in [10, 11] {
                let validation = accuracy(number, seed).map(accuracy_of);
                records.push(RunRecord {
                    validation,
                    ..run(&trial.name, seed)
                });
            }
        }
        records
    }

    #[test]
    fn the_best_mean_on_validation_is_chosen_and_diverged_trials_are_not() {
        let trials = search(SEARCH).unwrap();
        let records = records(&trials, |number, seed| match (number, seed) {
            // Trial 2 is best on seed 10 alone, trial 1 on average; trial 3 diverges once.
            (2, 10) => Some(0.9),
            (2, _) => Some(0.1),
            (1, _) => Some(0.6),
            (3, 11) => None,
            (3, _) => Some(0.99),
            _ => Some(0.5),
        });
        let read = Search::from_toml(SEARCH, "test").unwrap();
        let found = Found::new(&read, &experiment(), &trials, &records).unwrap();
        assert_eq!(found.optimizers[0].chosen, "sgd.1");
        assert_eq!(
            (found.optimizers[0].trials, found.optimizers[0].diverged),
            (4, 1)
        );
        let tuned = found.tuned(&experiment(), &trials);
        assert_eq!(
            (tuned.optimizers[0].lr, tuned.optimizers[0].weight_decay),
            (0.01, 1e-3)
        );
        assert_eq!(tuned.optimizers[0].name, "sgd");
        assert_eq!(tuned.training.seeds, [0, 1]);
        assert_eq!(tuned.test, crate::spec::TestPart::AtTheEnd);
        let table = found.markdown(&trials, &records).unwrap();
        assert!(
            table.contains("diverged") && table.contains("rho 0.3"),
            "{table}"
        );
        assert!(
            !table.contains("median"),
            "one study has no median: {table}"
        );
    }

    #[test]
    fn an_optimizer_is_judged_by_the_median_over_studies_and_chosen_over_all() {
        let text = "strategy = \"random\"\ntrials = 2\nstudies = 3\nseeds = [10, 11]\n\
                    [space.sgd]\nlr = { min = 0.1, max = 1.0 }";
        let trials = search(text).unwrap();
        // Bests of the studies: 0.5, 0.9, 0.6; the second trial of each is the worse.
        let accuracies = [0.5, 0.4, 0.9, 0.1, 0.6, 0.3];
        let of = |number: usize, _| Some(accuracies[number]);
        let records = records(&trials, of);
        let read = Search::from_toml(text, "test").unwrap();
        let found = Found::new(&read, &experiment(), &trials, &records).unwrap();
        let best = &found.optimizers[0];
        assert_eq!(best.studies, [Some(0.5), Some(0.9), Some(0.6)]);
        assert_eq!((best.median, best.chosen.as_str()), (Some(0.6), "sgd.2"));
        let table = found.markdown(&trials, &records).unwrap();
        assert!(
            table.contains("| sgd | 3 × 2 | 60.00 | 50.00 | 90.00 |"),
            "{table}"
        );
    }

    #[test]
    fn a_study_that_only_diverged_pulls_the_median_down() {
        assert_eq!(median(&[None, Some(0.5), Some(0.9)]), Some(0.5));
        assert_eq!(median(&[None, Some(0.9)]), None);
        assert_eq!(median(&[Some(0.25), Some(0.75)]), Some(0.5));
    }

    #[test]
    fn numbers_of_a_table_are_short() {
        let shown = [0.070_527_433_353_222_12, 5e-4, 2.0, 0.0].map(short);
        assert_eq!(shown, ["0.07053", "0.0005", "2", "0"]);
    }

    #[test]
    fn a_search_whose_every_trial_diverged_chooses_nothing() {
        let trials = search(SEARCH).unwrap();
        let read = Search::from_toml(SEARCH, "test").unwrap();
        let records = records(&trials, |_, _| None);
        let message = Found::new(&read, &experiment(), &trials, &records).unwrap_err();
        assert!(
            message
                .to_string()
                .contains("every trial of `sgd` diverged")
        );
    }
}
