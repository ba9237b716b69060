//! Updates that are recorded first and launched together.

use super::*;
use crate::kernels::{like, run};

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

// Catches a view that is copied before a recorded update of what it repeats.
#[test]
fn a_view_that_repeats_elements_is_read_after_what_is_recorded() {
    let batch = Batch::emulated();
    let row = Var::from_tensor(&named(&[1.0, 2.0])).unwrap();
    batch.assign(&row, &named(&[3.0, 4.0])).unwrap();
    let twice = row.as_detached_tensor().broadcast_as((2, 2)).unwrap();
    let norm = batch.squared_norm(&twice).unwrap();
    batch.finish().unwrap();
    assert_eq!(number(norm).to_bits(), 50f64.to_bits());
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
    // What is added begins eight elements before the sum, so the sum's first elements are also added to later ones.
    let added = |kernels: &dyn Kernels| {
        let whole = wave(40, 0.3, DType::F32);
        let (x, mut sum) = (
            whole.narrow(0, 0, 32).unwrap(),
            whole.narrow(0, 8, 32).unwrap(),
        );
        kernels.accumulate(&mut sum, &x, 0.5).unwrap();
        batch.finish().unwrap();
        sum
    };
    assert_near("sum", &added(&batch), &added(&Composed));
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

// Catches half precision that is read as another type, at another place or not at all.
#[test]
fn gradients_of_half_precision_are_read_as_they_are() {
    let weights = |dtype| var(16_384 + 7, 0.1, dtype);
    for half in [DType::BF16, DType::F16] {
        let gradient = wave(16_384 + 7, 0.7, half);
        let wide = gradient.to_dtype(DType::F32).unwrap();
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let batch = Batch::emulated();
            let step = |g: &Tensor| {
                let (a, b) = (weights(dtype), weights(dtype));
                let beside = Beside::default;
                batch
                    .sgd(&sgd_configs()[4], &a, g, &mut None, beside())
                    .unwrap();
                let adam = (&ParamsAdam::default(), 1);
                batch.adam(adam, &b, g, &mut None, beside()).unwrap();
                batch.finish().unwrap();
                (a, b)
            };
            let (got, wanted) = (step(&gradient), step(&wide));
            assert_same_bits("SGD", &got.0, &wanted.0);
            assert_same_bits("Adam", &got.1, &wanted.1);
            let others = |g: &Tensor| {
                let (w, mut sum) = (weights(dtype), wave(16_384 + 7, 0.3, DType::F32));
                let [mut direction, mut combined, mut clamped] = [0; 3].map(|_| like(g).unwrap());
                batch.adaptive(&mut direction, &w, g, 0.01).unwrap();
                batch.accumulate(&mut sum, g, 0.5).unwrap();
                batch.perturb(&w, &mut None, g, 0.2).unwrap();
                let by = Some((0.7, &sum));
                batch.combine(&mut combined, (0.3, g), by).unwrap();
                batch.clamp(&mut clamped, g, 0.4).unwrap();
                batch.finish().unwrap();
                let w = w.as_detached_tensor();
                [direction, sum, w, combined, clamped]
            };
            let names = ["adaptive", "sum", "perturbed", "combined", "clamped"];
            for ((name, got), wanted) in names.iter().zip(others(&gradient)).zip(others(&wide)) {
                assert_same_bits(name, &got, &wanted);
            }
        }
        let batch = Batch::emulated();
        let error = batch.sgd(
            &sgd_configs()[4],
            &weights(DType::F64),
            &gradient,
            &mut None,
            Beside::default(),
        );
        assert!(error.unwrap_err().to_string().contains("dtype"));
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

// Catches a block that does not find its job among more of them than it has threads.
#[test]
fn every_block_finds_its_tensor_among_many() {
    let lengths = (0..600).map(|i| if i % 7 == 0 { 2 * CHUNK + i } else { i % 5 });
    let all: Vec<Tensor> = lengths.map(|len| wave(len, 0.3, DType::F32)).collect();
    let norms = with_choice(Choice::Emulated, || {
        run(&all, |session| {
            let norms = all.iter().map(|x| session.of(x).squared_norm(x));
            Ok(norms.collect::<Result<Vec<_>, _>>()?)
        })
    });
    for (x, norm) in all.iter().zip(norms.unwrap()) {
        let wanted: f64 = values(x).iter().map(|x| x * x).sum();
        let what = format!("{} elements", x.elem_count());
        testing::SCALAR.assert(&what, number(norm), wanted);
    }
}
