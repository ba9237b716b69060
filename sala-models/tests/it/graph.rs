//! Gradients through graphs in which operations of this crate and of candle are mixed.

use candle_core::{DType, Device, Result, Tensor, Var};
use sala_core::testing::Tolerance;
use sala_models::{
    backward,
    kernels::{self, Choice},
    ops,
};

const SAME: Tolerance = Tolerance {
    atol: 1e-13,
    rtol: 1e-12,
};

struct Weights {
    first: Var,
    second: Var,
    bias: Var,
    scale: Var,
}

fn values(count: usize, shape: &[usize], seed: f64) -> Tensor {
    let values: Vec<f64> = (0..count)
        .map(|i| ((i as f64 + 1.0) * seed).sin())
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

impl Weights {
    fn new() -> Self {
        let var = |count, shape: &[usize], seed| Var::from_tensor(&values(count, shape, seed));
        Self {
            first: var(20, &[4, 5], 1.3).unwrap(),
            second: var(16, &[4, 4], 0.7).unwrap(),
            bias: var(4, &[4], 2.1).unwrap(),
            scale: var(4, &[4], 0.9).unwrap(),
        }
    }

    fn all(&self) -> [&Var; 4] {
        [&self.first, &self.second, &self.bias, &self.scale]
    }

    /// A value of ours used twice by ours, once by candle, a parameter used by both and by two operations, and
    /// a block that is passed.
    fn loss(&self, x: &Tensor) -> Result<Tensor> {
        let h = ops::linear(x, &self.first, Some(&self.bias))?;
        let g = ops::gelu(&h)?;
        let by_candle = h.tanh()?.broadcast_mul(&self.scale)?;
        let block = ops::linear(&g, &self.second, Some(&self.bias))?;
        let sum = ops::add(&ops::add(&g, &block)?, &by_candle)?;
        let normed = ops::layer_norm(&sum, &self.scale, Some(&self.bias), 1e-5)?;
        let again = ops::linear(&normed, &self.second, None)?;
        let whole = ops::softmax(&(again + &g)?, 1)?;
        whole.sqr()?.sum_all()
    }
}

fn expected(weights: &Weights, x: &Tensor) -> Vec<Tensor> {
    kernels::with_choice(Choice::Composed, || {
        let gradients = weights.loss(x).unwrap().backward().unwrap();
        (weights.all().iter())
            .map(|w| gradients.get(w).unwrap().clone())
            .collect()
    })
}

#[test]
fn mixed_graphs_have_the_gradients_of_candles_graph() {
    let (weights, x) = (Weights::new(), values(15, &[3, 5], 0.37));
    let expected = expected(&weights, &x);
    let loss = weights.loss(&x).unwrap();
    // Twice each: what a backward leaves in the graph must not show in the next.
    for collected in [false, true, false, true] {
        let gradients = if collected {
            backward(&loss).unwrap()
        } else {
            loss.backward().unwrap()
        };
        for (w, expected) in weights.all().into_iter().zip(&expected) {
            SAME.assert_tensors("gradient", gradients.get(w).unwrap(), expected);
        }
    }
}

#[test]
fn two_losses_share_a_trunk() {
    let (weights, x) = (Weights::new(), values(15, &[3, 5], 0.37));
    let of = |fast: bool| {
        let choice = if fast { Choice::Auto } else { Choice::Composed };
        kernels::with_choice(choice, || {
            let trunk = ops::gelu(&ops::linear(&x, &weights.first, None).unwrap()).unwrap();
            let a = ops::silu(&trunk).unwrap().sum_all().unwrap();
            let b = trunk.sqr().unwrap().sum_all().unwrap();
            let of = |loss: &Tensor| backward(loss).unwrap().get(&weights.first).unwrap().clone();
            (of(&a), of(&b), of(&a))
        })
    };
    let (fast, slow) = (of(true), of(false));
    SAME.assert_tensors("gradient", &fast.0, &slow.0);
    SAME.assert_tensors("gradient", &fast.1, &slow.1);
    SAME.assert_tensors("gradient", &fast.2, &slow.0);
}

#[test]
fn parameters_never_share_the_memory_of_their_gradients() {
    let var = || Var::ones((2, 3), DType::F64, &Device::Cpu).unwrap();
    let (a, b) = (var(), var());
    let loss = ops::add(&a, &b).unwrap().sqr().unwrap().sum_all().unwrap();
    let gradients = backward(&loss).unwrap();
    let of = |v: &Var| gradients.get(v).unwrap().clone();
    // In place, as clipping does it.
    of(&a)
        .slice_set(
            &Tensor::zeros((2, 3), DType::F64, &Device::Cpu).unwrap(),
            0,
            0,
        )
        .unwrap();
    assert_eq!(of(&b).to_vec2::<f64>().unwrap(), [[4.0; 3]; 2]);
}

#[test]
fn values_can_be_cut_from_the_graph() {
    let weights = Weights::new();
    let x = values(15, &[3, 5], 0.37);
    let h = ops::linear(&x, &weights.first, None).unwrap();
    let cut = ops::gelu(&h.detach()).unwrap();
    assert!(!cut.track_op());
    let loss = ops::add(&cut, &h).unwrap().sum_all().unwrap();
    let gradients = backward(&loss).unwrap();
    // That of h alone: the column sums of x for each output.
    let sums = x.sum(0).unwrap().to_vec1::<f64>().unwrap();
    for row in gradients
        .get(&weights.first)
        .unwrap()
        .to_vec2::<f64>()
        .unwrap()
    {
        for (gradient, sum) in row.iter().zip(&sums) {
            assert!((gradient - sum).abs() < 1e-12);
        }
    }
}

#[test]
fn graphs_of_other_threads_are_differentiated() {
    let (weights, x) = (Weights::new(), values(15, &[3, 5], 0.37));
    let expected = expected(&weights, &x);
    let loss = std::thread::scope(|scope| {
        let made = scope.spawn(|| weights.loss(&x).unwrap());
        made.join().unwrap()
    });
    let gradients = backward(&loss).unwrap();
    for (w, expected) in weights.all().into_iter().zip(&expected) {
        SAME.assert_tensors("gradient", gradients.get(w).unwrap(), expected);
    }
}
