//! `speed`: how long a forward pass, a training step and an optimizer's update take, beside PyTorch's on the
//! same machine in the same run.
//!
//! Every side of a workload is a process of its own (`worker`, `updates`, or `scripts/speed_torch.py`), built
//! and warmed up before the first round; a round asks one after the other (`protocol`), so that whatever else
//! the machine does hits all alike. `place` is the device and the precision, `machine` says what the machine is
//! and can do, `report` what came out, `compare` what two reports have in common.

mod compare;
mod machine;
mod place;
mod protocol;
mod report;
mod updates;
mod worker;
mod workload;

use std::{path::PathBuf, process::Command, thread::sleep, time::Duration};

use anyhow::{Context, Result, ensure};
use indicatif::ProgressBar;
use sala_core::checkpoint::write_atomically;

use crate::{
    cli::{Kernels, SpeedArgs, SpeedCommand, SpeedWorkerArgs, Timing, UpdatesArgs},
    progress, shell, spec,
};
use machine::{Ceiling, Ceilings};
use protocol::{Hello, Worker};
use report::{Measured, Participant, Report, Work};
use updates::Update;

pub(crate) use machine::Machine;
pub(crate) use place::{Precision, Size};
pub(crate) use updates::UpdateMethod;
pub(crate) use workload::Workload;

/// PyTorch's side, carried along so that it is found wherever the program runs.
const TORCH: &str = include_str!("../../../scripts/speed_torch.py");

/// Threads that have just worked may wait in a loop for a moment; the next side should not feel it.
const PAUSE: Duration = Duration::from_millis(50);

/// What is timed.
#[derive(Debug, Clone, Copy)]
enum Job {
    Training(Workload),
    Update(Update),
}

/// A side of a workload and the command that starts it.
struct Side {
    name: &'static str,
    command: Command,
}

impl Job {
    fn name(self) -> String {
        match self {
            Self::Training(workload) => workload.name().into(),
            Self::Update(update) => update.name(),
        }
    }

    fn title(self) -> String {
        match self {
            Self::Training(workload) => workload.title().into(),
            Self::Update(update) => update.title(),
        }
    }

    fn repeats(self, on_cpu: bool) -> usize {
        match self {
            Self::Training(workload) => workload.repeats(on_cpu),
            Self::Update(update) => update.repeats(on_cpu),
        }
    }

    fn work(self, precision: Precision) -> Work {
        match self {
            Self::Training(workload) => Work {
                flops: Some(workload.flops()),
                bytes: None,
            },
            Self::Update(update) => Work {
                flops: None,
                bytes: update.bytes(precision),
            },
        }
    }

    /// What both sides are told.
    fn words(self) -> Vec<String> {
        match self {
            Self::Training(workload) => vec!["--workload".into(), workload.name().into()],
            Self::Update(Update { method, size }) => {
                let (method, size) = (method.name().into(), size.to_string());
                vec!["--method".into(), method, "--size".into(), size]
            }
        }
    }

    /// PyTorch's sides.
    const fn torch(self) -> &'static [&'static str] {
        match self {
            Self::Training(workload) if workload.convolves() => &["torch", "torch-channels-last"],
            Self::Update(update) if !update.method.in_torch() => &[],
            _ => &["torch"],
        }
    }

    /// Why it is not even tried.
    fn does_not_fit(self, timing: &Timing) -> Option<String> {
        match self {
            Self::Update(update) if timing.device == spec::Device::Cpu => {
                update.does_not_fit(count(timing, self))
            }
            _ => None,
        }
    }
}

/// Measures what was asked for.
pub(crate) fn speed(args: &SpeedArgs) -> Result<()> {
    match &args.command {
        None => {
            let jobs = args.workloads.iter().map(|&w| Job::Training(w)).collect();
            run(jobs, &args.timing)
        }
        Some(SpeedCommand::Updates(UpdatesArgs {
            methods,
            sizes,
            timing,
        })) => {
            let mut jobs = vec![];
            for &size in sizes {
                let of_size = |&method| Job::Update(Update { method, size });
                jobs.extend(methods.iter().map(of_size));
            }
            run(jobs, timing)
        }
        Some(SpeedCommand::Compare(args)) => {
            shell::print(compare::compare(&args.before, &args.after)?.as_bytes())
        }
    }
}

fn run(jobs: Vec<Job>, timing: &Timing) -> Result<()> {
    timing.precision.check(timing.device)?;
    // The processes that compute open it each for itself; that it is there is known before they start.
    timing.device.open()?;
    if let Some(out) = &timing.out {
        std::fs::create_dir_all(out)
            .with_context(|| format!("cannot make the folder {}", out.display()))?;
    }
    let sides: usize = jobs.iter().map(|job| count(timing, *job)).sum();
    let rounds = timing.rounds.get();
    let bar = progress::bar((sides * (rounds + 1) + rounds) as u64);
    let mut report = Report {
        machine: Machine::with(timing.device),
        threads: timing.threads.get(),
        precision: timing.precision,
        ceilings: ceilings(timing, &bar)?,
        workloads: vec![],
    };
    for job in jobs {
        let measured = measure(timing, job, &bar)?;
        if bar.is_hidden() {
            progress::say(&match &measured.left_out {
                None => format!("{}: {rounds} rounds", measured.workload),
                Some(reason) => format!("{}: left out: {reason}", measured.workload),
            });
        }
        report.workloads.push(measured);
        // After each, so that what was measured is kept when a later one fails.
        save(timing, &report)?;
    }
    bar.finish_and_clear();
    shell::print(report.terminal() + "\n")?;
    if let Some(out) = &timing.out {
        shell::print(format!(
            "Every time: {}\n",
            out.join("speed.json").display()
        ))?;
    }
    Ok(())
}

/// What a worker process does instead.
pub(crate) fn speed_worker(args: &SpeedWorkerArgs) -> Result<()> {
    let place = place::Place::open(args.device, args.precision)?;
    match (args.workload, args.method, args.size) {
        (Some(workload), ..) => worker::serve(workload, place),
        (None, Some(method), Some(size)) => updates::serve(Update { method, size }, &place),
        _ => machine::serve_ceilings(&place),
    }
}

fn save(timing: &Timing, report: &Report) -> Result<()> {
    let Some(out) = &timing.out else {
        return Ok(());
    };
    let json = serde_json::to_string_pretty(report)?;
    for (name, text) in [("speed.json", json), ("speed.md", report.markdown())] {
        let path = out.join(name);
        write_atomically(&path, text.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn ceilings(timing: &Timing, bar: &ProgressBar) -> Result<Ceilings> {
    bar.set_message("what the machine can do");
    let mut worker = Worker::start("ceilings", &mut own_process(timing, Kernels::Auto)?)?;
    let mut ceilings = Ceilings::default();
    for _ in 0..timing.rounds.get() {
        let ceiling: Ceiling = worker.go()?;
        ceilings.gemm_gflops.push(ceiling.gemm_gflops);
        ceilings.update_gb_s.extend(ceiling.update_gb_s);
        ceilings.copy_gb_s.extend(ceiling.copy_gb_s);
        bar.inc(1);
    }
    Ok(ceilings)
}

/// Times all sides of a job. What does not fit is left out; so are updates that a device has no memory for, which
/// is known only when they are tried.
fn measure(timing: &Timing, job: Job, bar: &ProgressBar) -> Result<Measured> {
    let mut measured = Measured {
        workload: job.name(),
        title: job.title(),
        work: job.work(timing.precision),
        left_out: job.does_not_fit(timing),
        participants: vec![],
    };
    if measured.left_out.is_some() {
        bar.inc((count(timing, job) * (timing.rounds.get() + 1)) as u64);
        return Ok(measured);
    }
    let outcome = participants(timing, job, bar);
    let outcome = outcome.with_context(|| format!("workload {}", measured.workload));
    match (outcome, job) {
        (Ok(participants), _) => measured.participants = participants,
        (Err(error), Job::Update(_)) if timing.device != spec::Device::Cpu => {
            measured.left_out = Some(format!("{error:#}"));
        }
        (Err(error), _) => return Err(error),
    }
    Ok(measured)
}

fn participants(timing: &Timing, job: Job, bar: &ProgressBar) -> Result<Vec<Participant>> {
    let name = job.name();
    let mut running = vec![];
    for mut side in sides(timing, job)? {
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
    for round in 1..=timing.rounds.get() {
        for (worker, participant) in &mut running {
            if on_cpu(timing) {
                sleep(PAUSE);
            }
            let side = &participant.name;
            bar.set_message(format!("{name}: round {round}, {side}"));
            participant.rounds.push(worker.go()?);
            bar.inc(1);
        }
    }
    Ok(running.into_iter().map(|(_, p)| p).collect())
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

/// How many sides a job has.
fn count(timing: &Timing, job: Job) -> usize {
    let torch = timing.python.as_ref().map_or(0, |_| job.torch().len());
    timing.kernels.len() + torch
}

fn sides(timing: &Timing, job: Job) -> Result<Vec<Side>> {
    let mut sides = vec![];
    for &kernels in &timing.kernels {
        let mut command = own_process(timing, kernels)?;
        command.args(job.words());
        let name = match kernels {
            Kernels::Auto => "sala",
            Kernels::Composed => "sala-composed",
        };
        sides.push(Side { name, command });
    }
    let Some(python) = &timing.python else {
        return Ok(sides);
    };
    for &name in job.torch() {
        let mut command = Command::new(python);
        command.args(["-c", TORCH]);
        command.args(job.words());
        command.args(["--threads", &timing.threads.to_string()]);
        command.args(["--repeats", &job.repeats(on_cpu(timing)).to_string()]);
        command.args(["--device", torch_device(timing)]);
        command.args(["--precision", timing.precision.name()]);
        if name == "torch-channels-last" {
            command.arg("--channels-last");
        }
        if let spec::Device::Cuda(number) = timing.device {
            command.args(["--number", &number.to_string()]);
        }
        sides.push(Side { name, command });
    }
    Ok(sides)
}

fn on_cpu(timing: &Timing) -> bool {
    timing.device == spec::Device::Cpu
}

/// What PyTorch calls the device.
const fn torch_device(timing: &Timing) -> &'static str {
    match timing.device {
        spec::Device::Cpu => "cpu",
        spec::Device::Cuda(_) => "cuda",
        spec::Device::Metal => "mps",
    }
}

/// This program as a worker.
fn own_process(timing: &Timing, kernels: Kernels) -> Result<Command> {
    let program: PathBuf = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(program);
    command.arg("speed-worker");
    command.args(["--device", &timing.device.to_string()]);
    command.args(["--precision", timing.precision.name()]);
    command.env("RAYON_NUM_THREADS", timing.threads.to_string());
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
