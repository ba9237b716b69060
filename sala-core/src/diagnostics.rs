//! What to look at when training goes wrong, or to see what SALA does.

use std::fmt;

use candle_core::backprop::GradStore;

use crate::{minimizer::StepReport, params::ParamSet};

/// Which trainable parameters a backward pass reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coverage {
    /// Number of trainable parameters.
    pub trainable: usize,
    /// Names of those without a gradient, in order.
    pub missing: Vec<String>,
}

impl Coverage {
    /// Compares a gradient store with the trainable parameters. Several layers of candle have no
    /// backward pass and cut gradients without a word; this lists all that they cut off, where a step of
    /// an optimizer names the first.
    ///
    /// ```
    /// # use candle_core::{Device, Var};
    /// # use sala_core::{Coverage, ParamSet};
    /// let (w, b) = (Var::new(1f32, &Device::Cpu)?, Var::new(2f32, &Device::Cpu)?);
    /// let params = ParamSet::new([("w", w.clone()), ("b", b.clone())])?;
    /// let loss = (w.as_tensor() * b.as_tensor().detach())?; // b is cut off
    /// let coverage = Coverage::of(&params, &loss.backward()?);
    /// assert!(!coverage.is_full());
    /// assert_eq!(coverage.to_string(), "1 of 2 trainable parameters received a gradient; missing: b");
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn of(params: &ParamSet, grads: &GradStore) -> Self {
        let without = params.iter().filter(|p| grads.get(p.model_var()).is_none());
        Self {
            trainable: params.len(),
            missing: without.map(|p| p.name().to_owned()).collect(),
        }
    }

    /// Whether every parameter has a gradient.
    pub fn is_full(&self) -> bool {
        self.missing.is_empty()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reached = self.trainable - self.missing.len();
        let total = self.trainable;
        write!(
            f,
            "{reached} of {total} trainable parameters received a gradient"
        )?;
        if self.is_full() {
            return Ok(());
        }
        write!(f, "; missing: {}", self.missing.join(", "))
    }
}

/// What the steps of a run did: how many climbed, at what cost, and how far fast and slow weights were
/// apart. For SALA it says how the run divides into the stage that climbs for free and the one that
/// climbs as SAM does, which is what its radius is chosen by.
///
/// ```
/// # use sala_core::{Stages, StepReport};
/// let mut stages = Stages::new(2);
/// let step = |step, ascent, gap| StepReport {
///     step, ascent, gap: Some(gap), loss: 1.0, evaluations: 1.0 + f64::from(u8::from(ascent)), grad_norm: 1.0,
/// };
/// for report in [step(1, false, 0.4), step(2, false, 0.4), step(3, false, 0.1), step(4, true, 0.1)] {
///     stages.observe(&report);
/// }
/// assert_eq!(stages.climbing_share(), Some(0.5)); // one of two cycles
/// assert_eq!(stages.evaluations_per_step(), Some(1.25));
/// println!("{stages}");
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Stages {
    k: u64,
    steps: u64,
    cycles: u64,
    climbs: u64,
    first_climb: Option<u64>,
    evaluations: f64,
    gaps: Gaps,
}

#[derive(Debug, Clone, PartialEq, Default)]
struct Gaps {
    count: u64,
    sum: f64,
    min: f64,
    max: f64,
    last: f64,
}

impl Stages {
    /// For cycles of `k` steps, at the end of which a method may climb: SALA's k, and 1 for SAM.
    pub fn new(k: u64) -> Self {
        Self {
            k: k.max(1),
            steps: 0,
            cycles: 0,
            climbs: 0,
            first_climb: None,
            evaluations: 0.0,
            gaps: Gaps::default(),
        }
    }

    /// Takes in a step.
    pub fn observe(&mut self, report: &StepReport) {
        self.steps += 1;
        self.evaluations += report.evaluations;
        if report.ascent {
            self.first_climb.get_or_insert(report.step);
        }
        // The gap of a cycle is known at its last step but one, and until the next.
        let cycle_ends = report.step.is_multiple_of(self.k);
        if cycle_ends {
            self.cycles += 1;
            self.climbs += u64::from(report.ascent);
        }
        if let Some(gap) = report.gap.filter(|_| cycle_ends) {
            self.gaps.observe(gap);
        }
    }

    /// Steps seen.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// f: the share of cycles that climbed, among those whose last step was seen; `None` before the first. A
    /// run that goes on in the middle of a cycle may begin with its end.
    pub fn climbing_share(&self) -> Option<f64> {
        (self.cycles > 0).then(|| self.climbs as f64 / self.cycles as f64)
    }

    /// The first step that climbed.
    pub fn first_climb(&self) -> Option<u64> {
        self.first_climb
    }

    /// Gradient evaluations of a whole batch for each step; `None` without steps.
    pub fn evaluations_per_step(&self) -> Option<f64> {
        (self.steps > 0).then(|| self.evaluations / self.steps as f64)
    }

    /// Mean gap over the cycles, and the last one; `None` for methods without.
    pub fn mean_and_last_gap(&self) -> Option<(f64, f64)> {
        let gaps = &self.gaps;
        (gaps.count > 0).then(|| (gaps.sum / gaps.count as f64, gaps.last))
    }
}

impl Gaps {
    fn observe(&mut self, gap: f64) {
        if self.count == 0 {
            (self.min, self.max) = (gap, gap);
        }
        self.count += 1;
        self.sum += gap;
        self.min = self.min.min(gap);
        self.max = self.max.max(gap);
        self.last = gap;
    }
}

impl fmt::Display for Stages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(evaluations), Some(share)) = (self.evaluations_per_step(), self.climbing_share())
        else {
            return write!(f, "no complete cycle of {} steps yet", self.k);
        };
        write!(
            f,
            "{} steps, {evaluations:.3} gradients a step; {:.0} % of the cycles climbed",
            self.steps,
            100.0 * share
        )?;
        if let Some(first) = self.first_climb {
            write!(f, ", the first at step {first}")?;
        }
        if let Some((mean, last)) = self.mean_and_last_gap() {
            let Gaps { min, max, .. } = self.gaps;
            write!(
                f,
                "; gap {mean:.3e} on average ({min:.3e} to {max:.3e}), {last:.3e} at the end"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Catches a share above one, and one of cycles whose end was not seen.
    #[test]
    fn a_run_that_goes_on_in_the_middle_of_a_cycle_counts_the_ends_it_sees() {
        let mut stages = Stages::new(3);
        let observe = |stages: &mut Stages, step: u64, ascent| {
            stages.observe(&StepReport {
                step,
                ascent,
                gap: None,
                loss: 1.0,
                evaluations: 1.0,
                grad_norm: 1.0,
            });
        };
        for step in 7..=8 {
            observe(&mut stages, step, false);
        }
        assert_eq!(stages.climbing_share(), None);
        observe(&mut stages, 9, true);
        assert_eq!(stages.climbing_share(), Some(1.0));
        // The next run begins one step before the end of a cycle.
        let mut resumed = Stages::new(3);
        for (step, ascent) in [(9, true), (10, false), (11, false), (12, true)] {
            observe(&mut resumed, step, ascent);
        }
        assert_eq!(resumed.climbing_share(), Some(1.0));
        assert_eq!(resumed.first_climb(), Some(9));
    }
}
