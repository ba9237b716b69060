//! What a run adds up, step by step and epoch by epoch.

use std::time::Duration;

use sala_core::StepReport;
use serde::{Deserialize, Serialize};

use crate::{metrics::Score, record::EpochRecord};

/// Sums over a run, and since the beginning of the epoch under way.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tally {
    /// Steps of the whole run.
    pub(crate) steps: u64,
    /// Gradient evaluations of a whole batch.
    pub(crate) evaluations: f64,
    /// Steps that climbed.
    pub(crate) ascents: u64,
    /// The last of them.
    pub(crate) last_ascent: Option<u64>,
    /// Seconds of training.
    pub(crate) train_s: f64,
    epoch: Epoch,
}

/// The same of one epoch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Epoch {
    steps: u64,
    loss: f64,
    grad_norm: f64,
    gap: Option<f64>,
    evaluations: f64,
    ascents: u64,
    train_s: f64,
    #[serde(default)]
    swap_s: f64,
}

impl Tally {
    /// Takes in a step.
    pub(crate) fn observe(&mut self, report: &StepReport) {
        self.steps = report.step;
        self.evaluations += report.evaluations;
        self.ascents += u64::from(report.ascent);
        if report.ascent {
            self.last_ascent = Some(report.step);
        }
        let epoch = &mut self.epoch;
        epoch.steps += 1;
        epoch.loss += report.loss;
        epoch.grad_norm += report.grad_norm;
        epoch.gap = report.gap;
        epoch.evaluations += report.evaluations;
        epoch.ascents += u64::from(report.ascent);
    }

    /// Takes in a time that belongs to the training.
    pub(crate) fn add_time(&mut self, time: Duration) {
        self.train_s += time.as_secs_f64();
        self.epoch.train_s += time.as_secs_f64();
    }

    /// Takes in a time of changing to slow weights and back, which belongs to the training too.
    pub(crate) fn add_swap(&mut self, time: Duration) {
        self.add_time(time);
        self.epoch.swap_s += time.as_secs_f64();
    }

    /// Steps of the epoch under way.
    pub(crate) fn steps_of_epoch(&self) -> u64 {
        self.epoch.steps
    }

    /// The record of the epoch that ends here; the next one begins.
    pub(crate) fn end_epoch(&mut self, epoch: u64, lr: f64, validation: Score) -> EpochRecord {
        let sums = std::mem::take(&mut self.epoch);
        let steps = sums.steps as f64;
        EpochRecord {
            epoch,
            steps: self.steps,
            lr,
            train_loss: sums.loss / steps,
            grad_norm: sums.grad_norm / steps,
            validation,
            evaluations: sums.evaluations,
            ascents: sums.ascents,
            gap: sums.gap,
            train_s: sums.train_s,
            swap_s: sums.swap_s,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(step: u64, loss: f64, ascent: bool) -> StepReport {
        StepReport {
            step,
            loss,
            evaluations: 1.0 + f64::from(u8::from(ascent)),
            ascent,
            gap: Some(loss / 10.0),
            grad_norm: 2.0 * loss,
        }
    }

    #[test]
    fn an_epoch_has_its_own_sums_and_the_run_all_of_them() {
        let mut tally = Tally::default();
        tally.observe(&report(1, 4.0, false));
        tally.observe(&report(2, 2.0, true));
        tally.add_time(Duration::from_millis(500));
        tally.add_swap(Duration::from_millis(250));
        let first = tally.end_epoch(1, 0.1, Score::default());
        assert_eq!(
            (first.train_loss, first.grad_norm, first.gap),
            (3.0, 6.0, Some(0.2))
        );
        assert_eq!(
            (first.evaluations, first.ascents, first.train_s),
            (3.0, 1, 0.75)
        );
        assert!((first.swap_s - 0.25).abs() < 1e-12);
        tally.observe(&report(3, 1.0, true));
        assert_eq!(tally.steps_of_epoch(), 1);
        let second = tally.end_epoch(2, 0.1, Score::default());
        assert_eq!(
            (second.steps, second.train_loss, second.ascents),
            (3, 1.0, 1)
        );
        assert_eq!((tally.steps, tally.evaluations, tally.ascents), (3, 5.0, 2));
        assert!((tally.train_s - 0.75).abs() < 1e-12);
    }

    #[test]
    fn sums_survive_the_way_through_json_bit_for_bit() {
        let mut tally = Tally::default();
        for step in 1..50 {
            tally.observe(&report(step, 1.0 / step as f64, step % 3 == 0));
        }
        let text = serde_json::to_string(&tally).unwrap();
        assert_eq!(serde_json::from_str::<Tally>(&text).unwrap(), tally);
    }
}
