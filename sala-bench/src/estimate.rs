//! `--dry-run`: what would be run, and about how long it takes.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{
    progress,
    record::{EpochRecord, PLAN, RunRecord, read_run, run_file},
    runs::{Observer, Step, cadence::Cadence, checkpoint::Progress, run::Site},
    spec::{Experiment, Optimizer, Running},
    train::{Ending, Trainer},
};

/// Steps that are not timed, because the first ones fetch memory and fill caches.
const UNTIMED: u32 = 2;
/// Steps are timed until there are so many and they took so long, or took longer than anyone waits.
const STEPS: u32 = 10;
const ENOUGH: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(5);

/// A plan in numbers. Where a method decides as it goes what a step costs, numbers have two bounds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Estimate {
    experiment: String,
    fingerprint: String,
    /// Where records would go.
    out: PathBuf,
    /// What is trained on, in words.
    data: String,
    device: String,
    runs: usize,
    complete: usize,
    optimizers: Vec<Row>,
    /// Gradient evaluations of the runs that are missing.
    evaluations: (f64, f64),
    timing: Timing,
    /// Runs at a time.
    jobs: usize,
    /// Training time of the runs that are missing; scoring comes on top.
    seconds: (f64, f64),
}

/// The runs of an optimizer.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Row {
    optimizer: String,
    missing: usize,
    /// Steps and gradient evaluations of one run.
    steps: (u64, u64),
    evaluations: (f64, f64),
}

/// What one gradient evaluation takes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Timing {
    seconds: f64,
    source: Source,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Source {
    /// So many complete runs of the same plan.
    Records(usize),
    /// So many steps of the base, just now.
    Steps(u32),
}

impl Estimate {
    /// Reads what is complete in `out` and times a few steps of the base if nothing is. Writes nothing.
    pub(crate) fn of(experiment: &Experiment, out: &Path, jobs: usize) -> Result<Self> {
        let stop = AtomicBool::new(false);
        let trainer = Trainer::new(experiment)?;
        let records = complete(experiment, out)?;
        let timing = match from_records(&records) {
            Some(timing) => timing,
            None => time_steps(&trainer, &stop)?,
        };
        let seeds = &experiment.training.seeds;
        let missing = |name: &str| {
            let complete = records.iter().filter(|r| r.optimizer == name).count();
            seeds.len() - complete
        };
        let row = |o: &Optimizer| Row::of(o, &trainer, missing(&o.name));
        let optimizers: Vec<_> = experiment.optimizers.iter().map(row).collect();
        let total = |bound: fn(&(f64, f64)) -> f64| {
            let of_row = |row: &Row| row.missing as f64 * bound(&row.evaluations);
            optimizers.iter().map(of_row).sum::<f64>()
        };
        let evaluations = (total(|e| e.0), total(|e| e.1));
        let missing: usize = optimizers.iter().map(|row| row.missing).sum();
        let at_once = jobs.min(missing).max(1);
        let seconds = |evaluations: f64| evaluations * timing.seconds / at_once as f64;
        Ok(Self {
            experiment: experiment.name.clone(),
            fingerprint: experiment.fingerprint()?,
            out: out.into(),
            data: trainer.title().into(),
            device: experiment.device.to_string(),
            runs: optimizers.len() * seeds.len(),
            complete: records.len(),
            seconds: (seconds(evaluations.0), seconds(evaluations.1)),
            optimizers,
            evaluations,
            timing,
            jobs,
        })
    }

    /// For people.
    pub(crate) fn text(&self) -> Result<String> {
        let mut text = String::new();
        let (runs, complete) = (self.runs, self.complete);
        writeln!(
            text,
            "{} ({}) on {}",
            self.experiment, self.fingerprint, self.data
        )?;
        writeln!(
            text,
            "{runs} runs, {complete} complete, into {}",
            self.out.display()
        )?;
        writeln!(text)?;
        let width = self.optimizers.iter().map(|row| row.optimizer.len()).max();
        let width = width.unwrap_or(0).max("optimizer".len());
        writeln!(
            text,
            "{:<width$}  missing  {:>15}  {:>20}",
            "optimizer", "steps a run", "evaluations a run"
        )?;
        for row in &self.optimizers {
            let (steps, evaluations) = (row.steps, row.evaluations);
            writeln!(
                text,
                "{:<width$}  {:>7}  {:>15}  {:>20}",
                row.optimizer,
                row.missing,
                between(&steps.0.to_string(), &steps.1.to_string()),
                between(
                    &format!("{:.0}", evaluations.0),
                    &format!("{:.0}", evaluations.1)
                ),
            )?;
        }
        let source = match self.timing.source {
            Source::Records(n) => format!("as in {n} complete runs"),
            Source::Steps(n) => format!(
                "as in {n} steps of {} just now",
                self.optimizers[0].optimizer
            ),
        };
        writeln!(text)?;
        writeln!(
            text,
            "{} gradient evaluations at {:.1} ms on {}, {source}; {} runs at a time: about {} of training",
            between(
                &format!("{:.0}", self.evaluations.0),
                &format!("{:.0}", self.evaluations.1)
            ),
            1e3 * self.timing.seconds,
            self.device,
            self.jobs,
            between(&duration(self.seconds.0), &duration(self.seconds.1)),
        )?;
        Ok(text)
    }
}

impl Row {
    fn of(optimizer: &Optimizer, trainer: &Trainer<'_>, missing: usize) -> Self {
        let budget = trainer.experiment().training.budget;
        let steps = |cost| optimizer.stretched(budget.steps(trainer.steps_per_epoch(), cost));
        let (least, most) = optimizer.method.cost();
        // A budget of evaluations is the same at either cost, and then the dearer step is taken less often.
        let (long, short) = (steps(least), steps(most));
        let (cheap, dear) = (least * long as f64, most * short as f64);
        Self {
            optimizer: optimizer.name.clone(),
            missing,
            steps: (short, long),
            evaluations: (cheap.min(dear), cheap.max(dear)),
        }
    }
}

/// The complete runs of an experiment in a folder, if it is this experiment's.
fn complete(experiment: &Experiment, out: &Path) -> Result<Vec<RunRecord>> {
    let mut records = Vec::new();
    if std::fs::read_to_string(out.join(PLAN)).ok() != Some(experiment.to_toml()?) {
        return Ok(records);
    }
    for &seed in &experiment.training.seeds {
        for optimizer in &experiment.optimizers {
            let run = read_run(&run_file(out, &optimizer.name, seed))?;
            records.extend(run.map(|(_, record)| record));
        }
    }
    Ok(records)
}

fn from_records(records: &[RunRecord]) -> Option<Timing> {
    let seconds: f64 = records.iter().map(|r| r.train_s).sum();
    let evaluations: f64 = records.iter().map(|r| r.evaluations).sum();
    (evaluations > 0.0).then(|| Timing {
        seconds: seconds / evaluations,
        source: Source::Records(records.len()),
    })
}

/// Runs the base for a moment and throws away what it learned.
fn time_steps(trainer: &Trainer<'_>, stop: &AtomicBool) -> Result<Timing> {
    let experiment = trainer.experiment();
    let (base, seed) = (&experiment.optimizers[0], experiment.training.seeds[0]);
    let mut watch = Stopwatch {
        stop,
        watched: Watched::default(),
    };
    progress::say(&format!("Timing a few steps of {} …", base.name));
    let ending = Ending {
        test: false,
        model: None,
        trajectory: None,
    };
    let site = Site {
        seed,
        optimizer: base,
        checkpoint: None,
        cadence: Cadence::new(&Running::default()),
        stop,
        observer: &mut watch,
    };
    trainer.run(&trainer.seed_data(seed)?, ending, site)?;
    let (seconds, steps) = (watch.watched)
        .timed()
        .context("the base ended before its first step")?;
    let (least, most) = base.method.cost();
    Ok(Timing {
        seconds: seconds.as_secs_f64() / (f64::from(steps) * f64::midpoint(least, most)),
        source: Source::Steps(steps),
    })
}

/// Times steps, and stops the run when it has seen enough.
struct Stopwatch<'a> {
    stop: &'a AtomicBool,
    watched: Watched,
}

/// Ends of steps.
#[derive(Debug, Clone, Copy, Default)]
struct Watched {
    steps: u32,
    /// The end of the last untimed step.
    begin: Option<Instant>,
    last: Option<Instant>,
}

impl Watched {
    fn step(&mut self, now: Instant) {
        self.steps += 1;
        if self.steps == UNTIMED {
            self.begin = Some(now);
        }
        self.last = Some(now);
    }

    /// How long how many steps took.
    fn timed(&self) -> Option<(Duration, u32)> {
        let steps = self.steps.checked_sub(UNTIMED).filter(|&n| n > 0)?;
        Some((self.last? - self.begin?, steps))
    }

    fn is_enough(&self) -> bool {
        let timed = self.timed();
        timed.is_some_and(|(time, n)| (n >= STEPS && time >= ENOUGH) || time >= PATIENCE)
    }
}

impl Observer for Stopwatch<'_> {
    fn begin(&mut self, _: &Progress) -> Result<()> {
        Ok(())
    }

    fn step(&mut self, _: &Step) -> Result<()> {
        self.watched.step(Instant::now());
        if self.watched.is_enough() {
            self.stop.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn epoch(&mut self, _: &EpochRecord) -> Result<()> {
        Ok(())
    }
}

fn between(low: &str, high: &str) -> String {
    if low == high {
        low.into()
    } else {
        format!("{low} to {high}")
    }
}

/// In the two largest units.
fn duration(seconds: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a positive time; fractions of seconds are dropped"
    )]
    let seconds = seconds.ceil() as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{record::tests::run, spec::tests::SMALL};

    fn experiment(from: &str, to: &str) -> Experiment {
        Experiment::from_toml(&SMALL.replace(from, to), "small").unwrap()
    }

    #[test]
    fn steps_and_evaluations_are_those_of_the_plan() {
        // 5,000 − 4,600 images in batches of 64 are 7 steps an epoch; a cycle of 2 may climb, on a quarter.
        let folder = tempfile::tempdir().unwrap();
        let estimate = Estimate::of(&experiment("", ""), folder.path(), 2).unwrap();
        assert_eq!((estimate.runs, estimate.complete), (4, 0));
        let rows = &estimate.optimizers;
        assert_eq!(
            (rows[0].steps, rows[0].evaluations),
            ((14, 14), (14.0, 14.0))
        );
        assert_eq!(
            (rows[1].steps, rows[1].evaluations),
            ((14, 14), (14.0, 15.75))
        );
        assert_eq!(estimate.evaluations, (56.0, 59.5));
        assert!(
            matches!(estimate.timing.source, Source::Steps(12)),
            "all but two of 14"
        );
        let half = 0.5 * estimate.timing.seconds;
        assert!((estimate.seconds.0 - 56.0 * half).abs() < 1e-9);
        let text = estimate.text().unwrap();
        assert!(
            text.contains("14 to 16") && text.contains("56 to 60"),
            "{text}"
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_budget_of_evaluations_buys_fewer_of_the_dearer_steps() {
        let folder = tempfile::tempdir().unwrap();
        let experiment = experiment("epochs = 2", "evaluations = 18");
        let estimate = Estimate::of(&experiment, folder.path(), 1).unwrap();
        assert_eq!(estimate.optimizers[0].steps, (18, 18));
        assert_eq!(estimate.optimizers[1].steps, (16, 18));
        assert_eq!(estimate.optimizers[1].evaluations, (18.0, 18.0));
    }

    #[test]
    fn complete_runs_are_left_out_and_give_the_time() {
        let folder = tempfile::tempdir().unwrap();
        let experiment = experiment("", "");
        std::fs::create_dir(folder.path().join("runs")).unwrap();
        std::fs::write(folder.path().join(PLAN), experiment.to_toml().unwrap()).unwrap();
        let line = serde_json::to_string(&run("sala", 1)).unwrap();
        let line = line.replacen('{', "{\"record\":\"run\",", 1);
        std::fs::write(run_file(folder.path(), "sala", 1), line).unwrap();
        let estimate = Estimate::of(&experiment, folder.path(), 1).unwrap();
        assert_eq!((estimate.complete, estimate.optimizers[1].missing), (1, 1));
        assert_eq!(estimate.timing.source, Source::Records(1));
        // 1.5 s for 12.5 evaluations.
        assert!((estimate.timing.seconds - 0.12).abs() < 1e-12);
    }

    #[test]
    fn the_untimed_steps_are_left_out_and_watching_ends() {
        let (mut watched, start) = (Watched::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        watched.step(at(10_000));
        watched.step(at(10_100));
        assert_eq!(watched.timed(), None);
        for i in 1..=STEPS {
            assert!(!watched.is_enough());
            watched.step(at(10_100 + 100 * u64::from(i)));
        }
        assert_eq!(watched.timed(), Some((Duration::from_secs(1), STEPS)));
        assert!(watched.is_enough());
    }

    #[test]
    fn times_are_told_in_two_units() {
        let cases = [
            (0.2, "1 s"),
            (61.0, "1 min 1 s"),
            (7260.0, "2 h 1 min"),
            (90_000.0, "1 d 1 h"),
        ];
        for (seconds, text) in cases {
            assert_eq!(duration(seconds), text);
        }
    }
}
