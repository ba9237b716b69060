//! What a search found: on the validation part, study by study.

use std::fmt::Write as _;

use anyhow::Result;
use serde::Serialize;

use super::search::{Search, name_of_trial};
use crate::{
    metrics::Metric,
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
    /// The best trial of all, the first of equals; nothing where every trial diverged.
    pub(crate) chosen: Option<String>,
    pub(crate) score: Option<f64>,
}

impl Found {
    /// Scores every trial. An optimizer whose every trial diverged is a result too, and no reason to keep back those
    /// of the others.
    pub(crate) fn new(
        search: &Search,
        experiment: &Experiment,
        trials: &Experiment,
        records: &[RunRecord],
    ) -> Self {
        let mut optimizers = Vec::new();
        for optimizer in &experiment.optimizers {
            let own = trials.optimizers.iter();
            let is_own = |t: &&Optimizer| name_of_trial(&t.name) == Some(optimizer.name.as_str());
            let own: Vec<_> = own.filter(is_own).collect();
            if !own.is_empty() {
                optimizers.push(Best::of(optimizer, &own, search.studies, records));
            }
        }
        Self { optimizers }
    }

    /// The experiment with, for each optimizer that was searched, the values of its best trial; what diverged
    /// throughout keeps what it had.
    pub(crate) fn tuned(&self, experiment: &Experiment, trials: &Experiment) -> Experiment {
        let mut tuned = experiment.clone();
        for best in &self.optimizers {
            let chosen = trials
                .optimizers
                .iter()
                .find(|t| Some(&t.name) == best.chosen.as_ref());
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
        for best in self.optimizers.iter().filter(|best| best.chosen.is_none()) {
            let name = &best.optimizer;
            writeln!(
                text,
                "\nEvery trial of {name} diverged: tuned.toml has the values that it had before."
            )?;
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
    ) -> Self {
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
        let chosen = best(&scores);
        let per_study = trials.len() / studies;
        let studies: Vec<_> = scores
            .chunks(per_study)
            .map(|s| best(s).map(|(_, b)| b))
            .collect();
        Self {
            optimizer: optimizer.name.clone(),
            trials: per_study,
            diverged: scores.iter().filter(|s| s.is_none()).count(),
            median: stats::quantile_of_trials(&studies, 0.5, true),
            studies,
            chosen: chosen.map(|(place, _)| trials[place].name.clone()),
            score: chosen.map(|(_, highest)| highest),
        }
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

/// Mean validation accuracy of a trial; a trial with a diverged run has none.
fn score(trial: &Optimizer, records: &[RunRecord]) -> Option<f64> {
    let runs = records.iter().filter(|r| r.optimizer == trial.name);
    stats::score_of_trial(runs.map(|r| r.validated(Metric::Accuracy)))
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
        let found = Found::new(&read, &experiment(), &trials, &records);
        assert_eq!(found.optimizers[0].chosen.as_deref(), Some("sgd.1"));
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
        let found = Found::new(&read, &experiment(), &trials, &records);
        let best = &found.optimizers[0];
        assert_eq!(best.studies, [Some(0.5), Some(0.9), Some(0.6)]);
        assert_eq!(
            (best.median, best.chosen.as_deref()),
            (Some(0.6), Some("sgd.2"))
        );
        let table = found.markdown(&trials, &records).unwrap();
        assert!(
            table.contains("| sgd | 3 × 2 | 60.00 | 50.00 | 90.00 |"),
            "{table}"
        );
    }

    #[test]
    fn numbers_of_a_table_are_short() {
        let shown = [0.070_527_433_353_222_12, 5e-4, 2.0, 0.0].map(short);
        assert_eq!(shown, ["0.07053", "0.0005", "2", "0"]);
    }

    // Catches a search that ends without a word of all others because one of its optimizers only diverged.
    #[test]
    fn what_only_diverged_is_said_and_chooses_nothing() {
        let trials = search(SEARCH).unwrap();
        let read = Search::from_toml(SEARCH, "test").unwrap();
        let mut records = records(&trials, |_, _| Some(0.5));
        let sgd = |r: &&mut RunRecord| name_of_trial(&r.optimizer) == Some("sgd");
        for record in records.iter_mut().filter(sgd) {
            record.failure = Some("clean pass: the loss is not finite".into());
        }
        let found = Found::new(&read, &experiment(), &trials, &records);
        let [sgd, others @ ..] = &found.optimizers[..] else {
            panic!("optimizers");
        };
        assert_eq!((&sgd.chosen, sgd.score, sgd.median), (&None, None, None));
        assert!(!others.is_empty() && others.iter().all(|best| best.chosen.is_some()));
        let tuned = found.tuned(&experiment(), &trials);
        assert_eq!(tuned.optimizers[0], experiment().optimizers[0]);
        let table = found.markdown(&trials, &records).unwrap();
        assert!(table.contains("Every trial of sgd diverged"), "{table}");
    }
}
