//! Gradients against central differences, in f64.

use std::fmt::Display;

use candle_core::{DType, Device, Result, Tensor, Var};
pub(crate) use sala_core::testing::values;
use sala_core::testing::{assert_same_bits, gradcheck};
use sala_models::{
    Rng,
    kernels::{Choice, with_choice},
};

/// The fast forms of the CPU and of graphics cards, where there are some, and the composed ones.
pub(crate) const FORMS: [Choice; 3] = [Choice::Auto, Choice::Composed, Choice::Emulated];

/// Those of them that are fast.
pub(crate) const FAST: [Choice; 2] = [Choice::Auto, Choice::Emulated];

/// A tensor of standard normal values, the same for the same name.
pub(crate) fn normal(name: &str, dims: &[usize]) -> Tensor {
    let stream = Rng::new(2024).stream(name);
    let n = dims.iter().product::<usize>() as u64;
    let values: Vec<f64> = (0..n).map(|i| stream.normal(i)).collect();
    Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
}

pub(crate) fn normal_var(name: &str, dims: &[usize]) -> Var {
    Var::from_tensor(&normal(name, dims)).unwrap()
}

/// A scalar that weighs every output differently. A plain sum would hide errors: that of batch
/// norm's outputs, for one, is a constant.
pub(crate) fn weighted_sum(y: &Tensor) -> Result<Tensor> {
    (y * normal("weights of the sum", y.dims()))?.sum_all()
}

/// Checks the gradient of `loss` with respect to every entry of every variable, in both forms.
pub(crate) fn check(vars: &[(String, Var)], loss: impl Fn() -> Result<Tensor>) {
    let named: Vec<(&str, &Var)> = vars
        .iter()
        .map(|(name, var)| (name.as_str(), var))
        .collect();
    for form in FORMS {
        with_choice(form, || gradcheck(&named, &loss));
    }
}

/// Does `work` in every form.
pub(crate) fn in_every_form(work: impl Fn()) {
    for form in FORMS {
        with_choice(form, &work);
    }
}

/// Checks the gradient of `op` with respect to an input of the shape `dims`: as it is, as a
/// transposed view (of two dimensions or more) and as a part of a larger tensor; in both forms.
pub(crate) fn check_layouts(dims: &[usize], op: impl Fn(&Tensor) -> Result<Tensor>) {
    let x = normal_var("x", dims);
    check(&[("x".into(), x.clone())], || weighted_sum(&op(&x)?));

    let last = dims.len() - 1;
    let mut larger = dims.to_vec();
    larger[last] += 2;
    let x = normal_var("larger x", &larger);
    check(&[("narrowed x".into(), x.clone())], || {
        weighted_sum(&op(&x.narrow(last, 1, dims[last])?)?)
    });
    if last > 0 {
        let mut swapped = dims.to_vec();
        swapped.swap(last - 1, last);
        let x = normal_var("swapped x", &swapped);
        check(&[("transposed x".into(), x.clone())], || {
            weighted_sum(&op(&x.transpose(last - 1, last)?)?)
        });
    }
}

/// Checks that `op` computes bf16 and f16 in f32 and rounds its result and its gradient once.
pub(crate) fn check_half(dims: &[usize], op: impl Fn(&Tensor) -> Result<Tensor>) {
    check_half_of(&[Choice::Auto], dims, op);
}

/// As [`check_half`], for some forms.
pub(crate) fn check_half_of(
    forms: &[Choice],
    dims: &[usize],
    op: impl Fn(&Tensor) -> Result<Tensor>,
) {
    for dtype in [DType::BF16, DType::F16] {
        let x = normal("half x", dims).to_dtype(dtype).unwrap();
        // The loss is one of the rounded result in both cases.
        let run = |x: &Tensor| -> Result<(Tensor, Tensor)> {
            let x = Var::from_tensor(x)?;
            let y = op(&x)?.to_dtype(dtype)?;
            let weights = normal("weights of the sum", y.dims()).to_dtype(DType::F32)?;
            let loss = (y.to_dtype(DType::F32)? * weights)?.sum_all()?;
            let gradient = loss.backward()?.get(&x).unwrap().to_dtype(dtype)?;
            // What rounds to −0 may have met a 0 on one of the ways.
            Ok((y, (gradient + 0.0)?))
        };
        assert_eq!(op(&x).unwrap().dtype(), dtype);
        for form in forms {
            with_choice(*form, || {
                let (y, gradient) = run(&x).unwrap();
                let (wanted_y, wanted_gradient) = run(&x.to_dtype(DType::F32).unwrap()).unwrap();
                assert_same_bits("half result", &y, &wanted_y);
                assert_same_bits("half gradient", &gradient, &wanted_gradient);
            });
        }
    }
}

/// Checks that an input is refused with a message that has all of `parts`.
#[track_caller]
pub(crate) fn refused<T, E: Display>(result: std::result::Result<T, E>, parts: &[&str]) {
    let Err(error) = result else {
        panic!("{parts:?}: an error was wanted");
    };
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

#[test]
#[should_panic(expected = "gradient of `x`, element 0")]
fn the_check_notices_a_gradient_that_is_cut() {
    let x = normal_var("x", &[3]);
    // The derivative of x·x with one factor held constant is half the right one.
    check(&[("x".into(), x.clone())], || {
        (x.as_tensor() * x.as_tensor().detach())?.sum_all()
    });
}
