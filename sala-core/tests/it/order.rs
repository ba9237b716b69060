//! Which passes a step takes, at which weights, and in which order.

use candle_core::DType;
use sala_core::{
    Lookahead, Minimizer, ParamsLookahead, ParamsSala, ParamsSam, ParamsSamEvery, ParamsSgd, Pass,
    Sala, Sgd, SlowInit,
    catalogue::{Base, Method, build},
    testing::values,
};

use crate::methods::Problem;

/// The passes of each of the first steps, as letters: c, d, p.
fn passes(method: &Method, steps: usize) -> Vec<String> {
    let problem = Problem::new(DType::F64);
    let base = Base::Sgd(ParamsSgd {
        lr: 0.05,
        ..Default::default()
    });
    let mut optimizer = build(problem.params(), &base, method, None).unwrap();
    (0..steps)
        .map(|_| {
            let mut seen = String::new();
            optimizer
                .step(&mut |pass: Pass| {
                    seen.push(pass.to_string().chars().next().unwrap());
                    problem.loss(pass)
                })
                .unwrap();
            seen
        })
        .collect()
}

#[test]
fn each_method_takes_its_passes() {
    let lookahead = Method::Lookahead(ParamsLookahead {
        k: 2,
        ..Default::default()
    });
    assert_eq!(passes(&Method::Base, 3), ["c", "c", "c"]);
    assert_eq!(passes(&lookahead, 3), ["c", "c", "c"]);
    assert_eq!(
        passes(&Method::Sam(ParamsSam::default()), 3),
        ["dp", "dp", "dp"]
    );
    assert_eq!(
        passes(&Method::SamEvery(ParamsSamEvery::default()), 4),
        ["c", "dp", "c", "dp"]
    );
    // A radius above every gap climbs at the end of each cycle, one of zero never does.
    let sala = |rho| {
        Method::Sala(ParamsSala {
            k: 3,
            rho,
            ..Default::default()
        })
    };
    assert_eq!(passes(&sala(1.0), 6), ["c", "c", "dp", "c", "c", "dp"]);
    assert_eq!(passes(&sala(0.0), 6), ["c"; 6]);
}

#[test]
fn the_first_pass_is_taken_at_the_weights_of_the_step_before() {
    let problem = Problem::new(DType::F64);
    let base = Sgd::new(&problem.params(), ParamsSgd::default()).unwrap();
    let config = ParamsSala {
        k: 2,
        rho: 0.5,
        ..Default::default()
    };
    let mut sala = Sala::new(problem.params(), base, config).unwrap();
    for _ in 0..6 {
        let before = values(&problem.first);
        sala.step(&mut |pass: Pass| {
            let unmoved = values(&problem.first) == before;
            assert_eq!(unmoved, pass != Pass::Perturbed, "{pass} pass");
            problem.loss(pass)
        })
        .unwrap();
    }
}

#[test]
fn slow_weights_are_shown_to_the_evaluation_only() {
    let problem = Problem::new(DType::F64);
    let start = values(&problem.first);
    let base = Sgd::new(&problem.params(), ParamsSgd::default()).unwrap();
    let mut optimizer = Lookahead::new(problem.params(), base, ParamsLookahead::default()).unwrap();
    optimizer
        .step(&mut |pass: Pass| problem.loss(pass))
        .unwrap();
    let fast = values(&problem.first);
    let seen = optimizer
        .with_slow_weights(|| -> sala_core::Result<_> { Ok(values(&problem.first)) })
        .unwrap();
    assert_eq!(seen, start, "no synchronisation yet");
    assert_eq!(values(&problem.first), fast);
    let failed = optimizer
        .with_slow_weights(|| -> candle_core::Result<()> { candle_core::bail!("no data") });
    assert!(failed.unwrap_err().to_string().starts_with("no data"));
    assert_eq!(values(&problem.first), fast, "restored after an error");
}

#[test]
fn before_a_first_sync_the_view_shows_the_fast_weights() {
    let problem = Problem::new(DType::F64);
    let base = Sgd::new(&problem.params(), ParamsSgd::default()).unwrap();
    let config = ParamsSala {
        k: 5,
        init: SlowInit::FirstSync,
        ..Default::default()
    };
    let mut sala = Sala::new(problem.params(), base, config).unwrap();
    sala.step(&mut |pass: Pass| problem.loss(pass)).unwrap();
    let fast = values(&problem.first);
    let seen = sala
        .with_slow_weights(|| -> sala_core::Result<_> { Ok(values(&problem.first)) })
        .unwrap();
    assert_eq!(seen, fast);
}
