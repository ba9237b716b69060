//! A run that is interrupted at any step, saved to a file and continued by fresh objects ends at the
//! same bits.

use std::path::Path;

use candle_core::{DType, Device};
use sala_core::{
    Minimizer, Pass, Stateful,
    catalogue::{Base, Method, build},
    checkpoint::Checkpoint,
    state::{State, StateReader},
    testing::assert_same_bits,
};

use crate::methods::{Problem, combinations};

const STEPS: usize = 14;

fn advance(problem: &Problem, optimizer: &mut dyn Minimizer, steps: usize) {
    for _ in 0..steps {
        // A learning rate that moves, so that its loss would be noticed.
        optimizer.set_learning_rate(optimizer.learning_rate() * 0.97);
        optimizer
            .step(&mut |pass: Pass| problem.loss(pass))
            .unwrap();
    }
}

fn save(problem: &Problem, optimizer: &impl Stateful, path: &Path) {
    let mut model = State::new("Problem");
    for (name, var) in problem.named() {
        model.set_tensor(name, &var).unwrap();
    }
    let checkpoint = Checkpoint::new()
        .with("model", model)
        .with("optimizer", optimizer.state().unwrap());
    checkpoint.save(path).unwrap();
}

fn resume(base: &Base, method: &Method, path: &Path) -> (Problem, Box<dyn sala_core::Resumable>) {
    let checkpoint = Checkpoint::load(path, &Device::Cpu).unwrap();
    let problem = Problem::new(DType::F32);
    // Other weights than the saved ones: slow weights that were not loaded would show.
    problem
        .first
        .set(&problem.first.affine(0.5, 1.0).unwrap())
        .unwrap();
    let mut optimizer = build(problem.params(), base, method, None).unwrap();
    let mut model = StateReader::new("Problem", checkpoint.section("model").unwrap()).unwrap();
    for (name, var) in problem.named() {
        var.set(&model.tensor(&name, &var).unwrap()).unwrap();
    }
    model.finish().unwrap();
    optimizer
        .load_state(checkpoint.section("optimizer").unwrap())
        .unwrap();
    (problem, optimizer)
}

#[test]
fn every_method_resumes_to_the_same_bits_from_every_phase() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.safetensors");
    for (name, base, method) in combinations() {
        let whole = Problem::new(DType::F32);
        let mut optimizer = build(whole.params(), &base, &method, None).unwrap();
        advance(&whole, &mut optimizer, STEPS);
        let state = optimizer.state().unwrap();
        for interrupted_after in 0..=7 {
            let first = Problem::new(DType::F32);
            let mut optimizer = build(first.params(), &base, &method, None).unwrap();
            advance(&first, &mut optimizer, interrupted_after);
            save(&first, &optimizer, &path);
            drop((first, optimizer));
            let (second, mut optimizer) = resume(&base, &method, &path);
            advance(&second, &mut optimizer, STEPS - interrupted_after);
            for (got, wanted) in second.weights().iter().zip(&whole.weights()) {
                assert_same_bits(
                    &format!("{name}, resumed after {interrupted_after}"),
                    got,
                    wanted,
                );
            }
            assert_eq!(
                format!("{:?}", optimizer.state().unwrap()),
                format!("{state:?}"),
                "{name}"
            );
        }
    }
}

#[test]
fn a_state_that_does_not_fit_changes_nothing() {
    for (name, base, method) in combinations() {
        let problem = Problem::new(DType::F32);
        let mut optimizer = build(problem.params(), &base, &method, None).unwrap();
        advance(&problem, &mut optimizer, 4);
        let before = format!("{:?}", optimizer.state().unwrap());
        let mut surplus = optimizer.state().unwrap();
        surplus.set("descent/base/surprise", 1);
        surplus.set("surprise", 1);
        let message = optimizer.load_state(&surplus).unwrap_err().to_string();
        assert!(message.contains("surprise"), "{name}: {message}");
        assert_eq!(
            format!("{:?}", optimizer.state().unwrap()),
            before,
            "{name}"
        );
        assert!(
            optimizer.load_state(&State::new("Other")).is_err(),
            "{name}"
        );
    }
}
