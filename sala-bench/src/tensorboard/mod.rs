//! Event files that TensorBoard shows: one for each run, in a folder of its own.
//!
//! | tag | at | |
//! |---|---|---|
//! | `train/loss`, `train/learning_rate`, `train/gradient_norm` | steps | of that step |
//! | `train/gap`, `train/climbing` | steps | distance of fast and slow weights; 1 while the cycles climb |
//! | `validation/…` | ends of epochs | loss, accuracy, … |
//! | `epoch/train_loss`, `epoch/evaluations`, `epoch/seconds` | ends of epochs | means and sums over the epoch |
//!
//! When a run goes on from a checkpoint, what its file has of later steps is cut off: it comes once.

mod event;

use std::{
    fs::{self, File, OpenOptions},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};

use crate::{
    metrics::Metric,
    record::EpochRecord,
    runs::{Step, checkpoint::Progress},
};

/// TensorBoard knows its files by `tfevents` in their names.
const NAME: &str = "events.out.tfevents.sala-bench";
/// Steps of a run that are told of at most.
const POINTS: u64 = 2000;
/// What the tags of steps begin with, and no others.
const OF_STEPS: &[u8] = b"train/";

/// Writes the events of a run.
#[derive(Debug)]
pub(crate) struct EventWriter {
    file: File,
    path: PathBuf,
    /// From one step that is told of to the next.
    every: u64,
}

impl EventWriter {
    /// Opens or makes the file in `folder`, of a run of so many steps.
    pub(crate) fn open(folder: &Path, steps: u64) -> Result<Self> {
        let path = folder.join(NAME);
        let mut options = OpenOptions::new();
        let file = fs::create_dir_all(folder).and_then(|()| {
            let options = options.read(true).write(true).create(true).truncate(false);
            options.open(&path)
        });
        Ok(Self {
            file: file.with_context(|| format!("cannot write {}", path.display()))?,
            every: steps.div_ceil(POINTS).max(1),
            path,
        })
    }

    /// Cuts off what is not of the progress that the run goes on from.
    pub(crate) fn begin(&mut self, progress: &Progress) -> Result<()> {
        let place = || format!("cannot continue {}", self.path.display());
        let there = fs::read(&self.path).with_context(place)?;
        let length = kept(&there, progress);
        self.file.set_len(length as u64).with_context(place)?;
        self.file.seek(SeekFrom::End(0)).with_context(place)?;
        if length == 0 {
            self.write(&event::head(now()))?;
        }
        Ok(())
    }

    /// After a step, in which SALA's stage was `climbing`.
    pub(crate) fn step(&mut self, step: &Step, climbing: Option<bool>) -> Result<()> {
        let report = &step.report;
        if !report.step.is_multiple_of(self.every) {
            return Ok(());
        }
        let mut values = vec![
            ("train/loss", report.loss),
            ("train/learning_rate", step.lr),
            ("train/gradient_norm", report.grad_norm),
        ];
        values.extend(report.gap.map(|gap| ("train/gap", gap)));
        values.extend(climbing.map(|climbing| ("train/climbing", f64::from(u8::from(climbing)))));
        self.write(&event::scalars(now(), report.step, &values))
    }

    /// After an epoch.
    pub(crate) fn epoch(&mut self, record: &EpochRecord) -> Result<()> {
        let score = &record.validation;
        let measured = [
            ("validation/loss", Metric::Loss),
            ("validation/accuracy", Metric::Accuracy),
            ("validation/macro_f1", Metric::MacroF1),
            ("validation/matthews", Metric::Matthews),
            ("validation/perplexity", Metric::Perplexity),
        ];
        let scores = measured.map(|(tag, metric)| metric.of(score).map(|value| (tag, value)));
        let mut values: Vec<_> = scores.into_iter().flatten().collect();
        values.extend([
            ("epoch/train_loss", record.train_loss),
            ("epoch/evaluations", record.evaluations),
            ("epoch/seconds", record.train_s),
        ]);
        self.write(&event::scalars(now(), record.steps, &values))
    }

    /// At once, so that the file is never behind a checkpoint.
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        (self.file.write_all(bytes))
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// Bytes of a file up to the first event that is not whole or comes after the progress.
fn kept(file: &[u8], progress: &Progress) -> usize {
    let of_epochs = progress.records.last().map_or(0, |last| last.steps);
    let mut rest = file;
    while let Some((data, behind)) = event::split(rest) {
        let is_of_step = data.windows(OF_STEPS.len()).any(|w| w == OF_STEPS);
        let last = if is_of_step {
            progress.tally.steps
        } else {
            of_epochs
        };
        if event::step(data).is_none_or(|step| step > last) {
            break;
        }
        rest = behind;
    }
    if progress.tally.steps == 0 {
        return 0;
    }
    file.len() - rest.len()
}

/// Seconds since 1970.
fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |time| time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use sala_core::StepReport;

    use super::*;
    use crate::metrics::Score;

    fn step(step: u64) -> Step {
        let report = StepReport {
            step,
            loss: 0.5,
            evaluations: 1.0,
            ascent: false,
            gap: Some(0.25),
            grad_norm: 2.0,
        };
        Step {
            epoch: 1,
            lr: 0.1,
            report,
        }
    }

    fn events(folder: &Path) -> Vec<u64> {
        let file = fs::read(folder.join(NAME)).unwrap();
        let (mut rest, mut steps) = (&file[..], Vec::new());
        while let Some((data, behind)) = event::split(rest) {
            steps.push(event::step(data).unwrap());
            rest = behind;
        }
        assert!(rest.is_empty(), "whole events only");
        steps
    }

    /// Two epochs of three steps, as a run does; the progress after each step and each epoch.
    fn write(writer: &mut EventWriter, mut progress: Progress) -> Vec<Progress> {
        let mut all = vec![progress.clone()];
        let done = progress.tally.steps;
        for n in done + 1..=6 {
            writer.step(&step(n), Some(false)).unwrap();
            progress.tally.observe(&step(n).report);
            all.push(progress.clone());
            if n.is_multiple_of(3) {
                let record = progress.tally.end_epoch(n / 3, 0.1, Score::default());
                writer.epoch(&record).unwrap();
                progress.records.push(record);
                progress.epoch += 1;
                all.push(progress.clone());
            }
        }
        all
    }

    #[test]
    fn a_run_that_goes_on_from_anywhere_has_every_event_once() {
        let folder = tempfile::tempdir().unwrap();
        let begin = |progress: &Progress| {
            let mut writer = EventWriter::open(folder.path(), 6).unwrap();
            writer.begin(progress).unwrap();
            writer
        };
        let start = Progress::default();
        let wanted = [0, 1, 2, 3, 3, 4, 5, 6, 6];
        let all = write(&mut begin(&start), start);
        assert_eq!(events(folder.path()), wanted);
        for progress in all {
            // A kill in the middle of an event, too.
            let path = folder.path().join(NAME);
            let mut spoiled = fs::read(&path).unwrap();
            spoiled.extend(&event::scalars(1.0, 9, &[("train/loss", 0.5)])[..20]);
            fs::write(&path, spoiled).unwrap();
            let behind = match progress.tally.steps_of_epoch() {
                // At the last step of an epoch, before its score.
                3 => Some(progress.tally.steps),
                _ => None,
            };
            let mut writer = begin(&progress);
            if let Some(steps) = behind {
                let mut progress = progress.clone();
                let record = progress.tally.end_epoch(steps / 3, 0.1, Score::default());
                writer.epoch(&record).unwrap();
                progress.records.push(record);
                write(&mut writer, progress);
            } else {
                write(&mut writer, progress);
            }
            assert_eq!(events(folder.path()), wanted);
        }
    }

    #[test]
    fn long_runs_are_thinned_out() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::open(folder.path(), 3 * POINTS).unwrap();
        writer.begin(&Progress::default()).unwrap();
        for n in 1..=9 {
            writer.step(&step(n), None).unwrap();
        }
        assert_eq!(events(folder.path()), [0, 3, 6, 9]);
    }
}
