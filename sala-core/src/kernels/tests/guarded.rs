//! Updates that the device makes only if what they depend on is finite.

use super::*;
use crate::{
    Clip, Descend, Evaluation, Gsam, MicroBatches, Minimizer, ParamsGsam, ParamsLookahead,
    ParamsSam, Pass, Sam,
    kernels::{Guard, batch::emulated::log, run_under},
    slow::Lookahead,
};

/// A step with a pull of weights of this type under a guard on `numbers`; yields weights, buffer, slow weights and
/// Σ (θ − φ₀)².
fn step(dtype: DType, numbers: Option<(&[f64], f64)>, factor: f64) -> (Var, [Tensor; 2], f64) {
    const LEN: usize = 5 * 16_384 + 17;
    with_choice(Choice::Emulated, || {
        let guard = numbers.map(|(numbers, limit)| {
            let numbers = Tensor::new(numbers, &Device::Cpu).unwrap();
            Guard::new(&numbers, limit).unwrap().unwrap()
        });
        let w = var(LEN, 0.1, dtype);
        let wide = crate::kernels::wide_dtype(dtype);
        let gradient = (wave(LEN, 0.7, wide) * factor).unwrap();
        let mut buffer = Some(wave(LEN, 0.4, wide));
        let mut slow = wave(LEN, 0.2, wide);
        let sum = run_under(guard.as_ref(), [w.as_tensor()], |session| {
            let pull = Some(Pull {
                slow: &mut slow,
                alpha: 0.8,
                fast: Fast::Return,
            });
            let beside = Beside { from: None, pull };
            let kernels = session.of(&w);
            Ok(kernels.sgd(&sgd_configs()[4], &w, &gradient, &mut buffer, beside)?)
        });
        let sum = number(sum.unwrap().unwrap());
        (w, [buffer.unwrap(), slow], sum)
    })
}

// Catches a verdict that is not obeyed, or by one block only; and a norm that the loss counts in.
#[test]
fn updates_are_made_where_all_numbers_are_finite_and_with_the_factor_of_the_clip() {
    for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
        let assert_same = |numbers, limit, factor| {
            let (w, others, sum) = step(dtype, Some((numbers, limit)), 1.0);
            let (wanted, wanted_others, wanted_sum) = step(dtype, None, factor);
            assert_same_bits("weights", &w, &wanted);
            assert_same_bits("momentum", &others[0], &wanted_others[0]);
            assert_same_bits("slow", &others[1], &wanted_others[1]);
            assert_eq!(sum.to_bits(), wanted_sum.to_bits());
        };
        assert_same(&[1e9, 9.0, 16.0], f64::INFINITY, 1.0);
        assert_same(&[1e9, 9.0, 16.0], 5.0, 1.0);
        assert_same(&[-1e9, 9.0, 16.0], 2.5, 0.5);
        // More numbers than a block has threads.
        let mut many = [0.0; 600];
        (many[0], many[256], many[599]) = (1e9, 9.0, 16.0);
        assert_same(&many, 2.5, 0.5);
        let before = |phase, dtype| wave(5 * 16_384 + 17, phase, dtype);
        let wide = crate::kernels::wide_dtype(dtype);
        many[300] = f64::NAN;
        for bad in [
            &[f64::NAN, 9.0, 16.0][..],
            &[1.0, f64::INFINITY, 16.0],
            &[1.0, 9.0, f64::NEG_INFINITY],
            &many,
        ] {
            let (w, others, _) = step(dtype, Some((bad, 2.5)), 1.0);
            assert_same_bits("weights", &w, &before(0.1, dtype));
            assert_same_bits("momentum", &others[0], &before(0.4, wide));
            assert_same_bits("slow", &others[1], &before(0.2, wide));
        }
    }
}

// Catches numbers that are sent to another place, or only as many as a block has threads.
#[test]
fn the_host_gets_all_numbers_as_they_are() {
    let numbers: Vec<f64> = (0..600).map(|i| f64::from(i).sin()).collect();
    let got = with_choice(Choice::Emulated, || {
        let on_card = Tensor::new(&numbers[..], &Device::Cpu).unwrap();
        let guard = Guard::new(&on_card, 1.0).unwrap().unwrap();
        guard.numbers().unwrap()
    });
    assert_eq!(got, numbers);
}

// Catches a host that looks at the gradients' norms before it asks for the update: the card would have nothing to do
// meanwhile.
#[test]
fn an_update_is_queued_before_the_host_waits_for_what_it_depends_on() {
    with_choice(Choice::Emulated, || {
        let w = var(40, 0.1, DType::F32);
        let params = ParamSet::new([("w", w.clone())]).unwrap();
        let base = || Sgd::new(&params, ParamsSgd::default()).unwrap();
        let lookahead = ParamsLookahead {
            k: 1,
            ..Default::default()
        };
        let clip = Clip::Norm(0.1);
        let mut plain = Descend::new(params.clone(), base())
            .with_clip(clip)
            .unwrap();
        let mut pulls = Lookahead::new(params.clone(), base(), lookahead).unwrap();
        let mut loss = |_: Pass| w.sqr()?.sum_all();
        for (optimizer, rest) in [
            (&mut plain as &mut dyn Minimizer, &["receive"][..]),
            (&mut pulls, &["total", "receive"]),
        ] {
            log::take();
            optimizer.step(&mut loss).unwrap();
            let mut wanted = vec!["squared_norm_f32", "total", "judge", "sgd_f32"];
            wanted.extend(rest);
            assert_eq!(log::take(), wanted);
        }
    });
}

// Catches a factor of the loss that is taken off in half precision, where small gradients become zero.
#[test]
fn small_gradients_of_half_precision_outlive_the_factor_of_their_loss() {
    with_choice(Choice::Emulated, || {
        let w = Var::ones(4, DType::F16, &Device::Cpu).unwrap();
        let params = ParamSet::new([("w", w.clone())]).unwrap();
        let params = params.with_f32_masters().unwrap();
        let config = ParamsSgd {
            lr: 1e6,
            ..Default::default()
        };
        let mut optimizer = Descend::new(params.clone(), Sgd::new(&params, config).unwrap());
        // The gradient 2⁻²⁶ is below f16's smallest number, 2⁻²⁴.
        let loss = (w.sum_all().unwrap() * 2f64.powi(-10)).unwrap();
        let mut evaluation = Evaluation::of_scaled_loss(loss, 1.0).unwrap();
        evaluation.scale = 2f64.powi(16);
        optimizer.begin().unwrap();
        let _ = optimizer.first_step(evaluation).unwrap();
        let wanted = 1.0 - 1e6 * 2f64.powi(-26);
        for got in values(params.vars()[0].as_tensor()) {
            FUSED_F32.assert("master", got, wanted);
        }
    });
}

// Catches gradients that are written once more, in f32, for an update of f32 masters.
#[test]
fn masters_are_updated_by_gradients_of_half_precision() {
    with_choice(Choice::Emulated, || {
        let w = var(40, 0.1, DType::BF16);
        let params = ParamSet::new([("w", w.clone())]).unwrap();
        let params = params.with_f32_masters().unwrap();
        let base = Sgd::new(&params, ParamsSgd::default()).unwrap();
        let mut optimizer = Descend::new(params, base);
        log::take();
        optimizer.step(&mut |_: Pass| w.sqr()?.sum_all()).unwrap();
        let wanted = [
            "squared_norm_bf16",
            "total",
            "judge",
            "sgd_f32",
            "round_bf16",
            "receive",
        ];
        assert_eq!(log::take(), wanted);
    });
}

/// Two weights of bf16 with f32 masters, and a loss of them.
fn two_weights() -> (ParamSet, impl FnMut(Pass) -> candle_core::Result<Tensor>) {
    let (a, b) = (var(40, 0.1, DType::BF16), var(7, 0.5, DType::BF16));
    let params = ParamSet::new([("a", a.clone()), ("b", b.clone())]).unwrap();
    let loss = move |_: Pass| a.sqr()?.sum_all()? + b.sqr()?.sum_all()?;
    (params.with_f32_masters().unwrap(), loss)
}

/// What the steps of an optimizer launch, but for the sums and the norms.
fn launches(step: impl FnOnce()) -> Vec<String> {
    log::take();
    step();
    let mut launched = log::take();
    launched.retain(|name| !["total", "receive"].contains(&name.as_str()));
    launched
}

// Catches gradients that are written once more, in f32, to climb along them, and a launch for each tensor.
#[test]
fn an_ascent_goes_along_gradients_of_half_precision() {
    with_choice(Choice::Emulated, || {
        let (params, mut loss) = two_weights();
        let base = Sgd::new(&params, ParamsSgd::default()).unwrap();
        let mut sam = Sam::new(params, base, ParamsSam::default()).unwrap();
        sam.step(&mut loss).unwrap();
        let wanted = [
            "squared_norm_bf16",
            "offset_f32",
            "round_bf16",
            "squared_norm_bf16",
            "round_bf16",
            "judge",
            "sgd_f32",
            "round_bf16",
        ];
        let got = launches(|| {
            sam.step(&mut loss).unwrap();
        });
        assert_eq!(got, wanted);
    });
}

// Catches a product of gradients of which one is rounded to the other's precision.
#[test]
fn a_blend_of_gradients_of_half_precision_is_computed_in_f32() {
    with_choice(Choice::Emulated, || {
        let (params, mut loss) = two_weights();
        let base = Sgd::new(&params, ParamsSgd::default()).unwrap();
        let mut gsam = Gsam::new(params, base, ParamsGsam::default()).unwrap();
        let mut got = launches(|| {
            gsam.step(&mut loss).unwrap();
        });
        got.retain(|name| !name.starts_with("round"));
        // The gradient at the weights is kept, so it is widened; then the other one is, for their product and their sum.
        let mut wanted = vec!["squared_norm_bf16", "offset_f32", "combine_f32"];
        wanted.extend(["squared_norm_bf16", "combine_f32", "dot_f32", "combine_f32"]);
        wanted.push("sgd_f32");
        assert_eq!(got, wanted);
    });
}

// Catches a launch for each tensor, and one to widen gradients before the one that works on them.
#[test]
fn what_becomes_of_gradients_before_an_update_is_one_launch_for_all() {
    with_choice(Choice::Emulated, || {
        let (params, mut loss) = two_weights();
        let descend = |clip: Option<Clip>| {
            let base = Sgd::new(&params, ParamsSgd::default()).unwrap();
            let optimizer = Descend::new(params.clone(), base);
            match clip {
                Some(clip) => optimizer.with_clip(clip).unwrap(),
                None => optimizer,
            }
        };
        let update = ["judge", "sgd_f32", "round_bf16"];
        let clipped = launches(|| {
            let mut optimizer = descend(Some(Clip::Value(0.1)));
            optimizer.step(&mut loss).unwrap();
        });
        let mut wanted = vec!["squared_norm_bf16", "judge", "clamp_f32"];
        wanted.extend(&update[1..]);
        assert_eq!(clipped, wanted);

        let scaled = launches(|| {
            let mut optimizer = descend(None);
            let loss = loss(Pass::Clean).unwrap();
            optimizer.begin().unwrap();
            let evaluation = Evaluation::of_scaled_loss(loss, 8.0).unwrap();
            let _ = optimizer.first_step(evaluation).unwrap();
        });
        let mut wanted = vec!["combine_f32", "squared_norm_f32"];
        wanted.extend(update);
        assert_eq!(scaled, wanted);

        let in_parts = launches(|| {
            let mut loss = |_: usize, pass: Pass| loss(pass);
            let mut parts = MicroBatches::new(&params, 3, &mut loss);
            descend(None).step(&mut parts).unwrap();
        });
        // A copy of the first part, to which the others are added, and the mean.
        let mut wanted = vec!["combine_f32", "accumulate_f32", "accumulate_f32"];
        wanted.extend(["combine_f32", "squared_norm_f32"]);
        wanted.extend(update);
        assert_eq!(in_parts, wanted);
    });
}
