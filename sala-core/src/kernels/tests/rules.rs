//! A step of each rule, from the slow weights too, and the pull.

use super::*;

// Catches a wrong order of operations, a first step that decays an empty buffer, a forgotten option
// and a tail that is skipped or done twice.
#[test]
fn sgd_is_the_composed_rule_over_three_steps() {
    for_all(|form, len, dtype| {
        for config in sgd_configs() {
            let (a, b) = (form.var(len, 0.1, dtype), form.var(len, 0.1, dtype));
            let (mut buffer_a, mut buffer_b) = (None, None);
            for step in 0..3 {
                let g = form.wave(len, 1.0 + f64::from(step), dtype);
                let fused = form.kernels(dtype);
                fused
                    .sgd(&config, &a, &g, &mut buffer_a, Beside::default())
                    .unwrap();
                Composed
                    .sgd(&config, &b, &g, &mut buffer_b, Beside::default())
                    .unwrap();
                assert_near(&format!("weights, {config:?}"), &a, &b);
            }
            assert_eq!(buffer_a.is_some(), config.momentum > 0.0);
            for (a, b) in buffer_a.iter().zip(&buffer_b) {
                assert_near(&format!("buffer, {config:?}"), a, b);
            }
        }
    });
}

// Catches moments that are mixed up, a bias correction of the wrong step and decay in the wrong place.
#[test]
fn adam_is_the_composed_rule_over_three_steps() {
    for_all(|form, len, dtype| {
        for config in adam_configs() {
            let (a, b) = (form.var(len, 0.1, dtype), form.var(len, 0.1, dtype));
            let (mut moments_a, mut moments_b) = (None, None);
            for t in 1..4 {
                let g = form.wave(len, t as f64, dtype);
                form.kernels(dtype)
                    .adam((&config, t), &a, &g, &mut moments_a, Beside::default())
                    .unwrap();
                Composed
                    .adam((&config, t), &b, &g, &mut moments_b, Beside::default())
                    .unwrap();
                assert_near(&format!("weights, {config:?}"), &a, &b);
            }
            let (a, b) = (moments_a.unwrap(), moments_b.unwrap());
            assert_near("first moment", &a.0, &b.0);
            assert_near("second moment", &a.1, &b.1);
        }
    });
}

// Catches a step that starts from the current weights all the same, and a pull towards weights of before
// the step.
#[test]
fn a_step_from_the_slow_weights_that_pulls_is_what_the_parts_are_one_by_one() {
    for_all(|form, len, dtype| {
        let (config, adam) = (&sgd_configs()[4], &adam_configs()[2]);
        for fast in [Fast::Stay, Fast::Return] {
            let g = form.wave(len, 0.5, dtype);
            let start = form.wave(len, 0.7, dtype);
            let run = |kernels: &dyn Kernels, fused: bool| {
                let w = form.var(len, 0.1, dtype);
                let (mut slow, mut sums) = (form.wide(len, 0.9, dtype), Vec::new());
                let (mut buffer, mut moments) = (None, None);
                for rule in 0..2 {
                    let mut beside = Beside::default();
                    if fused {
                        beside.from = Some(&start);
                        beside.pull = Some(Pull {
                            slow: &mut slow,
                            alpha: 0.6,
                            fast,
                        });
                    } else if len > 0 {
                        w.set(&start).unwrap();
                    }
                    let sum = match rule {
                        0 => kernels.sgd(config, &w, &g, &mut buffer, beside),
                        _ => kernels.adam((adam, 1), &w, &g, &mut moments, beside),
                    };
                    let sum = sum.unwrap().unwrap_or_else(|| {
                        let pull = Pull {
                            slow: &mut slow,
                            alpha: 0.6,
                            fast,
                        };
                        kernels.pull(&w, pull).unwrap()
                    });
                    sums.push(number(sum));
                }
                (w, slow, sums)
            };
            let parts = run(form.kernels(dtype), false);
            for whole in [run(form.kernels(dtype), true), run(&Composed, true)] {
                assert_near("weights", &whole.0, &parts.0);
                assert_near("slow weights", &whole.1, &parts.1);
                for (whole, part) in whole.2.iter().zip(&parts.2) {
                    // The forms' weights may differ by a rounding.
                    let allowed = if crate::kernels::is_half(dtype) {
                        2e-2
                    } else {
                        1e-5
                    };
                    let allowed = allowed * part.abs().max(1e-12);
                    assert!((whole - part).abs() <= allowed, "{whole} {part}");
                }
            }
        }
    });
}

// Catches a pull from the already pulled weights, a lost part of the gap and a return that copies the
// wrong way.
#[test]
fn a_pull_is_the_composed_pull_and_its_gap_is_exact() {
    for_all(|form, len, dtype| {
        for fast in [Fast::Stay, Fast::Return] {
            let (a, b) = (form.var(len, 0.1, dtype), form.var(len, 0.1, dtype));
            let (mut phi_a, mut phi_b) = (form.wide(len, 0.9, dtype), form.wide(len, 0.9, dtype));
            let difference =
                (crate::kernels::wide(&a.as_detached_tensor()).unwrap() - &phi_a).unwrap();
            let wanted: f64 = values(&difference).iter().map(|d| d * d).sum();
            let got = form
                .kernels(dtype)
                .pull(
                    &a,
                    Pull {
                        slow: &mut phi_a,
                        alpha: 0.7,
                        fast,
                    },
                )
                .unwrap();
            Composed
                .pull(
                    &b,
                    Pull {
                        slow: &mut phi_b,
                        alpha: 0.7,
                        fast,
                    },
                )
                .unwrap();
            testing::SCALAR.assert("gap²", number(got), wanted);
            assert_near("slow", &phi_a, &phi_b);
            assert_near("fast", &a, &b);
            if fast == Fast::Return {
                let rounded = phi_a.to_dtype(dtype).unwrap();
                assert_same_bits("returned", &a, &rounded);
            }
        }
    });
}

// Catches loops over the shorter of two slices, and a first step that is taken for done.
#[test]
fn operands_that_do_not_fit_are_errors_that_change_nothing() {
    let w = var(4, 0.1, DType::F32);
    let before = w.force_contiguous().unwrap();
    let config = sgd_configs()[4].clone();
    for (bad, word) in [
        (wave(3, 0.0, DType::F32), "shape"),
        (wave(4, 0.0, DType::F64), "dtype"),
    ] {
        let mut buffer = None;
        let error = cpu::F32
            .sgd(&config, &w, &bad, &mut buffer, Beside::default())
            .unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
        assert!(buffer.is_none());
        assert!(
            cpu::F32
                .adam(
                    (&adam_configs()[0], 1),
                    &w,
                    &bad,
                    &mut None,
                    Beside::default()
                )
                .is_err()
        );
        assert!(cpu::F32.perturb(&w, &mut None, &bad, 1.0).is_err());
        assert!(cpu::F32.assign(&w, &bad).is_err());
        assert_same_bits("weights", &w, &before);
    }
}
