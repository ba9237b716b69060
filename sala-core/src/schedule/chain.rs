use super::Schedule;
use crate::error::{Result, check};

/// One schedule for so many positions, then another from its beginning; chains can be nested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain<A, B> {
    first: A,
    positions: u64,
    then: B,
}

impl<A: Schedule, B: Schedule> Chain<A, B> {
    /// `first` for `positions` ≥ 1 positions, then `then`.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when `positions` is 0.
    ///
    /// ```
    /// # use sala_core::schedule::{Chain, Constant, Cosine, Schedule};
    /// let schedule = Chain::new(Constant, 5, Cosine::new(10)?)?;
    /// assert_eq!([0, 4, 5].map(|at| schedule.factor(at)), [1.0; 3]);
    /// assert!((schedule.factor(10) - 0.5).abs() < 1e-12);
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn new(first: A, positions: u64, then: B) -> Result<Self> {
        check::at_least_one("Chain", "positions", positions)?;
        Ok(Self {
            first,
            positions,
            then,
        })
    }
}

impl<A: Schedule, B: Schedule> Schedule for Chain<A, B> {
    fn factor(&self, at: u64) -> f64 {
        match at.checked_sub(self.positions) {
            Some(since) => self.then.factor(since),
            None => self.first.factor(at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        schedule::{Exponential, Polynomial},
        testing::SCALAR,
    };

    #[test]
    fn hands_over_and_counts_anew() {
        let line = Polynomial::linear(4, 0.0).unwrap();
        let inner = Chain::new(Exponential::new(0.5).unwrap(), 2, line).unwrap();
        let chain = Chain::new(inner, 5, Exponential::new(0.1).unwrap()).unwrap();
        let wanted = [1.0, 0.5, 1.0, 0.75, 0.5, 1.0, 0.1];
        for (at, wanted) in (0..).zip(wanted) {
            SCALAR.assert(&format!("chain({at})"), chain.factor(at), wanted);
        }
        assert!(Chain::new(line, 0, line).is_err());
    }
}
