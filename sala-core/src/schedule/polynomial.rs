use super::Schedule;
use crate::error::{Result, check};

/// e + (1 − e) (1 − t / T)ᵖ: from 1 at position 0 to the end factor e at position T, and e from there
/// on. With p = 1 it is a straight line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Polynomial {
    total: u64,
    power: f64,
    end: f64,
}

impl Polynomial {
    /// Reaches the factor `end` ≥ 0 after `total` positions, with the power p = `power` > 0.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when `total` is 0, or a number is outside its range.
    ///
    /// ```
    /// # use sala_core::schedule::{Polynomial, Schedule};
    /// assert!((Polynomial::new(10, 2.0, 0.0)?.factor(5) - 0.25).abs() < 1e-12);
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn new(total: u64, power: f64, end: f64) -> Result<Self> {
        const OWNER: &str = "Polynomial";
        check::at_least_one(OWNER, "total", total)?;
        check::positive(OWNER, "power", power)?;
        check::non_negative(OWNER, "end", end)?;
        Ok(Self { total, power, end })
    }

    /// A straight line from 1 to `end` over `total` positions.
    ///
    /// # Errors
    /// Those of [`Polynomial::new`].
    ///
    /// ```
    /// # use sala_core::schedule::{Polynomial, Schedule};
    /// assert!((Polynomial::linear(10, 0.5)?.factor(5) - 0.75).abs() < 1e-12);
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn linear(total: u64, end: f64) -> Result<Self> {
        Self::new(total, 1.0, end)
    }
}

impl Schedule for Polynomial {
    fn factor(&self, at: u64) -> f64 {
        let left = 1.0 - at.min(self.total) as f64 / self.total as f64;
        self.end + (1.0 - self.end) * left.powf(self.power)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::SCALAR;

    #[test]
    fn goes_from_one_to_the_end_and_stays() {
        let cubic = Polynomial::new(4, 3.0, 0.2).unwrap();
        // 0.2 + 0.8 · (1/2)³ at half way.
        for (at, wanted) in [(0, 1.0), (2, 0.3), (4, 0.2), (9, 0.2)] {
            SCALAR.assert(&format!("polynomial({at})"), cubic.factor(at), wanted);
        }
        let line = Polynomial::linear(4, 0.0).unwrap();
        for (at, wanted) in [(0, 1.0), (1, 0.75), (3, 0.25), (4, 0.0)] {
            SCALAR.assert(&format!("linear({at})"), line.factor(at), wanted);
        }
    }

    #[test]
    fn every_number_is_checked() {
        assert!(Polynomial::new(0, 1.0, 0.0).is_err());
        assert!(Polynomial::new(1, 0.0, 0.0).is_err());
        assert!(Polynomial::new(1, 1.0, -0.1).is_err());
    }
}
