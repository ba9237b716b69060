//! Progress on standard error: a bar in a terminal, a line a run elsewhere.

use std::{
    io::{IsTerminal, stderr},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    metrics::Metric,
    record::{EpochRecord, RunRecord},
    spec::Optimizer,
};

/// Progress over all runs of a command, shared by the threads that work on them.
pub(crate) struct Progress {
    bar: ProgressBar,
    plain: bool,
    metric: Metric,
    /// Whether every epoch is told where there is no bar.
    epochs: bool,
    runs: usize,
    done: AtomicUsize,
}

/// Units of the bar for one step of the base.
const UNITS: f64 = 16.0;

/// How long a step takes relative to the base's, to divide the bar by; SALA's share of climbing
/// cycles is not known beforehand and taken as one half.
fn units(optimizer: &Optimizer) -> u64 {
    let (least, most) = optimizer.method.cost();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a small positive number"
    )]
    let units = (UNITS * 0.5 * (least + most)) as u64;
    units
}

/// A bar of so many units in a terminal; nothing elsewhere.
pub(crate) fn bar(length: u64) -> ProgressBar {
    let bar = if stderr().is_terminal() {
        ProgressBar::no_length()
    } else {
        ProgressBar::hidden()
    };
    bar.set_length(length);
    let style = ProgressStyle::with_template(
        "{prefix} {bar:28} {percent:>3} %  {elapsed} gone, {eta} to go  {wide_msg}",
    );
    // The template is fixed; should indicatif refuse it, its own style shows the same progress.
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

impl Progress {
    /// For these runs, each of at most so many steps.
    pub(crate) fn new<'a>(
        runs: impl Iterator<Item = &'a Optimizer>,
        steps: u64,
        metric: Metric,
        epochs: bool,
    ) -> Self {
        let weights: Vec<u64> = runs.map(units).collect();
        let plain = !stderr().is_terminal();
        let bar = bar(weights.iter().sum::<u64>() * steps);
        let progress = Self {
            bar,
            plain,
            metric,
            epochs,
            runs: weights.len(),
            done: AtomicUsize::new(0),
        };
        progress.show_count(0);
        progress
    }

    fn show_count(&self, done: usize) {
        self.bar.set_prefix(format!("{done}/{} runs", self.runs));
    }

    /// A run begins.
    pub(crate) fn begin(&self, optimizer: &Optimizer, seed: u64) -> RunProgress<'_> {
        let title = format!("{}, seed {seed}", optimizer.name);
        self.bar.set_message(title.clone());
        RunProgress {
            of: self,
            title,
            units: units(optimizer),
        }
    }

    /// A run is complete.
    pub(crate) fn finish(&self, run: &RunRecord) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        self.show_count(done);
        let outcome = match (&run.failure, &run.validation) {
            (Some(failure), _) => format!("stopped: {failure}"),
            (None, Some(score)) => match self.metric.of(score) {
                Some(value) => format!("validation {}", self.metric.show(value)),
                None => format!("validation loss {:.3}", score.loss),
            },
            (None, None) => "no validation part".into(),
        };
        let (runs, name, seed) = (self.runs, &run.optimizer, run.seed);
        let line = format!(
            "[{done:>2}/{runs}] {name}, seed {seed}: {outcome}, {:.1} s",
            run.train_s
        );
        if self.plain {
            eprintln!("{line}");
        } else {
            self.bar.println(line);
        }
    }

    /// Takes the bar away.
    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

/// Progress within a run.
pub(crate) struct RunProgress<'a> {
    of: &'a Progress,
    title: String,
    units: u64,
}

impl RunProgress<'_> {
    pub(crate) fn step(&self) {
        self.of.bar.inc(self.units);
    }

    pub(crate) fn epoch(&self, record: &EpochRecord) {
        let EpochRecord {
            epoch,
            train_loss,
            validation,
            ..
        } = record;
        let Progress { bar, metric, .. } = self.of;
        let value = metric.of(validation).map(|v| metric.show(v));
        let (title, value) = (&self.title, value.unwrap_or_default());
        let line = format!("{title}: epoch {epoch}, loss {train_loss:.3}, validation {value}");
        if self.of.plain && self.of.epochs {
            eprintln!("{line}");
        }
        bar.set_message(line);
    }
}
