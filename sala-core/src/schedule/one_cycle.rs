use super::Schedule;
use crate::error::{Result, check};

/// Up to 1 and down to almost nothing, both by half a cosine (Smith and Topin 2018, arXiv:1708.07120,
/// with the cosine of `torch.optim.lr_scheduler.OneCycleLR`).
///
/// It begins at 1 / 25, reaches 1 at the position `rise` · T − 1, and ends at 1 / 250,000 at T − 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OneCycle {
    total: u64,
    rise: f64,
}

/// The first factor.
const BEGIN: f64 = 1.0 / 25.0;
/// The last one.
const END: f64 = BEGIN / 1e4;

impl OneCycle {
    /// One cycle of `total` ≥ 2 positions, of which the share `rise`, in (0, 1), goes up.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when either is outside, or when no position is left for
    /// the way up or down.
    ///
    /// ```
    /// # use sala_core::schedule::{OneCycle, Schedule};
    /// let schedule = OneCycle::new(100, 0.3)?;
    /// assert!((schedule.factor(0) - 0.04).abs() < 1e-12);
    /// assert!((schedule.factor(29) - 1.0).abs() < 1e-12);
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn new(total: u64, rise: f64) -> Result<Self> {
        const OWNER: &str = "OneCycle";
        let top = rise * total as f64 - 1.0;
        let room = top > 0.0 && top < total as f64 - 1.0;
        let wanted = "a share that leaves positions for both ways";
        check::holds(OWNER, "rise", room, wanted, format!("{rise} of {total}"))?;
        Ok(Self { total, rise })
    }
}

impl Schedule for OneCycle {
    fn factor(&self, at: u64) -> f64 {
        let last = self.total as f64 - 1.0;
        let top = self.rise * self.total as f64 - 1.0;
        let at = (at as f64).min(last);
        let (from, to, share) = if at <= top {
            (BEGIN, 1.0, at / top)
        } else {
            (1.0, END, (at - top) / (last - top))
        };
        to + (from - to) * 0.5 * (1.0 + (std::f64::consts::PI * share).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::SCALAR;

    #[test]
    fn goes_up_to_one_and_down_to_the_end_and_stays() {
        // Top at 0.3 · 10 − 1 = 2, end at 9.
        let schedule = OneCycle::new(10, 0.3).unwrap();
        let cases = [(0, 0.04), (1, 0.52), (2, 1.0), (9, 4e-6), (100, 4e-6)];
        for (at, wanted) in cases {
            SCALAR.assert(&format!("one cycle({at})"), schedule.factor(at), wanted);
        }
        let falls = (2..9).all(|at| schedule.factor(at + 1) < schedule.factor(at));
        assert!(falls);
    }

    #[test]
    fn a_cycle_without_a_way_up_or_down_is_refused() {
        for (total, rise) in [(10, 0.0), (10, 0.1), (10, 1.0), (10, f64::NAN), (1, 0.5)] {
            assert!(OneCycle::new(total, rise).is_err(), "{total}, {rise}");
        }
    }
}
