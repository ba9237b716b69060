//! One comparison in numbers. Accuracies and their differences are shares, not per cent.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{
    compare::{Comparison, comparison},
    cost::{Target, View, target, views},
    curves::{MeanCurve, curves},
    load::{Run, Source},
    notes,
    search::trials,
};
use crate::{
    metrics::{Metric, Score},
    record::Environment,
    sharpness::Saved,
    stats::{self, Sensitivity, Summary},
};

/// What a report is to say beyond what the plans ask for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    /// In place of the plan's.
    pub(crate) margin: Option<f64>,
    /// Besides the plan's.
    pub(crate) references: Vec<String>,
    /// In place of the first optimizer.
    pub(crate) base: Option<String>,
}

/// Everything that a report says of a comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Workload {
    pub(crate) experiment: String,
    pub(crate) description: String,
    /// Of the plan of the first directory.
    pub(crate) fingerprint: String,
    /// Whether every run of the experiment is in it.
    pub(crate) complete: bool,
    pub(crate) base: String,
    pub(crate) seeds: Vec<u64>,
    pub(crate) metric: Metric,
    /// Whose weights were scored.
    pub(crate) weights: String,
    /// What differences are taken on: the test part where it was read, else the validation part.
    pub(crate) part: Part,
    pub(crate) rows: Vec<Row>,
    /// Differences to the base, then to the other references.
    pub(crate) comparisons: Vec<Comparison>,
    /// Cost to the base's final score; nothing without a base that got to its end.
    pub(crate) target: Option<Target>,
    /// Scores on the validation part at equal epochs, gradient evaluations and seconds.
    pub(crate) views: Vec<View>,
    pub(crate) curves: Vec<MeanCurve>,
    /// Of a search: each optimizer's trials.
    pub(crate) sensitivity: Vec<Sensitivity>,
    /// What has been measured of the solutions in each directory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) sharpness: Vec<Saved>,
    pub(crate) environments: Vec<Environment>,
    /// What a reader has to know of these numbers beforehand, in sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) notes: Vec<String>,
    /// The plan's text.
    pub(crate) plan: String,
}

/// Which images or texts a score was taken on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Part {
    Test,
    Validation,
}

impl Part {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Test => "test",
            Self::Validation => "validation",
        }
    }
}

/// One optimizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) optimizer: String,
    /// Complete runs, failed ones included.
    pub(crate) runs: usize,
    /// Runs that diverged. Where there is one, no accuracy is given: a mean over the others would
    /// flatter the optimizer.
    pub(crate) failed: usize,
    pub(crate) validation: Option<Summary>,
    pub(crate) test: Option<Summary>,
    /// Gradient evaluations of a whole batch per step.
    pub(crate) evaluations_per_step: Option<f64>,
    /// Gradient evaluations of a run, relative to the base's: longer training counts too.
    pub(crate) evaluations_ratio: Option<f64>,
    /// Mean over seeds of the training time relative to the base's run with the same seed, made in the same
    /// directory.
    pub(crate) time_ratio: Option<f64>,
    /// Share of cycles that climbed, for methods that decide that as they go.
    pub(crate) climbed: Option<f64>,
    /// Radius of the ascent, where it is a distance in the space of the weights.
    pub(crate) radius: Option<f64>,
    /// The score of each seed on the part that differences are taken on, as the figures show it.
    pub(crate) scores: Vec<(u64, f64)>,
}

impl Workload {
    pub(crate) fn new(source: &Source, settings: &Settings) -> Result<Self> {
        let plan = &source.plan;
        let base = base(source, settings)?;
        let metric = plan.metric;
        let tested = source.runs.iter().any(|r| r.record.test.is_some());
        let part = if tested { Part::Test } else { Part::Validation };
        let sensitivity = trials(source);
        let values = Values {
            metric,
            part,
            chosen: plan.early_stopping && part == Part::Validation,
        };
        let mut references = vec![base.clone()];
        if sensitivity.is_empty() {
            for name in plan.report.references.iter().chain(&settings.references) {
                find(source, name)?;
                if !references.contains(name) {
                    references.push(name.clone());
                }
            }
        }
        let margin = settings.margin.or(plan.report.margin);
        let compared = |reference: &String| comparison(source, values, reference, margin);
        let rows = plan
            .names()
            .into_iter()
            .map(|n| Row::new(source, values, n, &base));
        Ok(Self {
            experiment: plan.name.clone(),
            description: plan.description.clone(),
            fingerprint: plan.fingerprint.clone(),
            complete: source.is_complete(),
            seeds: plan.seeds.clone(),
            metric,
            weights: plan.weights.into(),
            part,
            rows: rows.collect::<Result<_>>()?,
            comparisons: references.iter().map(compared).collect::<Result<_>>()?,
            target: target(source, &base),
            views: views(source, &base)?,
            curves: curves(source)?,
            sensitivity,
            sharpness: (source.places.iter())
                .filter_map(|p| p.sharpness.clone())
                .filter(|saved| notes::is_of(source, saved))
                .collect(),
            environments: environments(source),
            notes: notes::of(source, settings, values)?,
            plan: plan.text.clone(),
            base,
        })
    }

    /// The differences to the base.
    pub(crate) fn to_base(&self) -> Option<&Comparison> {
        self.comparisons.iter().find(|c| c.reference == self.base)
    }

    /// Whether its optimizers are trials of a search.
    pub(crate) fn is_search(&self) -> bool {
        !self.sensitivity.is_empty()
    }
}

fn base(source: &Source, settings: &Settings) -> Result<String> {
    if let Some(name) = &settings.base {
        return find(source, name);
    }
    let first = source.plan.optimizers.first();
    Ok(first.context("a plan without optimizers")?.name.clone())
}

fn find(source: &Source, name: &str) -> Result<String> {
    let names = source.plan.names();
    let known = names.contains(&name);
    known.then(|| name.to_owned()).with_context(|| {
        let (experiment, known) = (&source.plan.name, names.join(", "));
        format!("no optimizer `{name}` in {experiment}; it has {known}")
    })
}

/// The machines and versions, each once.
fn environments(source: &Source) -> Vec<Environment> {
    let mut all: Vec<Environment> = Vec::new();
    for environment in source.places.iter().filter_map(|p| p.environment.as_ref()) {
        if !all.contains(environment) {
            all.push(environment.clone());
        }
    }
    all
}

/// Which number of a run is compared.
#[derive(Debug, Clone, Copy)]
pub(super) struct Values {
    metric: Metric,
    part: Part,
    /// Whether that part has chosen the epoch whose weights it scores: a run's score is then the best of many.
    chosen: bool,
}

impl Values {
    pub(super) fn are_chosen(self) -> bool {
        self.chosen
    }

    pub(super) fn metric(self) -> Metric {
        self.metric
    }

    /// The number of a run on the compared part; nothing if it diverged.
    pub(super) fn compared(self, run: &Run) -> Option<f64> {
        match self.part {
            Part::Test => self.number(run, run.record.test),
            Part::Validation => self.number(run, run.record.validation),
        }
    }

    fn number(self, run: &Run, score: Option<Score>) -> Option<f64> {
        let ended = run.record.failure.is_none();
        score.filter(|_| ended).and_then(|s| self.metric.of(&s))
    }
}

/// An optimizer's runs with the reference's run of the same seed, where both got to their end. None if a run
/// of either diverged: what is left would flatter it.
pub(super) fn pairs<'a>(
    source: &'a Source,
    own: &'a str,
    reference: &'a str,
) -> Vec<(&'a Run, &'a Run)> {
    let failed = |name| source.of(name).any(|r| r.record.failure.is_some());
    if failed(own) || failed(reference) {
        return Vec::new();
    }
    let partner = |run: &'a Run| {
        let mut others = source.of(reference);
        Some((run, others.find(|r| r.record.seed == run.record.seed)?))
    };
    source.of(own).filter_map(partner).collect()
}

impl Row {
    fn new(source: &Source, values: Values, name: &str, base: &str) -> Result<Self> {
        let runs: Vec<&Run> = source.of(name).collect();
        let failed = runs.iter().filter(|r| r.record.failure.is_some()).count();
        let whole: &[&Run] = if failed == 0 { &runs } else { &[] };
        let pairs = pairs(source, name, base);
        let times: Vec<f64> = (pairs.iter())
            .filter(|(own, base)| own.place == base.place)
            .map(|(own, base)| own.record.train_s / base.record.train_s)
            .collect();
        let costs: Vec<f64> = (pairs.iter())
            .map(|(own, base)| own.record.evaluations / base.record.evaluations)
            .collect();
        let steps: u64 = runs.iter().map(|r| r.record.steps).sum();
        let evaluations: f64 = runs.iter().map(|r| r.record.evaluations).sum();
        let cycles: Option<u64> = runs.iter().map(|r| r.record.cycles).sum();
        let ascents: u64 = runs.iter().map(|r| r.record.ascents).sum();
        let scores = (whole.iter()).filter_map(|r| Some((r.record.seed, values.compared(r)?)));
        let plan = source.plan.optimizers.iter().find(|o| o.name == name);
        Ok(Self {
            optimizer: name.into(),
            runs: runs.len(),
            failed,
            validation: summary(whole, |r| values.number(r, r.record.validation))?,
            test: summary(whole, |r| values.number(r, r.record.test))?,
            evaluations_per_step: (steps > 0).then(|| evaluations / steps as f64),
            evaluations_ratio: stats::mean(&costs),
            time_ratio: stats::mean(&times),
            climbed: cycles.filter(|&c| c > 0).map(|c| ascents as f64 / c as f64),
            radius: plan.and_then(super::plan::OptimizerPlan::radius),
            scores: scores.collect(),
        })
    }

    /// Centre and spread on the compared part.
    pub(crate) fn compared(&self, part: Part) -> Option<Summary> {
        match part {
            Part::Test => self.test,
            Part::Validation => self.validation,
        }
    }
}

fn summary(runs: &[&Run], value: impl Fn(&Run) -> Option<f64>) -> Result<Option<Summary>> {
    let values: Option<Vec<f64>> = runs.iter().map(|r| value(r)).collect();
    values
        .filter(|a| !a.is_empty())
        .map(|a| Summary::of(&a))
        .transpose()
}
