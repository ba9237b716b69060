//! The course of training: means over seeds, epoch by epoch.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::load::{Run, Source};
use crate::{
    record::EpochRecord,
    stats::{self, Curve, Point, Summary},
};

/// What a run is followed along.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Measure {
    Epochs,
    /// Gradient evaluations of a whole batch.
    Evaluations,
    /// Seconds of training.
    Seconds,
}

impl Measure {
    pub(crate) const ALL: [Self; 3] = [Self::Epochs, Self::Evaluations, Self::Seconds];

    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Epochs => "epochs",
            Self::Evaluations => "gradient evaluations",
            Self::Seconds => "seconds of training",
        }
    }
}

/// The course of one optimizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MeanCurve {
    pub(crate) optimizer: String,
    pub(crate) points: Vec<MeanPoint>,
}

/// An epoch, over the seeds that got there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MeanPoint {
    pub(crate) epoch: u64,
    /// Gradient evaluations since the beginning.
    pub(crate) evaluations: f64,
    /// Seconds of training since the beginning.
    pub(crate) seconds: f64,
    /// The metric on the validation part.
    pub(crate) validation: Option<Summary>,
    pub(crate) train_loss: f64,
    /// Distance between fast and slow weights at the end of the epoch.
    pub(crate) gap: Option<f64>,
    /// Share of the epoch's cycles that climbed, for methods that decide that as they go.
    pub(crate) climbed: Option<f64>,
}

impl MeanPoint {
    pub(crate) fn cost(&self, measure: Measure) -> f64 {
        match measure {
            Measure::Epochs => self.epoch as f64,
            Measure::Evaluations => self.evaluations,
            Measure::Seconds => self.seconds,
        }
    }
}

/// The mean curves of all optimizers whose epochs are known.
pub(super) fn curves(source: &Source) -> Result<Vec<MeanCurve>> {
    let mut curves = Vec::new();
    for name in source.plan.names() {
        let runs: Vec<&Run> = source.of(name).collect();
        let longest = runs.iter().map(|r| r.epochs.len()).max().unwrap_or(0);
        let points = (0..longest).map(|epoch| point(source, &runs, epoch));
        let points: Vec<MeanPoint> = points.collect::<Result<_>>()?;
        if !points.is_empty() {
            curves.push(MeanCurve {
                optimizer: name.into(),
                points,
            });
        }
    }
    Ok(curves)
}

fn point(source: &Source, runs: &[&Run], epoch: usize) -> Result<MeanPoint> {
    let there: Vec<&Run> = runs
        .iter()
        .copied()
        .filter(|r| r.epochs.len() > epoch)
        .collect();
    let mean = |value: &dyn Fn(&Run) -> f64| {
        let values: Vec<f64> = there.iter().map(|r| value(r)).collect();
        stats::mean(&values).unwrap_or(f64::NAN)
    };
    let known = |value: &dyn Fn(&Run) -> Option<f64>| {
        let values: Option<Vec<f64>> = there.iter().map(|r| value(r)).collect();
        values.filter(|v| v.iter().all(|x| x.is_finite()))
    };
    let metric = source.plan.metric;
    let validation = known(&|r| metric.of(&r.epochs[epoch].validation));
    let sum = |r: &Run, part: fn(&EpochRecord) -> f64| r.epochs[..=epoch].iter().map(part).sum();
    Ok(MeanPoint {
        epoch: there.first().map_or(0, |r| r.epochs[epoch].epoch),
        evaluations: mean(&|r| sum(r, |e| e.evaluations)),
        seconds: mean(&|r| sum(r, |e| e.train_s)),
        validation: validation.map(|v| Summary::of(&v)).transpose()?,
        train_loss: mean(&|r| r.epochs[epoch].train_loss),
        gap: known(&|r| r.epochs[epoch].gap).and_then(|v| stats::mean(&v)),
        climbed: known(&|r| climbed(r, epoch)).and_then(|v| stats::mean(&v)),
    })
}

/// Share of an epoch's cycles that climbed.
fn climbed(run: &Run, epoch: usize) -> Option<f64> {
    let length = run.record.steps / run.record.cycles.filter(|&c| c > 0)?;
    let before = epoch.checked_sub(1).map_or(0, |e| run.epochs[e].steps);
    let here = &run.epochs[epoch];
    let cycles = here.steps / length - before / length;
    (cycles > 0).then(|| here.ascents as f64 / cycles as f64)
}

/// The course of one run on the validation part; nothing where no epoch has the metric.
pub(super) fn course(source: &Source, run: &Run, measure: Measure) -> Option<Curve> {
    let metric = source.plan.metric;
    let mut cost = 0.0;
    let mut points = Vec::new();
    for epoch in &run.epochs {
        cost = match measure {
            Measure::Epochs => epoch.epoch as f64,
            Measure::Evaluations => cost + epoch.evaluations,
            Measure::Seconds => cost + epoch.train_s,
        };
        let value = metric.of(&epoch.validation)?;
        points.push(Point { cost, value });
    }
    (!points.is_empty()).then(|| Curve::new(points))
}

#[cfg(test)]
mod tests {
    use super::super::tests::source;
    use super::*;

    #[test]
    fn costs_add_up_and_scores_are_those_of_the_epoch() {
        let source = source();
        let curves = curves(&source).unwrap();
        let names: Vec<&str> = curves.iter().map(|c| c.optimizer.as_str()).collect();
        assert_eq!(names, ["sgd", "sala"]);
        // Epochs of 32 steps: SGD 1 evaluation a step and 1 s an epoch, SALA 1.25 and 2 s.
        let sala = &curves[1].points;
        let costs = |m: Measure| sala.iter().map(|p| p.cost(m)).collect::<Vec<f64>>();
        assert_eq!(costs(Measure::Epochs), [1.0, 2.0]);
        assert_eq!(costs(Measure::Evaluations), [40.0, 80.0]);
        assert_eq!(costs(Measure::Seconds), [2.0, 4.0]);
        // Seeds 0 and 1: .5 and .6 after the first epoch.
        let first = sala[0].validation.unwrap();
        assert!((first.mean - 0.55).abs() < 1e-12 && first.n == 2);
        // Half of the sixteen cycles of two steps climbed in the first epoch, all in the second.
        assert_eq!((sala[0].climbed, sala[1].climbed), (Some(0.5), Some(1.0)));
        assert_eq!(curves[0].points[0].climbed, None);
    }

    #[test]
    fn a_run_without_epochs_has_no_course() {
        let mut source = source();
        source.runs[0].epochs.clear();
        assert_eq!(course(&source, &source.runs[0], Measure::Seconds), None);
        let course = course(&source, &source.runs[1], Measure::Evaluations).unwrap();
        assert_eq!(course.cost(), Some(80.0));
    }
}
