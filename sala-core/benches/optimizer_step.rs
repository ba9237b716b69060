//! Time of an optimizer's own work in a step (gradients are given) beside the time that moving its
//! bytes takes: `cargo bench -p sala-core`, with `-- resnet18` or `-- adamw` for a part of it.
//!
//! For each rule: the fused kernels, the same rule composed from candle operations, and the floor,
//! which is the bytes that the rule must move (reading and writing count once each) at the rate of an
//! in-place update of three arrays, measured in the same run on arrays of the same total size. All
//! numbers are medians. The table is printed at the end; `RAYON_NUM_THREADS` sets the threads.
//!
//! The floor is within reach of updates in place. It is not of what only reads (norms) or writes
//! where it has not read (copies, the weights that a climb saves): memory reads bound all of these, an
//! update in place gets its writes on top, and a write alone makes the processor read the line first.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use candle_core::{DType, Device, Result, Shape, Tensor, Var, backprop::GradStore};
use candle_nn::{Optimizer, ParamsAdamW};
use criterion::{Criterion, SamplingMode};
use rayon::prelude::*;
use sala_core::{
    Adam, Evaluation, Lookahead, Minimizer, Objective, ParamSet, ParamsAdam, ParamsLookahead,
    ParamsSala, ParamsSam, ParamsSgd, Pass, Sala, Sam, Sgd,
    kernels::{Choice, with_choice},
};

/// Variables with the shapes of a network, and a gradient for each.
struct Network {
    name: &'static str,
    params: ParamSet,
    gradients: Vec<Tensor>,
}

impl Network {
    fn new(name: &'static str, shapes: Vec<Shape>) -> Self {
        let small = |shape: &Shape| {
            let values: Vec<f32> = (0..shape.elem_count())
                .map(|i| (i % 1009) as f32 * 1e-5 - 5e-3)
                .collect();
            Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
        };
        let gradients: Vec<_> = shapes.iter().map(small).collect();
        let vars = gradients.iter().map(|g| Var::from_tensor(g).unwrap());
        let params = ParamSet::from_vars(vars.collect()).unwrap();
        Self {
            name,
            params,
            gradients,
        }
    }

    /// The 62 tensors of ResNet-18 for CIFAR-10.
    fn resnet18() -> Self {
        let mut shapes: Vec<Shape> = vec![(10, 512).into(), 10.into()];
        let mut conv = |inputs: usize, outputs: usize, size: usize| {
            shapes.extend([(outputs, inputs, size, size).into(), outputs.into()]);
            shapes.push(outputs.into());
        };
        conv(3, 64, 3);
        for (inputs, outputs) in [(64, 64), (64, 128), (128, 256), (256, 512)] {
            conv(inputs, outputs, 3);
            for _ in 0..3 {
                conv(outputs, outputs, 3);
            }
            if inputs != outputs {
                conv(inputs, outputs, 1);
            }
        }
        Self::new("resnet18", shapes)
    }

    /// The 199 tensors of BERT-base.
    fn bert_base() -> Self {
        let (hidden, inner) = (768, 3072);
        let norm = || [Shape::from(hidden), Shape::from(hidden)];
        let linear = |outputs: usize, inputs: usize| [(outputs, inputs).into(), outputs.into()];
        let mut shapes: Vec<Shape> = [30522, 512, 2].map(|n| (n, hidden).into()).to_vec();
        shapes.extend(norm());
        for _ in 0..12 {
            for _ in 0..4 {
                shapes.extend(linear(hidden, hidden));
            }
            shapes.extend(norm());
            shapes.extend(linear(inner, hidden));
            shapes.extend(linear(hidden, inner));
            shapes.extend(norm());
        }
        shapes.extend(linear(hidden, hidden));
        Self::new("bert-base", shapes)
    }

    fn grads(&self) -> Result<GradStore> {
        let mut grads = Var::new(0f32, &Device::Cpu)?.backward()?;
        for (param, gradient) in self.params.iter().zip(&self.gradients) {
            grads.insert(param.var(), gradient.clone());
        }
        Ok(grads)
    }
}

/// The same gradients in every pass.
struct Given<'a>(&'a Network);

impl Objective for Given<'_> {
    fn evaluate(&mut self, _: Pass) -> Result<Evaluation> {
        let loss = Tensor::zeros((), DType::F32, &Device::Cpu)?;
        Ok(Evaluation::new(loss, self.0.grads()?))
    }
}

/// A base that leaves the weights alone, so that a step is only what is built around a base.
struct Idle;

impl Optimizer for Idle {
    type Config = ();

    fn new(_: Vec<Var>, (): ()) -> Result<Self> {
        Ok(Self)
    }

    fn step(&mut self, _: &GradStore) -> Result<()> {
        Ok(())
    }

    fn learning_rate(&self) -> f64 {
        0.0
    }

    fn set_learning_rate(&mut self, _: f64) {}
}

type Step<'a> = Box<dyn FnMut() + 'a>;

/// Steps through candle's trait: the rule alone.
fn bare<'a>(network: &'a Network, mut optimizer: impl Optimizer + 'a) -> Step<'a> {
    let grads = network.grads().unwrap();
    Box::new(move || optimizer.step(&grads).unwrap())
}

/// Steps through this crate's trait, which checks the norm of each gradient first.
fn full<'a>(network: &'a Network, mut optimizer: impl Minimizer + 'a) -> Step<'a> {
    Box::new(move || {
        optimizer.step(&mut Given(network)).unwrap();
    })
}

fn sgd(network: &Network) -> Sgd {
    let config = ParamsSgd {
        lr: 1e-3,
        momentum: 0.9,
        nesterov: true,
        weight_decay: 5e-4,
        ..Default::default()
    };
    Sgd::new(&network.params, config).unwrap()
}

fn adamw(network: &Network) -> Adam {
    Adam::new(&network.params, ParamsAdam::adamw()).unwrap()
}

fn candle_adamw(network: &Network) -> Step<'_> {
    let vars = network.params.vars();
    bare(
        network,
        candle_nn::AdamW::new(vars, ParamsAdamW::default()).unwrap(),
    )
}

fn lookahead(network: &Network) -> Step<'_> {
    let config = ParamsLookahead::default();
    bare(
        network,
        Lookahead::new(network.params.clone(), sgd(network), config).unwrap(),
    )
}

fn sam_alone(network: &Network) -> Step<'_> {
    let config = ParamsSam::default();
    full(
        network,
        Sam::new(network.params.clone(), Idle, config).unwrap(),
    )
}

/// SALA with a radius that makes every cycle climb, or none.
fn sala(network: &Network, rho: f64) -> Step<'_> {
    let config = ParamsSala {
        k: 2,
        rho,
        ..Default::default()
    };
    full(
        network,
        Sala::new(network.params.clone(), sgd(network), config).unwrap(),
    )
}

/// A rule, the steps that make up its cycle, and the bytes that an f32 weight costs in one cycle.
struct Case {
    name: &'static str,
    cycle: u32,
    bytes: f64,
    make: fn(&Network) -> Step<'_>,
    has_kernels: bool,
}

const fn case(name: &'static str, cycle: u32, bytes: f64, make: fn(&Network) -> Step<'_>) -> Case {
    Case {
        name,
        cycle,
        bytes,
        make,
        has_kernels: true,
    }
}

/// Bytes: norm 4, SGD 20, Adam 28, perturb 16, restore or copy 8, pull 12, pull with return 16.
const CASES: [Case; 7] = [
    case("sgd-nesterov", 1, 20.0, |n| bare(n, sgd(n))),
    case("adamw", 1, 28.0, |n| bare(n, adamw(n))),
    Case {
        has_kernels: false,
        ..case("candle-nn-adamw", 1, 28.0, candle_adamw)
    },
    case("lookahead-k5-sgd", 5, 5.0 * 20.0 + 16.0, lookahead),
    case("sam-alone", 1, 2.0 * 4.0 + 16.0 + 8.0, sam_alone),
    // Two norms and steps, a pull, a copy; and the climb's norm, perturbation and landing copy.
    case(
        "sala-k2-climbs",
        2,
        48.0 + 12.0 + 8.0 + 4.0 + 16.0 + 8.0,
        |n| sala(n, 1e30),
    ),
    case("sala-k2-walks", 2, 48.0 + 12.0 + 8.0, |n| sala(n, 0.0)),
];

fn median(mut times: Vec<f64>) -> Option<f64> {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied()
}

/// Milliseconds of one call, the median; `None` when the command line leaves this one out.
fn measure(c: &mut Criterion, group: &str, id: &str, cycle: u32, step: &mut Step) -> Option<f64> {
    let times = RefCell::new(Vec::new());
    let mut group = c.benchmark_group(group);
    group.sampling_mode(SamplingMode::Flat);
    group.bench_function(id, |bencher| {
        bencher.iter_custom(|count| {
            (0..count)
                .map(|_| {
                    let start = Instant::now();
                    (0..cycle).for_each(|_| step());
                    let taken = start.elapsed() / cycle;
                    times.borrow_mut().push(taken.as_secs_f64() * 1e3);
                    taken
                })
                .sum::<Duration>()
        });
    });
    group.finish();
    median(times.into_inner())
}

/// Bytes per millisecond of an in-place update of three arrays, two of them written.
fn rate(c: &mut Criterion, network: &Network) -> Option<f64> {
    let len = network.params.num_elements();
    let (mut a, mut b, x) = (vec![1f32; len], vec![1f32; len], vec![1f32; len]);
    let mut update: Step = Box::new(|| {
        let pieces = a.par_chunks_mut(1 << 14).zip(b.par_chunks_mut(1 << 14));
        pieces.zip(x.par_chunks(1 << 14)).for_each(|((a, b), x)| {
            for ((a, b), x) in a.iter_mut().zip(b).zip(x) {
                *b = *b * 0.5 + x;
                *a -= *b * 1e-3;
            }
        });
    });
    let ms = measure(c, network.name, "floor", 1, &mut update)?;
    Some(20.0 * len as f64 / ms)
}

fn main() {
    let mut c = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    let mut table = Vec::new();
    for network in [Network::resnet18, Network::bert_base] {
        let network = network();
        let rate = rate(&mut c, &network);
        let weights = network.params.num_elements() as f64;
        for case in &CASES {
            let mut time = |choice, form: &str| {
                with_choice(choice, || {
                    let mut step = (case.make)(&network);
                    let id = format!("{}/{form}", case.name);
                    measure(&mut c, network.name, &id, case.cycle, &mut step)
                })
            };
            let fused = case.has_kernels.then(|| time(Choice::Auto, "fused"));
            let composed = time(Choice::Composed, "composed");
            let floor = rate.map(|rate| case.bytes / f64::from(case.cycle) * weights / rate);
            table.push((network.name, case.name, floor, fused.flatten(), composed));
        }
        if let Some(rate) = rate {
            println!("{}: floor at {:.1} GB/s", network.name, rate / 1e6);
        }
    }
    c.final_summary();
    print_table(&table);
}

type Row = (
    &'static str,
    &'static str,
    Option<f64>,
    Option<f64>,
    Option<f64>,
);

fn print_table(rows: &[Row]) {
    let threads = rayon::current_num_threads();
    println!("\nms a step, median, f32, {threads} threads; in brackets the ratio to the floor");
    println!("| network | rule | floor | fused | composed |\n|---|---|---|---|---|");
    for &(network, rule, floor, fused, composed) in rows {
        let cell = |time: Option<f64>| match (time, floor) {
            (Some(time), Some(floor)) => format!("{time:.1} ({:.1})", time / floor),
            (Some(time), None) => format!("{time:.1}"),
            (None, _) => "–".into(),
        };
        if fused.is_some() || composed.is_some() {
            let floor = floor.map_or("–".into(), |floor| format!("{floor:.1}"));
            let (fused, composed) = (cell(fused), cell(composed));
            println!("| {network} | {rule} | {floor} | {fused} | {composed} |");
        }
    }
}
