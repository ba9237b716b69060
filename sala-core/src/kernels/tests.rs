//! The fused kernels against the composed form, at every length where a loop could go wrong.

use candle_core::{DType, Device, Tensor, Var, backprop::GradStore};
use candle_nn::Optimizer;

#[cfg(any(feature = "cuda", sala_emulated))]
use super::batch::Batch;
use super::{
    Beside, Choice, Fast, Kernels, Pull, Scalar, Session, access, composed::Composed, cpu,
    with_choice,
};
use crate::{
    Adam, ParamSet, ParamsAdam, ParamsSgd, Sgd, Stateful, testing,
    testing::{FUSED_F32, TRAJECTORY_F64, Tolerance, assert_same_bits, values},
};

const CHUNK: usize = cpu::CHUNK;

/// Empty, one, around the lanes' and the registers' widths, around one chunk, several and a rest.
const LENGTHS: [usize; 13] = [
    0,
    1,
    7,
    63,
    64,
    65,
    CHUNK - 1,
    CHUNK,
    CHUNK + 1,
    2 * CHUNK,
    5 * CHUNK + 17,
    // A norm's piece is four chunks.
    4 * CHUNK + 1,
    9 * CHUNK + 33,
];

const DTYPES: [DType; 2] = [DType::F32, DType::F64];

fn tolerance(dtype: DType) -> Tolerance {
    match dtype {
        DType::F64 => TRAJECTORY_F64,
        DType::F32 => FUSED_F32,
        // Both forms compute in f32: a last bit may still fall the other way.
        _ => Tolerance {
            atol: 1e-3,
            rtol: 1e-2,
        },
    }
}

fn fused(dtype: DType) -> &'static dyn Kernels {
    if dtype == DType::F64 {
        &cpu::F64
    } else {
        &cpu::F32
    }
}

/// A fused implementation, where its tensors are, and what it computes.
struct Form {
    name: &'static str,
    device: Device,
    dtypes: &'static [DType],
    #[cfg(any(feature = "cuda", sala_emulated))]
    batch: Option<Batch>,
}

impl Form {
    fn cpu() -> Self {
        Self {
            name: "cpu",
            device: Device::Cpu,
            dtypes: &DTYPES,
            #[cfg(any(feature = "cuda", sala_emulated))]
            batch: None,
        }
    }

    #[cfg(any(feature = "cuda", sala_emulated))]
    fn batch(name: &'static str, device: Device, batch: Batch) -> Self {
        Self {
            name,
            device,
            dtypes: &[DType::F32, DType::F64, DType::BF16, DType::F16],
            batch: Some(batch.eager()),
        }
    }

    /// The graphics card of number 0.
    #[cfg(feature = "cuda")]
    fn card() -> candle_core::Result<Self> {
        let device = Device::new_cuda_with_stream(0)?;
        let Some(batch) = Batch::on_card(&device) else {
            candle_core::bail!("a CUDA device without kernels");
        };
        Ok(Self::batch("cuda", device, batch))
    }

    fn kernels(&self, dtype: DType) -> &dyn Kernels {
        #[cfg(any(feature = "cuda", sala_emulated))]
        if let Some(batch) = &self.batch {
            return batch;
        }
        fused(dtype)
    }

    fn wave(&self, len: usize, phase: f64, dtype: DType) -> Tensor {
        wave(len, phase, dtype).to_device(&self.device).unwrap()
    }

    /// As slow weights, buffers and directions are: f32 for half precision.
    fn wide(&self, len: usize, phase: f64, dtype: DType) -> Tensor {
        self.wave(len, phase, super::wide_dtype(dtype))
    }

    fn var(&self, len: usize, phase: f64, dtype: DType) -> Var {
        Var::from_tensor(&self.wave(len, phase, dtype)).unwrap()
    }
}

/// What the tests are for: the CPU's kernels; those for graphics cards, run on the processor; and on a card, if there
/// is one.
fn forms() -> Vec<Form> {
    #[cfg_attr(
        not(any(feature = "cuda", sala_emulated)),
        expect(unused_mut, reason = "there is only one form")
    )]
    let mut forms = vec![Form::cpu()];
    #[cfg(sala_emulated)]
    forms.push(Form::batch("emulated", Device::Cpu, Batch::emulated()));
    #[cfg(feature = "cuda")]
    forms.extend(Form::card());
    forms
}

// Says in every list of tests whether the others have been run on a card: without one they pass on the
// processor.
#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs an NVIDIA graphics card: on one run `cargo test -p sala-core --features cuda -- --include-ignored`"]
fn the_tests_of_kernels_have_been_run_on_a_graphics_card() {
    if let Err(error) = Form::card() {
        panic!("there is no graphics card: the other tests ran on the processor alone ({error})");
    }
    assert!(forms().iter().any(|form| form.name == "cuda"));
}

/// Values in (−1, 1) that do not repeat within a chunk.
fn wave(len: usize, phase: f64, dtype: DType) -> Tensor {
    let values: Vec<f64> = (0..len).map(|i| (0.37 * i as f64 + phase).sin()).collect();
    let tensor = Tensor::from_vec(values, len, &Device::Cpu).unwrap();
    tensor.to_dtype(dtype).unwrap()
}

fn var(len: usize, phase: f64, dtype: DType) -> Var {
    Var::from_tensor(&wave(len, phase, dtype)).unwrap()
}

fn for_all(work: impl Fn(&Form, usize, DType)) {
    for form in forms() {
        for &dtype in form.dtypes {
            for len in LENGTHS {
                work(&form, len, dtype);
            }
        }
    }
}

fn assert_near(what: &str, got: &Tensor, wanted: &Tensor) {
    tolerance(got.dtype()).assert_tensors(&format!("{what}, {:?}", got.shape()), got, wanted);
}

fn number(scalar: Scalar) -> f64 {
    match scalar {
        Scalar::Host(x) => x,
        Scalar::Device(t) => values(&t)[0],
        Scalar::Summed(sums, at) => values(sums.get().unwrap())[at],
    }
}

fn sgd_configs() -> Vec<ParamsSgd> {
    let plain = ParamsSgd {
        lr: 0.1,
        ..Default::default()
    };
    let decayed = ParamsSgd {
        weight_decay: 0.05,
        ..plain.clone()
    };
    let damped = ParamsSgd {
        momentum: 0.9,
        dampening: 0.3,
        weight_decay: 0.05,
        decoupled: true,
        ..plain.clone()
    };
    let nesterov = ParamsSgd {
        momentum: 0.9,
        nesterov: true,
        ..decayed.clone()
    };
    let decoupled = ParamsSgd {
        decoupled: true,
        ..decayed.clone()
    };
    vec![plain, decayed, decoupled, damped, nesterov]
}

fn adam_configs() -> Vec<ParamsAdam> {
    let coupled = ParamsAdam {
        lr: 0.01,
        weight_decay: 0.1,
        ..Default::default()
    };
    vec![ParamsAdam::default(), coupled, ParamsAdam::adamw()]
}

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

// Catches elements that a sum leaves out or counts twice. The reference sums in f64: a sum of 80 000
// squares in f32 is not that exact.
#[test]
fn a_squared_norm_counts_every_element_once() {
    for_all(|form, len, dtype| {
        let x = form.wave(len, 0.2, dtype);
        let wanted: f64 = values(&x).iter().map(|x| x * x).sum();
        let got = number(form.kernels(dtype).squared_norm(&x).unwrap());
        testing::SCALAR.assert(&format!("{len} elements"), got, wanted);
    });
}

// Catches a difference that is hidden from the step's check: a lane, rest or chunk whose sum is lost.
#[test]
fn one_element_that_is_not_finite_shows_in_the_norm_wherever_it_is() {
    const PLACES: [usize; 8] = [
        0,
        15,
        16,
        CHUNK - 1,
        CHUNK,
        4 * CHUNK - 1,
        4 * CHUNK,
        4 * CHUNK + 60,
    ];
    for form in forms() {
        for (&dtype, at) in form.dtypes.iter().flat_map(|d| PLACES.map(|at| (d, at))) {
            for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                let mut x = vec![1.0; 4 * CHUNK + 61];
                x[at] = bad;
                let x = Tensor::new(x, &form.device)
                    .unwrap()
                    .to_dtype(dtype)
                    .unwrap();
                let norm = number(form.kernels(dtype).squared_norm(&x).unwrap());
                assert_eq!(norm.is_nan(), bad.is_nan(), "{}: {bad} at {at}", form.name);
                assert!(!norm.is_finite(), "{}: {bad} at {at}", form.name);
            }
        }
    }
}

// Catches a saved copy that is taken after the move, and a scale that is forgotten.
#[test]
fn a_perturbation_saves_the_weights_bit_for_bit_and_moves_them() {
    for_all(|form, len, dtype| {
        let (a, b) = (form.var(len, 0.1, dtype), form.var(len, 0.1, dtype));
        let direction = form.wide(len, 2.0, dtype);
        let (mut saved, mut saved_b) = (None, None);
        // Twice, so that the second time meets buffers in use.
        for _ in 0..2 {
            let before = a.force_contiguous().unwrap();
            let fused = form.kernels(dtype);
            fused.perturb(&a, &mut saved, &direction, 0.3).unwrap();
            Composed.perturb(&b, &mut saved_b, &direction, 0.3).unwrap();
            assert_near("perturbed", &a, &b);
            assert_same_bits("saved", saved.as_ref().unwrap(), &before);
            fused.exchange(&a, saved.as_mut().unwrap()).unwrap();
            assert_same_bits("restored", &a, &before);
            assert_near("exchanged", saved.as_ref().unwrap(), &b);
            Composed.exchange(&b, saved_b.as_mut().unwrap()).unwrap();
            assert_same_bits("restored, composed", &b, &before);
            b.set(&a.as_detached_tensor().force_contiguous().unwrap())
                .unwrap();
        }
    });
}

// Catches a storage that is exchanged although the tensor is only a part of it.
#[test]
fn an_exchange_leaves_the_rest_of_a_shared_storage_alone() {
    for dtype in DTYPES {
        let whole = wave(12, 0.3, dtype);
        let rows = whole.reshape((3, 4)).unwrap();
        let (middle, other) = (rows.get(1).unwrap(), wave(4, 0.8, dtype));
        let wanted = (values(&middle), values(&other));
        if dtype == DType::F32 {
            access::exchange::<f32>(&middle, &other).unwrap();
        } else {
            access::exchange::<f64>(&middle, &other).unwrap();
        }
        assert_eq!((values(&other), values(&middle)), wanted);
        let untouched = wave(12, 0.3, dtype);
        assert_eq!(values(&whole)[..4], values(&untouched)[..4]);
        assert_eq!(values(&whole)[8..], values(&untouched)[8..]);
    }
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
                    let allowed = if super::is_half(dtype) { 2e-2 } else { 1e-5 };
                    let allowed = allowed * part.abs().max(1e-12);
                    assert!((whole - part).abs() <= allowed, "{whole} {part}");
                }
            }
        }
    });
}

// Catches a factor that is left out, and magnitudes without their offset.
#[test]
fn products_sums_and_adaptive_directions_are_the_composed_ones() {
    for_all(|form, len, dtype| {
        let (x, y) = (form.wave(len, 0.2, dtype), form.wave(len, 1.1, dtype));
        let wanted: f64 = values(&x).iter().zip(values(&y)).map(|(x, y)| x * y).sum();
        let got = number(form.kernels(dtype).dot(&x, &y).unwrap());
        let near = testing::Tolerance {
            atol: 1e-9,
            rtol: 1e-9,
        };
        near.assert("dot", got, wanted);

        let (mut a, mut b) = (y.force_contiguous().unwrap(), y.force_contiguous().unwrap());
        form.kernels(dtype).accumulate(&mut a, &x, 0.3).unwrap();
        Composed.accumulate(&mut b, &x, 0.3).unwrap();
        assert_near("sum", &a, &b);

        let (w, x) = (form.var(len, 0.4, dtype), form.wide(len, 0.2, dtype));
        let (a, sum) = form.kernels(dtype).adaptive(&w, &x, 0.01).unwrap();
        let (b, _) = Composed.adaptive(&w, &x, 0.01).unwrap();
        assert_near("adaptive direction", &a, &b);
        let scaled = values(&w).into_iter().zip(values(&x));
        let wanted: f64 = scaled.map(|(w, g)| ((w.abs() + 0.01) * g).powi(2)).sum();
        let allowed = if dtype == DType::F64 { 1e-12 } else { 1e-5 };
        assert!((number(sum) - wanted).abs() <= allowed * wanted.max(1e-12));
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
            let difference = (super::wide(&a.as_detached_tensor()).unwrap() - &phi_a).unwrap();
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

// Catches a kernel that reads a storage from its start, or in storage order.
#[test]
fn strided_and_shifted_gradients_are_read_as_what_they_are() {
    let forms = forms();
    let each = forms
        .iter()
        .flat_map(|f| f.dtypes.iter().map(move |&d| (f, d)));
    for (form, dtype) in each {
        let transposed = form
            .wide(6, 0.4, dtype)
            .reshape((3, 2))
            .unwrap()
            .t()
            .unwrap();
        let shifted = form
            .wide(24, 0.4, dtype)
            .reshape((4, 2, 3))
            .unwrap()
            .get(2)
            .unwrap();
        let broadcast = form.wide(3, 0.4, dtype).broadcast_as((2, 3)).unwrap();
        for g in [transposed, shifted, broadcast] {
            let w = form.wave(6, 0.1, dtype).reshape((2, 3)).unwrap();
            let run = |kernels: &dyn Kernels| {
                let w = Var::from_tensor(&w).unwrap();
                kernels
                    .sgd(&sgd_configs()[4], &w, &g, &mut None, Beside::default())
                    .unwrap();
                kernels
                    .adam(
                        (&adam_configs()[2], 1),
                        &w,
                        &g,
                        &mut None,
                        Beside::default(),
                    )
                    .unwrap();
                kernels.perturb(&w, &mut None, &g, 0.1).unwrap();
                (w, number(kernels.squared_norm(&g).unwrap()))
            };
            let (a, b) = (run(form.kernels(dtype)), run(&Composed));
            assert_near("weights", &a.0, &b.0);
            tolerance(super::wide_dtype(dtype)).assert("norm", a.1, b.1);
        }
    }
}

// Catches a lock that is taken twice, which would hang: the gradient of ½‖w‖² is w itself.
#[test]
fn a_gradient_that_is_the_weights_themselves_is_copied() {
    let run = |kernels: &dyn Kernels| {
        let w = var(65, 0.1, DType::F32);
        let g = w.as_detached_tensor();
        kernels
            .sgd(&sgd_configs()[4], &w, &g, &mut None, Beside::default())
            .unwrap();
        kernels
            .adam(
                (&adam_configs()[0], 1),
                &w,
                &g,
                &mut None,
                Beside::default(),
            )
            .unwrap();
        kernels.perturb(&w, &mut None, &g, 0.1).unwrap();
        w
    };
    assert_near("weights", &run(&cpu::F32), &run(&Composed));
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

/// Everything that the kernels compute, on tensors of several chunks.
fn everything(dtype: DType) -> (Vec<Tensor>, Vec<u64>) {
    let len = 9 * CHUNK + 31;
    let (w, g) = (var(len, 0.1, dtype), wave(len, 0.5, dtype));
    let kernels = fused(dtype);
    let (mut buffer, mut moments, mut saved) = (None, None, None);
    let mut phi = wave(len, 0.3, dtype);
    kernels
        .sgd(&sgd_configs()[4], &w, &g, &mut buffer, Beside::default())
        .unwrap();
    kernels
        .adam(
            (&adam_configs()[2], 1),
            &w,
            &g,
            &mut moments,
            Beside::default(),
        )
        .unwrap();
    kernels.perturb(&w, &mut saved, &g, 0.1).unwrap();
    let norm = kernels.squared_norm(&g).unwrap();
    let gap = kernels
        .pull(
            &w,
            Pull {
                slow: &mut phi,
                alpha: 0.8,
                fast: Fast::Stay,
            },
        )
        .unwrap();
    let bits = [norm, gap].map(|s| number(s).to_bits()).to_vec();
    let (m, v) = moments.unwrap();
    let tensors = vec![
        w.as_detached_tensor(),
        buffer.unwrap(),
        m,
        v,
        saved.unwrap(),
        phi,
    ];
    (tensors, bits)
}

// Catches sums in the order in which threads finish, and a split that depends on how many there are.
#[test]
fn the_number_of_threads_does_not_show_in_a_single_bit() {
    for dtype in DTYPES {
        let wanted = everything(dtype);
        for threads in [1, 2, 3, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let got = pool.build().unwrap().install(|| everything(dtype));
            assert_eq!(got.1, wanted.1, "sums with {threads} threads");
            for (got, wanted) in got.0.iter().zip(&wanted.0) {
                assert_same_bits(&format!("{threads} threads"), got, wanted);
            }
        }
    }
}

fn address(tensor: &Tensor) -> usize {
    access::read::<f32, _>(tensor, |x| Ok(x.as_ptr().addr())).unwrap()
}

// Catches an allocation in the steady state, which costs more than the arithmetic.
#[test]
fn weights_and_buffers_stay_where_they_are() {
    let (w, g) = (var(100, 0.1, DType::F32), wave(100, 0.5, DType::F32));
    let (mut buffer, mut moments, mut saved) = (None, None, None);
    let mut phi = wave(100, 0.3, DType::F32);
    let mut seen = Vec::new();
    for t in 1..4 {
        let kernels = Session::new(Choice::Auto);
        let kernels = kernels.of(&w);
        kernels
            .sgd(&sgd_configs()[4], &w, &g, &mut buffer, Beside::default())
            .unwrap();
        kernels
            .adam(
                (&adam_configs()[2], t),
                &w,
                &g,
                &mut moments,
                Beside::default(),
            )
            .unwrap();
        kernels.perturb(&w, &mut saved, &g, 0.1).unwrap();
        kernels.exchange(&w, saved.as_mut().unwrap()).unwrap();
        kernels
            .pull(
                &w,
                Pull {
                    slow: &mut phi,
                    alpha: 0.8,
                    fast: Fast::Return,
                },
            )
            .unwrap();
        let (m, v) = moments.as_ref().unwrap();
        let all = [
            &w,
            buffer.as_ref().unwrap(),
            m,
            v,
            saved.as_ref().unwrap(),
            &phi,
        ];
        seen.push(all.map(address));
    }
    assert!(seen[0] == seen[1] && seen[1] == seen[2], "{seen:?}");
}

// Catches a state that holds the buffers themselves, which the next step then changes in place.
#[test]
fn a_saved_state_does_not_follow_the_buffers() {
    fn check<O: Optimizer + Stateful>(mut optimizer: O, grads: &GradStore) {
        with_choice(Choice::Auto, || {
            optimizer.step(grads).unwrap();
            let state = optimizer.state().unwrap();
            let before: Vec<_> = state.tensors.values().map(values).collect();
            optimizer.step(grads).unwrap();
            assert!(!before.is_empty());
            assert_eq!(
                before,
                state.tensors.values().map(values).collect::<Vec<_>>()
            );
            // Loading must not tie the optimizer to the state either.
            optimizer.load_state(&state).unwrap();
            optimizer.step(grads).unwrap();
            assert_eq!(
                before,
                state.tensors.values().map(values).collect::<Vec<_>>()
            );
        });
    }
    let w = var(5, 0.1, DType::F32);
    let params = ParamSet::new([("w", w.clone())]).unwrap();
    let grads = w.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    check(Sgd::new(&params, sgd_configs()[4].clone()).unwrap(), &grads);
    check(
        Adam::new(&params, adam_configs()[2].clone()).unwrap(),
        &grads,
    );
}

// Catches half precision or a forced choice that is sent to kernels that cannot or must not do it.
#[test]
fn only_f32_and_f64_on_the_cpu_are_fused_and_only_if_that_is_allowed() {
    let is_fused = |choice: Choice, t: &Tensor| {
        matches!(
            Session::new(choice).of(t).squared_norm(t).unwrap(),
            Scalar::Host(_)
        )
    };
    for dtype in [DType::F16, DType::BF16] {
        assert!(!is_fused(Choice::Auto, &wave(3, 0.1, dtype)));
    }
    for dtype in DTYPES {
        assert!(is_fused(Choice::Auto, &wave(3, 0.1, dtype)));
        assert!(!is_fused(Choice::Composed, &wave(3, 0.1, dtype)));
    }
}

#[test]
fn the_environment_allows_two_values_and_names_them() {
    assert_eq!(Choice::parse(None).unwrap(), Choice::Auto);
    assert_eq!(Choice::parse(Some("auto")).unwrap(), Choice::Auto);
    assert_eq!(Choice::parse(Some("composed")).unwrap(), Choice::Composed);
    let message = Choice::parse(Some("fast")).unwrap_err().to_string();
    assert_eq!(
        message,
        "environment.SALA_KERNELS must be `auto` or `composed`, got fast"
    );
}

#[cfg(sala_emulated)]
mod recorded {
    use super::*;

    fn named(numbers: &[f64]) -> Tensor {
        Tensor::new(numbers, &Device::Cpu).unwrap()
    }

    // Catches work that is queued before what it needs, or with addresses of after an exchange.
    #[test]
    fn work_on_the_same_tensors_is_done_in_its_order() {
        let batch = Batch::emulated();
        let w = Var::from_tensor(&named(&[1.0, 2.0])).unwrap();
        let mut other = named(&[10.0, 20.0]);
        batch.assign(&w, &named(&[3.0, 4.0])).unwrap();
        // w is (3, 4) for the norm, and other after the exchange.
        let norm = batch.squared_norm(&w).unwrap();
        batch.exchange(&w, &mut other).unwrap();
        batch
            .accumulate(&mut other, &named(&[1.0, 1.0]), 2.0)
            .unwrap();
        let plain = ParamsSgd {
            lr: 0.5,
            ..Default::default()
        };
        let gradient = other.clone();
        batch
            .sgd(&plain, &w, &gradient, &mut None, Beside::default())
            .unwrap();
        batch.finish().unwrap();
        assert_eq!(number(norm).to_bits(), 25f64.to_bits());
        assert_eq!(values(&other), [5.0, 6.0]);
        assert_eq!(values(&w), [10.0 - 2.5, 20.0 - 3.0]);
    }

    // Catches a memory exchange where only a part of a storage is meant.
    #[test]
    fn parts_of_a_storage_change_places_element_by_element() {
        let batch = Batch::emulated();
        let whole = named(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let mut middle = whole.narrow(0, 2, 3).unwrap();
        let w = Var::from_tensor(&named(&[7.0, 8.0, 9.0])).unwrap();
        batch.exchange(&w, &mut middle).unwrap();
        batch.finish().unwrap();
        assert_eq!(values(&w), [2.0, 3.0, 4.0]);
        assert_eq!(values(&whole), [0.0, 1.0, 7.0, 8.0, 9.0, 5.0]);
    }

    // Catches addresses that are loaded several elements at a time although they are not aligned, and operands that
    // share memory with what is written.
    #[test]
    fn shifted_and_shared_operands_are_read_as_they_were() {
        let batch = Batch::emulated();
        let whole = wave(40, 0.3, DType::F32);
        let shifted = whole.narrow(0, 1, 33).unwrap();
        let norm = batch.squared_norm(&shifted).unwrap();
        let (a, b) = (var(33, 0.1, DType::F32), var(33, 0.1, DType::F32));
        for (kernels, w) in [(&batch as &dyn Kernels, &a), (&Composed, &b)] {
            let own = w.as_detached_tensor();
            kernels.perturb(w, &mut None, &shifted, 0.3).unwrap();
            kernels
                .sgd(&sgd_configs()[4], w, &own, &mut None, Beside::default())
                .unwrap();
        }
        batch.finish().unwrap();
        assert_near("weights", &a, &b);
        let wanted: f64 = values(&shifted).iter().map(|x| x * x).sum();
        testing::SCALAR.assert("norm", number(norm), wanted);
    }

    // Catches rounding of half precision that is not to nearest, ties to even, subnormal numbers and overflow among
    // it; and a way back that changes a value.
    #[test]
    fn half_precision_is_rounded_as_candle_rounds_it() {
        let mut numbers: Vec<f32> = (0..=u16::MAX)
            .flat_map(|bits| {
                let x = f32::from_bits(u32::from(bits) << 16);
                [x, x * 1.003_906_2, x * 1.001_953_1, x * 1.000_488_3]
            })
            .filter(|x| !x.is_nan())
            .collect();
        let halves = (0..=u16::MAX).map(|bits| f32::from(bits) * 2f32.powi(-25));
        numbers.extend(halves);
        numbers.extend([65_519.0, 65_520.0, 65_504.0, -65_520.0, f32::MAX]);
        let from = Tensor::new(numbers, &Device::Cpu).unwrap();
        for dtype in [DType::BF16, DType::F16] {
            let wanted = from.to_dtype(dtype).unwrap();
            let to = Var::zeros(from.shape(), dtype, &Device::Cpu).unwrap();
            let batch = Batch::emulated();
            batch.assign(&to, &from).unwrap();
            batch.finish().unwrap();
            assert_same_bits(&format!("{dtype:?}"), &to, &wanted);
            let zeros = from.zeros_like().unwrap();
            let mut slow = zeros.force_contiguous().unwrap();
            let pull = Pull {
                slow: &mut slow,
                alpha: 1.0,
                fast: Fast::Stay,
            };
            batch.pull(&to, pull).unwrap();
            batch.finish().unwrap();
            // To add zero is to lose the sign of zero.
            let wanted = (wanted.to_dtype(DType::F32).unwrap() + 0.0).unwrap();
            assert_same_bits("widened", &slow, &wanted);
        }
    }

    // Catches a tensor that is updated although another one's operands were refused.
    #[test]
    fn operands_that_do_not_fit_are_refused_before_anything_is_queued() {
        let batch = Batch::emulated();
        let (w, before) = (var(4, 0.1, DType::F32), wave(4, 0.1, DType::F32));
        let mut buffer = None;
        for (bad, word) in [
            (wave(3, 0.0, DType::F32), "shape"),
            (wave(4, 0.0, DType::F64), "dtype"),
        ] {
            let beside = Beside::default();
            let error = batch.sgd(&sgd_configs()[4], &w, &bad, &mut buffer, beside);
            let error = error.unwrap_err().to_string();
            assert!(error.contains(word) && buffer.is_none(), "{error}");
            assert!(batch.perturb(&w, &mut None, &bad, 1.0).is_err());
            assert!(batch.assign(&w, &bad).is_err());
        }
        batch.finish().unwrap();
        assert_same_bits("weights", &w, &before);
    }
}
