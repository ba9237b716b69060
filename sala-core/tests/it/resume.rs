//! A run that is interrupted at any step, saved to a file and continued by fresh objects ends at the
//! same bits.

use std::path::Path;

use candle_core::{DType, Device};
use sala_core::{
    Average, Averaged, Descend, LossScaler, Minimizer, ParamSet, ParamsAsam, ParamsAveraged,
    ParamsGsam, ParamsLookahead, ParamsLossScaler, ParamsSala, ParamsSam, ParamsSamEvery,
    ParamsSgd, Pass, Resumable, Sgd, Stateful,
    catalogue::{Base, Method, build},
    checkpoint::Checkpoint,
    schedule::{Cosine, Scheduler},
    state::{State, StateReader},
    testing::{HALF, TRAJECTORY_F32, Tolerance, assert_same_bits, assert_same_state, values},
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

fn resume(base: &Base, method: &Method, path: &Path) -> (Problem, Box<dyn Resumable + Send>) {
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
            assert_same_state(&name, &optimizer.state().unwrap(), &state);
        }
    }
}

#[test]
fn a_state_that_does_not_fit_changes_nothing() {
    for (name, base, method) in combinations() {
        let problem = Problem::new(DType::F32);
        let mut optimizer = build(problem.params(), &base, &method, None).unwrap();
        advance(&problem, &mut optimizer, 4);
        let (before, weights) = (optimizer.state().unwrap(), problem.weights());
        let unchanged = |optimizer: &dyn Resumable| {
            assert_same_state(&name, &optimizer.state().unwrap(), &before);
            for (got, wanted) in problem.weights().iter().zip(&weights) {
                assert_same_bits(&name, got, wanted);
            }
        };
        let mut surplus = optimizer.state().unwrap();
        surplus.set("descent/base/surprise", 1);
        surplus.set("surprise", 1);
        let message = optimizer.load_state(&surplus).unwrap_err().to_string();
        assert!(message.contains("surprise"), "{name}: {message}");
        unchanged(&*optimizer);
        if optimizer.rho().is_some() {
            // Found last of all, after the base has been read.
            let mut negative = optimizer.state().unwrap();
            negative.set("rho", -1.0);
            negative.set("descent/base/lr", 77.0);
            assert!(optimizer.load_state(&negative).is_err(), "{name}");
            unchanged(&*optimizer);
        }
        assert!(
            optimizer.load_state(&State::new("Other")).is_err(),
            "{name}"
        );
    }
}

/// All that a run consists of, and its one file.
struct Run {
    problem: Problem,
    optimizer: Averaged<Box<dyn Resumable + Send>>,
    scheduler: Scheduler,
    scaler: LossScaler,
}
impl Run {
    fn new(method: &Method) -> Self {
        let problem = Problem::new(DType::F32);
        let base = Base::Sgd(ParamsSgd {
            momentum: 0.9,
            ..Default::default()
        });
        let inner = build(problem.params(), &base, method, None).unwrap();
        let config = ParamsAveraged {
            average: Average::Equal,
            start: 2,
            every: 2,
        };
        let scaling = ParamsLossScaler {
            interval: 4,
            ..Default::default()
        };
        Self {
            optimizer: Averaged::new(inner, config).unwrap(),
            scheduler: Scheduler::new()
                .learning_rate(0.05, Cosine::new(20).unwrap())
                .unwrap(),
            scaler: LossScaler::new(scaling).unwrap(),
            problem,
        }
    }

    fn advance(&mut self, steps: usize) {
        for _ in 0..steps {
            self.scheduler.advance(&mut self.optimizer).unwrap();
            let loss = &mut |pass: Pass| self.problem.loss(pass);
            let report = self.scaler.step(&mut self.optimizer, loss).unwrap();
            assert!(report.is_some());
        }
    }

    fn save(&self, path: &Path) {
        let mut model = State::new("Problem");
        for (name, var) in self.problem.named() {
            model.set_tensor(name, &var).unwrap();
        }
        Checkpoint::new()
            .with("model", model)
            .with("optimizer", self.optimizer.state().unwrap())
            .with("scheduler", self.scheduler.state().unwrap())
            .with("scaler", self.scaler.state().unwrap())
            .save(path)
            .unwrap();
    }

    fn load(method: &Method, path: &Path) -> Self {
        let mut run = Self::new(method);
        let file = Checkpoint::load(path, &Device::Cpu).unwrap();
        let section = |name: &str| file.section(name).unwrap();
        let mut model = StateReader::new("Problem", section("model")).unwrap();
        for (name, var) in run.problem.named() {
            var.set(&model.tensor(&name, &var).unwrap()).unwrap();
        }
        model.finish().unwrap();
        run.optimizer.load_state(section("optimizer")).unwrap();
        run.scheduler.load_state(section("scheduler")).unwrap();
        run.scaler.load_state(section("scaler")).unwrap();
        run
    }
}

// Catches a part that is missing from the file: the average, the schedule's position, the scaler's count.
#[test]
fn optimizer_average_schedule_and_scaler_resume_from_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.safetensors");
    for (name, method) in crate::methods::methods() {
        let mut whole = Run::new(&method);
        whole.advance(11);
        for interrupted_after in [0, 1, 4, 7] {
            let mut first = Run::new(&method);
            first.advance(interrupted_after);
            first.save(&path);
            let mut second = Run::load(&method, &path);
            second.advance(11 - interrupted_after);
            assert_eq!(
                second.scaler.scale().to_bits(),
                whole.scaler.scale().to_bits()
            );
            let slow = |run: &Run| {
                run.optimizer
                    .slow_weights()
                    .unwrap()
                    .tensors()
                    .unwrap()
                    .to_vec()
            };
            let pairs = slow(&second).into_iter().zip(slow(&whole));
            for (got, wanted) in pairs.chain(
                second
                    .problem
                    .weights()
                    .into_iter()
                    .zip(whole.problem.weights()),
            ) {
                assert_same_bits(name, &got, &wanted);
            }
        }
    }
}

// A run may go on in another precision. From f64 to f32 every saved number is rounded once, so the
// continuation is an f32 run from rounded numbers: it stays within the tolerance of f32 trajectories.
#[test]
fn a_run_continues_in_another_precision_within_the_tolerance_of_f32() {
    let near = Tolerance {
        atol: 1e-5,
        ..TRAJECTORY_F32
    };
    for (name, base, method) in combinations() {
        for (from, to) in [(DType::F64, DType::F32), (DType::F32, DType::F64)] {
            let first = Problem::new(from);
            let mut one = build(first.params(), &base, &method, None).unwrap();
            advance(&first, &mut one, 6);
            let second = Problem::new(to);
            let mut two = build(second.params(), &base, &method, None).unwrap();
            two.load_state(&one.state().unwrap()).unwrap();
            for ((_, old), (_, new)) in first.named().iter().zip(second.named()) {
                new.set(
                    &old.to_dtype(to)
                        .unwrap()
                        .force_contiguous()
                        .unwrap()
                        .detach(),
                )
                .unwrap();
            }
            advance(&first, &mut one, 6);
            advance(&second, &mut two, 6);
            for (got, wanted) in second.weights().iter().zip(&first.weights()) {
                assert_eq!(got.dtype(), to, "{name}");
                near.assert_tensors(&format!("{name} from {from:?}"), got, wanted);
            }
        }
    }
}

/// A run of so many steps in `from`, gone on with in `to`, each with or without masters.
fn continued(
    (base, method): (&Base, &Method),
    (from, masters_before): (DType, bool),
    (to, masters_after): (DType, bool),
) -> (Problem, Box<dyn Resumable + Send>) {
    let start = |dtype, masters: bool| {
        let problem = Problem::new(dtype);
        let mut params = problem.params();
        if masters {
            params = params.with_f32_masters().unwrap();
        }
        let optimizer = build(params, base, method, None).unwrap();
        (problem, optimizer)
    };
    let (first, mut one) = start(from, masters_before);
    advance(&first, &mut one, 6);
    let (second, mut two) = start(to, masters_after);
    for ((_, old), (_, new)) in first.named().iter().zip(second.named()) {
        let old = old.to_dtype(to).unwrap().force_contiguous().unwrap();
        new.set(&old.detach()).unwrap();
    }
    two.load_state(&one.state().unwrap()).unwrap();
    for ((_, old), (name, new)) in first.named().iter().zip(second.named()) {
        HALF.assert_tensors(&name, &new, &old.to_dtype(to).unwrap());
    }
    (second, two)
}

// Catches a state with masters that a run without refuses, or the other way round, and masters of the start that
// overwrite the weights that were loaded.
#[test]
fn a_run_continues_with_masters_or_without_whatever_it_had() {
    for (name, base, method) in combinations() {
        let both = (&base, &method);
        let kinds = [
            (DType::F32, false),
            (DType::BF16, false),
            (DType::BF16, true),
        ];
        for from in kinds {
            for to in kinds {
                let (problem, mut optimizer) = continued(both, from, to);
                let before = values(&problem.loss(Pass::Clean).unwrap())[0];
                advance(&problem, &mut optimizer, 20);
                let after = values(&problem.loss(Pass::Clean).unwrap())[0];
                let what = format!("{name}, {from:?} to {to:?}");
                assert!(after < before, "{what}: {before} to {after}");
            }
        }
    }
}

// What the masters know beyond bf16 is the weights of a run in f32.
#[test]
fn masters_become_the_weights_of_a_run_in_f32() {
    let (_, base, method) = combinations().remove(0);
    let both = (&base, &method);
    let start = || Problem::new(DType::BF16);
    let half = start();
    let params = half.params().with_f32_masters().unwrap();
    let mut optimizer = build(params.clone(), &base, &method, None).unwrap();
    advance(&half, &mut optimizer, 6);
    let (full, _) = continued(both, (DType::BF16, true), (DType::F32, false));
    let masters = params.vars();
    for (got, wanted) in full.params().vars().iter().zip(&masters) {
        assert_same_bits("masters", got, wanted);
    }
}

#[test]
fn a_state_with_a_part_of_the_masters_is_refused() {
    let (_, base, method) = combinations().remove(0);
    let problem = Problem::new(DType::BF16);
    let params = problem.params();
    let narrow = ParamSet::new([("a.second", problem.second.clone())]).unwrap();
    let masters = |params: ParamSet| params.with_f32_masters().unwrap();
    let mut part = build(masters(narrow), &base, &method, None).unwrap();
    part.step(&mut |_: Pass| problem.second.sqr()?.sum_all())
        .unwrap();
    let mut all = build(masters(params), &base, &method, None).unwrap();
    let message = all
        .load_state(&part.state().unwrap())
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("master copies of 1 of 2 parameters"),
        "{message}"
    );
}

// Catches a state that loads into another method of the same shape, whose run it silently changes.
#[test]
fn a_state_of_another_method_or_configuration_is_refused() {
    let problem = Problem::new(DType::F32);
    let base = Base::Sgd(ParamsSgd::default());
    let of = |method: &Method| build(problem.params(), &base, method, None).unwrap();
    let lookahead = ParamsLookahead::default();
    let sala = ParamsSala::default();
    let sam = ParamsSam::default();
    let stable = ParamsSam {
        stable: true,
        ..sam
    };
    let every = |k| Method::SamEvery(ParamsSamEvery { k, sam });
    let cases = [
        (
            Method::Sam(sam),
            Method::Asam(ParamsAsam::default()),
            "value `method` must be `Adaptive × Always × Ascended`, as configured, got `L2 × Always × Ascended`",
        ),
        (
            Method::Sam(sam),
            Method::Gsam(ParamsGsam::default()),
            "SurrogateGap",
        ),
        (Method::Sam(sam), Method::Sam(stable), "Ascended, stable"),
        (every(2), every(3), "EveryK(3)"),
        (
            Method::Sala(sala),
            Method::Sala(ParamsSala { k: 7, ..sala }),
            "value `k` must be `7`, as configured, got `2`",
        ),
        (
            Method::Sala(sala),
            Method::Sala(ParamsSala {
                alpha: 0.25,
                ..sala
            }),
            "`alpha` must be `0.25`",
        ),
        (
            Method::Lookahead(lookahead),
            Method::Lookahead(ParamsLookahead { k: 7, ..lookahead }),
            "`k` must be `7`",
        ),
        (
            Method::Lookahead(lookahead),
            Method::Lookahead(ParamsLookahead {
                alpha: 0.25,
                ..lookahead
            }),
            "`alpha` must be `0.25`",
        ),
    ];
    for (saved, loading, words) in cases {
        let state = of(&saved).state().unwrap();
        let message = of(&loading).load_state(&state).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
        of(&saved).load_state(&state).unwrap();
    }
}

// Catches momentum that begins anew for some parameters and goes on for others.
#[test]
fn momentum_of_a_part_of_the_parameters_is_refused() {
    let problem = Problem::new(DType::F32);
    let config = ParamsSgd {
        momentum: 0.9,
        ..Default::default()
    };
    let sgd = |params: &ParamSet| Sgd::new(params, config.clone()).unwrap();
    let part = problem.params().freeze(|n| n == "a.second").unwrap();
    let mut trained = Descend::new(part.clone(), sgd(&part));
    advance(&problem, &mut trained, 1);
    let mut all = sgd(&problem.params());
    let message = all
        .load_state(&trained.base().state().unwrap())
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("momentum of 1 of 2 parameters"),
        "{message}"
    );
}
