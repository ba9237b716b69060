//! Determinism: a training twice from one seed, bit for bit, and the initial weights against the CPU's.

use anyhow::{Result, ensure};
use candle_core::{DType, Device};
use sala_core::{
    Differentiated, ParamSet, ParamsSala, ParamsSgd, Pass,
    catalogue::{Base, Method, build},
    testing::read,
};
use sala_models::{kernels::Choice, ops::cross_entropy};

use super::{
    FORMS,
    check::{SAME_BITS, Section, Verdict},
    in_form,
    networks::{self, Network, labels},
    place::Place,
    task::Task,
};

/// Steps of a training: SALA's cycles of two climb at their ends.
const STEPS: u64 = 6;
/// Farther than two steps go, so that every cycle climbs.
const RHO: f64 = 0.5;

pub(super) fn tasks(device: &Device) -> Vec<Task> {
    let section = Section::Repetition;
    let mut tasks = vec![];
    for network in networks::all() {
        for dtype in [DType::F32, DType::BF16] {
            let place = Place::new(device.clone(), dtype);
            let name = format!("{}, initial weights", network.name());
            tasks.push(Task::new(section, name, dtype, Choice::Auto, move || {
                let cpu = Place::new(Device::Cpu, place.dtype);
                same(&initial(network, &place)?, &initial(network, &cpu)?)
            }));
            for form in FORMS {
                let place = Place::new(device.clone(), dtype);
                let name = format!("{}, trained twice", network.name());
                tasks.push(Task::new(section, name, dtype, form, move || {
                    let train = || in_form(form, || trained(network, &place));
                    same(&train()?, &train()?)
                }));
            }
        }
    }
    tasks
}

/// Numbers by name.
pub(super) type Named = Vec<(String, Vec<f64>)>;

/// Every variable, running statistics too.
fn variables(store: &sala_models::VarStore) -> Result<Named> {
    let all = store.all().into_iter();
    all.map(|(name, var)| Ok((name, read(&var)?))).collect()
}

fn initial(network: Network, place: &Place) -> Result<Named> {
    variables(&network.build(place)?.store)
}

/// The variables after some steps, and the losses.
fn trained(network: Network, place: &Place) -> Result<Named> {
    let built = network.build(place)?;
    let mut params = ParamSet::new(built.store.trainable())?;
    if place.dtype == DType::BF16 {
        params = params.with_f32_masters()?;
    }
    let base = Base::Sgd(ParamsSgd {
        lr: 0.01,
        momentum: 0.9,
        ..ParamsSgd::default()
    });
    let method = Method::Sala(ParamsSala {
        rho: RHO,
        ..ParamsSala::default()
    });
    let mut optimizer = build(params, &base, &method, None)?;
    let labels = labels(&place.device)?;
    let mut losses = vec![];
    for step in 0..STEPS {
        let loss = |_: Pass| cross_entropy(&built.logits(step)?, &labels);
        let report = optimizer.step(&mut Differentiated::by(sala_models::backward, loss))?;
        losses.push(report.loss);
    }
    let start = losses.first().copied().unwrap_or(f64::NAN);
    ensure!(start.is_finite(), "the first loss is {start}");
    let mut all = variables(&built.store)?;
    all.push(("losses".into(), losses));
    Ok(all)
}

/// Compares bits.
pub(super) fn same(got: &Named, wanted: &Named) -> Result<Verdict> {
    ensure!(got.len() == wanted.len(), "they differ in number");
    let mut verdict = Verdict::empty();
    for ((name, got), (_, wanted)) in got.iter().zip(wanted) {
        let mut pairs = got.iter().zip(wanted);
        let differs = pairs.position(|(got, wanted)| got.to_bits() != wanted.to_bits());
        verdict.compare(name, SAME_BITS, got, wanted);
        if let Some(element) = differs
            && verdict.passed()
        {
            return Ok(Verdict::failed(format!(
                "{name}, element {element}: 0 and −0"
            )));
        }
    }
    Ok(verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_bit_is_a_failure_and_so_is_the_sign_of_a_zero() {
        let weights = |value: f64| vec![("w".to_owned(), vec![1.0, value])];
        assert!(same(&weights(0.5), &weights(0.5)).unwrap().passed());
        let next = f64::from_bits(0.5_f64.to_bits() + 1);
        let off = same(&weights(next), &weights(0.5)).unwrap();
        assert!(!off.passed() && off.worst.unwrap().element == 1);
        assert!(!same(&weights(-0.0), &weights(0.0)).unwrap().passed());
    }

    // Catches a training that would be the same whatever its seed does.
    #[test]
    fn a_training_learns_and_its_steps_matter() {
        let place = Place::new(Device::Cpu, DType::F32);
        let trained = trained(Network::Cnn, &place).unwrap();
        let start = initial(Network::Cnn, &place).unwrap();
        let (losses, weights) = trained.split_last().unwrap();
        assert!(losses.1[5] < losses.1[0], "{losses:?}");
        let pairs = weights.iter().zip(&start);
        let moved = pairs
            .filter(|((_, after), (_, before))| after != before)
            .count();
        // All but what stands before a norm.
        assert!(2 * moved > weights.len(), "{moved} of {}", weights.len());
    }
}
