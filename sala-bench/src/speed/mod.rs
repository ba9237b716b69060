//! `speed`: how long a forward pass and a training step take, beside PyTorch's on the same machine in the
//! same run.
//!
//! Every side of a workload is a process of its own (`worker`, or `scripts/speed_torch.py`), built and
//! warmed up before the first round; a round asks one after the other (`protocol`), so that whatever else
//! the machine does hits all alike. `machine` says what the machine is and can do, `report` what came out.

mod machine;
mod protocol;
mod report;
mod worker;
mod workload;

use std::{path::PathBuf, process::Command, thread::sleep, time::Duration};

use anyhow::{Context, Result, ensure};
use indicatif::ProgressBar;
use sala_core::checkpoint::write_atomically;

use crate::{
    cli::{Kernels, SpeedArgs, SpeedWorkerArgs},
    progress,
};
use machine::{Ceiling, Ceilings};
use protocol::{Hello, Worker};
use report::{Measured, Participant, Report};

pub(crate) use machine::Machine;
pub(crate) use report::median;
pub(crate) use workload::Workload;

/// PyTorch's side, carried along so that it is found wherever the program runs.
const TORCH: &str = include_str!("../../../scripts/speed_torch.py");

/// Threads that have just worked may wait in a loop for a moment; the next side should not feel it.
const PAUSE: Duration = Duration::from_millis(50);

/// A side of a workload and the command that starts it.
struct Side {
    name: &'static str,
    command: Command,
}

/// Measures what was asked for.
pub(crate) fn speed(args: &SpeedArgs) -> Result<()> {
    if let Some(out) = &args.out {
        std::fs::create_dir_all(out)
            .with_context(|| format!("cannot make the folder {}", out.display()))?;
    }
    let sides: usize = args.workloads.iter().map(|w| count(args, *w)).sum();
    let rounds = args.rounds.get();
    let bar = progress::bar((sides * (rounds + 1) + rounds) as u64);
    let mut report = Report {
        machine: Machine::here(),
        threads: args.threads.get(),
        ceilings: ceilings(args, &bar)?,
        workloads: vec![],
    };
    for &workload in &args.workloads {
        let measured =
            measure(args, workload, &bar).with_context(|| format!("workload {workload}"))?;
        report.workloads.push(measured);
        if bar.is_hidden() {
            eprintln!("{workload}: {rounds} rounds");
        }
        // After each, so that what was measured is kept when a later one fails.
        save(args, &report)?;
    }
    bar.finish_and_clear();
    println!("{}", report.terminal());
    if let Some(out) = &args.out {
        println!("Every time: {}", out.join("speed.json").display());
    }
    Ok(())
}

/// What a worker process does instead.
pub(crate) fn speed_worker(args: &SpeedWorkerArgs) -> Result<()> {
    match args.workload {
        Some(workload) => worker::serve(workload),
        None => machine::serve_ceilings(),
    }
}

fn save(args: &SpeedArgs, report: &Report) -> Result<()> {
    let Some(out) = &args.out else { return Ok(()) };
    let json = serde_json::to_string_pretty(report)?;
    for (name, text) in [("speed.json", json), ("speed.md", report.markdown())] {
        let path = out.join(name);
        write_atomically(&path, text.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn ceilings(args: &SpeedArgs, bar: &ProgressBar) -> Result<Ceilings> {
    bar.set_message("what the machine can do");
    let mut worker = Worker::start("ceilings", &mut own_process(args, Kernels::Auto)?)?;
    let mut ceilings = Ceilings::default();
    for _ in 0..args.rounds.get() {
        let ceiling: Ceiling = worker.go()?;
        ceilings.gemm_gflops.push(ceiling.gemm_gflops);
        ceilings.update_gb_s.push(ceiling.update_gb_s);
        bar.inc(1);
    }
    Ok(ceilings)
}

fn measure(args: &SpeedArgs, workload: Workload, bar: &ProgressBar) -> Result<Measured> {
    let name = workload.name();
    let mut running = vec![];
    for mut side in sides(args, workload)? {
        bar.set_message(format!("{name}: {} warms up", side.name));
        let mut worker = Worker::start(side.name, &mut side.command)?;
        let hello: Hello = worker.hear()?;
        running.push((
            worker,
            Participant {
                name: side.name.into(),
                hello,
                rounds: vec![],
            },
        ));
        bar.inc(1);
    }
    check_same_network(running.iter().map(|(_, participant)| participant))?;
    for round in 1..=args.rounds.get() {
        for (worker, participant) in &mut running {
            sleep(PAUSE);
            let side = &participant.name;
            bar.set_message(format!("{name}: round {round}, {side}"));
            participant.rounds.push(worker.go()?);
            bar.inc(1);
        }
    }
    Ok(Measured {
        workload: name.into(),
        title: workload.title().into(),
        participants: running.into_iter().map(|(_, p)| p).collect(),
    })
}

/// Two sides with different numbers of parameters would not compute the same.
fn check_same_network<'a>(participants: impl Iterator<Item = &'a Participant>) -> Result<()> {
    let mut first: Option<&Participant> = None;
    for participant in participants {
        let first = first.get_or_insert(participant);
        let (wanted, got) = (first.hello.parameters, participant.hello.parameters);
        ensure!(
            wanted == got,
            "{} has {wanted} parameters, {} has {got}",
            first.name,
            participant.name
        );
    }
    Ok(())
}

/// How many sides a workload has.
fn count(args: &SpeedArgs, workload: Workload) -> usize {
    let torch = match (&args.python, workload.convolves()) {
        (None, _) => 0,
        (Some(_), false) => 1,
        (Some(_), true) => 2,
    };
    args.kernels.len() + torch
}

fn sides(args: &SpeedArgs, workload: Workload) -> Result<Vec<Side>> {
    let mut sides = vec![];
    for &kernels in &args.kernels {
        let mut command = own_process(args, kernels)?;
        command.args(["--workload", workload.name()]);
        let name = match kernels {
            Kernels::Auto => "sala",
            Kernels::Composed => "sala-composed",
        };
        sides.push(Side { name, command });
    }
    if let Some(python) = &args.python {
        let names = ["torch", "torch-channels-last"];
        let formats = 1 + usize::from(workload.convolves());
        for &name in &names[..formats] {
            let mut command = Command::new(python);
            command.args(["-c", TORCH, "--workload", workload.name()]);
            command.args(["--threads", &args.threads.to_string()]);
            command.args(["--repeats", &workload.repeats().to_string()]);
            if name == "torch-channels-last" {
                command.arg("--channels-last");
            }
            sides.push(Side { name, command });
        }
    }
    Ok(sides)
}

/// This program as a worker.
fn own_process(args: &SpeedArgs, kernels: Kernels) -> Result<Command> {
    let program: PathBuf = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(program);
    command.arg("speed-worker");
    command.env("RAYON_NUM_THREADS", args.threads.to_string());
    // candle's own threads wait in a busy loop beside rayon's, so they get none unless asked for.
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        command.env("CANDLE_NUM_THREADS", "1");
    }
    let choice = match kernels {
        Kernels::Auto => "auto",
        Kernels::Composed => "composed",
    };
    command.env("SALA_KERNELS", choice);
    Ok(command)
}
