//! Whole steps with fused kernels against the same steps composed from candle operations, on weights
//! large enough to be split over threads.

use candle_core::{DType, Device, Tensor, Var};
use sala_core::{
    Clip, ParamSet, Pass,
    catalogue::{Base, Method, build},
    kernels::{Choice, with_choice},
    testing::{TRAJECTORY_F32, TRAJECTORY_F64, Tolerance, assert_same_bits},
};

use crate::methods::combinations;

/// ½ Σ aᵢ wᵢ² over one large and one small variable.
struct Bowl {
    large: Var,
    small: Var,
    /// aᵢ of the large one, between ½ and 1½: where all were the same, a gradient would hardly turn on
    /// the way up, and methods that divide by how much it turns would amplify rounding.
    curvature: Tensor,
}

impl Bowl {
    fn new(dtype: DType) -> Self {
        let wave = |len: usize, pace: f64| {
            let values: Vec<f64> = (0..len).map(|i| (pace * i as f64).cos()).collect();
            let tensor = Tensor::new(values, &Device::Cpu).unwrap();
            tensor.to_dtype(dtype).unwrap()
        };
        let len = 50_001;
        Self {
            large: Var::from_tensor(&wave(len, 0.3)).unwrap(),
            small: Var::from_tensor(&wave(3, 0.3)).unwrap(),
            curvature: wave(len, 0.7).affine(0.5, 1.0).unwrap(),
        }
    }

    fn params(&self) -> ParamSet {
        ParamSet::new([("large", self.large.clone()), ("small", self.small.clone())]).unwrap()
    }

    fn loss(&self) -> candle_core::Result<Tensor> {
        let large = ((self.large.sqr()? * &self.curvature)?.sum_all()? * 0.5)?;
        (self.small.sqr()?.sum_all()? * 0.8)? + large
    }

    fn weights(&self) -> [Tensor; 2] {
        [&self.large, &self.small].map(|v| v.force_contiguous().unwrap().detach())
    }
}

/// The weights after some steps, the fourth of which fails in its last pass.
fn run(choice: Choice, dtype: DType, base: &Base, method: &Method) -> [Tensor; 2] {
    with_choice(choice, || {
        let bowl = Bowl::new(dtype);
        let mut optimizer = build(bowl.params(), base, method, Some(Clip::Norm(0.9))).unwrap();
        for step in 0..9 {
            let before = bowl.weights();
            let outcome = optimizer.step(&mut |pass: Pass| {
                let last = !matches!(pass, Pass::Direction { .. });
                if step == 3 && last {
                    candle_core::bail!("the loader broke");
                }
                bowl.loss()
            });
            assert_eq!(outcome.is_err(), step == 3);
            if step == 3 {
                for (got, wanted) in bowl.weights().iter().zip(&before) {
                    assert_same_bits("after a failure", got, wanted);
                }
            }
        }
        bowl.weights()
    })
}

fn compare(choice: Choice, dtype: DType, tolerance: Tolerance) {
    for (name, base, method) in combinations() {
        let fused = run(choice, dtype, &base, &method);
        let composed = run(Choice::Composed, dtype, &base, &method);
        for (fused, composed) in fused.iter().zip(&composed) {
            tolerance.assert_tensors(&name, fused, composed);
        }
    }
}

// Catches a composition that hands the kernels other tensors or numbers than the composed form gets,
// or whose buffers are a step behind.
#[test]
fn every_method_takes_the_same_steps_fused_and_composed() {
    compare(Choice::Auto, DType::F64, TRAJECTORY_F64);
    compare(Choice::Auto, DType::F32, TRAJECTORY_F32);
}

// The kernels for graphics cards, run on the processor. Catches updates of one run that need each other's results, a
// failure that leaves recorded work behind, and sums that are read from another tensor's place.
#[cfg(sala_emulated)]
#[test]
fn every_method_takes_the_same_steps_with_the_kernels_of_graphics_cards() {
    compare(Choice::Emulated, DType::F64, TRAJECTORY_F64);
    compare(Choice::Emulated, DType::F32, TRAJECTORY_F32);
}
