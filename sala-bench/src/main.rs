//! `sala-bench`: paired comparisons of sharpness-aware optimizers.
//!
//! `cli` (what was typed) → `spec` (a checked experiment) → `registry` (names to networks and
//! optimizers) → `train` (one run) → `record` (what stays on disk) → `stats` → `report`. The commands
//! `compare` and `tune` put them together; `finetune` does it for pretrained models. `speed` times networks, beside PyTorch if it is there.

#![allow(clippy::print_stdout, clippy::print_stderr)]

#[cfg(all(unix, feature = "jemalloc"))]
mod allocator;
mod cli;
mod compare;
mod data;
mod finetune;
mod hex;
mod metrics;
mod presets;
mod progress;
mod record;
mod registry;
mod report;
mod runs;
mod spec;
mod speed;
mod stats;
mod tally;
mod train;
mod tune;

use std::{
    num::NonZero,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context, Result};
use clap::Parser;
use tracing_subscriber::{EnvFilter, fmt::format::FmtSpan};

use cli::{Cli, Command, CompareArgs, Place, TuneArgs};
use finetune::args::FinetuneArgs;
use runs::{Outcome, Work};

/// What shells return for a program that was ended by Ctrl-C.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_span_events(FmtSpan::CLOSE)
        .with_writer(std::io::stderr)
        .init();
    match run(Cli::parse()) {
        Ok(Outcome::Complete) => ExitCode::SUCCESS,
        Ok(Outcome::Interrupted) => ExitCode::from(INTERRUPTED),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<Outcome> {
    match cli.command {
        Some(Command::Compare(args)) => compare(&args),
        None => compare(&cli.compare),
        Some(Command::Tune(args)) => tune(&args),
        Some(Command::Finetune(args)) => finetune(&args),
        Some(Command::Presets) => presets::list().map(|()| Outcome::Complete),
        Some(Command::Data(args)) => data::commands::data(&args).map(|()| Outcome::Complete),
        Some(Command::Predict(args)) => finetune::predict(&args).map(|()| Outcome::Complete),
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
    compare::compare(&experiment, &out, args.place.fresh, &*work(&args.place)?)
}

fn tune(args: &TuneArgs) -> Result<Outcome> {
    let experiment = args.changes.experiment()?;
    let (text, origin) = args.search()?;
    let search = tune::Search::from_toml(&text, &origin)?;
    let out = match &args.place.out {
        Some(out) => out.clone(),
        None => compare::default_directory(&experiment.name, &experiment.fingerprint()?)
            .with_extension("search"),
    };
    tune::tune(
        &experiment,
        &search,
        &out,
        args.place.fresh,
        &*work(&args.place)?,
    )
}

fn finetune(args: &FinetuneArgs) -> Result<Outcome> {
    let spec = args.finetune()?;
    let out = match &args.place.out {
        Some(out) => out.clone(),
        None => compare::default_directory(&spec.name, &spec.fingerprint()?),
    };
    finetune::finetune(&spec, &out, args.place.fresh, &*work(&args.place)?)
}

/// Divides the processors among the runs and listens for Ctrl-C: the first one asks the runs to stop
/// after their step, a second one ends the program.
fn work(place: &Place) -> Result<Arc<Work>> {
    let processors = std::thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN);
    let jobs = place.jobs.unwrap_or(processors).get();
    share_processors(processors.get(), jobs);
    let work = Arc::new(Work {
        jobs,
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
