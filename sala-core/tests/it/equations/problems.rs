//! Losses with gradients written out by hand, and the same losses in candle operations.

use candle_core::{D, Device, Result, Tensor, Var};
use sala_core::Pass;

/// One vector for each parameter, in the order of creation.
pub type Point = Vec<Vec<f64>>;

/// Which rows of a step's batch a gradient is taken on: the first share of a micro-batch.
#[derive(Debug, Clone, Copy)]
pub struct Rows {
    pub part: usize,
    pub parts: usize,
    pub share: f64,
}

impl Rows {
    pub const ALL: Self = Self {
        part: 0,
        parts: 1,
        share: 1.0,
    };
}

pub struct Parameter {
    pub name: &'static str,
    pub shape: &'static [usize],
    pub start: Vec<f64>,
}

pub trait Problem {
    fn name(&self) -> &'static str;

    /// Such that the order of names is not that of creation.
    fn parameters(&self) -> [Parameter; 2];

    /// Learning rates for SGD with momentum and for `AdamW`.
    fn learning_rates(&self) -> [f64; 2];

    /// Loss and gradient in a step, from 0.
    fn plain(&self, w: &Point, step: usize, rows: Rows) -> (f64, Point);

    /// The same loss; `part` and `parts` as in [`Rows`], the share is the pass's.
    fn candle(&self, w: &[Var], step: usize, parts: (usize, usize), pass: Pass) -> Result<Tensor>;
}

pub fn all() -> Vec<Box<dyn Problem>> {
    vec![
        Box::new(Quadratic),
        Box::new(Rosenbrock),
        Box::new(Logistic),
    ]
}

fn vector(values: Vec<f64>) -> Result<Tensor> {
    Tensor::new(values, &Device::Cpu)
}

/// ½ Σ aᵢ wᵢ² + Σ nᵢ wᵢ with curvatures a from 0.05 to 20 and a noise n of its own in each step.
pub struct Quadratic;

impl Quadratic {
    const CURVATURES: [&'static [f64]; 2] = [&[20.0, 0.05, 1.0], &[0.3, 6.0]];

    fn noise(step: usize, parameter: usize, element: usize) -> f64 {
        0.4 * (1.7 * step as f64 + 2.3 * element as f64 + 0.9 * parameter as f64).sin()
    }
}

impl Problem for Quadratic {
    fn name(&self) -> &'static str {
        "quadratic"
    }

    fn parameters(&self) -> [Parameter; 2] {
        [
            Parameter {
                name: "z.weight_ih_l0",
                shape: &[3],
                start: vec![1.0, -2.0, 0.5],
            },
            Parameter {
                name: "a.offset",
                shape: &[2],
                start: vec![-1.5, 0.7],
            },
        ]
    }

    fn learning_rates(&self) -> [f64; 2] {
        [0.008, 0.05]
    }

    fn plain(&self, w: &Point, step: usize, _: Rows) -> (f64, Point) {
        let (mut loss, mut g) = (0.0, w.clone());
        for (p, curvatures) in Self::CURVATURES.iter().enumerate() {
            for (i, a) in curvatures.iter().enumerate() {
                let n = Self::noise(step, p, i);
                loss += 0.5 * a * w[p][i].powi(2) + n * w[p][i];
                g[p][i] = a * w[p][i] + n;
            }
        }
        (loss, g)
    }

    fn candle(&self, w: &[Var], step: usize, _: (usize, usize), _: Pass) -> Result<Tensor> {
        let part = |p: usize| {
            let a = vector(Self::CURVATURES[p].to_vec())?;
            let len = Self::CURVATURES[p].len();
            let n = vector((0..len).map(|i| Self::noise(step, p, i)).collect())?;
            (((w[p].sqr()? * a)? * 0.5)? + (w[p].as_tensor() * n)?)?.sum_all()
        };
        part(0)? + part(1)?
    }
}

/// Σᵢ 100 (xᵢ₊₁ − xᵢ²)² + (1 − xᵢ)² over four numbers in two parameters.
pub struct Rosenbrock;

impl Problem for Rosenbrock {
    fn name(&self) -> &'static str {
        "Rosenbrock"
    }

    fn parameters(&self) -> [Parameter; 2] {
        [
            Parameter {
                name: "y.head.weight",
                shape: &[2],
                start: vec![-1.6, 0.5],
            },
            Parameter {
                name: "b.tail",
                shape: &[2],
                start: vec![1.4, 0.3],
            },
        ]
    }

    fn learning_rates(&self) -> [f64; 2] {
        // Small: near the valley's floor, where gradients almost vanish, directions amplify rounding errors.
        [4e-5, 0.01]
    }

    fn plain(&self, w: &Point, _: usize, _: Rows) -> (f64, Point) {
        let x = w.concat();
        let (mut loss, mut g) = (0.0, [0.0; 4]);
        for i in 0..3 {
            let bend = x[i + 1] - x[i].powi(2);
            loss += 100.0 * bend.powi(2) + (1.0 - x[i]).powi(2);
            g[i] += -400.0 * x[i] * bend - 2.0 * (1.0 - x[i]);
            g[i + 1] += 200.0 * bend;
        }
        (loss, vec![g[..2].to_vec(), g[2..].to_vec()])
    }

    fn candle(&self, w: &[Var], _: usize, _: (usize, usize), _: Pass) -> Result<Tensor> {
        let x = Tensor::cat(&[w[0].as_tensor(), w[1].as_tensor()], 0)?;
        let (from, to) = (x.narrow(0, 0, 3)?, x.narrow(0, 1, 3)?);
        let bends = ((to - from.sqr()?)?.sqr()? * 100.0)?;
        (bends + from.affine(-1.0, 1.0)?.sqr()?)?.sum_all()
    }
}

/// Softmax regression: 4 features, 3 classes, 24 rows of which each step sees the next 8.
pub struct Logistic;

const FEATURES: usize = 4;
const CLASSES: usize = 3;
const BATCH: usize = 8;
const ROWS: usize = 24;

impl Logistic {
    /// Features and classes of a micro-batch.
    fn rows(step: usize, (part, parts): (usize, usize)) -> Vec<([f64; FEATURES], usize)> {
        let len = BATCH / parts;
        let numbers = (part * len..(part + 1) * len).map(|i| (BATCH * step + 5 * i + step) % ROWS);
        let row = |n: usize| {
            let x = std::array::from_fn(|j| 1.5 * (2.1 * n as f64 + 1.3 * j as f64).sin());
            (x, (n * n + n / 5) % CLASSES)
        };
        numbers.map(row).collect()
    }
}

impl Problem for Logistic {
    fn name(&self) -> &'static str {
        "logistic regression"
    }

    fn parameters(&self) -> [Parameter; 2] {
        let wave = |i: usize| 0.6 * (1.9 * i as f64 + 0.4).cos();
        [
            Parameter {
                name: "linear.weight",
                shape: &[CLASSES, FEATURES],
                start: (0..CLASSES * FEATURES).map(wave).collect(),
            },
            Parameter {
                name: "linear.bias",
                shape: &[CLASSES],
                start: vec![0.3, -0.2, 0.1],
            },
        ]
    }

    fn learning_rates(&self) -> [f64; 2] {
        [0.05, 0.03]
    }

    fn plain(&self, w: &Point, step: usize, rows: Rows) -> (f64, Point) {
        let batch = Self::rows(step, (rows.part, rows.parts));
        let wanted = rows.share * batch.len() as f64;
        let batch = batch
            .iter()
            .enumerate()
            .filter(|(i, _)| (*i as f64) < wanted);
        let n = wanted.ceil();
        let (mut loss, mut g) = (0.0, vec![vec![0.0; CLASSES * FEATURES], vec![0.0; CLASSES]]);
        for (_, &(x, class)) in batch {
            let logit = |c: usize| -> f64 {
                let products = (0..FEATURES).map(|j| w[0][c * FEATURES + j] * x[j]);
                w[1][c] + products.sum::<f64>()
            };
            let sum: f64 = (0..CLASSES).map(|c| logit(c).exp()).sum();
            loss += (sum.ln() - logit(class)) / n;
            for c in 0..CLASSES {
                let error = logit(c).exp() / sum - f64::from(u8::from(c == class));
                g[1][c] += error / n;
                for j in 0..FEATURES {
                    g[0][c * FEATURES + j] += error * x[j] / n;
                }
            }
        }
        (loss, g)
    }

    fn candle(&self, w: &[Var], step: usize, parts: (usize, usize), pass: Pass) -> Result<Tensor> {
        let (x, classes): (Vec<_>, Vec<_>) = Self::rows(step, parts).into_iter().unzip();
        let x = pass.take(&vector(x.concat())?.reshape(((), FEATURES))?)?;
        let one_hot = |class: usize| (0..CLASSES).map(move |c| f64::from(u8::from(c == class)));
        let wanted = vector(classes.into_iter().flat_map(one_hot).collect())?;
        let wanted = pass.take(&wanted.reshape(((), CLASSES))?)?;
        let logits = x.matmul(&w[0].t()?)?.broadcast_add(&w[1])?;
        let likelihood = (candle_nn::ops::log_softmax(&logits, D::Minus1)? * wanted)?;
        likelihood.sum(D::Minus1)?.mean_all()?.neg()
    }
}
