//! Optimizer steps of this crate and of PyTorch in turn, on the same shapes, in one run:
//!
//! ```text
//! cargo bench -p sala-core --bench against_torch -- --python PATH [--rounds 7] [--out FOLDER]
//! ```
//!
//! PATH is a Python that can import torch; without it only this crate is measured. `--help` lists the
//! rest, and `RAYON_NUM_THREADS` sets the threads of both sides.
//!
//! A round measures the memory (see `optimizer_step.rs`, which explains the floor), then every case once
//! and PyTorch's forms of it right behind, so that what else the machine does hits all alike. Each case
//! is made anew in each round and freed before the next, takes two cycles to warm up and is then timed
//! for a while; a round counts as the median of its cycles. What the tables show are medians over rounds,
//! and ratios are taken within a round first. The slow forms, composed and `candle_nn`'s, come last, in
//! every third round, and take one cycle to warm up.
//!
//! Gradients are given on both sides: it is the optimizer's own work that is timed. PyTorch is fused and
//! multi-tensor (foreach); its Lookahead and SAM are written in `scripts/optimizer_step_torch.py` with
//! its multi-tensor operations, as it has none of its own.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod networks;

use std::{
    fmt::Write as _,
    io::{BufRead, BufReader, Write as _},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use candle_core::Tensor;
use clap::Parser;
use sala_core::kernels::{Choice, with_choice};
use serde_json::{Value, json};

use networks::{CASES, Case, FLOOR_BYTES, Network, Step, median, update_in_place};

/// How long a case is measured at least.
#[derive(Clone, Copy)]
struct Least {
    warm_up: u32,
    cycles: usize,
}

const LEAST: Least = Least {
    warm_up: 2,
    cycles: 3,
};

/// Slow forms take seconds a cycle and part in one round of so many.
const SLOW: Least = Least {
    warm_up: 1,
    cycles: 1,
};
const SLOW_EVERY: usize = 3;

/// What PyTorch is asked for: rule and form.
const TORCH: [(&str, &str); 7] = [
    ("sgd-nesterov", "fused"),
    ("sgd-nesterov", "foreach"),
    ("adamw", "fused"),
    ("adamw", "foreach"),
    ("lookahead-k5-sgd", "fused"),
    ("lookahead-k5-sgd", "foreach"),
    ("sam-alone", "foreach"),
];

/// The rule without what this one adds to it, stepped with the same checks.
fn base(rule: &str) -> Option<&'static str> {
    match rule {
        "lookahead-k5-sgd" => Some("sgd-nesterov"),
        _ => rule.starts_with("sala-").then_some("descend-sgd"),
    }
}

/// Optimizer steps of this crate and of PyTorch in turn.
#[derive(Parser)]
struct Arguments {
    /// A Python that can import torch; without it only this crate is measured
    #[arg(long)]
    python: Option<PathBuf>,
    /// How often everything is measured
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Networks, of resnet18 and bert-base
    #[arg(long, value_delimiter = ',', default_value = "resnet18,bert-base")]
    networks: Vec<String>,
    /// Seconds for which a case is timed in a round, after its warm-up
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// A folder for the tables and all measurements
    #[arg(long)]
    out: Option<PathBuf>,
    /// Cargo passes this to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// The other side: a process that is asked and answers in lines of JSON.
struct Torch {
    process: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    version: String,
}

impl Torch {
    fn start(python: &PathBuf) -> Result<Self> {
        let script = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../scripts/optimizer_step_torch.py"
        );
        let mut process = Command::new(python)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| python.display().to_string())?;
        let requests = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().context("no standard output")?);
        let mut torch = Self {
            process,
            requests,
            answers,
            version: String::new(),
        };
        let hello = torch.answer().context("is torch installed there?")?;
        torch.version = hello["torch"].as_str().unwrap_or("unknown").into();
        Ok(torch)
    }

    fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        ensure!(
            self.answers.read_line(&mut line)? > 0,
            "the Python process ended"
        );
        Ok(serde_json::from_str(&line)?)
    }

    /// Milliseconds of a step in each cycle.
    fn measure(&mut self, request: &Value) -> Result<Vec<f64>> {
        let requests = self.requests.as_mut().context("no standard input")?;
        writeln!(requests, "{request}")?;
        requests.flush()?;
        let answer = self.answer()?;
        match answer["ms"].as_array() {
            Some(times) => Ok(times.iter().filter_map(Value::as_f64).collect()),
            None => bail!("PyTorch: {answer}"),
        }
    }
}

impl Drop for Torch {
    fn drop(&mut self) {
        // The end of its input ends it.
        self.requests = None;
        let _ = self.process.wait();
    }
}

/// Milliseconds of a step in each cycle, for so long and no fewer times than `least`.
fn measure(step: &mut Step, cycle: u32, seconds: f64, least: Least) -> Vec<f64> {
    (0..least.warm_up * cycle).for_each(|_| step());
    let begin = Instant::now();
    let mut times = Vec::new();
    while times.len() < least.cycles || begin.elapsed() < Duration::from_secs_f64(seconds) {
        let start = Instant::now();
        (0..cycle).for_each(|_| step());
        times.push(start.elapsed().as_secs_f64() * 1e3 / f64::from(cycle));
    }
    times
}

/// One line of the table: milliseconds of a step, by round.
struct Row {
    rule: &'static str,
    form: String,
    ms: Vec<Option<f64>>,
    /// What the memory allows, by round.
    floor: Vec<Option<f64>>,
}

/// The rows of one network.
struct Measured {
    network: String,
    round: usize,
    rate: Vec<f64>,
    rows: Vec<Row>,
}

impl Measured {
    fn add(&mut self, network: &Network, case: &Case, form: &str, times: Vec<f64>) {
        let rule = rule(case);
        let found = self
            .rows
            .iter()
            .position(|row| row.rule == rule && row.form == form);
        let at = found.unwrap_or_else(|| {
            self.rows.push(Row {
                rule,
                form: form.into(),
                ms: Vec::new(),
                floor: Vec::new(),
            });
            self.rows.len() - 1
        });
        let row = &mut self.rows[at];
        row.ms.resize(self.round, None);
        row.floor.resize(self.round, None);
        row.ms.push(median(times));
        row.floor
            .push(Some(case.floor(network, self.rate[self.round])));
    }

    /// Milliseconds by round of another row.
    fn times(&self, rule: &str, form: &str) -> Option<&[Option<f64>]> {
        let row = self
            .rows
            .iter()
            .find(|row| row.rule == rule && row.form == form)?;
        Some(&row.ms)
    }

    fn table(&self) -> String {
        let mut table = String::from(
            "| rule | form | ms a step | from … to | × floor | × its base | × torch fused |\n\
             |---|---|---|---|---|---|---|\n",
        );
        for row in &self.rows {
            let times: Vec<f64> = row.ms.iter().flatten().copied().collect();
            let (least, most) = times
                .iter()
                .fold((f64::MAX, f64::MIN), |(a, b), t| (a.min(*t), b.max(*t)));
            let middle = median(times).unwrap_or(f64::NAN);
            let base = base(row.rule).and_then(|base| self.times(base, &row.form));
            let torch = (row.form != "torch fused")
                .then(|| self.times(row.rule, "torch fused"))
                .flatten();
            let ratio = |to: Option<&[Option<f64>]>| match to.and_then(|to| ratio(&row.ms, to)) {
                Some(ratio) => format!("{ratio:.2}"),
                None => "–".into(),
            };
            let (over_floor, over_base, over_torch) =
                (ratio(Some(&row.floor)), ratio(base), ratio(torch));
            let (rule, form) = (row.rule, &row.form);
            let _ = writeln!(
                table,
                "| {rule} | {form} | {middle:.2} | {least:.2} … {most:.2} | {over_floor} | {over_base} | {over_torch} |"
            );
        }
        table
    }

    fn json(&self) -> Value {
        let row = |row: &Row| json!({"rule": row.rule, "form": row.form, "ms": row.ms, "floor_ms": row.floor});
        json!({
            "network": self.network,
            "floor_bytes_per_ms": self.rate,
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
        })
    }
}

/// The median over rounds of the ratio within each.
fn ratio(of: &[Option<f64>], to: &[Option<f64>]) -> Option<f64> {
    let ratios = of
        .iter()
        .zip(to)
        .filter_map(|(of, to)| Some((*of)? / (*to)?));
    median(ratios.collect())
}

/// candle's `AdamW` is another form of the same rule.
fn rule(case: &Case) -> &'static str {
    case.name.strip_prefix("candle-nn-").unwrap_or(case.name)
}

fn rounds(network: &Network, arguments: &Arguments, torch: &mut Option<Torch>) -> Result<Measured> {
    let mut measured = Measured {
        network: network.name.into(),
        round: 0,
        rate: Vec::new(),
        rows: Vec::new(),
    };
    let shapes: Vec<_> = network.gradients.iter().map(Tensor::dims).collect();
    let rounds = usize::try_from(arguments.rounds)?;
    for round in 0..rounds {
        println!("{}: round {} of {rounds}", network.name, round + 1);
        measured.round = round;
        let len = network.params.num_elements();
        let floor = median(measure(
            &mut update_in_place(len),
            1,
            arguments.seconds,
            LEAST,
        ));
        measured
            .rate
            .push(FLOOR_BYTES * len as f64 / floor.context("no measurement")?);
        // Made here and dropped here: the state of one case at a time.
        let ours = |case: &Case, choice, least| {
            with_choice(choice, || {
                measure(
                    &mut (case.make)(network),
                    case.cycle,
                    arguments.seconds,
                    least,
                )
            })
        };
        for case in CASES.iter().filter(|case| case.has_kernels) {
            measured.add(network, case, "fused", ours(case, Choice::Auto, LEAST));
            let Some(torch) = torch.as_mut() else {
                continue;
            };
            for (rule, form) in TORCH.iter().filter(|(rule, _)| *rule == case.name) {
                let request = json!({
                    "shapes": shapes, "rule": rule, "form": form, "cycle": case.cycle,
                    "seconds": arguments.seconds, "threads": rayon::current_num_threads(),
                });
                let times = torch.measure(&request)?;
                measured.add(network, case, &format!("torch {form}"), times);
            }
        }
        if round.is_multiple_of(SLOW_EVERY) {
            for case in &CASES {
                let form = if case.has_kernels {
                    "composed"
                } else {
                    "candle_nn"
                };
                measured.add(network, case, form, ours(case, Choice::Composed, SLOW));
            }
        }
    }
    let place = |rule| CASES.iter().position(|case| case.name == rule);
    measured.rows.sort_by_key(|row| place(row.rule));
    Ok(measured)
}

/// What a program prints, if it is there.
fn said_by(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

fn environment(torch: Option<&Torch>) -> Value {
    let first_line = |path: &str, key: &str| {
        let text = std::fs::read_to_string(path).ok()?;
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.rsplit(':').next()?.trim().to_owned())
    };
    json!({
        "date": said_by("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
        "commit": said_by("git", &["describe", "--always", "--dirty"]),
        "version": env!("CARGO_PKG_VERSION"),
        "rustc": said_by("rustc", &["--version"]),
        "profile": if cfg!(debug_assertions) { "with debug assertions" } else { "bench" },
        "os": std::env::consts::OS,
        "arch": std::env::consts::ARCH,
        "cpu": first_line("/proc/cpuinfo", "model name"),
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
        "threads": rayon::current_num_threads(),
        "load_before": first_line("/proc/loadavg", ""),
        "torch": torch.map(|torch| torch.version.as_str()),
    })
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut torch = arguments.python.as_ref().map(Torch::start).transpose()?;
    let environment = environment(torch.as_ref());
    println!("{environment:#}");
    if torch.is_none() {
        println!("no --python: PyTorch is left out");
    }

    let mut tables = String::new();
    let mut all = Vec::new();
    for name in &arguments.networks {
        let network = match name.as_str() {
            "resnet18" => Network::resnet18(),
            "bert-base" => Network::bert_base(),
            _ => bail!("no network {name}: there are resnet18 and bert-base"),
        };
        let measured = rounds(&network, &arguments, &mut torch)?;
        let (tensors, len) = (network.params.len(), network.params.num_elements() as f64);
        let rate = median(measured.rate.clone()).unwrap_or(f64::NAN) / 1e6;
        let _ = write!(
            tables,
            "\n{name}: {tensors} tensors, {:.1} million weights of f32, {} threads; floor at {rate:.1} GB/s, \
             median of {} rounds\n\n{}",
            len / 1e6,
            rayon::current_num_threads(),
            arguments.rounds,
            measured.table(),
        );
        all.push(measured.json());
    }
    print!("{tables}");

    if let Some(folder) = &arguments.out {
        std::fs::create_dir_all(folder)?;
        let report = json!({
            "environment": environment,
            "rounds": arguments.rounds,
            "seconds": arguments.seconds,
            "networks": all,
        });
        std::fs::write(folder.join("measurements.json"), format!("{report:#}\n"))?;
        std::fs::write(folder.join("tables.md"), tables.trim_start())?;
        println!("\nwritten to {}", folder.display());
    }
    Ok(())
}
