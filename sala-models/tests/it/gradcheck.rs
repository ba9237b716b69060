//! Gradients against central differences, in f64.

use candle_core::{Device, Result, Tensor, Var};
use sala_core::testing::gradcheck;
pub(crate) use sala_core::testing::values;
use sala_models::Rng;

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

/// Checks the gradient of `loss` with respect to every entry of every variable.
pub(crate) fn check(vars: &[(String, Var)], loss: impl Fn() -> Result<Tensor>) {
    let named: Vec<(&str, &Var)> = vars
        .iter()
        .map(|(name, var)| (name.as_str(), var))
        .collect();
    gradcheck(&named, loss);
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
