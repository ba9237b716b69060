use super::{Moment, Policy};
use crate::error::{Result, check};

/// Climb at every k-th step: SAM at 1/k of its extra cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EveryK {
    k: u64,
    remainder: u64,
}

impl EveryK {
    /// Climbs at the steps k, 2k, 3k, ….
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when k is 0.
    ///
    /// ```
    /// # use sala_core::policy::{EveryK, Moment, Policy};
    /// let every_second = EveryK::new(2)?;
    /// let at = |step| Moment { step, gap: None, rho: 0.05 };
    /// assert!(every_second.climbs(at(4)));
    /// assert!(!every_second.climbs(at(5)));
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn new(k: u64) -> Result<Self> {
        check::at_least_one("EveryK", "k", k)?;
        Ok(Self { k, remainder: 0 })
    }

    /// Climbs at the steps 1, k + 1, 2k + 1, …: for methods that live on their last ascent.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when k is 0.
    ///
    /// ```
    /// # use sala_core::policy::{EveryK, Moment, Policy};
    /// assert!(EveryK::from_the_first(5)?.climbs(Moment { step: 1, gap: None, rho: 0.05 }));
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn from_the_first(k: u64) -> Result<Self> {
        let remainder = u64::from(k > 1);
        Ok(Self {
            remainder,
            ..Self::new(k)?
        })
    }
}

impl Policy for EveryK {
    fn name(&self) -> String {
        match self.remainder {
            0 => format!("EveryK({})", self.k),
            _ => format!("EveryK({}, from the first)", self.k),
        }
    }

    fn climbs(&self, moment: Moment) -> bool {
        moment.step % self.k == self.remainder
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn climbs_at_every_kth_step_only() {
        let climbing = |policy: EveryK| -> Vec<u64> {
            let at = |step| Moment {
                step,
                gap: None,
                rho: 0.1,
            };
            (1..=7).filter(|&step| policy.climbs(at(step))).collect()
        };
        assert_eq!(climbing(EveryK::new(1).unwrap()), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(climbing(EveryK::new(3).unwrap()), [3, 6]);
        assert_eq!(climbing(EveryK::from_the_first(3).unwrap()), [1, 4, 7]);
        let always = EveryK::from_the_first(1).unwrap();
        assert_eq!(climbing(always), [1, 2, 3, 4, 5, 6, 7]);
        assert!(EveryK::new(0).is_err() && EveryK::from_the_first(0).is_err());
    }
}
