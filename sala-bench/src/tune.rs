//! `tune`: chooses hyper-parameters on the validation part, the same number of trials for each
//! optimizer, on seeds that the comparison does not use. The test part is never read. An optimizer
//! without values to try keeps those it has.

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use anyhow::{Context, Result, bail, ensure};
use candle_core::Device;
use serde::{Deserialize, Serialize};

use crate::{
    compare::{TestPart, run_missing},
    record::{RunDir, RunRecord},
    report::Report,
    runs::{Outcome, Work},
    spec::{Experiment, Optimizer},
    train::Trainer,
};

/// A search: for each optimizer of an experiment the values to try.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Search {
    /// Seeds of the trials; none of the experiment's own.
    pub(crate) seeds: Vec<u64>,
    /// Optimizer → field → values. A trial is one combination of the values.
    pub(crate) grid: BTreeMap<String, BTreeMap<String, Vec<toml::Value>>>,
}

impl Search {
    pub(crate) fn from_toml(text: &str, origin: &str) -> Result<Self> {
        toml::from_str(text).with_context(|| format!("cannot read the search {origin}"))
    }

    /// The experiment in which every trial is an optimizer of its own, called NAME.0, NAME.1, ….
    fn trials(&self, experiment: &Experiment) -> Result<Experiment> {
        let shared = self
            .seeds
            .iter()
            .find(|s| experiment.training.seeds.contains(s));
        if let Some(seed) = shared {
            bail!("seeds: {seed} is a seed of the experiment; trials must use others");
        }
        let known = |name: &str| experiment.optimizers.iter().any(|o| o.name == name);
        if let Some(name) = self.grid.keys().find(|name| !known(name)) {
            bail!("grid.{name}: the experiment has no optimizer of that name");
        }
        let mut trials = experiment.clone();
        trials.name = format!("{}-search", experiment.name);
        trials.training.seeds.clone_from(&self.seeds);
        trials.optimizers = Vec::new();
        let mut budget = None;
        for optimizer in &experiment.optimizers {
            let Some(grid) = self.grid.get(&optimizer.name) else {
                continue;
            };
            let candidates = candidates(optimizer, grid)?;
            let wanted = *budget.get_or_insert(candidates.len());
            ensure!(
                candidates.len() == wanted,
                "grid.{}: every optimizer must get the same number of trials, wanted {wanted}, got {}",
                optimizer.name,
                candidates.len()
            );
            trials.optimizers.extend(candidates);
        }
        trials.validate()?;
        Ok(trials)
    }
}

/// Every combination of a grid's values.
fn candidates(
    optimizer: &Optimizer,
    grid: &BTreeMap<String, Vec<toml::Value>>,
) -> Result<Vec<Optimizer>> {
    let mut all = vec![toml::Table::try_from(optimizer)?];
    for (field, values) in grid {
        let mut next = Vec::with_capacity(all.len() * values.len());
        for table in &all {
            for value in values {
                next.push(
                    with_field(table.clone(), field, value)
                        .with_context(|| format!("grid.{}.{field}", optimizer.name))?,
                );
            }
        }
        all = next;
    }
    let named = all.into_iter().enumerate().map(|(i, mut table)| {
        table.insert("name".into(), format!("{}.{i}", optimizer.name).into());
        table
            .try_into()
            .with_context(|| format!("grid.{}", optimizer.name))
    });
    named.collect()
}

/// Sets a field of an optimizer, or of its method.
fn with_field(mut table: toml::Table, field: &str, value: &toml::Value) -> Result<toml::Table> {
    if table.contains_key(field) {
        table.insert(field.into(), value.clone());
        return Ok(table);
    }
    match table.get_mut("method").and_then(toml::Value::as_table_mut) {
        Some(method) if method.contains_key(field) => {
            method.insert(field.into(), value.clone());
            Ok(table)
        }
        _ => bail!("neither the optimizer nor its method has a field `{field}`"),
    }
}

/// Runs the trials in `out`; writes there the table of all of them and the experiment with the best
/// values, and prints both.
pub(crate) fn tune(
    experiment: &Experiment,
    search: &Search,
    out: &Path,
    fresh: bool,
    work: &Work,
) -> Result<Outcome> {
    let trials = search.trials(experiment)?;
    let trainer = Trainer::new(&trials, Device::Cpu)?;
    let dir = RunDir::open(out, &trials.to_toml()?, "cpu", fresh)?;
    let (records, outcome) = run_missing(trainer, &dir, TestPart::Never, work)?;
    if outcome == Outcome::Interrupted {
        return Ok(outcome);
    }
    let tuned = choose(experiment, &trials, &records)?;
    let report = Report::new(&trials.heading()?, &records)?;
    dir.write_runs(&records)?;
    dir.write("summary.json", &serde_json::to_vec_pretty(&report)?)?;
    dir.write("search.md", table(&trials, &records)?.as_bytes())?;
    dir.write("tuned.toml", tuned.to_toml()?.as_bytes())?;
    println!("{}", table(&trials, &records)?);
    println!("Chosen: {}", out.join("tuned.toml").display());
    Ok(outcome)
}

/// Mean validation accuracy of a trial; a trial with a diverged run has none.
fn score(trial: &Optimizer, records: &[RunRecord]) -> Option<f64> {
    let runs = records.iter().filter(|r| r.optimizer == trial.name);
    let scores: Option<Vec<f64>> = runs
        .map(|r| r.validation.and_then(|s| s.accuracy))
        .collect();
    crate::stats::mean(&scores?)
}

/// The experiment with, for each optimizer, the values of its best trial; the first of equals.
fn choose(
    experiment: &Experiment,
    trials: &Experiment,
    records: &[RunRecord],
) -> Result<Experiment> {
    let mut tuned = experiment.clone();
    let searched = |o: &&mut Optimizer| trials.optimizers.iter().any(|t| is_trial_of(t, o));
    for optimizer in tuned.optimizers.iter_mut().filter(searched) {
        let mut best: Option<(f64, &Optimizer)> = None;
        for trial in trials
            .optimizers
            .iter()
            .filter(|t| is_trial_of(t, optimizer))
        {
            if let Some(score) = score(trial, records)
                && best.is_none_or(|(highest, _)| score > highest)
            {
                best = Some((score, trial));
            }
        }
        let (_, trial) =
            best.with_context(|| format!("every trial of `{}` diverged", optimizer.name))?;
        *optimizer = Optimizer {
            name: optimizer.name.clone(),
            ..trial.clone()
        };
    }
    Ok(tuned)
}

fn is_trial_of(trial: &Optimizer, optimizer: &Optimizer) -> bool {
    trial
        .name
        .rsplit_once('.')
        .is_some_and(|(name, _)| name == optimizer.name)
}

/// All trials with their values and scores, as Markdown.
fn table(trials: &Experiment, records: &[RunRecord]) -> Result<String> {
    let mut text = String::from(
        "| trial | lr | weight decay | method | validation % |\n|---|---|---|---|---|\n",
    );
    for trial in &trials.optimizers {
        let score = score(trial, records)
            .map_or_else(|| "diverged".into(), |s| format!("{:.2}", 100.0 * s));
        let method = serde_json::to_value(trial.method)?;
        let fields = method.as_object().into_iter().flatten();
        let fields: Vec<_> = fields
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        let (name, lr, decay) = (&trial.name, trial.lr, trial.weight_decay);
        writeln!(
            text,
            "| {name} | {lr} | {decay} | {} | {score} |",
            fields.join(", ").replace('"', "")
        )?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        record::tests::{run, score as accuracy_of},
        spec::tests::SMALL,
    };

    const SEARCH: &str = r"
        seeds = [10, 11]
        [grid.sgd]
        lr = [0.01, 0.1]
        weight_decay = [0.0, 1e-3]
        [grid.sala]
        lr = [0.01, 0.1]
        rho = [0.1, 0.3]
    ";

    fn experiment() -> Experiment {
        Experiment::from_toml(SMALL, "small").unwrap()
    }

    fn search(text: &str) -> Result<Experiment> {
        Search::from_toml(text, "test")?.trials(&experiment())
    }

    #[test]
    fn every_combination_is_a_trial() {
        let trials = search(SEARCH).unwrap();
        assert_eq!(trials.optimizers.len(), 8);
        let numbers: Vec<_> = trials.optimizers[..4]
            .iter()
            .map(|o| (o.lr, o.weight_decay))
            .collect();
        assert_eq!(
            numbers,
            [(0.01, 0.0), (0.01, 1e-3), (0.1, 0.0), (0.1, 1e-3)]
        );
        assert_eq!(trials.training.seeds, [10, 11]);
    }

    #[test]
    fn an_unfair_or_wrong_search_is_refused() {
        let cases = [
            (
                "rho = [0.1, 0.3]",
                "rho = [0.1]",
                "same number of trials, wanted 4, got 2",
            ),
            (
                "seeds = [10, 11]",
                "seeds = [1, 2]",
                "1 is a seed of the experiment",
            ),
            ("rho =", "k = [2], radius =", "TOML"),
            ("rho =", "radius =", "no field `radius`"),
            ("rho =", "eta =", "no field `eta`"),
            ("[grid.sala]", "[grid.sam]", "no optimizer of that name"),
            ("rho = [0.1, 0.3]", "rho = [0.1, -0.3]", "ParamsSala.rho"),
        ];
        for (from, to, words) in cases {
            let message = format!("{:#}", search(&SEARCH.replace(from, to)).unwrap_err());
            assert!(
                message.replace("has a field", "no field").contains(words),
                "{to}: {message}"
            );
        }
    }

    #[test]
    fn the_best_mean_on_validation_is_chosen_and_diverged_trials_are_not() {
        let trials = search(SEARCH).unwrap();
        let mut records = Vec::new();
        for trial in &trials.optimizers {
            for seed in [10, 11] {
                // Trial 2 is best on seed 10 alone, trial 1 on average; trial 3 diverges once.
                let accuracy = match (trial.name.rsplit('.').next().unwrap(), seed) {
                    ("2", 10) => 0.9,
                    ("2", _) => 0.1,
                    ("1", _) => 0.6,
                    ("3", _) => 0.99,
                    _ => 0.5,
                };
                let failed = trial.name.ends_with('3') && seed == 11;
                let validation = (!failed).then(|| accuracy_of(accuracy));
                records.push(RunRecord {
                    validation,
                    ..run(&trial.name, seed)
                });
            }
        }
        let tuned = choose(&experiment(), &trials, &records).unwrap();
        assert_eq!(
            (tuned.optimizers[0].lr, tuned.optimizers[0].weight_decay),
            (0.01, 1e-3)
        );
        assert_eq!(tuned.optimizers[0].name, "sgd");
        assert_eq!(tuned.training.seeds, [0, 1]);
        let table = table(&trials, &records).unwrap();
        assert!(
            table.contains("diverged") && table.contains("rho 0.3"),
            "{table}"
        );
    }
}
