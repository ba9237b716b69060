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

mod networks;

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use criterion::{Criterion, SamplingMode};
use sala_core::kernels::{Choice, with_choice};

use networks::{CASES, FLOOR_BYTES, Network, Step, median, update_in_place};

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
    let mut update = update_in_place(len);
    let ms = measure(c, network.name, "floor", 1, &mut update)?;
    Some(FLOOR_BYTES * len as f64 / ms)
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
            let floor = rate.map(|rate| case.floor(&network, rate));
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
