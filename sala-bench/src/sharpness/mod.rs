//! `sharpness`: how the training loss lies around the solutions of a comparison.
//!
//! ```text
//! solution   a run's saved weights → its network and its loss
//! measure    the loss → numbers, and what figures show
//! table      numbers of all solutions → table with spread over seeds
//! figures    slices → SVG
//! ```
//!
//! RUN/sharpness has `sharpness.{json,md,csv}`, the figures, and one JSON file for each solution, which is taken
//! over when the command is run again with the same settings.

mod args;
mod figures;
mod measure;
mod saved;
mod solution;
mod table;

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result, ensure};
use indicatif::ProgressBar;
use sala_core::{checkpoint::write_atomically, sharpness::Advance};
use serde::{Deserialize, Serialize};

use crate::{
    progress::{self, Pulse},
    record::{PLAN, run_name},
    runs::{Outcome, Work},
    shell,
    spec::Experiment,
    train::{SeedData, Trainer},
};
use measure::{Measures, Settings, Slices};
use solution::{Solution, State};
use table::{Diverged, Figure};

pub(crate) use args::{EXAMPLES, SharpnessArgs};
pub(crate) use saved::Saved;
#[cfg(test)]
pub(crate) use saved::tests::table as example;
pub(crate) use table::Sharpness;

/// The folder of a run directory that everything goes to.
const FOLDER: &str = "sharpness";

/// The table in it that programs read.
const TABLE: &str = "sharpness.json";

/// Relative error of products from which on it is told.
const UNSURE: f64 = 0.05;

/// A solution that has been measured, as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Kept {
    settings: Settings,
    measures: Measures,
    /// What the figures show, if they were wanted of this solution.
    slices: Option<Slices>,
}

/// Measures what is missing in each run directory, writes tables and figures there and prints the tables.
pub(crate) fn sharpness(args: &SharpnessArgs, work: &Work) -> Result<Outcome> {
    let settings = args.settings()?;
    for dir in &args.runs {
        let (experiment, fingerprint) = read_experiment(dir, args)?;
        let trainer = Trainer::new(&experiment)?;
        let inquiry = Inquiry {
            dir,
            trainer: &trainer,
            settings,
            figures: !args.no_figures,
            stop: &work.stop,
        };
        let diverged = inquiry.diverged()?;
        let Some(kept) = inquiry.measure_all(&diverged)? else {
            progress::say("Stopped; what is measured is kept, and the same command continues.");
            return Ok(Outcome::Interrupted);
        };
        let names: Vec<String> = experiment
            .optimizers
            .iter()
            .map(|o| o.name.clone())
            .collect();
        let measures = kept.iter().map(|k| k.measures.clone()).collect();
        let mut table = Sharpness::new(
            (&experiment.name, &fingerprint),
            &names,
            settings,
            measures,
            diverged,
        )?;
        let slices: Vec<Slices> = kept.into_iter().filter_map(|k| k.slices).collect();
        write(&dir.join(FOLDER), &mut table, &slices)?;
        let place = dir.join(FOLDER);
        let text = format!(
            "{}\nTables and figures: {}\n",
            table.terminal(),
            place.display()
        );
        shell::print(text.as_bytes())?;
    }
    Ok(Outcome::Complete)
}

/// The experiment of a run directory, with the optimizers and seeds that were asked for, and the fingerprint of the whole.
fn read_experiment(dir: &Path, args: &SharpnessArgs) -> Result<(Experiment, String)> {
    let plan = dir.join(PLAN);
    let text = std::fs::read_to_string(&plan).with_context(|| {
        format!(
            "{} is no run directory: cannot read {}",
            dir.display(),
            plan.display()
        )
    })?;
    let mut experiment = Experiment::from_toml(&text, &plan.display().to_string())?;
    let fingerprint = experiment.fingerprint()?;
    if let Some(names) = &args.optimizers {
        experiment.select(names)?;
    }
    if let Some(seeds) = &args.seeds {
        let known = &experiment.training.seeds;
        if let Some(seed) = seeds.iter().find(|s| !known.contains(s)) {
            anyhow::bail!(
                "--seeds: {} has no run with seed {seed}; it has {known:?}",
                dir.display()
            );
        }
        experiment.training.seeds.clone_from(seeds);
    }
    Ok((experiment, fingerprint))
}

/// The solutions of one run directory, to be measured.
struct Inquiry<'a> {
    dir: &'a Path,
    trainer: &'a Trainer<'a>,
    settings: Settings,
    figures: bool,
    stop: &'a AtomicBool,
}

impl Inquiry<'_> {
    /// The runs that have no solution. What else is in the way of measuring any of them is known before the first one
    /// is measured.
    fn diverged(&self) -> Result<Vec<Diverged>> {
        let experiment = self.trainer.experiment();
        let mut all = Vec::new();
        for &seed in &experiment.training.seeds {
            for optimizer in &experiment.optimizers {
                let optimizer = optimizer.name.clone();
                if let State::Diverged(failure) = State::of(self.dir, &optimizer, seed)? {
                    let name = run_name(&optimizer, seed);
                    progress::say(&format!("{name} diverged and has no solution: {failure}"));
                    all.push(Diverged {
                        optimizer,
                        seed,
                        failure,
                    });
                }
            }
        }
        let runs = experiment.training.seeds.len() * experiment.optimizers.len();
        ensure!(
            all.len() < runs,
            "every run of {} diverged, so there is no solution to measure",
            self.dir.display()
        );
        Ok(all)
    }

    /// Every optimizer with every seed, but for those that diverged; nothing when asked to stop. The figures show the
    /// first seed.
    fn measure_all(&self, diverged: &[Diverged]) -> Result<Option<Vec<Kept>>> {
        let experiment = self.trainer.experiment();
        let (seeds, optimizers) = (&experiment.training.seeds, &experiment.optimizers);
        let total = seeds.len() * optimizers.len() - diverged.len();
        let is_solved = |name: &str, seed| {
            (diverged.iter()).all(|d| (d.optimizer.as_str(), d.seed) != (name, seed))
        };
        let mut kept = Vec::with_capacity(total);
        for (number, &seed) in seeds.iter().enumerate() {
            let data = self.trainer.seed_data(seed)?;
            for optimizer in optimizers.iter().filter(|o| is_solved(&o.name, seed)) {
                let name = &optimizer.name;
                let with_slices = self.figures && number == 0;
                let one = self
                    .one(&data, name, with_slices)
                    .with_context(|| format!("the solution of {name} with seed {seed}"));
                match one {
                    Ok(one) => {
                        warn(&one.measures);
                        kept.push(one);
                    }
                    Err(_) if self.stop.load(Ordering::Relaxed) => return Ok(None),
                    Err(error) => return Err(error),
                }
                let done = kept.len();
                progress::say(&format!("{done}/{total} {}", run_name(name, seed)));
            }
        }
        Ok(Some(kept))
    }

    /// One solution: what is kept of it, or what is missing of that measured and kept.
    fn one(&self, data: &SeedData, optimizer: &str, with_slices: bool) -> Result<Kept> {
        let settings = self.settings;
        let solution = Solution::load(
            self.dir,
            self.trainer,
            data,
            optimizer,
            (settings.images, settings.m),
        )?;
        let parameters = solution.fingerprint.clone();
        let name = run_name(optimizer, data.seed());
        let file = self.dir.join(FOLDER).join(format!("{name}.json"));
        let earlier = read_kept(&file)?
            .filter(|k| k.settings == settings && k.measures.parameters == parameters);
        let bar = Bar::new(&name);
        let show = |advance| bar.show(&advance);
        let (measures, slices) = earlier.map_or((None, None), |k| (Some(k.measures), k.slices));
        let (had_measures, had_slices) = (measures.is_some(), slices.is_some());
        let measures = match measures {
            Some(measures) => measures,
            None => solution.with_objective(|objective| {
                let mut objective = Stoppable {
                    objective,
                    stop: self.stop,
                };
                let what = (optimizer, data.seed(), parameters);
                measure::measure(what, &solution.params, &mut objective, &settings, show)
            })??,
        };
        let slices = match slices {
            None if with_slices => {
                let points = solution.trajectory()?;
                Some(solution.with_objective(|objective| {
                    let mut objective = Stoppable {
                        objective,
                        stop: self.stop,
                    };
                    let what = (optimizer, data.seed());
                    let params = &solution.params;
                    measure::slices(what, params, &mut objective, &points, &settings, show)
                })??)
            }
            other => other,
        };
        let kept = Kept {
            settings,
            measures,
            slices,
        };
        if !had_measures || had_slices != kept.slices.is_some() {
            make_folder(&self.dir.join(FOLDER))?;
            put(&file, &serde_json::to_vec(&kept)?)?;
        }
        Ok(kept)
    }
}

/// Says so when Hessian-vector products depend on the step of their differences.
fn warn(measures: &Measures) {
    let Measures {
        optimizer, seed, ..
    } = measures;
    if let Some(error) = measures.product_error.filter(|e| *e > UNSURE) {
        progress::say(&format!(
            "{}: Hessian-vector products change by {:.0} % with the step of their differences; do not trust \
             the eigenvalues and the trace to more than that",
            run_name(optimizer, *seed),
            100.0 * error
        ));
    }
}

/// An objective that fails once it is asked to stop, which puts the weights back and ends a measurement.
struct Stoppable<'a> {
    objective: &'a mut dyn sala_core::Objective,
    stop: &'a AtomicBool,
}

impl Stoppable<'_> {
    fn check(&self) -> candle_core::Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            candle_core::bail!("asked to stop");
        }
        Ok(())
    }
}

impl sala_core::Objective for Stoppable<'_> {
    fn evaluate(&mut self, pass: sala_core::Pass) -> candle_core::Result<sala_core::Evaluation> {
        self.check()?;
        self.objective.evaluate(pass)
    }

    fn micro_batches(&self) -> usize {
        self.objective.micro_batches()
    }

    fn evaluate_micro_batch(
        &mut self,
        index: usize,
        pass: sala_core::Pass,
    ) -> candle_core::Result<sala_core::Evaluation> {
        self.check()?;
        self.objective.evaluate_micro_batch(index, pass)
    }

    fn loss(&mut self, pass: sala_core::Pass) -> candle_core::Result<candle_core::Tensor> {
        self.check()?;
        self.objective.loss(pass)
    }

    fn loss_of_micro_batch(
        &mut self,
        index: usize,
        pass: sala_core::Pass,
    ) -> candle_core::Result<candle_core::Tensor> {
        self.check()?;
        self.objective.loss_of_micro_batch(index, pass)
    }
}

/// A bar that says what is measured, on a terminal; now and then a line elsewhere.
struct Bar {
    shown: ProgressBar,
    name: String,
    pulse: Pulse,
}

impl Bar {
    fn new(name: &str) -> Self {
        Self {
            shown: progress::bar(1).with_prefix(name.to_owned()),
            name: name.into(),
            pulse: Pulse::new(),
        }
    }

    fn show(&self, advance: &Advance) {
        self.shown.set_length(advance.total as u64);
        self.shown.set_position(advance.done as u64);
        self.shown.set_message(advance.measure);
        self.pulse.say(|| {
            let Advance {
                measure,
                done,
                total,
                ..
            } = advance;
            format!("{}: {measure}, {done} of {total}", self.name)
        });
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.shown.finish_and_clear();
    }
}

/// What is kept of a solution; nothing when there is no file.
fn read_kept(file: &Path) -> Result<Option<Kept>> {
    match std::fs::read(file) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).with_context(|| {
            format!(
                "{} cannot be read; delete it to measure again",
                file.display()
            )
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
    }
}

/// Writes tables and figures.
fn write(folder: &Path, table: &mut Sharpness, slices: &[Slices]) -> Result<()> {
    make_folder(folder)?;
    for (file, title, picture) in pictures(slices)? {
        put(&folder.join(&file), picture.as_bytes())?;
        table.figures.push(Figure { file, title });
    }
    put(&folder.join(TABLE), &serde_json::to_vec_pretty(table)?)?;
    put(&folder.join("sharpness.csv"), &table.csv()?)?;
    put(&folder.join("sharpness.md"), table.markdown().as_bytes())
}

/// File, title and SVG of each figure.
fn pictures(slices: &[Slices]) -> Result<Vec<(String, String, String)>> {
    let Some(first) = slices.first() else {
        return Ok(Vec::new());
    };
    let of_seed = |what: &str| format!("{what}, seed {}", first.seed);
    let density = of_seed("Spectral density of the Hessian");
    let profile = of_seed("Loss along a random direction");
    let mut all = vec![
        ("density.svg".to_owned(), density, figures::density(slices)?),
        ("profile.svg".to_owned(), profile, figures::profile(slices)?),
    ];
    for solution in slices {
        let name = &solution.optimizer;
        let title = of_seed(&format!("Loss around the solution of {name}"));
        all.push((format!("map-{name}.svg"), title, figures::map(solution)?));
    }
    Ok(all)
}

fn make_folder(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))
}

fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomically(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}
