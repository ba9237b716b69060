use super::Schedule;
use crate::error::{Result, check};

/// Cosines from 1 towards 0, each beginning anew where the last one ends and `growth` times as long:
/// SGDR (Loshchilov and Hutter 2017, arXiv:1608.03983).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CosineRestarts {
    first: u64,
    growth: u64,
}

impl CosineRestarts {
    /// The first cosine takes `first` positions, each later one `growth` times those of the one before.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when either is 0.
    ///
    /// ```
    /// # use sala_core::schedule::{CosineRestarts, Schedule};
    /// let schedule = CosineRestarts::new(10, 2)?;
    /// assert_eq!([0, 10, 30].map(|at| schedule.factor(at)), [1.0; 3]);
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn new(first: u64, growth: u64) -> Result<Self> {
        check::at_least_one("CosineRestarts", "first", first)?;
        check::at_least_one("CosineRestarts", "growth", growth)?;
        Ok(Self { first, growth })
    }

    /// Positions since the last restart, and the length of the cosine that began there.
    fn place(&self, at: u64) -> (u64, u64) {
        if self.growth == 1 {
            return (at % self.first, self.first);
        }
        let (mut since, mut length) = (at, self.first);
        while since >= length {
            since -= length;
            length = length.saturating_mul(self.growth);
        }
        (since, length)
    }
}

impl Schedule for CosineRestarts {
    fn factor(&self, at: u64) -> f64 {
        let (since, length) = self.place(at);
        0.5 * (1.0 + (std::f64::consts::PI * since as f64 / length as f64).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::SCALAR;

    #[test]
    fn begins_anew_after_each_cosine_and_takes_longer() {
        let schedule = CosineRestarts::new(4, 3).unwrap();
        // Restarts at 4 and 4 + 12; half way at 2 and 4 + 6.
        for (at, wanted) in [
            (0, 1.0),
            (2, 0.5),
            (4, 1.0),
            (10, 0.5),
            (16, 1.0),
            (34, 0.5),
        ] {
            SCALAR.assert(&format!("restarts({at})"), schedule.factor(at), wanted);
        }
        let even = CosineRestarts::new(4, 1).unwrap();
        for (at, wanted) in [(4, 1.0), (6, 0.5), (u64::MAX - 3, 1.0)] {
            SCALAR.assert(&format!("even restarts({at})"), even.factor(at), wanted);
        }
        assert!(schedule.factor(u64::MAX).is_finite(), "no overflow");
        assert!(CosineRestarts::new(0, 1).is_err() && CosineRestarts::new(1, 0).is_err());
    }
}
