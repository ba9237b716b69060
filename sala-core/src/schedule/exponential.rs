use super::Schedule;
use crate::error::{Result, check};

/// γᵗ.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Exponential {
    gamma: f64,
}

impl Exponential {
    /// Multiplies by `gamma` at every position.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when `gamma` is not finite and above 0.
    ///
    /// ```
    /// # use sala_core::schedule::{Exponential, Schedule};
    /// assert!((Exponential::new(0.5)?.factor(3) - 0.125).abs() < 1e-12);
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn new(gamma: f64) -> Result<Self> {
        check::positive("Exponential", "gamma", gamma)?;
        Ok(Self { gamma })
    }
}

impl Schedule for Exponential {
    fn factor(&self, at: u64) -> f64 {
        self.gamma.powf(at as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::SCALAR;

    #[test]
    fn begins_at_one_and_falls_by_gamma_each_time() {
        let schedule = Exponential::new(0.9).unwrap();
        for (at, wanted) in [(0, 1.0), (1, 0.9), (2, 0.81), (10, 0.9f64.powi(10))] {
            SCALAR.assert(&format!("exponential({at})"), schedule.factor(at), wanted);
        }
        assert!(Exponential::new(0.0).is_err() && Exponential::new(f64::NAN).is_err());
    }
}
