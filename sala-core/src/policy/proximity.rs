use super::{Moment, Policy};
use crate::error::{Result, check};

/// Climb while the fast weights end their cycle within ρ of the slow ones: SALA's second stage.
///
/// While the gap is ρ or more, the cycle itself has gone as far as an ascent would, and its end
/// point serves as the perturbed point for free (the first stage).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Proximity {
    rho: f64,
}

impl Proximity {
    /// Climbs when the gap is below `rho`; never for 0.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when `rho` is negative or not finite.
    ///
    /// ```
    /// # use sala_core::policy::{Moment, Policy, Proximity};
    /// let near = Proximity::new(0.2)?;
    /// assert!(near.climbs(Moment { step: 2, gap: Some(0.1) }));
    /// assert!(!near.climbs(Moment { step: 2, gap: Some(0.2) }));
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn new(rho: f64) -> Result<Self> {
        check::non_negative("Proximity", "rho", rho)?;
        Ok(Self { rho })
    }
}

impl Policy for Proximity {
    fn climbs(&self, moment: Moment) -> bool {
        moment.gap.is_some_and(|gap| gap < self.rho)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn climbs_strictly_below_rho_and_never_without_a_gap() {
        let climbs = |rho: f64, gap| Proximity::new(rho).unwrap().climbs(Moment { step: 1, gap });
        assert!(climbs(0.2, Some(0.0)) && climbs(0.2, Some(0.199)));
        assert!(!climbs(0.2, Some(0.2)) && !climbs(0.2, Some(1.0)));
        assert!(!climbs(0.0, Some(0.0)), "ρ = 0 never climbs");
        assert!(!climbs(0.2, None));
    }
}
