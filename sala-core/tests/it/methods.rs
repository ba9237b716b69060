//! Every method of the catalogue over both bases, and a problem for tests that hold for all of them.

use candle_core::{Device, Tensor, Var};
use sala_core::{ParamSet, Pass, kernels::Choice};

pub use sala_core::testing::methods::{bases, combinations, methods};

/// The forms in which updates are made: by the processor at once, and, where they were compiled, by the kernels for
/// graphics cards, which decide by themselves whether to.
pub fn forms() -> Vec<Choice> {
    vec![
        Choice::Auto,
        #[cfg(sala_emulated)]
        Choice::Emulated,
    ]
}

/// Least squares of a two-layer tanh network with fixed weights as its start: small, not convex, and
/// without a random number.
pub struct Problem {
    pub first: Var,
    pub second: Var,
    inputs: Tensor,
    targets: Tensor,
}

impl Problem {
    pub fn new(dtype: candle_core::DType) -> Self {
        let wave = |shape: (usize, usize), phase: f64| {
            let n = shape.0 * shape.1;
            let values: Vec<f64> = (0..n).map(|i| (1.7 * i as f64 + phase).sin()).collect();
            Tensor::from_vec(values, shape, &Device::Cpu)
                .unwrap()
                .to_dtype(dtype)
                .unwrap()
        };
        Self {
            first: Var::from_tensor(&wave((3, 5), 0.3)).unwrap(),
            second: Var::from_tensor(&wave((5, 2), 1.1)).unwrap(),
            inputs: wave((8, 3), 2.0),
            targets: wave((8, 2), 0.7),
        }
    }

    /// Names such that the order of creation and the order of names differ.
    pub fn named(&self) -> Vec<(String, Var)> {
        vec![
            ("z.first".into(), self.first.clone()),
            ("a.second".into(), self.second.clone()),
        ]
    }

    pub fn params(&self) -> ParamSet {
        ParamSet::new(self.named()).unwrap()
    }

    pub fn loss(&self, pass: Pass) -> candle_core::Result<Tensor> {
        self.loss_of(&pass.take(&self.inputs)?, &pass.take(&self.targets)?)
    }

    /// The loss of some of the eight rows.
    pub fn loss_of_rows(&self, start: usize, count: usize) -> candle_core::Result<Tensor> {
        let rows = |t: &Tensor| t.narrow(0, start, count);
        self.loss_of(&rows(&self.inputs)?, &rows(&self.targets)?)
    }

    fn loss_of(&self, x: &Tensor, y: &Tensor) -> candle_core::Result<Tensor> {
        (x.matmul(&self.first)?.tanh()?.matmul(&self.second)? - y)?
            .sqr()?
            .mean_all()
    }

    pub fn weights(&self) -> Vec<Tensor> {
        [&self.first, &self.second]
            .iter()
            .map(|v| v.force_contiguous().unwrap().detach())
            .collect()
    }
}
