//! A search: which values of which fields are tried, how they are drawn, and what a trial is.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use sala_models::Rng;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::space::Dimension;
use crate::spec::{
    Experiment, Optimizer, ReportSettings, TestPart, check_seeds,
    read::{did_you_mean, from_table, from_toml},
    set::set_in_optimizer,
};

/// The most trials of an optimizer: as many points as the Sobol sequence has.
const MOST_TRIALS: usize = 1 << 16;

/// Field → what it may be.
type Fields = BTreeMap<String, Dimension>;

/// A search space and how it is searched, the same for every optimizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Search {
    #[serde(default)]
    pub(crate) strategy: Strategy,
    /// Trials of an optimizer in one study; a grid has as many as it has combinations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) trials: Option<usize>,
    /// How often the search is made anew, to see what a search of this budget finds at the median.
    #[serde(default = "one")]
    pub(crate) studies: usize,
    /// Decides what is drawn.
    #[serde(default)]
    pub(crate) seed: u64,
    /// Seeds that every trial is run with; none of the experiment's own.
    pub(crate) seeds: Vec<u64>,
    /// Optimizer → field → what to try. What stands under `*` holds for every optimizer that has the field.
    #[serde(alias = "grid")]
    pub(crate) space: BTreeMap<String, Fields>,
}

/// The optimizer that a trial is one of, by the name that [`Search::trials`] gives it.
pub(crate) fn name_of_trial(trial: &str) -> Option<&str> {
    let (name, number) = trial.rsplit_once('.')?;
    number.parse::<u32>().is_ok().then_some(name)
}

fn one() -> usize {
    1
}

/// How trials are taken from the space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Strategy {
    /// Every combination.
    #[default]
    Grid,
    /// Independent draws.
    Random,
    /// Points of an Owen-scrambled Sobol sequence (quasi-random), which leave no large holes.
    Sobol,
}

impl Search {
    pub(crate) fn from_toml(text: &str, origin: &str) -> Result<Self> {
        from_toml(text).with_context(|| format!("cannot read the search {origin}"))
    }

    pub(crate) fn to_toml(&self) -> Result<String> {
        toml::to_string(self).context("cannot write the search as TOML")
    }

    /// The experiment in which every trial is an optimizer of its own, called NAME.0, NAME.1, …, study after
    /// study, and which never reads the test part.
    pub(crate) fn trials(&self, experiment: &Experiment) -> Result<Experiment> {
        self.validate(experiment)?;
        let mut trials = experiment.clone();
        trials.name = format!("{}-search", experiment.name);
        trials.training.seeds.clone_from(&self.seeds);
        trials.test = TestPart::Never;
        // Trials are not compared with each other, and references would not find their names.
        trials.report = ReportSettings::default();
        trials.optimizers = Vec::new();
        let names = self.field_names();
        let mut budget = None;
        for optimizer in &experiment.optimizers {
            let fields = self.fields(optimizer)?;
            if fields.is_empty() {
                continue;
            }
            let candidates = self.candidates(optimizer, &fields, &names)?;
            let wanted = *budget.get_or_insert(candidates.len());
            ensure!(
                candidates.len() == wanted,
                "space.{}: every optimizer must get the same number of trials, wanted {wanted}, got {}",
                optimizer.name,
                candidates.len()
            );
            trials.optimizers.extend(candidates);
        }
        trials.validate()?;
        Ok(trials)
    }

    fn validate(&self, experiment: &Experiment) -> Result<()> {
        check_seeds(&self.seeds).context("the search")?;
        let own = &experiment.training.seeds;
        if let Some(seed) = self.seeds.iter().find(|seed| own.contains(seed)) {
            bail!("seeds: {seed} is a seed of the experiment; trials must use others");
        }
        let names = || experiment.optimizers.iter().map(|o| o.name.as_str());
        for (name, fields) in &self.space {
            ensure!(
                name == "*" || names().any(|known| known == name),
                "space.{name}: the experiment has no optimizer of that name{}",
                did_you_mean(name, names())
            );
            for (field, dimension) in fields {
                let place = || format!("space.{name}.{field}");
                dimension.validate().with_context(place)?;
            }
        }
        ensure!(self.studies > 0, "studies must be >= 1, got 0");
        match (self.strategy, self.trials) {
            (Strategy::Grid, None) => ensure!(
                self.studies == 1,
                "studies: a grid has the same trials every time, so 1 study is wanted, got {}",
                self.studies
            ),
            (Strategy::Grid, Some(_)) => {
                bail!(
                    "trials: a grid has as many as combinations; leave it out, or choose another strategy"
                )
            }
            (_, None) => bail!("trials: how many each optimizer gets is wanted with this strategy"),
            (_, Some(trials)) => {
                let all = trials.saturating_mul(self.studies);
                ensure!(
                    (1..=MOST_TRIALS).contains(&trials) && all <= MOST_TRIALS,
                    "trials × studies must be in [1, {MOST_TRIALS}], got {trials} × {}",
                    self.studies
                );
            }
        }
        let shared = self.space.get("*").into_iter().flatten();
        for (field, dimension) in shared {
            let known = |o: &Optimizer| with(o, field, &dimension.at(0.0)).is_ok();
            ensure!(
                experiment.optimizers.iter().any(known),
                "space.*.{field}: no optimizer of the experiment has this field"
            );
        }
        Ok(())
    }

    /// Every field of the space once, sorted. A field keeps its place in the sequence of points whichever
    /// optimizer has it, so that trials of the same number meet the same values where they share a field.
    fn field_names(&self) -> Vec<String> {
        let names: BTreeSet<&String> = self.space.values().flat_map(BTreeMap::keys).collect();
        names.into_iter().cloned().collect()
    }

    /// What is tried of an optimizer: its own fields, and those of `*` that it has.
    fn fields(&self, optimizer: &Optimizer) -> Result<Fields> {
        let mut fields = self.space.get(&optimizer.name).cloned().unwrap_or_default();
        for (field, dimension) in &fields {
            with(optimizer, field, &dimension.at(0.0))
                .with_context(|| format!("space.{}.{field}", optimizer.name))?;
        }
        for (field, dimension) in self.space.get("*").into_iter().flatten() {
            if !fields.contains_key(field) && with(optimizer, field, &dimension.at(0.0)).is_ok() {
                fields.insert(field.clone(), dimension.clone());
            }
        }
        Ok(fields)
    }

    /// The trials of an optimizer.
    fn candidates(
        &self,
        optimizer: &Optimizer,
        fields: &Fields,
        names: &[String],
    ) -> Result<Vec<Optimizer>> {
        let points = match self.strategy {
            Strategy::Grid => grid(fields).with_context(|| format!("space.{}", optimizer.name))?,
            Strategy::Random | Strategy::Sobol => self.drawn(fields, names)?,
        };
        let trial = |(i, point): (usize, Vec<(String, Value)>)| {
            let mut trial = optimizer.clone();
            for (field, value) in &point {
                trial = with(&trial, field, value)
                    .with_context(|| format!("space.{}.{field}", optimizer.name))?;
            }
            trial.name = format!("{}.{i}", optimizer.name);
            Ok(trial)
        };
        points.into_iter().enumerate().map(trial).collect()
    }

    /// Study after study, a point for each trial.
    fn drawn(&self, fields: &Fields, names: &[String]) -> Result<Vec<Vec<(String, Value)>>> {
        let mut points = Vec::new();
        for study in 0..self.studies {
            for trial in 0..self.trials.unwrap_or(0) {
                let mut point = Vec::new();
                for (place, name) in names.iter().enumerate() {
                    if let Some(dimension) = fields.get(name) {
                        let u = self.coordinate(study, trial, place)?;
                        point.push((name.clone(), dimension.at(u)));
                    }
                }
                points.push(point);
            }
        }
        Ok(points)
    }

    /// A number from 0 to below 1.
    fn coordinate(&self, study: usize, trial: usize, place: usize) -> Result<f64> {
        let stream = Rng::new(self.seed).stream("sweep/study").at(study as u64);
        if self.strategy == Strategy::Random {
            return Ok(stream.at(trial as u64).uniform(place as u64));
        }
        let (trial, place) = (u32::try_from(trial)?, u32::try_from(place)?);
        ensure!(
            place < sobol_burley::NUM_DIMENSIONS,
            "space: at most {} fields can be drawn at once",
            sobol_burley::NUM_DIMENSIONS
        );
        Ok(sobol_burley::sample(trial, place, stream.bits(0)).into())
    }
}

/// Every combination, the first field slowest.
fn grid(fields: &Fields) -> Result<Vec<Vec<(String, Value)>>> {
    let mut all = vec![Vec::new()];
    for (field, dimension) in fields {
        let values = dimension.grid().with_context(|| field.clone())?;
        let longer = |point: &Vec<(String, Value)>| {
            let values = values.iter().cloned();
            let longer = values.map(|value| [point.clone(), vec![(field.clone(), value)]].concat());
            longer.collect::<Vec<_>>()
        };
        all = all.iter().flat_map(longer).collect();
    }
    Ok(all)
}

/// An optimizer with another value of a field, which may be its method's.
fn with(optimizer: &Optimizer, field: &str, value: &Value) -> Result<Optimizer> {
    let mut table = Table::try_from(optimizer)?;
    set_in_optimizer(&mut table, field, value)?;
    from_table(table)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::spec::tests::SMALL;

    pub(crate) const SEARCH: &str = r"
        seeds = [10, 11]
        [grid.sgd]
        lr = [0.01, 0.1]
        weight_decay = [0.0, 1e-3]
        [grid.sala]
        lr = [0.01, 0.1]
        rho = [0.1, 0.3]
    ";

    const DRAWN: &str = r#"
        strategy = "sobol"
        trials = 8
        studies = 3
        seeds = [10]
        [space."*"]
        lr = { min = 1e-3, max = 1.0, scale = "log" }
        rho = { min = 0.0, max = 1.0 }
        [space.sgd]
        weight_decay = { min = 0.0, max = 1e-2 }
        [space.sala]
        k = { min = 1, max = 8 }
    "#;

    pub(crate) fn experiment() -> Experiment {
        Experiment::from_toml(SMALL, "small").unwrap()
    }

    pub(crate) fn search(text: &str) -> Result<Experiment> {
        Search::from_toml(text, "test")?.trials(&experiment())
    }

    fn of<'a>(trials: &'a Experiment, name: &'a str) -> impl Iterator<Item = &'a Optimizer> {
        let own = move |o: &&Optimizer| o.name.starts_with(&format!("{name}."));
        trials.optimizers.iter().filter(own)
    }

    #[test]
    fn every_combination_of_a_grid_is_a_trial_that_leaves_the_test_part_alone() {
        let trials = search(SEARCH).unwrap();
        assert_eq!(trials.optimizers.len(), 8);
        let numbers: Vec<_> = of(&trials, "sgd").map(|o| (o.lr, o.weight_decay)).collect();
        assert_eq!(
            numbers,
            [(0.01, 0.0), (0.01, 1e-3), (0.1, 0.0), (0.1, 1e-3)]
        );
        assert_eq!(trials.training.seeds, [10, 11]);
        assert_eq!(trials.test, TestPart::Never);
    }

    #[test]
    fn what_a_comparison_reports_does_not_concern_its_trials() {
        let report = "[report]\nmargin = 0.01\nreferences = [\"sala\"]\n[training]";
        let experiment = SMALL.replace("[training]", report);
        let experiment = Experiment::from_toml(&experiment, "small").unwrap();
        let trials = Search::from_toml(SEARCH, "test")
            .unwrap()
            .trials(&experiment);
        assert_eq!(trials.unwrap().report, ReportSettings::default());
    }

    #[test]
    fn drawn_trials_fill_the_space_and_share_what_optimizers_have_in_common() {
        for text in [DRAWN.to_owned(), DRAWN.replace("sobol", "random")] {
            let trials = search(&text).unwrap();
            assert_eq!(trials.optimizers.len(), 2 * 3 * 8);
            let rates = |name| of(&trials, name).map(|o| o.lr).collect::<Vec<_>>();
            assert_eq!(rates("sgd"), rates("sala"), "the same points for both");
            assert!(rates("sgd").iter().all(|lr| (1e-3..1.0).contains(lr)));
            let (one, two) = (&rates("sgd")[..8], &rates("sgd")[8..16]);
            assert_ne!(one, two, "another study draws others");
            assert!(of(&trials, "sgd").all(|o| o.lr.to_bits() != o.weight_decay.to_bits()));
        }
        let (one, other) = (
            search(DRAWN),
            search(&DRAWN.replace("[10]", "[10]\nseed = 1")),
        );
        assert_eq!(one.unwrap().optimizers, search(DRAWN).unwrap().optimizers);
        assert_ne!(other.unwrap().optimizers, search(DRAWN).unwrap().optimizers);
    }

    #[test]
    fn sobol_points_put_one_trial_into_every_part_of_each_field() {
        let trials = search(DRAWN).unwrap();
        for study in 0..3 {
            let mut parts: Vec<_> = of(&trials, "sgd")
                .skip(8 * study)
                .take(8)
                // Eighths of the logarithmic scale from 1e-3 to 1.
                .map(|o| (8.0 * (o.lr.log10() + 3.0) / 3.0).floor())
                .collect();
            parts.sort_by(f64::total_cmp);
            assert_eq!(parts, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        }
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
            ("rho =", "radius =", "has a field `radius`"),
            ("rho =", "eta =", "has a field `eta`"),
            ("[grid.sala]", "[grid.slaa]", "did you mean `sala`?"),
            ("rho = [0.1, 0.3]", "rho = [0.1, -0.3]", "ParamsSala.rho"),
            ("rho = [0.1, 0.3]", "rho = []", "space.sala.rho"),
            (
                "[grid.sala]",
                "[grid.\"*\"]\netaa = [1]\n[grid.sala]",
                "space.*.etaa",
            ),
            ("seeds", "studies = 2\nseeds", "1 study is wanted"),
            ("seeds", "trials = 2\nseeds", "as many as combinations"),
            ("seeds", "strategy = \"random\"\nseeds", "trials:"),
            (
                "seeds",
                "strategy = \"random\"\ntrials = 0\nseeds",
                "got 0 × 1",
            ),
            (
                "seeds",
                "strategy = \"sobl\"\nseeds",
                "Did you mean `sobol`?",
            ),
            ("seeds", "sedes = [1]\nseeds", "Did you mean `seeds`?"),
        ];
        for (from, to, words) in cases {
            let message = format!("{:#}", search(&SEARCH.replacen(from, to, 1)).unwrap_err());
            assert!(message.contains(words), "{to}: {message}");
        }
    }
}
