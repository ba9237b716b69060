//! What the benchmarks of this folder measure: networks by the shapes of their parameters, with given
//! gradients, and the rules as cases that a benchmark runs over them.

use candle_core::{DType, Device, Result, Shape, Tensor, Var, backprop::GradStore};
use candle_nn::{Optimizer, ParamsAdamW};
use rayon::prelude::*;
use sala_core::{
    Adam, Descend, Evaluation, Lookahead, Minimizer, Objective, ParamSet, ParamsAdam,
    ParamsLookahead, ParamsSala, ParamsSam, ParamsSgd, Pass, Sala, Sam, Sgd,
};

/// Variables with the shapes of a network, and a gradient for each.
pub(crate) struct Network {
    pub(crate) name: &'static str,
    pub(crate) params: ParamSet,
    pub(crate) gradients: Vec<Tensor>,
}

impl Network {
    fn new(name: &'static str, shapes: Vec<Shape>) -> Self {
        let small = |shape: &Shape| {
            let values: Vec<f32> = (0..shape.elem_count())
                .map(|i| (i % 1009) as f32 * 1e-5 - 5e-3)
                .collect();
            Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
        };
        let gradients: Vec<_> = shapes.iter().map(small).collect();
        let vars = gradients.iter().map(|g| Var::from_tensor(g).unwrap());
        let params = ParamSet::from_vars(vars.collect()).unwrap();
        Self {
            name,
            params,
            gradients,
        }
    }

    /// The 62 tensors of ResNet-18 for CIFAR-10.
    pub(crate) fn resnet18() -> Self {
        let mut shapes: Vec<Shape> = vec![(10, 512).into(), 10.into()];
        let mut conv = |inputs: usize, outputs: usize, size: usize| {
            shapes.extend([(outputs, inputs, size, size).into(), outputs.into()]);
            shapes.push(outputs.into());
        };
        conv(3, 64, 3);
        for (inputs, outputs) in [(64, 64), (64, 128), (128, 256), (256, 512)] {
            conv(inputs, outputs, 3);
            for _ in 0..3 {
                conv(outputs, outputs, 3);
            }
            if inputs != outputs {
                conv(inputs, outputs, 1);
            }
        }
        Self::new("resnet18", shapes)
    }

    /// The 199 tensors of BERT-base.
    pub(crate) fn bert_base() -> Self {
        let (hidden, inner) = (768, 3072);
        let norm = || [Shape::from(hidden), Shape::from(hidden)];
        let linear = |outputs: usize, inputs: usize| [(outputs, inputs).into(), outputs.into()];
        let mut shapes: Vec<Shape> = [30522, 512, 2].map(|n| (n, hidden).into()).to_vec();
        shapes.extend(norm());
        for _ in 0..12 {
            for _ in 0..4 {
                shapes.extend(linear(hidden, hidden));
            }
            shapes.extend(norm());
            shapes.extend(linear(inner, hidden));
            shapes.extend(linear(hidden, inner));
            shapes.extend(norm());
        }
        shapes.extend(linear(hidden, hidden));
        Self::new("bert-base", shapes)
    }

    fn grads(&self) -> Result<GradStore> {
        let mut grads = Var::new(0f32, &Device::Cpu)?.backward()?;
        for (param, gradient) in self.params.iter().zip(&self.gradients) {
            grads.insert(param.var(), gradient.clone());
        }
        Ok(grads)
    }
}

/// The same gradients in every pass.
struct Given<'a>(&'a Network);

impl Objective for Given<'_> {
    fn evaluate(&mut self, _: Pass) -> Result<Evaluation> {
        let loss = Tensor::zeros((), DType::F32, &Device::Cpu)?;
        Ok(Evaluation::new(loss, self.0.grads()?))
    }
}

/// A base that leaves the weights alone, so that a step is only what is built around a base.
struct Idle;

impl Optimizer for Idle {
    type Config = ();

    fn new(_: Vec<Var>, (): ()) -> Result<Self> {
        Ok(Self)
    }

    fn step(&mut self, _: &GradStore) -> Result<()> {
        Ok(())
    }

    fn learning_rate(&self) -> f64 {
        0.0
    }

    fn set_learning_rate(&mut self, _: f64) {}
}

/// What is timed.
pub(crate) type Step<'a> = Box<dyn FnMut() + 'a>;

/// Steps through candle's trait: the rule alone.
fn bare<'a>(network: &'a Network, mut optimizer: impl Optimizer + 'a) -> Step<'a> {
    let grads = network.grads().unwrap();
    Box::new(move || optimizer.step(&grads).unwrap())
}

/// Steps through this crate's trait, which checks the norm of each gradient first.
fn full<'a>(network: &'a Network, mut optimizer: impl Minimizer + 'a) -> Step<'a> {
    Box::new(move || {
        optimizer.step(&mut Given(network)).unwrap();
    })
}

fn sgd(network: &Network) -> Sgd {
    let config = ParamsSgd {
        lr: 1e-3,
        momentum: 0.9,
        nesterov: true,
        weight_decay: 5e-4,
        ..Default::default()
    };
    Sgd::new(&network.params, config).unwrap()
}

fn adamw(network: &Network) -> Adam {
    Adam::new(&network.params, ParamsAdam::adamw()).unwrap()
}

fn candle_adamw(network: &Network) -> Step<'_> {
    let vars = network.params.vars();
    bare(
        network,
        candle_nn::AdamW::new(vars, ParamsAdamW::default()).unwrap(),
    )
}

fn lookahead(network: &Network) -> Step<'_> {
    let config = ParamsLookahead::default();
    bare(
        network,
        Lookahead::new(network.params.clone(), sgd(network), config).unwrap(),
    )
}

fn sam_alone(network: &Network) -> Step<'_> {
    let config = ParamsSam::default();
    full(
        network,
        Sam::new(network.params.clone(), Idle, config).unwrap(),
    )
}

/// The base as this crate steps it, with the checks of gradients that SALA's steps have too.
fn descend(network: &Network) -> Step<'_> {
    full(network, Descend::new(network.params.clone(), sgd(network)))
}

/// SALA with a radius that makes every cycle climb, or none.
fn sala(network: &Network, k: u64, rho: f64) -> Step<'_> {
    let config = ParamsSala {
        k,
        rho,
        ..Default::default()
    };
    full(
        network,
        Sala::new(network.params.clone(), sgd(network), config).unwrap(),
    )
}

/// A rule to time.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// The steps that make up its cycle.
    pub(crate) cycle: u32,
    /// The bytes that an f32 weight costs in one cycle.
    pub(crate) bytes: f64,
    pub(crate) make: fn(&Network) -> Step<'_>,
    pub(crate) has_kernels: bool,
}

impl Case {
    const fn new(
        name: &'static str,
        cycle: u32,
        bytes: f64,
        make: fn(&Network) -> Step<'_>,
    ) -> Self {
        Self {
            name,
            cycle,
            bytes,
            make,
            has_kernels: true,
        }
    }

    const fn without_kernels(self) -> Self {
        Self {
            has_kernels: false,
            ..self
        }
    }

    /// Milliseconds that the bytes of a step take at this rate in bytes per millisecond.
    pub(crate) fn floor(&self, network: &Network, rate: f64) -> f64 {
        self.bytes / f64::from(self.cycle) * network.params.num_elements() as f64 / rate
    }
}

/// Bytes: a norm.
const NORM: f64 = 4.0;
/// SGD's update.
const SGD: f64 = 20.0;
/// Adam's.
const ADAM: f64 = 28.0;
/// Writing w + ε beside w; to restore moves nothing.
const PERTURB: f64 = 12.0;
/// The pull of slow weights within a step, whose weights are at hand; so is a return to them.
const PULL: f64 = 8.0;

/// SALA's cycle without a climb, and what a climb adds: the direction's norm and the perturbation.
const fn sala_bytes(k: f64, climbs: bool) -> f64 {
    let walk = k * (NORM + SGD) + PULL;
    if climbs { walk + NORM + PERTURB } else { walk }
}

pub(crate) const CASES: [Case; 10] = [
    Case::new("sgd-nesterov", 1, SGD, |n| bare(n, sgd(n))),
    Case::new("adamw", 1, ADAM, |n| bare(n, adamw(n))),
    Case::new("candle-nn-adamw", 1, ADAM, candle_adamw).without_kernels(),
    Case::new("lookahead-k5-sgd", 5, 5.0 * SGD + PULL, lookahead),
    Case::new("sam-alone", 1, 2.0 * NORM + PERTURB, sam_alone),
    Case::new("descend-sgd", 1, NORM + SGD, descend),
    Case::new("sala-k2-climbs", 2, sala_bytes(2.0, true), |n| {
        sala(n, 2, 1e30)
    }),
    Case::new("sala-k2-walks", 2, sala_bytes(2.0, false), |n| {
        sala(n, 2, 0.0)
    }),
    Case::new("sala-k5-climbs", 5, sala_bytes(5.0, true), |n| {
        sala(n, 5, 1e30)
    }),
    Case::new("sala-k5-walks", 5, sala_bytes(5.0, false), |n| {
        sala(n, 5, 0.0)
    }),
];

/// The bytes that [`update_in_place`] moves for each of its elements.
pub(crate) const FLOOR_BYTES: f64 = 20.0;

/// An update in place of three arrays of so many elements, two of them written: what memory gives to a
/// rule that does nothing else.
pub(crate) fn update_in_place(len: usize) -> Step<'static> {
    let (mut a, mut b, x) = (vec![1f32; len], vec![1f32; len], vec![1f32; len]);
    Box::new(move || {
        let pieces = a.par_chunks_mut(1 << 14).zip(b.par_chunks_mut(1 << 14));
        pieces.zip(x.par_chunks(1 << 14)).for_each(|((a, b), x)| {
            for ((a, b), x) in a.iter_mut().zip(b).zip(x) {
                *b = *b * 0.5 + x;
                *a -= *b * 1e-3;
            }
        });
    })
}

/// The median of times, between the two in the middle where their number is even.
pub(crate) fn median(mut times: Vec<f64>) -> Option<f64> {
    times.sort_by(f64::total_cmp);
    let upper = *times.get(times.len() / 2)?;
    let lower = times[(times.len() - 1) / 2];
    Some(f64::midpoint(lower, upper))
}
