//! Losses whose Hessian is known.

use candle_core::{DType, Device, Result, Tensor, Var};
use sala_core::{ParamSet, Pass};

/// ½ (w − w*)ᵀ H (w − w*) with H = Q Λ Qᵀ, Q = I − 2 u uᵀ: the given spectrum, in no element's direction.
pub struct Quadratic {
    pub spectrum: Vec<f64>,
    vars: Vec<(&'static str, Var)>,
    axis: Vec<f64>,
}

impl Quadratic {
    /// Over two parameters, a vector and a matrix of two columns; the length of the spectrum must be
    /// above 6 and even.
    pub fn new(spectrum: Vec<f64>, dtype: DType) -> Self {
        let n = spectrum.len();
        let rows = n / 2 - 2;
        let start = |count: usize, offset: usize| -> Vec<f64> {
            (0..count)
                .map(|i| 0.2 * ((i + offset) as f64).cos())
                .collect()
        };
        let make = |values: Vec<f64>, shape: &[usize]| {
            let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
            Var::from_tensor(&tensor.to_dtype(dtype).unwrap()).unwrap()
        };
        let axis: Vec<f64> = (0..n).map(|i| ((7 * i + 1) as f64).sin()).collect();
        let norm = axis.iter().map(|x| x * x).sum::<f64>().sqrt();
        Self {
            vars: vec![
                ("b", make(start(4, 0), &[4])),
                ("w", make(start(2 * rows, 4), &[rows, 2])),
            ],
            axis: axis.into_iter().map(|x| x / norm).collect(),
            spectrum,
        }
    }

    pub fn params(&self) -> ParamSet {
        ParamSet::new(self.vars.clone()).unwrap()
    }

    pub fn vars(&self) -> Vec<Var> {
        self.vars.iter().map(|(_, var)| var.clone()).collect()
    }

    /// Puts the parameters at the minimum.
    pub fn to_minimum(&self) {
        for (_, var) in &self.vars {
            var.set(&var.zeros_like().unwrap()).unwrap();
        }
    }

    pub fn loss(&self, _: Pass) -> Result<Tensor> {
        let flat: Result<Vec<_>> = self.vars.iter().map(|(_, v)| v.flatten_all()).collect();
        let z = Tensor::cat(&flat?, 0)?;
        let constant = |values: &[f64]| Tensor::new(values, &Device::Cpu)?.to_dtype(z.dtype());
        let u = constant(&self.axis)?;
        let along = (&z * &u)?.sum_keepdim(0)?.broadcast_as(u.shape())?;
        let y = (&z - (along * (u * 2.0)?)?)?;
        (y.sqr()? * constant(&self.spectrum)?)?.sum_all()? * 0.5
    }

    /// Q Λ Qᵀ.
    pub fn hessian(&self) -> Vec<Vec<f64>> {
        let n = self.spectrum.len();
        let q =
            |i: usize, j: usize| f64::from(u8::from(i == j)) - 2.0 * self.axis[i] * self.axis[j];
        let element = |i, j| (0..n).map(|k| q(i, k) * self.spectrum[k] * q(j, k)).sum();
        (0..n)
            .map(|i| (0..n).map(|j| element(i, j)).collect())
            .collect()
    }
}

/// A bulk in [0, 1], two outliers above it and one below: what spectra of networks look like.
pub fn bulk_and_outliers(n: usize) -> Vec<f64> {
    let bulk = (0..n - 3).map(|i| i as f64 / (n - 4) as f64);
    bulk.chain([5.0, 8.0, -3.0]).collect()
}

/// The values of all parameters, in the order of their names.
pub fn flat(tensors: &[Tensor]) -> Vec<f64> {
    tensors
        .iter()
        .flat_map(sala_core::testing::values)
        .collect()
}

/// The direction with these elements.
pub fn direction(params: &ParamSet, values: &[f64]) -> Vec<Tensor> {
    let mut rest = values;
    let mut take = |var: &Var| {
        let (own, others) = rest.split_at(var.elem_count());
        rest = others;
        Tensor::from_slice(own, var.shape(), &Device::Cpu).unwrap()
    };
    params.vars().iter().map(&mut take).collect()
}

#[track_caller]
pub fn assert_near(got: f64, wanted: f64, tolerance: f64) {
    assert!(
        (got - wanted).abs() <= tolerance,
        "wanted {wanted:e} within {tolerance:.1e}, got {got:e}"
    );
}
