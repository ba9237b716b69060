//! Factors of one's own that do not do what they must are errors, and the weights stay where they were.

use candle_core::{DType, Device, Tensor, Var};
use sala_core::{
    Ascend, Gradients, Memory, Minimizer, ParamSet, ParamsSgd, Pass, Result, Sgd, SlowAscend,
    SlowInit,
    blend::{Ascended, Blend, Direction},
    perturb::{Ascent, L2, Perturbation, Radius},
    policy::{Always, EveryK},
    testing::assert_same_bits,
};

use crate::methods::Problem;

/// What is wrong with a list of tensors.
#[derive(Debug, Clone, Copy)]
enum Wrong {
    TooFew,
    TooMany,
    Shape,
}

const ALL: [(Wrong, &str); 3] = [
    (
        Wrong::TooFew,
        "the number of tensors must be 2, one for each parameter, got 1",
    ),
    (
        Wrong::TooMany,
        "the number of tensors must be 2, one for each parameter, got 3",
    ),
    (
        Wrong::Shape,
        "parameter 1 (from 0) must be of shape [3, 5], got of shape [7]",
    ),
];

fn spoil(tensors: &[Tensor], wrong: Wrong) -> Vec<Tensor> {
    let mut tensors = tensors.to_vec();
    match wrong {
        Wrong::TooFew => drop(tensors.pop()),
        Wrong::TooMany => tensors.push(tensors[0].clone()),
        Wrong::Shape => tensors[1] = Tensor::ones(7, DType::F64, &Device::Cpu).unwrap(),
    }
    tensors
}

/// Climbs along a direction that does not fit, with the gradient or without.
#[derive(Debug)]
struct Astray(Wrong, bool);

impl Perturbation for Astray {
    fn needs_direction(&self) -> bool {
        self.1
    }

    fn ascent(&self, params: &ParamSet, _: &[Tensor]) -> Result<Option<Ascent>> {
        let own: Vec<_> = params.vars().iter().map(Var::as_detached_tensor).collect();
        Ascent::along(spoil(&own, self.0)).map(Some)
    }
}

/// Adds what does not fit, at steps that climb or at the others.
#[derive(Debug)]
struct Adds {
    wrong: Wrong,
    addition: Option<Vec<Tensor>>,
}

impl Blend for Adds {
    fn climbed(&mut self, _: &Direction, dot: f64, gradients: &mut Gradients) -> Result<()> {
        let other = spoil(gradients.tensors(), self.wrong);
        gradients.combine(1.0, (1.0, &other, 1.0), dot)
    }

    fn addition(&self) -> Option<&[Tensor]> {
        self.addition.as_deref()
    }
}

#[track_caller]
fn refuses(problem: &Problem, optimizer: &mut impl Minimizer, words: &str) {
    let before = problem.weights();
    let error = optimizer.step(&mut |pass: Pass| problem.loss(pass));
    let message = error.unwrap_err().to_string();
    assert!(message.contains(words), "{message}");
    for (got, wanted) in problem.weights().iter().zip(&before) {
        assert_same_bits("weights", got, wanted);
    }
}

fn parts() -> (Problem, ParamSet, Sgd) {
    let problem = Problem::new(DType::F64);
    let params = problem.params();
    let base = Sgd::new(&params, ParamsSgd::default()).unwrap();
    (problem, params, base)
}

#[test]
fn a_direction_that_does_not_fit_is_refused() {
    for (wrong, words) in ALL {
        for needs_direction in [true, false] {
            let ascent = || {
                (
                    Astray(wrong, needs_direction),
                    Radius::absolute(0.1).unwrap(),
                )
            };
            let blend = Ascended::default();
            let (problem, params, base) = parts();
            let mut sam = Ascend::compose(params, base, ascent(), Always, blend).unwrap();
            refuses(&problem, &mut sam, words);
            let (problem, params, base) = parts();
            let slow = (1, 0.5, SlowInit::Construction);
            let mut sala =
                SlowAscend::compose(params, base, slow, ascent(), Always, blend).unwrap();
            refuses(&problem, &mut sala, words);
        }
    }
}

#[test]
fn a_blend_that_adds_what_does_not_fit_is_refused() {
    for (wrong, words) in ALL {
        let ascent = || (L2, Radius::absolute(0.1).unwrap());
        let (problem, params, base) = parts();
        let climbing = Adds {
            wrong,
            addition: None,
        };
        let mut sam = Ascend::compose(params, base, ascent(), Always, climbing).unwrap();
        refuses(&problem, &mut sam, words);

        let (problem, params, base) = parts();
        let own: Vec<_> = params.vars().iter().map(Var::as_detached_tensor).collect();
        let between = Adds {
            wrong,
            addition: Some(spoil(&own, wrong)),
        };
        let never = EveryK::new(1000).unwrap();
        let mut sam = Ascend::compose(params, base, ascent(), never, between).unwrap();
        refuses(&problem, &mut sam, words);
    }
}

#[test]
fn a_memory_that_is_fed_what_does_not_fit_is_as_it_was() {
    let mut memory = Memory::new();
    let (problem, ..) = parts();
    let mut weights = problem.weights();
    weights.reverse();
    memory.blend(0.5, 1.0, &weights).unwrap();
    for (wrong, words) in ALL {
        let message = memory
            .blend(0.5, 1.0, &spoil(&weights, wrong))
            .unwrap_err()
            .to_string();
        assert!(message.contains(words), "{message}");
        for (got, wanted) in memory.tensors().unwrap().iter().zip(&weights) {
            assert_same_bits("memory", got, wanted);
        }
    }
}
