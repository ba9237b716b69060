//! Hessians of models: logistic regression against its closed form, a small MLP against second
//! differences of its loss.

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{
    Linear, Module,
    loss::{binary_cross_entropy_with_logit, cross_entropy},
};
use sala_core::{
    ParamSet, Pass,
    sharpness::{ParamsLanczos, ParamsTrace, Surface, lanczos, trace},
};

use super::problems::{assert_near, direction, flat};

fn wave(count: usize, factor: f64) -> Vec<f64> {
    (1..=count).map(|i| (factor * i as f64).sin()).collect()
}

fn tensor(values: Vec<f64>, shape: &[usize]) -> Tensor {
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// A matrix by its products with the unit vectors.
fn columns(surface: &mut Surface, n: usize) -> Vec<Vec<f64>> {
    let mut column = |i: usize| {
        let unit: Vec<f64> = (0..n).map(|j| f64::from(u8::from(i == j))).collect();
        let v = direction(surface.params(), &unit);
        flat(&surface.hessian_product(&v).unwrap())
    };
    (0..n).map(&mut column).collect()
}

/// The largest eigenvalue of a symmetric matrix whose eigenvalues are above −shift.
fn largest_eigenvalue(matrix: &[Vec<f64>], shift: f64) -> f64 {
    let n = matrix.len();
    let mut v: Vec<f64> = (0..n).map(|i| 1.0 + (i as f64).sin()).collect();
    let mut value = 0.0;
    for _ in 0..20_000 {
        let product: Vec<f64> = (0..n)
            .map(|i| shift * v[i] + (0..n).map(|j| matrix[i][j] * v[j]).sum::<f64>())
            .collect();
        value = product.iter().map(|x| x * x).sum::<f64>().sqrt();
        v = product.iter().map(|x| x / value).collect();
    }
    value - shift
}

#[test]
fn logistic_regression_has_its_closed_form_hessian() {
    let (rows, n) = (20, 4);
    let x = tensor(wave(rows * n, 1.7), &[rows, n]);
    let y = tensor(
        (0..rows).map(|i| f64::from(u8::from(i % 3 == 0))).collect(),
        &[rows, 1],
    );
    let w = Var::from_tensor(&tensor(wave(n, 0.9), &[1, n])).unwrap();
    let params = ParamSet::new([("w", w.clone())]).unwrap();
    let model = Linear::new(w.as_tensor().clone(), None);
    let mut loss = |_: Pass| binary_cross_entropy_with_logit(&model.forward(&x)?, &y);
    let mut surface = Surface::new(&params, &mut loss);

    // H = 1/N Σ p (1 − p) x xᵀ
    let data = x.to_vec2::<f64>().unwrap();
    let weights = flat(&[w.as_tensor().clone()]);
    let mut wanted = vec![vec![0.0; n]; n];
    for row in &data {
        let logit: f64 = row.iter().zip(&weights).map(|(x, w)| x * w).sum();
        let p = 1.0 / (1.0 + (-logit).exp());
        for i in 0..n {
            for j in 0..n {
                wanted[i][j] += p * (1.0 - p) * row[i] * row[j] / rows as f64;
            }
        }
    }
    for (got, wanted) in columns(&mut surface, n).iter().zip(&wanted) {
        for (got, wanted) in got.iter().zip(wanted) {
            assert_near(*got, *wanted, 1e-8);
        }
    }
    let config = ParamsLanczos {
        tolerance: 1e-9,
        ..Default::default()
    };
    let top = lanczos(&mut surface, &config).unwrap().largest[0].value;
    let exact = largest_eigenvalue(&wanted, 0.0);
    assert_near(top, exact, 1e-6 * exact);
    let sum: f64 = (0..n).map(|i| wanted[i][i]).sum();
    let estimate = trace(
        &mut surface,
        &ParamsTrace {
            samples: 200,
            seed: 3,
        },
    )
    .unwrap();
    assert_near(estimate.value, sum, 3.0 * estimate.standard_error.unwrap());
}

/// 3 → 5 → 3 with tanh: 38 parameters, and a Hessian with eigenvalues of both signs.
struct Mlp {
    vars: Vec<(&'static str, Var)>,
    x: Tensor,
    y: Tensor,
}

impl Mlp {
    fn new() -> Self {
        let var = |count, factor, shape: &[usize]| {
            Var::from_tensor(&tensor(wave(count, factor), shape)).unwrap()
        };
        let labels: Vec<u32> = (0..16).map(|i| (i * i) % 3).collect();
        Self {
            vars: vec![
                ("1.bias", var(5, 0.3, &[5])),
                ("1.weight", var(15, 2.1, &[5, 3])),
                ("2.bias", var(3, 0.7, &[3])),
                ("2.weight", var(15, 1.3, &[3, 5])),
            ],
            x: tensor(wave(48, 3.1), &[16, 3]),
            y: Tensor::new(labels, &Device::Cpu).unwrap(),
        }
    }

    fn loss(&self) -> Result<Tensor> {
        let part = |i: usize| self.vars[i].1.as_tensor().clone();
        let hidden = Linear::new(part(1), Some(part(0)))
            .forward(&self.x)?
            .tanh()?;
        let logits = Linear::new(part(3), Some(part(2))).forward(&hidden)?;
        cross_entropy(&logits, &self.y)
    }

    /// The loss with these elements added to the parameters.
    fn shifted(&self, shifts: &[(usize, f64)]) -> f64 {
        let start: Vec<Vec<f64>> = self
            .vars
            .iter()
            .map(|(_, v)| flat(&[v.as_tensor().clone()]))
            .collect();
        let mut moved = start.clone();
        for &(place, shift) in shifts {
            let mut place = place;
            for values in &mut moved {
                if place < values.len() {
                    values[place] += shift;
                    break;
                }
                place -= values.len();
            }
        }
        let set = |all: &[Vec<f64>]| {
            for ((_, var), values) in self.vars.iter().zip(all) {
                var.set(&tensor(values.clone(), var.dims())).unwrap();
            }
        };
        set(&moved);
        let loss = self.loss().unwrap().to_scalar::<f64>().unwrap();
        set(&start);
        loss
    }

    /// Second differences of the loss: no gradient takes part.
    fn hessian(&self) -> Vec<Vec<f64>> {
        let (n, h) = (38, 1e-3);
        let at = |i, a: f64, j, b: f64| self.shifted(&[(i, a * h), (j, b * h)]);
        let difference =
            |i, j, s: f64| at(i, s, j, s) - at(i, s, j, -s) - at(i, -s, j, s) + at(i, -s, j, -s);
        // Two steps, whose h² errors cancel.
        let element = |i, j| {
            let (fine, coarse) = (difference(i, j, 1.0), difference(i, j, 2.0));
            (4.0 * fine / (4.0 * h * h) - coarse / (16.0 * h * h)) / 3.0
        };
        (0..n)
            .map(|i| (0..n).map(|j| element(i, j)).collect())
            .collect()
    }
}

#[test]
fn a_small_network_has_the_hessian_of_second_differences_of_its_loss() {
    let mlp = Mlp::new();
    let wanted = mlp.hessian();
    let params = ParamSet::new(mlp.vars.clone()).unwrap();
    let mut loss = |_: Pass| mlp.loss();
    let mut surface = Surface::new(&params, &mut loss);
    let got = columns(&mut surface, 38);
    for (got, wanted) in got.iter().flatten().zip(wanted.iter().flatten()) {
        assert_near(*got, *wanted, 2e-7);
    }
    let shift = 2.0;
    let (top, bottom) = (largest_eigenvalue(&wanted, shift), {
        let negative: Vec<Vec<f64>> = wanted
            .iter()
            .map(|r| r.iter().map(|x| -x).collect())
            .collect();
        -largest_eigenvalue(&negative, shift)
    });
    let config = ParamsLanczos {
        max_steps: 38,
        tolerance: 1e-9,
        ..Default::default()
    };
    let ends = lanczos(&mut surface, &config).unwrap();
    assert_near(ends.largest[0].value, top, 1e-6);
    assert!(
        bottom < -1e-3,
        "a negative eigenvalue was meant to be there: {bottom}"
    );
    assert_near(ends.smallest.value, bottom, 1e-6);
}

#[test]
fn f32_products_of_a_small_network_keep_three_digits() {
    let mlp = Mlp::new();
    let params = ParamSet::new(mlp.vars.clone()).unwrap();
    let v: Vec<f64> = wave(38, 5.3);
    let mut loss = |_: Pass| mlp.loss();
    let wanted = {
        let mut surface = Surface::new(&params, &mut loss);
        flat(&surface.hessian_product(&direction(&params, &v)).unwrap())
    };
    let narrow = |t: &Tensor| t.to_dtype(DType::F32).unwrap();
    let vars: Vec<_> = mlp
        .vars
        .iter()
        .map(|(n, v)| (*n, Var::from_tensor(&narrow(v)).unwrap()))
        .collect();
    let params32 = ParamSet::new(vars.clone()).unwrap();
    let x = narrow(&mlp.x);
    let mut loss = |_: Pass| {
        let part = |i: usize| vars[i].1.as_tensor().clone();
        let hidden = Linear::new(part(1), Some(part(0))).forward(&x)?.tanh()?;
        cross_entropy(
            &Linear::new(part(3), Some(part(2))).forward(&hidden)?,
            &mlp.y,
        )
    };
    let mut surface = Surface::new(&params32, &mut loss);
    let v32: Vec<Tensor> = direction(&params, &v).iter().map(narrow).collect();
    let got = flat(&surface.hessian_product(&v32).unwrap());
    let norm = wanted.iter().map(|x| x * x).sum::<f64>().sqrt();
    for (got, wanted) in got.iter().zip(&wanted) {
        assert_near(*got, *wanted, 1e-3 * norm);
    }
}
