use super::Schedule;
use crate::error::{Result, check};

/// (t + 1) / (T + 1) for the first T positions, then another schedule from its beginning.
///
/// The first position trains already (its factor is not 0), and the peak is first reached by the
/// schedule that follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WarmUp<S> {
    positions: u64,
    then: S,
}

impl<S: Schedule> WarmUp<S> {
    /// Rises over `positions`, then follows `then`.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when `positions` is 0.
    ///
    /// ```
    /// # use sala_core::schedule::{Constant, Schedule, WarmUp};
    /// let schedule = WarmUp::new(3, Constant)?;
    /// assert_eq!([0, 1, 2, 3, 4].map(|t| schedule.factor(t)), [0.25, 0.5, 0.75, 1.0, 1.0]);
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn new(positions: u64, then: S) -> Result<Self> {
        check::at_least_one("WarmUp", "positions", positions)?;
        Ok(Self { positions, then })
    }
}

impl<S: Schedule> Schedule for WarmUp<S> {
    fn factor(&self, at: u64) -> f64 {
        match at.checked_sub(self.positions) {
            Some(since) => self.then.factor(since),
            None => (at + 1) as f64 / (self.positions + 1) as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{schedule::Cosine, testing::SCALAR};

    #[test]
    fn rises_by_equal_steps_and_hands_over_at_the_peak() {
        let schedule = WarmUp::new(4, Cosine::new(10).unwrap()).unwrap();
        for (at, wanted) in [
            (0, 0.2),
            (1, 0.4),
            (2, 0.6),
            (3, 0.8),
            (4, 1.0),
            (9, 0.5),
            (14, 0.0),
        ] {
            SCALAR.assert(&format!("warm-up({at})"), schedule.factor(at), wanted);
        }
        assert!(WarmUp::new(0, Cosine::new(10).unwrap()).is_err());
    }
}
