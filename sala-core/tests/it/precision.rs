//! bf16 and f16 parameters, with and without f32 master copies.

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::Optimizer;
use sala_core::{
    Descend, LossScaler, Minimizer, ParamSet, ParamsAdam, ParamsLossScaler, ParamsSala, ParamsSgd,
    Pass, Sala, Sgd, Stateful,
    catalogue::{Base, Method, build},
    testing::{Tolerance, assert_same_bits, values},
};

use crate::methods::{Problem, bases, combinations};

const HALF: [DType; 2] = [DType::BF16, DType::F16];

fn loss(problem: &Problem) -> f64 {
    values(&problem.loss(Pass::Clean).unwrap())[0]
}

// Catches moments, slow weights or directions in half precision, and dtypes that do not go together.
#[test]
fn every_method_learns_in_half_precision_with_and_without_masters_and_keeps_the_dtype() {
    for (name, base, method) in combinations() {
        for dtype in HALF {
            for masters in [false, true] {
                let problem = Problem::new(dtype);
                let mut params = problem.params();
                if masters {
                    params = params.with_f32_masters().unwrap();
                }
                let before = loss(&problem);
                let mut optimizer = build(params, &base, &method, None).unwrap();
                for _ in 0..30 {
                    optimizer
                        .step(&mut |pass: Pass| problem.loss(pass))
                        .unwrap();
                }
                assert_eq!(problem.first.dtype(), dtype, "{name}");
                let after = loss(&problem);
                let what = format!("{name} in {dtype:?}, masters {masters}");
                assert!(after < 0.85 * before, "{what}: {before} to {after}");
                for slow in optimizer
                    .slow_weights()
                    .iter()
                    .filter_map(|s| s.tensors())
                    .flatten()
                {
                    assert_eq!(slow.dtype(), DType::F32, "{what}");
                }
                for (entry, tensor) in optimizer.state().unwrap().tensors() {
                    assert_eq!(tensor.dtype(), DType::F32, "{what}: {entry}");
                }
            }
        }
    }
}

// Catches masters that are rounded on the way: with them the weights are those of an f32 run, whose
// gradients are taken at rounded weights, rounded once at the end.
#[test]
fn with_masters_half_precision_follows_f32_at_the_documented_tolerance() {
    // The design's tolerance for bf16; f16 has three more bits.
    let tolerance = Tolerance {
        atol: 1e-3,
        rtol: 1e-2,
    };
    for (base_name, base) in bases() {
        for dtype in HALF {
            let (half, full) = (Problem::new(dtype), Problem::new(DType::F32));
            full.first
                .set(&half.first.to_dtype(DType::F32).unwrap())
                .unwrap();
            full.second
                .set(&half.second.to_dtype(DType::F32).unwrap())
                .unwrap();
            let params = half.params().with_f32_masters().unwrap();
            let method = Method::Sala(ParamsSala::default());
            let mut one = build(params, &base, &method, None).unwrap();
            let mut two = build(full.params(), &base, &method, None).unwrap();
            for _ in 0..4 {
                one.step(&mut |pass: Pass| half.loss(pass)).unwrap();
                two.step(&mut |pass: Pass| full.loss(pass)).unwrap();
            }
            for (half, full) in half.weights().iter().zip(&full.weights()) {
                tolerance.assert_tensors(base_name, half, full);
            }
        }
    }
}

// Catches an update that is rounded away: 1000 steps of 2⁻¹² add up only in f32, since bf16's
// neighbours of 1 are 2⁻⁸ and 2⁻⁷ away.
#[test]
fn small_updates_add_up_in_a_master_copy_and_are_lost_without() {
    let run = |masters: bool| {
        let one = Tensor::ones(1, DType::BF16, &Device::Cpu).unwrap();
        let w = Var::from_tensor(&one).unwrap();
        let mut params = ParamSet::new([("w", w.clone())]).unwrap();
        if masters {
            params = params.with_f32_masters().unwrap();
        }
        let config = ParamsSgd {
            lr: 2f64.powi(-12),
            ..Default::default()
        };
        let base = Sgd::new(&params, config).unwrap();
        let mut sgd = Descend::new(params, base);
        for _ in 0..1000 {
            sgd.step(&mut |_: Pass| w.sum_all()).unwrap();
        }
        values(&w)[0]
    };
    assert!((run(false) - 1.0).abs() < 1e-12);
    assert!((run(true) - (1.0 - 1000.0 / 4096.0)).abs() < 4e-3);
}

// Catches a base of another crate that is handed gradients of the model's dtype for f32 masters.
#[test]
fn candles_own_adamw_trains_masters() {
    let problem = Problem::new(DType::BF16);
    let params = problem.params().with_f32_masters().unwrap();
    let config = candle_nn::ParamsAdamW {
        lr: 0.02,
        ..Default::default()
    };
    let base = candle_nn::AdamW::new(params.vars(), config).unwrap();
    let mut sala = Sala::new(params, base, ParamsSala::default()).unwrap();
    let before = loss(&problem);
    for _ in 0..30 {
        sala.step(&mut |pass: Pass| problem.loss(pass)).unwrap();
    }
    assert!(loss(&problem) < 0.85 * before);
}

// Catches gradients that are unscaled in f16, where what the scale had saved would underflow again.
#[test]
fn a_scaled_loss_saves_gradients_that_underflow_in_f16() {
    let run = |scale: f64| {
        let start = Tensor::ones(1, DType::F16, &Device::Cpu).unwrap();
        let w = Var::from_tensor(&start).unwrap();
        let params = ParamSet::new([("w", w.clone())]).unwrap();
        let params = params.with_f32_masters().unwrap();
        let config = ParamsSgd {
            lr: 2e7,
            ..Default::default()
        };
        let base = Sgd::new(&params, config).unwrap();
        let mut sgd = Descend::new(params, base);
        let config = ParamsLossScaler {
            initial: scale,
            ..Default::default()
        };
        let mut scaler = LossScaler::new(config).unwrap();
        // The gradient 2⁻²⁶ is a quarter of f16's least positive number.
        let mut loss = |_: Pass| -> candle_core::Result<Tensor> {
            w.to_dtype(DType::F32)?
                .affine(2f64.powi(-26), 0.0)?
                .sum_all()
        };
        scaler.step(&mut sgd, &mut loss).unwrap().unwrap();
        1.0 - values(&w)[0]
    };
    assert!(run(1.0).abs() < 1e-12, "without a scale it is lost");
    let wanted = 2e7 * 2f64.powi(-26);
    assert!((run(65_536.0) - wanted).abs() < 1e-2 * wanted);
}

// Catches a state without the masters: half-precision weights alone do not carry them.
#[test]
fn a_run_with_masters_resumes_to_the_same_bits() {
    for (name, base, method) in combinations() {
        let start = |problem: &Problem| {
            let params = problem.params().with_f32_masters().unwrap();
            build(params, &base, &method, None).unwrap()
        };
        let whole = Problem::new(DType::BF16);
        let mut optimizer = start(&whole);
        let advance = |problem: &Problem, optimizer: &mut dyn Minimizer, steps: usize| {
            for _ in 0..steps {
                optimizer
                    .step(&mut |pass: Pass| problem.loss(pass))
                    .unwrap();
            }
        };
        advance(&whole, &mut optimizer, 5);
        let state = optimizer.state().unwrap();
        let resumed = Problem::new(DType::BF16);
        let mut second = start(&resumed);
        second.load_state(&state).unwrap();
        for (got, wanted) in resumed.weights().iter().zip(&whole.weights()) {
            assert_same_bits(&format!("{name}: published"), got, wanted);
        }
        advance(&whole, &mut optimizer, 6);
        advance(&resumed, &mut second, 6);
        for (got, wanted) in resumed.weights().iter().zip(&whole.weights()) {
            assert_same_bits(&name, got, wanted);
        }
    }
}

// Catches a perturbation that the network does not see.
#[test]
fn the_model_sees_perturbed_masters() {
    let problem = Problem::new(DType::BF16);
    let params = problem.params().with_f32_masters().unwrap();
    let base = Base::Adam(ParamsAdam::default());
    let method = Method::Sam(sala_core::ParamsSam {
        rho: 1.0,
        ..Default::default()
    });
    let mut optimizer = build(params, &base, &method, None).unwrap();
    let before = values(&problem.first);
    let mut moved = false;
    optimizer
        .step(&mut |pass: Pass| {
            moved |= pass == Pass::Perturbed && values(&problem.first) != before;
            problem.loss(pass)
        })
        .unwrap();
    assert!(moved);
}
