//! Schedules tied to the numbers of an optimizer.

use super::Schedule;
use crate::{
    error::{Result, check},
    minimizer::Minimizer,
    state::{State, StateReader, Stateful},
};

/// A number of an optimizer that a schedule can drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quantity {
    LearningRate,
    Rho,
    WeightDecay,
}

impl Quantity {
    fn field(self) -> &'static str {
        match self {
            Self::LearningRate => "learning_rate",
            Self::Rho => "rho",
            Self::WeightDecay => "weight_decay",
        }
    }
}

/// Drives learning rate, radius ρ and weight decay along schedules, each a peak value times a factor.
///
/// The position counts whatever [`Scheduler::advance`] is called for: steps or epochs. It is all that has
/// to be saved, since schedules are pure functions; the factors of single parameters
/// ([`ParamSet::with_lr_scale`](crate::ParamSet::with_lr_scale)) multiply what is set here, so a
/// schedule stays tied to the right groups.
///
/// ```
/// # use candle_core::{Device, Var};
/// # use sala_core::{Minimizer, ParamSet, ParamsSala, ParamsSgd, Pass, Sala, Sgd};
/// # use sala_core::schedule::{Cosine, Polynomial, Scheduler};
/// # let w = Var::new(&[3f64], &Device::Cpu)?;
/// # let params = ParamSet::new([("w", w.clone())])?;
/// # let base = Sgd::new(&params, ParamsSgd::default())?;
/// let mut sala = Sala::new(params, base, ParamsSala::default())?;
/// let mut scheduler = Scheduler::new()
///     .learning_rate(0.05, Cosine::new(100)?)?
///     .rho(0.2, Polynomial::linear(100, 0.5)?)?;
/// for _ in 0..50 {
///     scheduler.advance(&mut sala)?; // before the step
///     sala.step(&mut |_pass: Pass| w.sqr()?.sum_all())?;
/// }
/// scheduler.advance(&mut sala)?;
/// assert!((sala.learning_rate() - 0.025).abs() < 1e-12);
/// assert!((sala.rho().unwrap() - 0.15).abs() < 1e-12);
/// # Ok::<(), sala_core::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Scheduler {
    driven: Vec<(Quantity, f64, Box<dyn Schedule>)>,
    position: u64,
}

impl Scheduler {
    /// Drives nothing yet, at position 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// Drives the learning rate: `peak` ≥ 0 times the schedule's factor.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when the peak is negative or not finite.
    pub fn learning_rate(self, peak: f64, schedule: impl Schedule + 'static) -> Result<Self> {
        self.drive(Quantity::LearningRate, peak, schedule)
    }

    /// Drives the radius ρ.
    ///
    /// # Errors
    /// As for [`Scheduler::learning_rate`].
    pub fn rho(self, peak: f64, schedule: impl Schedule + 'static) -> Result<Self> {
        self.drive(Quantity::Rho, peak, schedule)
    }

    /// Drives the weight decay of a built-in base.
    ///
    /// # Errors
    /// As for [`Scheduler::learning_rate`].
    pub fn weight_decay(self, peak: f64, schedule: impl Schedule + 'static) -> Result<Self> {
        self.drive(Quantity::WeightDecay, peak, schedule)
    }

    fn drive(
        mut self,
        quantity: Quantity,
        peak: f64,
        schedule: impl Schedule + 'static,
    ) -> Result<Self> {
        check::non_negative("Scheduler", quantity.field(), peak)?;
        self.driven.retain(|(other, ..)| *other != quantity);
        self.driven.push((quantity, peak, Box::new(schedule)));
        Ok(self)
    }

    /// The position that comes next, from 0.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// What the quantities are to be at this position.
    fn values(&self) -> Result<Vec<(Quantity, f64)>> {
        let value = |(quantity, peak, schedule): &(Quantity, f64, Box<dyn Schedule>)| {
            let value = peak * schedule.factor(self.position);
            check::non_negative("Scheduler", quantity.field(), value)?;
            Ok((*quantity, value))
        };
        self.driven.iter().map(value).collect()
    }

    /// Sets the optimizer's numbers to those of the position, and moves on by one. Call it before a step,
    /// or before an epoch's first.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when a schedule gives a value that is negative or not finite, and
    /// those of [`Minimizer::set_rho`] and [`Minimizer::set_weight_decay`] for an optimizer without. Nothing
    /// is set then.
    pub fn advance<M: Minimizer + ?Sized>(&mut self, optimizer: &mut M) -> Result<()> {
        let values = self.values()?;
        // What the optimizer has not is an error before anything is set.
        for (quantity, value) in &values {
            match quantity {
                Quantity::Rho if optimizer.rho().is_none() => optimizer.set_rho(*value)?,
                Quantity::WeightDecay if optimizer.weight_decay().is_none() => {
                    optimizer.set_weight_decay(*value)?;
                }
                Quantity::LearningRate | Quantity::Rho | Quantity::WeightDecay => {}
            }
        }
        for (quantity, value) in values {
            match quantity {
                Quantity::LearningRate => optimizer.set_learning_rate(value),
                Quantity::Rho => optimizer.set_rho(value)?,
                Quantity::WeightDecay => optimizer.set_weight_decay(value)?,
            }
        }
        self.position += 1;
        Ok(())
    }
}

impl Stateful for Scheduler {
    fn state(&self) -> Result<State> {
        let mut state = State::new("Scheduler");
        state.set("position", self.position);
        Ok(state)
    }

    fn load_state(&mut self, state: &State) -> Result<()> {
        let mut reader = StateReader::new("Scheduler", state)?;
        let position = reader.get("position")?;
        reader.finish()?;
        self.position = position;
        Ok(())
    }
}
