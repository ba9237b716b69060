//! `sala-bench`: paired comparisons of sharpness-aware optimizers.
//!
//! `cli` (what was typed) → `spec` (a checked experiment) → `registry` (names to networks and
//! optimizers) → `train` (one run) → `record` (what stays on disk) → `stats` → `report`. The commands
//! `compare` and `sweep` put them together; `finetune` does it for pretrained models. `speed` times networks, beside PyTorch if it is there.

#[cfg(all(unix, feature = "jemalloc"))]
mod allocator;
mod claim;
mod cli;
mod compare;
mod data;
mod device;
mod doctor;
mod estimate;
mod finetune;
mod hex;
mod logs;
mod metrics;
mod presets;
mod progress;
mod record;
mod registry;
mod report;
mod runs;
mod sharpness;
mod shell;
mod slurm;
mod spec;
mod speed;
mod stats;
mod sweep;
mod tensorboard;
mod train;
mod verify;

use std::{
    num::NonZero,
    path::Path,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context, Result, ensure};
use clap::Parser;

use cli::{Cli, Command, CompareArgs, DoctorArgs, Dry, Place, TrainArgs, TuneArgs};
use doctor::Findings;
use estimate::Estimate;
use finetune::args::FinetuneArgs;
use record::{Access, RunDir};
use runs::{Outcome, Work};
use spec::{Experiment, Running};
use sweep::Sweep;

/// What shells return for a program that was ended by Ctrl-C.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    #[cfg(feature = "metal")]
    keep_infinities();
    let cli = Cli::parse();
    // The trace is complete once its guard is dropped, before the program ends.
    let outcome = logs::begin(&cli.logs).and_then(|_trace| run(cli));
    match outcome {
        Ok(Outcome::Complete) => ExitCode::SUCCESS,
        Ok(Outcome::Interrupted) => ExitCode::from(INTERRUPTED),
        Err(error) => {
            progress::complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// Unless the user says otherwise, shaders may not assume that nothing is infinite or NaN: masks are, and a step
/// that is not finite is to be noticed.
#[cfg(feature = "metal")]
fn keep_infinities() {
    const FAST: &str = "CANDLE_METAL_ENABLE_FAST_MATH";
    if std::env::var_os(FAST).is_none() {
        // SAFETY: this is the first thing that the program does, so no other thread runs yet.
        unsafe { std::env::set_var(FAST, "false") };
    }
}

fn run(cli: Cli) -> Result<Outcome> {
    match cli.command {
        Some(Command::Compare(args)) => compare(&args),
        None => compare(&cli.compare),
        Some(Command::Train(args)) => train(&args),
        Some(Command::Sweep(args)) => sweep(&args.sweep()?, &args.tune),
        Some(Command::Tune(args)) => sweep(&args.sweep()?, &args),
        Some(Command::Cell(args)) => {
            let work = work(NonZero::<usize>::MIN, args.running.clone())?;
            slurm::cell(&args.out, args.index, &work)
        }
        Some(Command::Doctor(args)) => doctor(&args).map(|()| Outcome::Complete),
        Some(Command::Verify(args)) => verify::verify(&args).map(|()| Outcome::Complete),
        Some(Command::Completions { shell }) => {
            shell::completions(shell).map(|()| Outcome::Complete)
        }
        Some(Command::Man { out }) => shell::man(out.as_deref()).map(|()| Outcome::Complete),
        Some(Command::Finetune(args)) => finetune(&args),
        Some(Command::Presets) => presets::list().map(|()| Outcome::Complete),
        Some(Command::Data(args)) => data::commands::data(&args).map(|()| Outcome::Complete),
        Some(Command::Predict(args)) => finetune::predict(&args).map(|()| Outcome::Complete),
        Some(Command::Report(args)) => report::report(&args).map(|()| Outcome::Complete),
        Some(Command::Sharpness(args)) => {
            let work = work(NonZero::<usize>::MIN, Running::default())?;
            sharpness::sharpness(&args, &work)
        }
        Some(Command::Speed(args)) => speed::speed(&args).map(|()| Outcome::Complete),
        Some(Command::SpeedWorker(args)) => speed::speed_worker(&args).map(|()| Outcome::Complete),
    }
}

fn compare(args: &CompareArgs) -> Result<Outcome> {
    let experiment = args.changes.experiment()?;
    let out = match &args.place.out {
        Some(out) => out.clone(),
        None => compare::default_directory(&experiment.name, &experiment.fingerprint()?),
    };
    if args.dry.dry_run {
        return dry_run(&experiment, &out, &args.place, &args.dry);
    }
    if args.emission.emit.is_some() {
        let device = experiment.device.to_string();
        let access = Access::alone(&device, args.place.fresh);
        let dir = RunDir::open(&out, &experiment.to_toml()?, access)?;
        let commands = slurm::emit(&experiment, &dir, &args.emission.request())?;
        shell::print(format!(
            "{commands}Then run the same command without --emit for the report.\n"
        ))?;
        return Ok(Outcome::Complete);
    }
    compare::compare(
        &experiment,
        &out,
        args.place.fresh,
        &*work(
            args.place.jobs(),
            args.place.running.or(&experiment.running),
        )?,
    )
}

fn train(args: &TrainArgs) -> Result<Outcome> {
    let experiment = args.experiment()?;
    let out = match &args.place.out {
        Some(out) => out.clone(),
        None => compare::default_directory(&experiment.name, &experiment.fingerprint()?),
    };
    compare::compare(
        &experiment,
        &out,
        args.place.fresh,
        &*work(
            args.place.jobs(),
            args.place.running.or(&experiment.running),
        )?,
    )
}

fn sweep(sweep: &Sweep, args: &TuneArgs) -> Result<Outcome> {
    let place = &args.place;
    let out = match &place.out {
        Some(out) => out.clone(),
        None => sweep.default_directory()?,
    };
    if args.dry.dry_run {
        return dry_run(sweep.trials(), &out, place, &args.dry);
    }
    if args.emission.emit.is_some() {
        let dir = sweep.open(&out, place.fresh)?;
        let commands = slurm::emit(sweep.trials(), &dir, &args.emission.request())?;
        let collect = format!("sala-bench sweep --resume --out {}", out.display());
        shell::print(format!(
            "{commands}Then collect what they find with\n  {collect}\n"
        ))?;
        return Ok(Outcome::Complete);
    }
    let running = place.running.or(&sweep.trials().running);
    sweep::sweep(sweep, &out, place.fresh, &*work(place.jobs(), running)?)
}

/// Prints a plan and what it takes.
fn dry_run(experiment: &Experiment, out: &Path, place: &Place, dry: &Dry) -> Result<Outcome> {
    let jobs = place.jobs().get();
    share_processors(cli::processors().get(), jobs);
    let estimate = Estimate::of(experiment, out, jobs)?;
    shell::print(if dry.json {
        serde_json::to_string_pretty(&estimate)? + "\n"
    } else {
        estimate.text()?
    })?;
    Ok(Outcome::Complete)
}

/// Prints what was found; problems make it an error.
fn doctor(args: &DoctorArgs) -> Result<()> {
    let findings = Findings::gather(&args.data_dir, &args.out);
    shell::print(if args.json {
        serde_json::to_string_pretty(&findings)? + "\n"
    } else {
        findings.text()
    })?;
    let problems = findings.problems().len();
    ensure!(problems == 0, "problems found: {problems}; see above");
    Ok(())
}

fn finetune(args: &FinetuneArgs) -> Result<Outcome> {
    let spec = args.finetune()?;
    let out = match &args.place.out {
        Some(out) => out.clone(),
        None => compare::default_directory(&spec.name, &spec.fingerprint()?),
    };
    finetune::finetune(
        &spec,
        &out,
        args.place.fresh,
        &*work(args.place.jobs(), args.place.running.or(&spec.running))?,
    )
}

/// Divides the processors among the runs and listens for Ctrl-C: the first one asks the runs to stop
/// after their step, a second one ends the program.
fn work(jobs: NonZero<usize>, running: Running) -> Result<Arc<Work>> {
    running.validate()?;
    let jobs = jobs.get();
    share_processors(cli::processors().get(), jobs);
    let work = Arc::new(Work {
        jobs,
        running,
        stop: AtomicBool::new(false),
    });
    let seen = Arc::clone(&work);
    ctrlc::set_handler(move || {
        if seen.stop.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(INTERRUPTED));
        }
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(work)
}

/// Tells rayon (matrix products) and candle (element-wise operations) how many threads to use, unless
/// the user has: candle's own threads wait in a busy loop, which on shared processors costs several
/// times what they gain, so they get none.
fn share_processors(processors: usize, jobs: usize) {
    let set = |name: &str, threads: usize| {
        if std::env::var_os(name).is_none() {
            // SAFETY: no other thread runs yet: this is called before Ctrl-C is listened for and
            // before the first tensor is made.
            unsafe { std::env::set_var(name, threads.to_string()) };
        }
    };
    set("CANDLE_NUM_THREADS", 1);
    set("RAYON_NUM_THREADS", (processors / jobs).max(1));
}
