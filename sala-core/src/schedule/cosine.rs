use super::Schedule;
use crate::error::{Result, check};

/// Half a cosine from 1 at position 0 to 0 at position `total`, and 0 from there on:
/// (1 + cos(π t / T)) / 2 (Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cosine {
    total: u64,
}

impl Cosine {
    /// Reaches 0 after `total` positions.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when `total` is 0.
    ///
    /// ```
    /// # use sala_core::schedule::{Cosine, Schedule};
    /// assert!((Cosine::new(30)?.factor(10) - 0.75).abs() < 1e-12);
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn new(total: u64) -> Result<Self> {
        check::at_least_one("Cosine", "total", total)?;
        Ok(Self { total })
    }
}

impl Schedule for Cosine {
    fn factor(&self, at: u64) -> f64 {
        let share = at.min(self.total) as f64 / self.total as f64;
        0.5 * (1.0 + (std::f64::consts::PI * share).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::SCALAR;

    #[test]
    fn begins_at_one_passes_a_half_and_stays_at_zero() {
        let cosine = Cosine::new(8).unwrap();
        for (at, wanted) in [(0, 1.0), (4, 0.5), (8, 0.0), (100, 0.0)] {
            SCALAR.assert(&format!("cosine({at})"), cosine.factor(at), wanted);
        }
        assert!(Cosine::new(0).is_err());
    }
}
