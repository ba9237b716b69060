//! Methods with slow weights: Lookahead, averages, SALA.

use candle_core::Var;
use sala_core::{
    Average, Averaged, Minimizer, MomentumAtPull, ParamsAveraged, ParamsLookahead, ParamsSala,
    Pass, SlowInit, StepReport,
    catalogue::{Base, Direction, Method, build},
    perturb::RhoScale,
    testing::{assert_same_bits, values},
};

use super::{
    STEPS, assert_point, bases, config, follow, follow_everywhere, lr, param_set,
    plain::{norm, sum},
    problems::{self, Point, Problem},
    sam, start, usual, variables,
};

// Catches a pull by 1 − α, fast weights that stay, and momenta (Adam's second moment among them) that
// are treated otherwise than the paper's appendix says.
#[test]
fn lookahead_pulls_weights_and_momentum() {
    for momentum in [
        MomentumAtPull::Keep,
        MomentumAtPull::Reset,
        MomentumAtPull::PullBack,
    ] {
        for (k, alpha, init) in [
            (1, 0.6, SlowInit::Construction),
            (3, 0.8, SlowInit::FirstSync),
            (5, 0.3, SlowInit::Construction),
        ] {
            let method = Method::Lookahead(ParamsLookahead {
                k,
                alpha,
                init,
                momentum,
            });
            follow_everywhere(&format!("Lookahead {k} {momentum:?}"), &method);
        }
    }
}

/// The averages after every step, and the weights, of SAM with an average beside it.
fn averaged(problem: &dyn Problem, base: &Base, config: ParamsAveraged) {
    let run = |vars: &[Var]| {
        let method = Method::Sam(sam());
        let plain = super::config(problem, base, method.clone());
        let params = param_set(&plain.settings, vars);
        (build(params, base, &method, None).unwrap(), plain.settings)
    };
    let (alone, beside) = (variables(problem), variables(problem));
    let (mut inner, _) = run(&alone);
    let (optimizer, settings) = run(&beside);
    let mut optimizer = Averaged::new(optimizer, config).unwrap();
    let mut taken: Vec<Point> = Vec::new();
    let mut exponential: Option<Point> = None;
    for step in 0..STEPS {
        inner
            .step(&mut |pass: Pass| problem.candle(&alone, step, (0, 1), pass))
            .unwrap();
        optimizer
            .step(&mut |pass: Pass| problem.candle(&beside, step, (0, 1), pass))
            .unwrap();
        for (got, wanted) in beside.iter().zip(&alone) {
            assert_same_bits("the trained weights", got, wanted);
        }
        let n = step as u64 + 1;
        if n >= config.start && (n - config.start).is_multiple_of(config.every) {
            let w: Point = alone.iter().map(|var| values(var)).collect();
            taken.push(w.clone());
            if let Average::Exponential { decay } = config.average {
                exponential = Some(match exponential {
                    None => w,
                    Some(phi) => sum(decay, &phi, 1.0 - decay, &w),
                });
            }
        }
        let wanted = match config.average {
            Average::Exponential { .. } => exponential.clone(),
            Average::Equal => mean(&taken),
        };
        let got = optimizer.slow_weights().unwrap().tensors();
        assert_eq!(got.is_some(), wanted.is_some(), "after step {n}");
        if let (Some(got), Some(wanted)) = (got, wanted) {
            let what = format!("{config:?} on {} after step {n}", problem.name());
            let got = optimizer.params().names().zip(got);
            assert_point(&what, &settings, got, &wanted);
        }
    }
}

fn mean(points: &[Point]) -> Option<Point> {
    let share = 1.0 / points.len() as f64;
    let total = points
        .iter()
        .cloned()
        .reduce(|a, b| sum(1.0, &a, 1.0, &b))?;
    Some(sum(share, &total, 0.0, &total))
}

// Catches β and 1 − β exchanged, a start or a rhythm that is off by one, a mean that weighs its members
// unequally, and an average that reaches into the training.
#[test]
fn averages_follow_the_weights_and_leave_them_alone() {
    let exponential = Average::Exponential { decay: 0.8 };
    for (average, start, every) in [
        (exponential, 1, 1),
        (exponential, 4, 3),
        (Average::Equal, 1, 1),
        (Average::Equal, 5, 4),
    ] {
        for problem in problems::all() {
            for (_, base) in bases(&*problem) {
                let config = ParamsAveraged {
                    average,
                    start,
                    every,
                };
                averaged(&*problem, &base, config);
            }
        }
    }
}

/// The usual gap of a run of SALA that never climbs: a radius near which both stages occur.
fn usual_gap(problem: &dyn Problem, base: &Base, config: ParamsSala) -> f64 {
    let never = ParamsSala {
        rho: f64::MIN_POSITIVE,
        scale: RhoScale::Absolute,
        ..config
    };
    let config = super::config(problem, base, Method::Sala(never));
    usual(problem, config, |told| told.gap.unwrap())
}

/// SALA with a radius near its usual gap, over both bases on every problem; some cycles climb and some
/// do not.
fn follow_sala(name: &str, sala: ParamsSala, method: impl Fn(ParamsSala) -> Method) {
    for problem in problems::all() {
        for (base_name, base) in bases(&*problem) {
            let gap = usual_gap(&*problem, &base, sala);
            let unit = match sala.scale {
                RhoScale::ParameterNorm => norm(&start(&*problem)),
                RhoScale::Absolute | RhoScale::LearningRate { .. } => 1.0,
            };
            let scale = match sala.scale {
                RhoScale::LearningRate { .. } => RhoScale::LearningRate {
                    reference: lr(&base, STEPS / 2),
                },
                scale => scale,
            };
            let rho = sala.rho * gap / unit;
            let method = method(ParamsSala { rho, scale, ..sala });
            let config = config(&*problem, &base, method);
            let what = format!("{name} over {base_name}");
            let reports = follow(&what, &*problem, &config, 1);
            let ends = |r: &&StepReport| r.step.is_multiple_of(sala.k);
            let cycles = reports.iter().filter(ends).count();
            let climbs = reports.iter().filter(|r| r.ascent).count();
            assert!(
                0 < climbs && climbs < cycles,
                "{what} on {}: {climbs} of {cycles} cycles climbed",
                problem.name()
            );
        }
    }
}

/// With `rho` in units of the usual gap.
fn salas() -> Vec<ParamsSala> {
    let sala = |k, alpha, rho| ParamsSala {
        k,
        alpha,
        rho,
        ..Default::default()
    };
    vec![sala(2, 0.5, 1.0), sala(3, 0.8, 1.1), sala(5, 0.3, 1.0)]
}

// Catches a gap by α in place of 1 − α, a decision from an older gap, a return to φ that is left out or
// taken in both stages, a pull at the wrong step, and an ascent from θ in place of φ.
#[test]
fn sala_climbs_where_its_cycles_have_become_short() {
    for sala in salas() {
        follow_sala(&format!("SALA {}", sala.k), sala, Method::Sala);
    }
    let [first, ..] = salas()[..] else {
        unreachable!()
    };
    let variants = [
        ("every step a cycle", ParamsSala { k: 1, ..first }),
        (
            "from the first sync",
            ParamsSala {
                init: SlowInit::FirstSync,
                ..first
            },
        ),
        (
            "stable",
            ParamsSala {
                stable: true,
                ..first
            },
        ),
        (
            "ρ of ‖w‖",
            ParamsSala {
                scale: RhoScale::ParameterNorm,
                ..first
            },
        ),
        (
            "ρ of the learning rate",
            ParamsSala {
                scale: RhoScale::LearningRate { reference: 1.0 },
                ..first
            },
        ),
        (
            "half a direction",
            ParamsSala {
                direction_fraction: 0.5,
                ..first
            },
        ),
    ];
    for (name, sala) in variants {
        follow_sala(&format!("SALA, {name},"), sala, Method::Sala);
    }
}

// Catches a mean that learns from climbing steps alone or from the gradient at perturbed weights, a
// momentum that learns while it points only, and gradients of the wrong pass in either.
#[test]
fn sala_climbs_in_any_direction_and_its_memory_learns_at_every_step() {
    for sala in salas() {
        for direction in [
            Direction::Adaptive {
                eta: 0.05,
                weights_only: true,
            },
            Direction::Friendly {
                sigma: 1.0,
                lambda: 0.7,
            },
            Direction::Momentum { mu: 0.8 },
        ] {
            let name = format!("SALA {} over {direction:?}", sala.k);
            follow_sala(&name, sala, |sala| Method::SalaOver(sala, direction));
        }
    }
}
