//! Performance profiles over workloads (Dolan and Moré 2002, doi:10.1007/s101070100263).
//!
//! ```text
//! r_{w,s} = t_{w,s} / min over s of t_{w,s},   ρ_s(τ) = |{ w : r_{w,s} ≤ τ }| / |W|
//! score   = 1 / (τ_max − 1) ∫₁^τ_max ρ_s(τ) dτ
//! ```
//!
//! `t_{w,s}` is the cost of method s to the target of workload w, infinite where it is not reached. `ρ_s(1)` is the
//! share of workloads on which the method is the cheapest, and `ρ_s(τ)` the share on which it is within a factor τ
//! of the cheapest. The score is the area below the profile up to `τ_max` = 4, as `AlgoPerf` has it (Dahl et al.
//! 2023, arXiv:2306.07179). Ratios depend on which methods are compared: leaving one out can change the order
//! of the others.

use serde::{Deserialize, Serialize};

/// Where profiles and their scores end.
pub(crate) const TAU_MAX: f64 = 4.0;

/// The profile of one method.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Profile {
    pub(crate) optimizer: String,
    /// Cost on each workload relative to the cheapest there; nothing where the target was not reached.
    pub(crate) ratios: Vec<Option<f64>>,
    /// The area below it from 1 to `TAU_MAX`, divided by that width: 1 is the cheapest everywhere.
    pub(crate) score: f64,
}

impl Profile {
    /// `ρ(τ)`.
    pub(crate) fn at(&self, tau: f64) -> f64 {
        let within = self.ratios.iter().flatten().filter(|&&r| r <= tau);
        within.count() as f64 / self.ratios.len() as f64
    }
}

/// The profiles of methods with their costs on the same workloads; nothing where a target was not reached.
/// A workload that no method solves stays in the count.
pub(crate) fn profile(costs: &[(String, Vec<Option<f64>>)]) -> Vec<Profile> {
    let workloads = costs.first().map_or(0, |(_, costs)| costs.len());
    let cheapest: Vec<f64> = (0..workloads)
        .map(|w| {
            let known = costs.iter().filter_map(|(_, costs)| costs[w]);
            known.fold(f64::INFINITY, f64::min)
        })
        .collect();
    let of = |(optimizer, costs): &(String, Vec<Option<f64>>)| {
        let ratios = costs
            .iter()
            .zip(&cheapest)
            .map(|(t, best)| Some((*t)? / best));
        let ratios: Vec<Option<f64>> = ratios.collect();
        let area = |ratio: &f64| (TAU_MAX - ratio).max(0.0) / (TAU_MAX - 1.0);
        let sum: f64 = ratios.iter().flatten().map(area).sum();
        Profile {
            optimizer: optimizer.clone(),
            score: if workloads == 0 {
                0.0
            } else {
                sum / workloads as f64
            },
            ratios,
        }
    };
    costs.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::assert_near, *};

    fn profiles() -> Vec<Profile> {
        profile(&[
            ("a".into(), vec![Some(10.0), Some(30.0), None, None]),
            ("b".into(), vec![Some(20.0), Some(20.0), Some(5.0), None]),
        ])
    }

    #[test]
    fn shares_within_a_factor_of_the_cheapest_by_hand() {
        let all = profiles();
        let (a, b) = (&all[0], &all[1]);
        assert_eq!(a.ratios, [Some(1.0), Some(1.5), None, None]);
        assert_eq!(b.ratios, [Some(2.0), Some(1.0), Some(1.0), None]);
        // In quarters, of which there is no half.
        let at =
            |p: &Profile| [1.0, 1.49, 1.5, 2.0, 100.0].map(|tau| (4.0 * p.at(tau)).to_string());
        assert_eq!(at(a), ["1", "1", "2", "2", "2"]);
        // What nobody solves keeps everybody below one.
        assert_eq!(at(b), ["2", "2", "2", "3", "3"]);
    }

    #[test]
    fn the_score_is_the_area_below_the_profile() {
        let all = profiles();
        // a: ¼ over (1, 1.5), ½ over (1.5, 4), of width 3. b: ½ over (1, 2), ¾ over (2, 4).
        assert_near(all[0].score, (0.25 * 0.5 + 0.5 * 2.5) / 3.0, 1e-12);
        assert_near(all[1].score, (0.5 + 0.75 * 2.0) / 3.0, 1e-12);
    }

    #[test]
    fn beyond_the_end_of_the_profile_a_solution_counts_for_nothing() {
        let all = profile(&[("a".into(), vec![Some(1.0)]), ("b".into(), vec![Some(9.0)])]);
        assert_eq!((all[0].score, all[1].score), (1.0, 0.0));
        assert!(profile(&[]).is_empty());
    }
}
