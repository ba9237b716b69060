use super::Schedule;
use crate::error::{Result, check};

/// γ to the number of milestones at or before the position.
#[derive(Debug, Clone, PartialEq)]
pub struct MultiStep {
    milestones: Vec<u64>,
    gamma: f64,
}

impl MultiStep {
    /// Multiplies by `gamma` at each milestone; they must ascend.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when `gamma` is negative or not finite, or a milestone
    /// is not above the one before.
    ///
    /// ```
    /// # use sala_core::schedule::{MultiStep, Schedule};
    /// let steps = MultiStep::new(vec![60, 120], 0.2)?;
    /// assert!((steps.factor(60) - 0.2).abs() < 1e-12);
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn new(milestones: Vec<u64>, gamma: f64) -> Result<Self> {
        const OWNER: &str = "MultiStep";
        check::non_negative(OWNER, "gamma", gamma)?;
        let ascending = milestones.windows(2).all(|pair| pair[0] < pair[1]);
        check::holds(
            OWNER,
            "milestones",
            ascending,
            "ascending",
            format!("{milestones:?}"),
        )?;
        Ok(Self { milestones, gamma })
    }
}

impl Schedule for MultiStep {
    fn factor(&self, at: u64) -> f64 {
        let passed = self.milestones.iter().filter(|&&m| m <= at);
        passed.fold(1.0, |factor, _| factor * self.gamma)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::SCALAR;

    #[test]
    fn falls_at_each_milestone_and_not_before() {
        let steps = MultiStep::new(vec![3, 5], 0.1).unwrap();
        for (at, wanted) in [
            (0, 1.0),
            (2, 1.0),
            (3, 0.1),
            (4, 0.1),
            (5, 0.01),
            (99, 0.01),
        ] {
            SCALAR.assert(&format!("multistep({at})"), steps.factor(at), wanted);
        }
        assert!(
            MultiStep::new(vec![5, 3], 0.1).is_err() && MultiStep::new(vec![3, 3], 0.1).is_err()
        );
        assert!(MultiStep::new(vec![], f64::NAN).is_err());
    }
}
