//! Methods with slow weights: Lookahead, averages and SALA.

use super::*;

/// SGD with a momentum of a half.
fn heavy(lr: f64) -> Base {
    Base::Sgd(ParamsSgd {
        lr,
        momentum: 0.5,
        ..Default::default()
    })
}

// Catches α for 1 − α, and each treatment of the momentum in another's place.
#[test]
fn lookahead_goes_half_way_back_and_treats_the_momentum() {
    // w² at 8: b = 16, w = 4; b = 8 + 8 = 16, w = 0; pulled: φ = 8 + 0.5 (0 − 8) = 4 = w, g = 8
    for (momentum, next) in [
        // b = 8 + 8 = 16: 4 − 4
        (MomentumAtPull::Keep, 0.0),
        // b = 0 + 8 = 8: 4 − 2
        (MomentumAtPull::Reset, 2.0),
        // s = 0 + 0.5 · 16 = 8, b = 4 + 8 = 12: 4 − 3
        (MomentumAtPull::PullBack, 1.0),
    ] {
        let config = ParamsLookahead {
            k: 2,
            alpha: 0.5,
            momentum,
            ..Default::default()
        };
        let mut run = One::new(8.0, &heavy(0.25), &Method::Lookahead(config));
        assert_walk(run.walk(), [4.0, 4.0, next]);
    }
    // a share other than a half: φ = 8 + 0.75 (0 − 8) = 2
    let config = ParamsLookahead {
        k: 2,
        alpha: 0.75,
        ..Default::default()
    };
    let mut run = One::new(8.0, &heavy(0.25), &Method::Lookahead(config));
    assert_walk(run.walk(), [4.0, 2.0]);
}

// Catches a slow momentum that starts at the first fast one, and α for 1 − α in its pull.
#[test]
fn a_momentum_that_is_pulled_back_starts_from_rest() {
    let config = ParamsLookahead {
        k: 1,
        alpha: 0.75,
        momentum: MomentumAtPull::PullBack,
        ..Default::default()
    };
    // w² at 8: b = 16, w = 4, φ = 8 − 0.75 · 4 = 5, s = 0.75 · 16 = 12 = b
    // at 5: b = 6 + 10 = 16, w = 1, φ = 5 − 0.75 · 4 = 2, s = 12 + 0.75 (16 − 12) = 15 = b
    // at 2: b = 7.5 + 4 = 11.5, w = −0.875, φ = 2 − 0.75 · 2.875
    let mut run = One::new(8.0, &heavy(0.25), &Method::Lookahead(config));
    assert_walk(run.walk(), [5.0, 2.0, -0.15625]);
}

// Catches β for 1 − β, and members that are off by one step.
#[test]
fn averages_begin_at_their_start_and_count_their_members() {
    // w² from 8: 4, 2, 1, 0.5, 0.25, 0.125; members after the steps 2, 4 and 6
    let exponential = Average::Exponential { decay: 0.75 };
    for (average, wanted) in [
        // 2; 0.75 · 2 + 0.25 · 0.5 = 1.625; 0.75 · 1.625 + 0.25 · 0.125 = 1.25
        (exponential, [2.0, 2.0, 1.625, 1.625, 1.25]),
        // 2; 2.5 / 2; 2.625 / 3
        (Average::Equal, [2.0, 2.0, 1.25, 1.25, 0.875]),
    ] {
        let One { w, optimizer } = One::new(8.0, &descent(0.25), &Method::Base);
        let config = ParamsAveraged {
            average,
            start: 2,
            every: 2,
        };
        let mut optimizer = Averaged::new(optimizer, config).unwrap();
        let mut step = || {
            optimizer.step(&mut |_: Pass| w.sqr()).unwrap();
            let slow = optimizer.slow_weights().unwrap().tensors();
            slow.map(|slow| slow[0].to_scalar::<f64>().unwrap())
        };
        assert_eq!(step(), None);
        let got = std::array::from_fn(|_| step().unwrap());
        assert_walk::<5>(got, wanted);
        assert_near(read(&w), 0.125);
    }
}

fn sala(rho: f64) -> ParamsSala {
    ParamsSala {
        k: 2,
        alpha: 0.5,
        rho,
        ..Default::default()
    }
}

// Catches an ascent in the first stage, none in the second, a return to φ in the wrong stage, and a
// gap before the pull.
#[test]
fn sala_walks_in_its_first_stage_and_climbs_in_its_second() {
    // 1: 8 − 4 = 4; φ = 8 + 0.5 (4 − 8) = 6, gap 0.5 · 4 = 2, not below 1.5
    // 2: g = 8 at 4, from φ: 6 − 2 = 4
    // 3: 4 − 2 = 2; φ = 6 + 0.5 (2 − 6) = 4, gap 2
    // 4: g = 4 at 2, from φ: 4 − 1 = 3
    // 5: 3 − 1.5 = 1.5; φ = 4 + 0.5 (1.5 − 4) = 2.75, gap 1.25 < 1.5: back to 2.75
    // 6: up to 4.25, g' = 8.5: 2.75 − 2.125 = 0.625
    let mut run = One::new(8.0, &descent(0.25), &Method::Sala(sala(1.5)));
    let wanted = [
        (4.0, 2.0, false),
        (4.0, 2.0, false),
        (2.0, 2.0, false),
        (3.0, 2.0, false),
        (2.75, 1.25, false),
        (0.625, 1.25, true),
    ];
    for (w, gap, ascent) in wanted {
        let report = run.step();
        assert_near(read(&run.w), w);
        assert_near(report.gap.unwrap(), gap);
        assert_eq!(report.ascent, ascent);
        assert_near(report.evaluations, if ascent { 2.0 } else { 1.0 });
    }
}

// Catches a gap by α, which a share of a half does not tell from 1 − α.
#[test]
fn salas_gap_is_what_the_pull_leaves() {
    // 4; φ = 8 + 0.75 (4 − 8) = 5, gap 0.25 · 4 = 1; then from 5 with g = 8: 3
    let config = ParamsSala {
        alpha: 0.75,
        ..sala(1.0)
    };
    let mut run = One::new(8.0, &descent(0.25), &Method::Sala(config));
    assert_near(run.step().gap.unwrap(), 1.0);
    assert_near(read(&run.w), 4.0);
    let report = run.step();
    assert!(!report.ascent, "a gap of ρ is not below it");
    assert_near(read(&run.w), 3.0);
}

// Catches memories that learn in climbing steps only, and a momentum from the direction pass.
#[test]
fn sala_climbs_along_other_directions() {
    // in every case the first step ends at 4, φ = 6, gap 2 < 3: back to 6, where g = 12
    let after_two = |direction| {
        let method = Method::SalaOver(sala(3.0), direction);
        let mut run = One::new(8.0, &descent(0.25), &method);
        assert_walk(run.walk(), [6.0]);
        let report = run.step();
        assert!(report.ascent);
        (read(&run.w), report.evaluations)
    };
    let assert_pair = |(w, evaluations), wanted: (f64, f64)| {
        assert_near(w, wanted.0);
        assert_near(evaluations, wanted.1);
    };
    // up to 9: 6 − 0.25 · 18
    assert_pair(after_two(Direction::Gradient), (1.5, 2.0));
    // T = 6.5, ε = 3 · 6.5: up to 25.5: 6 − 0.25 · 51
    let adaptive = Direction::Adaptive {
        eta: 0.5,
        weights_only: false,
    };
    assert_pair(after_two(adaptive), (6.0 - 12.75, 2.0));
    // m = 8, then 0.5 · 8 + 0.5 · 12 = 10; d = 12 − 2 · 10 = −8: down to 3: 6 − 0.25 · 6
    let friendly = Direction::Friendly {
        sigma: 2.0,
        lambda: 0.5,
    };
    assert_pair(after_two(friendly), (4.5, 2.0));
    // v = 16, against it: 3: 6 − 0.25 · 6, in one gradient
    assert_pair(after_two(Direction::Momentum { mu: 0.9 }), (4.5, 1.0));
}
