//! The same measurements as `PyHessian`'s, on the network that `tests/pyhessian/measure.py` has trained.

use std::{collections::HashMap, path::PathBuf};

use candle_core::{Device, Result, Tensor, Var};
use candle_nn::{Linear, Module, loss::cross_entropy};
use sala_core::{
    ParamSet, Pass,
    sharpness::{
        ParamsDensity, ParamsLanczos, ParamsPower, ParamsTrace, Surface, lanczos, power_iteration,
        spectral_density, trace,
    },
};
use serde_json::Value;

use super::problems::assert_near;

struct Net {
    vars: HashMap<String, Var>,
    x: Tensor,
    y: Tensor,
    expected: Value,
}

fn numbers(value: &Value) -> Vec<f64> {
    let all = value.as_array().unwrap().iter();
    all.map(|x| x.as_f64().unwrap()).collect()
}

impl Net {
    fn load() -> Self {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/pyhessian");
        let file = folder.join("network.safetensors");
        let mut tensors = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
        let (x, y) = (tensors.remove("x").unwrap(), tensors.remove("y").unwrap());
        let var = |(name, t): (String, Tensor)| (name, Var::from_tensor(&t).unwrap());
        let text = std::fs::read_to_string(folder.join("expected.json")).unwrap();
        Self {
            vars: tensors.into_iter().map(var).collect(),
            x,
            y,
            expected: serde_json::from_str(&text).unwrap(),
        }
    }

    fn params(&self) -> ParamSet {
        ParamSet::new(self.vars.clone()).unwrap()
    }

    fn loss(&self, _: Pass) -> Result<Tensor> {
        let linear = |name: &str| {
            let part = |end: &str| self.vars[&format!("{name}.{end}")].as_tensor().clone();
            Linear::new(part("weight"), Some(part("bias")))
        };
        let hidden = linear("fc1").forward(&self.x)?.tanh()?;
        let hidden = linear("fc2").forward(&hidden)?.tanh()?;
        cross_entropy(&linear("fc3").forward(&hidden)?, &self.y)
    }

    fn numbers(&self, name: &str) -> Vec<f64> {
        numbers(&self.expected[name])
    }

    fn runs(&self, name: &str) -> Vec<Vec<f64>> {
        let runs = self.expected[name].as_array().unwrap().iter();
        runs.map(numbers).collect()
    }
}

fn mean_and_error(samples: &[f64]) -> (f64, f64) {
    let n = samples.len() as f64;
    let mean = samples.iter().sum::<f64>() / n;
    let squares: f64 = samples.iter().map(|x| (x - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0) / n).sqrt())
}

#[test]
fn the_top_eigenvalues_are_pyhessians() {
    let net = Net::load();
    let mut loss = |pass| net.loss(pass);
    let mut surface = Surface::new(&net.params(), &mut loss);
    assert_near(
        surface.loss().unwrap(),
        net.expected["loss"].as_f64().unwrap(),
        1e-12,
    );
    let config = ParamsPower {
        count: 3,
        max_steps: 1000,
        tolerance: 1e-9,
        seed: 0,
    };
    let top = power_iteration(&mut surface, &config).unwrap();
    let wanted = net.numbers("eigenvalues");
    for (pair, wanted) in top.pairs.iter().zip(&wanted) {
        assert_near(pair.value, *wanted, 1e-5 * wanted.abs());
    }
    // The same by Lanczos, against the whole spectrum.
    let config = ParamsLanczos {
        count: 3,
        max_steps: 150,
        tolerance: 1e-8,
        ..Default::default()
    };
    let ends = lanczos(&mut surface, &config).unwrap();
    let spectrum = net.numbers("spectrum");
    for (ritz, wanted) in ends.largest.iter().zip(spectrum.iter().rev()) {
        assert_near(ritz.value, *wanted, 1e-6 * wanted);
    }
    // The other end has not converged by then; its bound says so.
    let smallest = ends.smallest;
    let distances = spectrum.iter().map(|x| (x - smallest.value).abs());
    assert!(distances.fold(f64::INFINITY, f64::min) <= smallest.error);
    assert!(smallest.value < 0.0 && smallest.value >= spectrum[0] - 1e-9);
}

#[test]
fn samples_of_the_trace_have_pyhessians_mean_and_spread() {
    let net = Net::load();
    let mut loss = |pass| net.loss(pass);
    let config = ParamsTrace {
        samples: 100,
        seed: 2,
    };
    let ours = trace(&mut Surface::new(&net.params(), &mut loss), &config).unwrap();
    let (theirs, their_error) = mean_and_error(&net.numbers("trace"));
    let error = ours.standard_error.unwrap();
    assert_near(ours.value, theirs, 3.0 * error.hypot(their_error));
    assert_near(
        ours.value,
        net.numbers("spectrum").iter().sum(),
        3.0 * error,
    );
    // 400 samples there, 100 here: twice the error, within what spreads of 100 samples vary.
    assert_near(error / their_error, 2.0, 0.6);
}

#[test]
fn the_density_is_pyhessians() {
    let net = Net::load();
    let mut loss = |pass| net.loss(pass);
    let config = ParamsDensity {
        samples: 10,
        steps: 60,
        seed: 0,
    };
    let ours = spectral_density(&mut Surface::new(&net.params(), &mut loss), &config).unwrap();
    let (values, weights) = (net.runs("density_values"), net.runs("density_weights"));
    let sigma: f64 = 0.05;
    let normal = |t: f64, x: f64| {
        let z = (t - x) / sigma;
        (-0.5 * z * z).exp() / (sigma * (2.0 * std::f64::consts::PI).sqrt())
    };
    let theirs = |t: f64| {
        let run = |(values, weights): (&Vec<f64>, &Vec<f64>)| -> f64 {
            values
                .iter()
                .zip(weights)
                .map(|(x, w)| w * normal(t, *x))
                .sum()
        };
        values.iter().zip(&weights).map(run).sum::<f64>() / values.len() as f64
    };
    let spectrum = net.numbers("spectrum");
    let exact =
        |t: f64| spectrum.iter().map(|x| normal(t, *x)).sum::<f64>() / spectrum.len() as f64;
    let (low, high) = (spectrum[0] - 0.3, spectrum[spectrum.len() - 1] + 0.3);
    let cells = 2000;
    let cell = (high - low) / f64::from(cells);
    let (mut from_theirs, mut from_exact) = (0.0, 0.0);
    for i in 0..cells {
        let t = low + cell * f64::from(i);
        from_theirs += cell * (ours.at(t, sigma) - theirs(t)).abs();
        from_exact += cell * (ours.at(t, sigma) - exact(t)).abs();
    }
    // Of a mass of 1 each, two estimates of ten random vectors.
    assert!(from_theirs < 0.06, "{from_theirs}");
    assert!(from_exact < 0.06, "{from_exact}");
}
