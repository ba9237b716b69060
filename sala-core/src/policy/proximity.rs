use super::{Moment, Policy};

/// Climb while the fast weights end their cycle within ρ of the slow ones: SALA's second stage.
///
/// While the gap is ρ or more, the cycle itself has gone as far as an ascent would, and its end
/// point serves as the perturbed point for free (the first stage). A radius of 0 never climbs.
///
/// ```
/// # use sala_core::policy::{Moment, Policy, Proximity};
/// let at = |gap: f64| Moment { step: 2, gap: Some(gap), rho: 0.2 };
/// assert!(Proximity.climbs(at(0.1)));
/// assert!(!Proximity.climbs(at(0.2)));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Proximity;

impl Policy for Proximity {
    fn climbs(&self, moment: Moment) -> bool {
        moment.gap.is_some_and(|gap| gap < moment.rho)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn climbs_strictly_below_rho_and_never_without_a_gap() {
        let climbs = |rho: f64, gap| Proximity.climbs(Moment { step: 1, gap, rho });
        assert!(climbs(0.2, Some(0.0)) && climbs(0.2, Some(0.199)));
        assert!(!climbs(0.2, Some(0.2)) && !climbs(0.2, Some(1.0)));
        assert!(!climbs(0.0, Some(0.0)), "ρ = 0 never climbs");
        assert!(!climbs(0.2, None));
    }
}
