//! `verify`: whether a device computes what the CPU does. It is what one runs first on a new device.
//!
//! | what | against |
//! |---|---|
//! | gradients of every operation (`agreement`, `operations`) | central differences |
//! | values, gradients and running statistics of every operation and of small networks | composed operations on the CPU in f64, of the same numbers |
//! | fifty steps of every method over both bases (`trajectories`) | composed updates on the CPU in the same dtype |
//! | a training, twice (`repetition`) | itself, bit for bit; the initial weights against the CPU's |
//! | batches of images that a card puts together (`images`) | the CPU's, bit for bit |
//!
//! Everything is computed by the kernels that the program takes and by composed operations. On the CPU that
//! compares the one with the other. Bounds are those of `sala_core::testing`; see `check`.

mod agreement;
mod check;
mod images;
mod networks;
mod operations;
mod place;
mod repetition;
mod report;
mod task;
mod trajectories;

use std::{path::Path, time::Instant};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};
use sala_core::checkpoint::write_atomically;
use sala_models::kernels::Choice;

use crate::{cli::VerifyArgs, doctor, progress, shell, speed::Machine};
use check::Check;
use report::Report;
use task::Task;

/// The kernels that the program takes, and plain operations.
const FORMS: [Choice; 2] = [Choice::Auto, Choice::Composed];

/// Metal's shading language has no f64.
fn has_f64(device: &Device) -> bool {
    !device.is_metal()
}

/// What a device computes with, the finest first.
fn dtypes(device: &Device) -> impl Iterator<Item = DType> {
    let f64 = has_f64(device).then_some(DType::F64);
    f64.into_iter().chain([DType::F32, DType::BF16, DType::F16])
}

/// Runs work with these kernels, operations and updates alike.
fn in_form<R>(form: Choice, work: impl FnOnce() -> R) -> R {
    let updates = match form {
        Choice::Composed => sala_core::kernels::Choice::Composed,
        _ => sala_core::kernels::Choice::Auto,
    };
    sala_core::kernels::with_choice(updates, || sala_models::kernels::with_choice(form, work))
}

/// Checks a device, and fails when something is not as it should be.
pub(crate) fn verify(args: &VerifyArgs) -> Result<()> {
    let start = Instant::now();
    let device = args.device.open()?;
    let wanted = |task: &Task| {
        args.only
            .as_ref()
            .is_none_or(|only| task.name.contains(only))
    };
    let tasks: Vec<Task> = tasks(&device).into_iter().filter(wanted).collect();
    if let Some(only) = &args.only {
        ensure!(
            !tasks.is_empty(),
            "--only {only}: no check has a name with that in it"
        );
    }
    if let Some(path) = &args.out {
        check_place(path)?;
    }
    let checks = run(tasks);
    let report = Report {
        machine: Machine::with(args.device),
        seconds: start.elapsed().as_secs_f64(),
        checks,
    };
    // Minutes of work are shown before anything can go wrong with the file, and kept even if nobody can be shown.
    let shown = shell::print(report.terminal());
    if let Some(path) = &args.out {
        let json = serde_json::to_string_pretty(&report)? + "\n";
        write_atomically(path, json.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    shown?;
    let (failed, all) = (report.failures().count(), report.checks.len());
    ensure!(
        failed == 0,
        "{failed} of {all} checks of the device {} failed; see above",
        args.device
    );
    Ok(())
}

/// Makes sure that the report can be written, before it takes minutes to make it.
fn check_place(path: &Path) -> Result<()> {
    let said = || format!("--out {}", path.display());
    ensure!(
        !path.is_dir(),
        "{}: a file is wanted, and that is a folder",
        said()
    );
    let absolute = std::path::absolute(path).with_context(said)?;
    let folder = absolute.parent().with_context(said)?;
    ensure!(
        folder.is_dir(),
        "{}: there is no folder {}",
        said(),
        folder.display()
    );
    doctor::writable(folder).with_context(said).map(|_| ())
}

fn tasks(device: &Device) -> Vec<Task> {
    let mut tasks = agreement::tasks(device);
    tasks.extend(trajectories::tasks(device));
    tasks.extend(repetition::tasks(device));
    tasks.extend(images::tasks(device));
    tasks
}

/// Makes all checks, and tells of each one that fails at once.
fn run(tasks: Vec<Task>) -> Vec<Check> {
    let bar = progress::bar(tasks.len() as u64);
    let mut section = None;
    let mut checks = Vec::with_capacity(tasks.len());
    for task in tasks {
        if bar.is_hidden() && section != Some(task.section) {
            section = Some(task.section);
            progress::say(&format!("{} …", task.section));
        }
        bar.set_message(format!("{}: {}", task.section, task.name));
        let check = task.check();
        if !check.passed {
            progress::say(&format!("FAILED {check}"));
        }
        checks.push(check);
        bar.inc(1);
    }
    bar.finish_and_clear();
    checks
}
