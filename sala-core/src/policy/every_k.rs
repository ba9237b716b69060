use super::{Moment, Policy};
use crate::error::{Result, check};

/// Climb at the steps k, 2k, 3k, …: SAM at 1/k of its extra cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EveryK {
    k: u64,
}

impl EveryK {
    /// Climbs every k-th step.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when k is 0.
    ///
    /// ```
    /// # use sala_core::policy::{EveryK, Moment, Policy};
    /// let every_second = EveryK::new(2)?;
    /// assert!(every_second.climbs(Moment { step: 4, gap: None }));
    /// assert!(!every_second.climbs(Moment { step: 5, gap: None }));
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn new(k: u64) -> Result<Self> {
        check::at_least_one("EveryK", "k", k)?;
        Ok(Self { k })
    }
}

impl Policy for EveryK {
    fn climbs(&self, moment: Moment) -> bool {
        moment.step.is_multiple_of(self.k)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn climbs_at_multiples_of_k_only() {
        let climbing = |k: u64| -> Vec<u64> {
            let policy = EveryK::new(k).unwrap();
            (1..=7)
                .filter(|&step| policy.climbs(Moment { step, gap: None }))
                .collect()
        };
        assert_eq!(climbing(1), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(climbing(3), [3, 6]);
        assert!(EveryK::new(0).is_err());
    }
}
