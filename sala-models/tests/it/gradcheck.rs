//! Gradients against central differences, in f64.

use candle_core::{DType, Device, Result, Tensor, Var};
use sala_models::Rng;

/// Step of the differences.
const STEP: f64 = 1e-5;
/// Tolerances of the project for gradient checks with this step.
const ATOL: f64 = 1e-8;
const RTOL: f64 = 1e-6;

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

/// All values in row-major order.
pub(crate) fn values(t: &Tensor) -> Vec<f64> {
    let flat = t.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
    flat.to_vec1().unwrap()
}

/// A scalar that weighs every output differently. A plain sum would hide errors: that of batch
/// norm's outputs, for one, is a constant.
pub(crate) fn weighted_sum(y: &Tensor) -> Result<Tensor> {
    (y * normal("weights of the sum", y.dims()))?.sum_all()
}

/// Checks the gradient of `loss` with respect to every entry of every variable.
pub(crate) fn check(vars: &[(String, Var)], loss: impl Fn() -> Result<Tensor>) {
    let grads = loss().unwrap().backward().unwrap();
    for (name, var) in vars {
        let Some(grad) = grads.get(var) else {
            panic!("{name} has no gradient");
        };
        assert_eq!(grad.dims(), var.dims(), "{name}");
        let at = values(var);
        for (i, got) in values(grad).into_iter().enumerate() {
            let shifted = |by: f64| {
                let mut moved = at.clone();
                moved[i] += by;
                set(var, moved);
                loss().unwrap().to_scalar::<f64>().unwrap()
            };
            let wanted = (shifted(STEP) - shifted(-STEP)) / (2.0 * STEP);
            assert!(
                (got - wanted).abs() <= ATOL + RTOL * wanted.abs(),
                "{name}[{i}]: gradient {got}, differences {wanted}"
            );
        }
        set(var, at);
    }
}

fn set(var: &Var, values: Vec<f64>) {
    let t = Tensor::from_vec(values, var.shape(), var.device()).unwrap();
    var.set(&t).unwrap();
}

#[test]
#[should_panic(expected = "differences")]
fn the_check_notices_a_gradient_that_is_cut() {
    let x = normal_var("x", &[3]);
    // The derivative of x·x with one factor held constant is half the right one.
    check(&[("x".into(), x.clone())], || {
        (x.as_tensor() * x.as_tensor().detach())?.sum_all()
    });
}
