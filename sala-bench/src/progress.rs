//! Progress on standard error: bars in a terminal, one for all runs and one for each that is under way; lines
//! elsewhere.

use std::{
    fmt::{Display, Write as _},
    io::{IsTerminal, Write as _, stderr},
    sync::{
        LazyLock, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{HumanDuration, MultiProgress, ProgressBar, ProgressStyle};

use crate::{
    metrics::Metric,
    record::{EpochRecord, RunRecord},
    runs::{Plan, Step, checkpoint},
    spec::Optimizer,
};

/// All bars of the program. Whoever writes to standard error meanwhile asks them to make way.
static SCREEN: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// What is said is logged with this target.
pub(crate) const TARGET: &str = "progress";
/// Where there is no terminal, an epoch is told of when this long nothing was heard of its run.
const SILENCE: Duration = Duration::from_secs(10);
/// Weight of the last step in the loss that is shown, which is an exponential average.
const NEWEST: f64 = 0.1;

/// Writes to standard error what is not progress, above the bars.
pub(crate) fn above<R>(write: impl FnOnce() -> R) -> R {
    SCREEN.suspend(write)
}

/// Whether lines are for machines to read.
static FOR_MACHINES: AtomicBool = AtomicBool::new(false);

/// From now on [`say`] logs, so that every line of standard error is a log line.
pub(crate) fn for_machines() {
    FOR_MACHINES.store(true, Ordering::Relaxed);
}

/// A line for people on standard error, above the bars.
pub(crate) fn say(line: &str) {
    if FOR_MACHINES.load(Ordering::Relaxed) {
        tracing::info!(target: TARGET, "{line}");
    } else {
        line_above(line);
    }
}

/// A line on standard error. That nobody reads it (`2>&1 | head`) is no reason to end: what is made stays on disk.
pub(crate) fn line_above(line: impl Display) {
    above(|| {
        let _ = writeln!(stderr(), "{line}");
    });
}

/// Why the program ends, on standard error.
pub(crate) fn complain(error: &anyhow::Error) {
    if FOR_MACHINES.load(Ordering::Relaxed) {
        tracing::error!(target: TARGET, "{error:#}");
    } else {
        line_above(format_args!("error: {error:#}"));
    }
}

/// Lines for who waits where there is no terminal: one after two seconds without any, then one every ten.
pub(crate) struct Pulse {
    plain: bool,
    next: Mutex<Instant>,
}

/// How long the first line is waited for.
const FIRST: Duration = Duration::from_secs(2);

impl Pulse {
    pub(crate) fn new() -> Self {
        Self {
            plain: !stderr().is_terminal(),
            next: Mutex::new(Instant::now() + FIRST),
        }
    }

    /// Says something, if it is time for it.
    pub(crate) fn say(&self, words: impl FnOnce() -> String) {
        if self.plain && self.is_due(Instant::now()) {
            say(&words());
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let due = now >= *next;
        if due {
            *next = now + SILENCE;
        }
        due
    }

    /// Something else was said meanwhile.
    fn heard(&self) {
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + SILENCE;
    }
}

/// A bar of so many units in a terminal; nothing elsewhere.
pub(crate) fn bar(length: u64) -> ProgressBar {
    bar_like(
        length,
        "{prefix} {bar:28.cyan} {percent:>3} %  {elapsed} gone, {eta} to go  {wide_msg}",
    )
}

fn bar_like(length: u64, template: &str) -> ProgressBar {
    let bar = SCREEN.add(ProgressBar::new(length));
    // The templates are fixed; should indicatif refuse one, its own style shows the same progress.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Progress over all runs of a command, shared by the threads that work on them.
pub(crate) struct Progress {
    total: ProgressBar,
    plain: bool,
    metric: Metric,
    /// Whether every epoch is told of where there is no terminal.
    long: bool,
    epochs: u64,
    steps: u64,
    runs: usize,
    done: AtomicUsize,
    /// Letters of the longest name of a run.
    width: usize,
    pulse: Pulse,
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

/// What a run is called.
fn title(optimizer: &Optimizer, seed: u64) -> String {
    format!("{}, seed {seed}", optimizer.name)
}

impl Progress {
    /// For these runs of a plan.
    pub(crate) fn new<'a>(
        plan: &Plan<'_>,
        runs: impl Iterator<Item = (u64, &'a Optimizer)>,
    ) -> Self {
        let runs: Vec<_> = runs
            .map(|(seed, optimizer)| {
                let length = units(optimizer) * optimizer.stretched(plan.steps);
                (length, title(optimizer, seed).len())
            })
            .collect();
        let progress = Self {
            total: bar(runs.iter().map(|(length, _)| length).sum::<u64>()),
            plain: !stderr().is_terminal(),
            metric: plan.metric,
            long: plan.long,
            epochs: plan.epochs,
            steps: plan.steps,
            width: runs.iter().map(|(_, width)| *width).max().unwrap_or(0),
            runs: runs.len(),
            done: AtomicUsize::new(0),
            pulse: Pulse::new(),
        };
        progress.show_count(0);
        progress
    }

    fn show_count(&self, done: usize) {
        self.total.set_prefix(format!("{done}/{} runs", self.runs));
    }

    /// A run begins.
    pub(crate) fn begin(&self, optimizer: &Optimizer, seed: u64) -> RunProgress<'_> {
        let title = title(optimizer, seed);
        let bar = bar_like(
            optimizer.stretched(self.steps),
            "  {prefix} {bar:16.dim} {percent:>3} %  {eta:>4}  {wide_msg}",
        );
        bar.set_prefix(format!("{title:<width$}", width = self.width));
        RunProgress {
            of: self,
            bar,
            title,
            units: units(optimizer),
            now: Now::default(),
            heard: Instant::now(),
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
        self.pulse.heard();
        let (runs, name, seed) = (self.runs, &run.optimizer, run.seed);
        say(&format!(
            "[{done:>2}/{runs}] {name}, seed {seed}: {outcome}, {:.1} s{}",
            run.train_s,
            self.to_go()
        ));
    }

    /// How long all runs will take, where no bar says it.
    fn to_go(&self) -> String {
        let eta = self.total.eta();
        if self.plain && !eta.is_zero() {
            format!("; {} to go", HumanDuration(eta))
        } else {
            String::new()
        }
    }

    /// Nothing can be made here, because other processes make so many runs.
    pub(crate) fn wait(&self, runs: usize) {
        self.total
            .set_message(format!("waiting for {runs} that another process makes"));
        self.pulse
            .say(|| format!("waiting for {runs} runs that another process makes"));
    }

    /// Takes the bars away.
    pub(crate) fn clear(&self) {
        self.total.finish_and_clear();
    }
}

/// Progress within a run.
pub(crate) struct RunProgress<'a> {
    of: &'a Progress,
    bar: ProgressBar,
    title: String,
    units: u64,
    now: Now,
    /// When a line told of it last.
    heard: Instant,
}

/// What is known of a run under way.
#[derive(Debug, Clone, Default, PartialEq)]
struct Now {
    epoch: u64,
    loss: Option<f64>,
    /// Of the last epoch that ended.
    validation: Option<String>,
    /// SALA's stage.
    climbing: Option<bool>,
    gap: Option<f64>,
}

impl Now {
    fn observe(&mut self, step: &Step, climbing: Option<bool>) {
        let report = &step.report;
        self.epoch = step.epoch;
        self.loss = Some(match self.loss {
            Some(loss) => loss + NEWEST * (report.loss - loss),
            None => report.loss,
        });
        (self.climbing, self.gap) = (climbing, report.gap);
    }

    fn end_epoch(&mut self, record: &EpochRecord, metric: Metric) {
        self.epoch = record.epoch;
        self.gap = record.gap;
        let value = metric.of(&record.validation);
        self.validation = value.map(|value| format!("{} {}", metric.name(), metric.show(value)));
    }

    /// In words, of so many epochs.
    fn show(&self, epochs: u64) -> String {
        let mut text = format!("epoch {}/{epochs}", self.epoch);
        if let Some(loss) = self.loss {
            let _ = write!(text, ", loss {loss:.3}");
        }
        if let Some(validation) = &self.validation {
            let _ = write!(text, ", validation {validation}");
        }
        match self.climbing {
            Some(true) => text += ", climbing",
            Some(false) => text += ", walking",
            None => {}
        }
        if let Some(gap) = self.gap {
            // Adding zero takes the sign off a zero.
            let _ = write!(text, ", gap {:.2e}", gap + 0.0);
        }
        text
    }
}

impl RunProgress<'_> {
    /// What an interrupted process had done of the run counts as done, and not for the speed.
    pub(crate) fn begin(&mut self, progress: &checkpoint::Progress) {
        let steps = progress.tally.steps;
        self.bar.inc(steps);
        self.bar.reset_eta();
        self.of.total.inc(self.units * steps);
        self.of.total.reset_eta();
        if let Some(record) = progress.records.last() {
            self.now.end_epoch(record, self.of.metric);
        }
        if self.of.plain && steps > 0 {
            say(&format!("{}: goes on from step {steps}", self.title));
        }
    }

    pub(crate) fn step(&mut self, step: &Step, climbing: Option<bool>) {
        self.now.observe(step, climbing);
        self.bar.inc(1);
        self.of.total.inc(self.units);
        if !self.of.plain {
            self.bar.set_message(self.now.show(self.of.epochs));
        }
        // Before the first epoch ends nothing else tells that a long one is under way.
        self.of.pulse.say(|| {
            let (now, done) = (self.now.show(self.of.epochs), step.report.step);
            let all = self.bar.length().unwrap_or(done);
            format!(
                "{}: {now}, step {done} of {all}{}",
                self.title,
                self.of.to_go()
            )
        });
    }

    pub(crate) fn epoch(&mut self, record: &EpochRecord) {
        self.now.end_epoch(record, self.of.metric);
        let now = self.now.show(self.of.epochs);
        if self.of.plain && (self.of.long || self.heard.elapsed() >= SILENCE) {
            let line = format!("{}: {now}{}", self.title, self.of.to_go());
            say(&line);
            self.of.pulse.heard();
            self.heard = Instant::now();
        }
        self.bar.set_message(now);
    }
}

impl Drop for RunProgress<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        SCREEN.remove(&self.bar);
    }
}

#[cfg(test)]
mod tests {
    use sala_core::StepReport;

    use super::*;
    use crate::record::tests::score;

    fn step(loss: f64, gap: Option<f64>) -> Step {
        let report = StepReport {
            step: 1,
            loss,
            evaluations: 1.0,
            ascent: false,
            gap,
            grad_norm: 1.0,
        };
        Step {
            epoch: 2,
            lr: 0.1,
            report,
        }
    }

    #[test]
    fn a_line_comes_after_two_seconds_and_then_every_ten() {
        let (pulse, start) = (Pulse::new(), Instant::now());
        let after = |s: f64| pulse.is_due(start + Duration::from_secs_f64(s));
        let due: Vec<bool> = [0.5, 1.5, 2.5, 3.0, 12.0, 12.6, 20.0, 22.7]
            .map(after)
            .to_vec();
        assert_eq!(due, [false, false, true, false, false, true, false, true]);
        pulse.heard();
        assert!(!pulse.is_due(Instant::now() + Duration::from_secs(9)));
        assert!(pulse.is_due(Instant::now() + Duration::from_secs(11)));
    }

    #[test]
    fn a_run_says_where_it_is() {
        let mut now = Now::default();
        now.observe(&step(2.0, None), None);
        assert_eq!(now.show(9), "epoch 2/9, loss 2.000");
        now.observe(&step(1.0, Some(0.125)), Some(false));
        assert_eq!(now.show(9), "epoch 2/9, loss 1.900, walking, gap 1.25e-1");
        let record = EpochRecord {
            epoch: 2,
            steps: 2,
            lr: 0.1,
            train_loss: 1.5,
            grad_norm: 1.0,
            validation: score(0.75),
            evaluations: 2.0,
            ascents: 0,
            gap: Some(0.25),
            train_s: 1.0,
            swap_s: 0.0,
        };
        now.end_epoch(&record, Metric::Accuracy);
        now.climbing = Some(true);
        assert_eq!(
            now.show(9),
            "epoch 2/9, loss 1.900, validation accuracy 75.00 %, climbing, gap 2.50e-1"
        );
    }
}
