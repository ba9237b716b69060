//! What a run is told to: its bar, its record, its events.

use anyhow::Result;

use super::{Observer, Step, checkpoint::Progress};
use crate::{
    progress::RunProgress,
    record::{EpochRecord, RunWriter},
    tensorboard::EventWriter,
};

/// Shows a run's progress and writes its record.
pub(super) struct Watch<'a> {
    pub(super) bar: RunProgress<'a>,
    pub(super) writer: RunWriter,
    pub(super) events: Option<EventWriter>,
    pub(super) stage: Option<Stage>,
}

impl Observer for Watch<'_> {
    fn begin(&mut self, progress: &Progress) -> Result<()> {
        if let Some(stage) = &mut self.stage {
            stage.begin(progress);
        }
        self.bar.begin(progress);
        for record in &progress.records {
            self.writer.epoch(record)?;
        }
        (self.events.as_mut()).map_or(Ok(()), |events| events.begin(progress))
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        let climbing = (self.stage.as_mut()).and_then(|stage| stage.after(step));
        self.bar.step(step, climbing);
        (self.events.as_mut()).map_or(Ok(()), |events| events.step(step, climbing))
    }

    fn epoch(&mut self, record: &EpochRecord) -> Result<()> {
        self.bar.epoch(record);
        self.writer.epoch(record)?;
        (self.events.as_mut()).map_or(Ok(()), |events| events.epoch(record))
    }
}

/// Whether the last cycle of a method that decides once a cycle climbed: for SALA, which of its stages it is in.
#[derive(Debug, Clone)]
pub(super) struct Stage {
    /// Steps of a cycle, at whose end it may climb.
    cycle: u64,
    climbing: Option<bool>,
}

impl Stage {
    pub(super) fn new(cycle: u64) -> Self {
        Self {
            cycle,
            climbing: None,
        }
    }

    fn begin(&mut self, progress: &Progress) {
        let tally = &progress.tally;
        let end = tally.steps - tally.steps % self.cycle;
        self.climbing = (end > 0).then(|| tally.last_ascent == Some(end));
    }

    /// Nothing before the first cycle is complete.
    fn after(&mut self, step: &Step) -> Option<bool> {
        if step.report.step.is_multiple_of(self.cycle) {
            self.climbing = Some(step.report.ascent);
        }
        self.climbing
    }
}

#[cfg(test)]
mod tests {
    use sala_core::StepReport;

    use super::*;

    fn step(step: u64, ascent: bool) -> Step {
        let report = StepReport {
            step,
            loss: 0.5,
            evaluations: 1.0,
            ascent,
            gap: Some(0.25),
            grad_norm: 2.0,
        };
        Step {
            epoch: 1,
            lr: 0.1,
            report,
        }
    }

    #[test]
    fn a_stage_holds_for_a_cycle_and_survives_an_interruption_anywhere() {
        let climbs = |n: u64| n == 9 || n == 12;
        let wanted = [None, None, Some(false), Some(true), Some(true), Some(false)];
        let whole: Vec<Option<bool>> = {
            let mut stage = Stage::new(3);
            (1..=15).map(|n| stage.after(&step(n, climbs(n)))).collect()
        };
        assert_eq!(whole[..2], wanted[..2]);
        assert_eq!([whole[2], whole[8], whole[13], whole[14]], wanted[2..]);
        for done in 0..15 {
            let (mut stage, mut progress) = (Stage::new(3), Progress::default());
            for n in 1..=done {
                progress.tally.observe(&step(n, climbs(n)).report);
            }
            stage.begin(&progress);
            let rest = done + 1..=15;
            let rest: Vec<_> = rest.map(|n| stage.after(&step(n, climbs(n)))).collect();
            assert_eq!(rest, whole[usize::try_from(done).unwrap()..]);
        }
    }
}
