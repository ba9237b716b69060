//! The optimizer's own work in a step: gradients are given, and what remains is their norms, the update and what
//! a method does besides.

use std::{
    fmt, fs,
    io::{stdin, stdout},
    time::Instant,
};

use anyhow::Result;
use candle_core::{DType, Device, Shape, Tensor, Var, backprop::GradStore};
use clap::ValueEnum;
use sala_core::{
    Evaluation, Objective, ParamSet, ParamsAdam, ParamsAsam, ParamsFriendlySam, ParamsGsam,
    ParamsLookSam, ParamsLookahead, ParamsMomentumSam, ParamsSala, ParamsSam, ParamsSamEvery,
    ParamsSgd, Pass, Resumable,
    catalogue::{Base, Method, build},
};

use super::{
    machine::{self, peak_mib},
    place::{Place, Precision, Size},
    protocol::{self, Hello, Round},
};

/// A method of the catalogue, over SGD with Nesterov momentum but for `AdamW`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum UpdateMethod {
    Sgd,
    Adamw,
    Lookahead,
    Sam,
    Asam,
    #[value(name = "sam-every-2")]
    SamEvery2,
    #[value(name = "look-sam-5")]
    LookSam5,
    Gsam,
    FriendlySam,
    MomentumSam,
    /// No cycle climbs
    SalaWalks,
    /// Every cycle climbs
    SalaClimbs,
}

/// Bytes that a weight of f32 has to move, reading and writing counted once each: the norm of its gradient.
const NORM: f64 = 4.0;
const SGD: f64 = 20.0;
const ADAM: f64 = 28.0;
/// Writing w + ε beside w; to restore moves nothing.
const PERTURB: f64 = 12.0;
/// The pull of slow weights within a step.
const PULL: f64 = 8.0;

impl UpdateMethod {
    /// What it is called on the command line and in records.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Sgd => "sgd",
            Self::Adamw => "adamw",
            Self::Lookahead => "lookahead",
            Self::Sam => "sam",
            Self::Asam => "asam",
            Self::SamEvery2 => "sam-every-2",
            Self::LookSam5 => "look-sam-5",
            Self::Gsam => "gsam",
            Self::FriendlySam => "friendly-sam",
            Self::MomentumSam => "momentum-sam",
            Self::SalaWalks => "sala-walks",
            Self::SalaClimbs => "sala-climbs",
        }
    }

    fn base(self) -> Base {
        if self == Self::Adamw {
            return Base::Adam(ParamsAdam::adamw());
        }
        Base::Sgd(ParamsSgd {
            lr: 1e-3,
            momentum: 0.9,
            nesterov: true,
            weight_decay: 5e-4,
            ..ParamsSgd::default()
        })
    }

    fn method(self) -> Method {
        let sam = ParamsSam::default();
        let sala = |rho| {
            Method::Sala(ParamsSala {
                k: 2,
                rho,
                ..ParamsSala::default()
            })
        };
        match self {
            Self::Sgd | Self::Adamw => Method::Base,
            Self::Lookahead => Method::Lookahead(ParamsLookahead {
                k: 5,
                ..ParamsLookahead::default()
            }),
            Self::Sam => Method::Sam(sam),
            Self::Asam => Method::Asam(ParamsAsam::default()),
            Self::SamEvery2 => Method::SamEvery(ParamsSamEvery { k: 2, sam }),
            Self::LookSam5 => Method::LookSam(ParamsLookSam {
                k: 5,
                sam,
                ..ParamsLookSam::default()
            }),
            Self::Gsam => Method::Gsam(ParamsGsam {
                sam,
                ..ParamsGsam::default()
            }),
            Self::FriendlySam => Method::FriendlySam(ParamsFriendlySam {
                sam,
                ..ParamsFriendlySam::default()
            }),
            Self::MomentumSam => Method::MomentumSam(ParamsMomentumSam::default()),
            Self::SalaWalks => sala(0.0),
            Self::SalaClimbs => sala(CLIMBS),
        }
    }

    /// The steps that make up its cycle, which are timed together.
    const fn cycle(self) -> usize {
        match self {
            Self::Lookahead | Self::LookSam5 => 5,
            Self::SamEvery2 | Self::SalaWalks | Self::SalaClimbs => 2,
            _ => 1,
        }
    }

    /// Bytes that a step has to move for a weight of f32, where that has been counted.
    const fn bytes(self) -> Option<f64> {
        match self {
            Self::Sgd => Some(NORM + SGD),
            Self::Adamw => Some(NORM + ADAM),
            Self::Lookahead => Some(NORM + SGD + PULL / 5.0),
            Self::Sam => Some(2.0 * NORM + PERTURB + SGD),
            Self::SamEvery2 => Some(NORM + SGD + f64::midpoint(NORM, PERTURB)),
            Self::SalaWalks => Some(NORM + SGD + PULL / 2.0),
            Self::SalaClimbs => Some(NORM + SGD + (PULL + NORM + PERTURB) / 2.0),
            _ => None,
        }
    }

    /// Arrays of the weights' size that it keeps or makes in a step, weights and gradients included.
    const fn arrays(self) -> usize {
        match self {
            Self::Sgd => 3,
            Self::Adamw
            | Self::Lookahead
            | Self::MomentumSam
            | Self::Sam
            | Self::SamEvery2
            | Self::SalaWalks => 5,
            Self::Asam | Self::SalaClimbs => 6,
            Self::LookSam5 | Self::Gsam | Self::FriendlySam => 7,
        }
    }

    /// Whether PyTorch has a fused form of it.
    pub(super) const fn in_torch(self) -> bool {
        matches!(self, Self::Sgd | Self::Adamw)
    }
}

/// A radius above every gap.
const CLIMBS: f64 = 1e30;

impl fmt::Display for UpdateMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Updates of a method at a size.
#[derive(Debug, Clone, Copy)]
pub(super) struct Update {
    pub(super) method: UpdateMethod,
    pub(super) size: Size,
}

impl Update {
    pub(super) fn name(self) -> String {
        format!("{}-{}", self.method, self.size)
    }

    pub(super) fn title(self) -> String {
        format!("updates of {} for {} parameters", self.method, self.size)
    }

    /// How many steps a round has: whole cycles, more where they are short.
    pub(super) fn repeats(self, on_cpu: bool) -> usize {
        let least = if on_cpu { 1 } else { 10 };
        let cycles = (10_000_000 / self.size.get()).clamp(least, 20);
        cycles * self.method.cycle()
    }

    /// Bytes that a step moves at least.
    pub(super) fn bytes(self, precision: Precision) -> Option<f64> {
        let f32 = precision != Precision::Bf16;
        let bytes = self.method.bytes().filter(|_| f32)?;
        Some(
            bytes
                * shapes(self.size.get())
                    .iter()
                    .map(Shape::elem_count)
                    .sum::<usize>() as f64,
        )
    }

    /// Why it does not fit into the memory of the machine, where the system says how much there is, with so many
    /// sides beside each other.
    pub(super) fn does_not_fit(self, sides: usize) -> Option<String> {
        let needed = self.size.get() * self.method.arrays() * size_of::<f32>() * sides;
        let (needed, there) = (needed as f64 / GIB, available_gib()?);
        (needed > there)
            .then(|| format!("wants about {needed:.0} GiB of memory, {there:.0} are free"))
    }
}

const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

fn available_gib() -> Option<f64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    Some(machine::mib_of(&text, "MemAvailable")? / 1024.0)
}

/// The matrices and vectors of twelve transformer layers with about so many parameters.
fn shapes(parameters: usize) -> Vec<Shape> {
    const LAYERS: usize = 12;
    // A layer of h features has 12 h² + 13 h parameters.
    let of_layer = parameters as f64 / LAYERS as f64;
    let features = ((13.0_f64.powi(2) + 48.0 * of_layer).sqrt() - 13.0) / 24.0;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the square root of a number of parameters"
    )]
    let h = (features.round() as usize).max(1);
    let mut shapes = vec![];
    for _ in 0..LAYERS {
        for _ in 0..4 {
            shapes.extend([Shape::from((h, h)), h.into()]);
        }
        shapes.extend([
            (4 * h, h).into(),
            (4 * h).into(),
            (h, 4 * h).into(),
            h.into(),
        ]);
        // Two norms.
        shapes.extend([Shape::from(h), h.into(), h.into(), h.into()]);
    }
    shapes
}

/// Serves rounds of updates on standard input and output.
pub(super) fn serve(update: Update, place: &Place) -> Result<()> {
    let start_mib = peak_mib();
    let mut training = Training::new(update, place)?;
    let cycle = update.method.cycle();
    training.steps(2 * cycle)?;
    let hello = Hello {
        version: format!("candle {}", env!("CANDLE_VERSION")),
        parameters: training.parameters,
        start_mib,
    };
    protocol::serve(Some(&hello), stdin().lock(), stdout(), || {
        training.steps(place.waking_steps() * cycle)?;
        let on_cpu = place.device.is_cpu();
        let repeats = update.repeats(on_cpu);
        // A training loop does not wait for the card after each update either: what the host does for the next one,
        // and what it reads from the last, takes time only where the card has nothing to do meanwhile.
        let together = if on_cpu { cycle } else { repeats };
        let times = (0..repeats / together).map(|_| training.steps(together));
        Ok(Round {
            forward_ms: vec![],
            step_ms: times.collect::<Result<_>>()?,
            loss: 0.0,
            peak_mib: peak_mib().filter(|_| place.device.is_cpu()),
        })
    })
}

/// The same gradients in every pass.
struct Given {
    gradients: Vec<(Var, Tensor)>,
    loss: Tensor,
}

impl Objective for Given {
    fn evaluate(&mut self, _: Pass) -> candle_core::Result<Evaluation> {
        let mut store: GradStore = Var::new(0f32, &Device::Cpu)?.backward()?;
        for (var, gradient) in &self.gradients {
            store.insert(var, gradient.clone());
        }
        Ok(Evaluation::new(self.loss.clone(), store))
    }
}

struct Training {
    optimizer: Box<dyn Resumable>,
    given: Given,
    place: Place,
    parameters: usize,
}

impl Training {
    fn new(update: Update, place: &Place) -> Result<Self> {
        let Place { device, .. } = place;
        let mut gradients = vec![];
        for shape in shapes(update.size.get()) {
            let gradient = small(&shape, place)?;
            gradients.push((Var::from_tensor(&gradient)?, gradient));
        }
        let vars = gradients.iter().map(|(var, _)| var.clone()).collect();
        let mut params = ParamSet::from_vars(vars)?;
        if place.precision == Precision::Bf16 {
            params = params.with_f32_masters()?;
        }
        let parameters = params.num_elements();
        let method = update.method;
        Ok(Self {
            optimizer: build(params, &method.base(), &method.method(), None)?,
            given: Given {
                gradients,
                loss: Tensor::zeros((), DType::F32, device)?,
            },
            place: place.clone(),
            parameters,
        })
    }

    /// Milliseconds of a step, the mean over so many.
    fn steps(&mut self, steps: usize) -> Result<f64> {
        let start = Instant::now();
        for _ in 0..steps {
            self.optimizer.step(&mut self.given)?;
        }
        self.place.wait()?;
        Ok(start.elapsed().as_secs_f64() * 1e3 / steps as f64)
    }
}

/// Numbers of a gradient's size, none of them zero.
fn small(shape: &Shape, place: &Place) -> Result<Tensor> {
    let values: Vec<f32> = (0..shape.elem_count())
        .map(|i| (i % 1009) as f32 * 1e-5 - 5.003e-3)
        .collect();
    let values = Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(place.dtype())?;
    Ok(values.to_device(&place.device)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_command_line() {
        for method in UpdateMethod::value_variants() {
            let value = method.to_possible_value().unwrap();
            assert_eq!(value.get_name(), method.name());
        }
    }

    #[test]
    fn shapes_have_about_as_many_parameters_as_were_asked_for() {
        for wanted in [1_000_000, 10_000_000, 100_000_000, 1_000_000_000] {
            let shapes = shapes(wanted);
            let got: usize = shapes.iter().map(Shape::elem_count).sum();
            let off = (got as f64 / wanted as f64 - 1.0).abs();
            assert!(off < 0.02, "{wanted}: {got}");
            assert_eq!(shapes.len(), 12 * 16);
        }
    }

    // Catches a method that is built without its stages: what is timed as a climb would be none.
    #[test]
    fn a_cycle_climbs_as_its_name_says() {
        let place = Place::open(crate::spec::Device::Cpu, Precision::F32).unwrap();
        for (method, evaluations) in [
            (UpdateMethod::Sgd, 1.0),
            (UpdateMethod::Sam, 2.0),
            (UpdateMethod::SamEvery2, 1.5),
            (UpdateMethod::LookSam5, 1.2),
            (UpdateMethod::MomentumSam, 1.0),
            (UpdateMethod::SalaWalks, 1.0),
            (UpdateMethod::SalaClimbs, 1.5),
        ] {
            let size = "10k".parse().unwrap();
            let mut training = Training::new(Update { method, size }, &place).unwrap();
            // The first cycle of SALA has no gap to decide by.
            training.steps(10).unwrap();
            let mut taken = 0.0;
            for _ in 0..10 {
                taken += training
                    .optimizer
                    .step(&mut training.given)
                    .unwrap()
                    .evaluations;
            }
            assert!(
                (taken / 10.0 - evaluations).abs() < 1e-9,
                "{method}: {taken}"
            );
        }
    }

    #[test]
    fn what_is_larger_than_the_memory_does_not_fit() {
        let update = |size: &str| Update {
            method: UpdateMethod::Sgd,
            size: size.parse().unwrap(),
        };
        if available_gib().is_some() {
            let reason = update("100000G").does_not_fit(1).unwrap();
            assert!(reason.contains("GiB"), "{reason}");
            assert_eq!(update("1k").does_not_fit(2), None);
        }
    }

    #[test]
    fn bytes_are_counted_for_f32_alone() {
        let update = Update {
            method: UpdateMethod::Sgd,
            size: "1M".parse().unwrap(),
        };
        let bytes = update.bytes(Precision::F32).unwrap();
        assert!((bytes / 24e6 - 1.0).abs() < 0.02, "{bytes}");
        assert_eq!(update.bytes(Precision::Bf16), None);
    }
}
