//! Statistics of repeated runs; every file opens with its equations and their source.
//!
//! Runs are paired: two optimizers with one seed share initial weights, data and order, so what is
//! compared are differences within seeds. Runs that diverged have no value; it is for the caller to deal
//! with them, because a mean over the others would flatter the optimizer.

mod bootstrap;
mod curve;
mod equivalence;
mod holm;
mod paired;
mod profile;
mod sample;
mod sensitivity;
mod target;

pub(crate) use curve::{Curve, Point};
pub(crate) use equivalence::{Equivalence, equivalence};
pub(crate) use holm::holm;
pub(crate) use paired::{Paired, paired_difference};
pub(crate) use profile::{Profile, TAU_MAX, profile};
pub(crate) use sample::{Summary, mean, median, quantile};
pub(crate) use sensitivity::{
    AtValue, Sensitivity, Trial, quantile_of_trials, score_of_trial, sensitivity,
};
pub(crate) use target::{Reach, reach};

/// Confidence level of the intervals that are called `…95`.
const LEVEL: f64 = 0.95;

#[cfg(test)]
fn assert_near(got: f64, wanted: f64, tolerance: f64) {
    assert!(
        (got - wanted).abs() <= tolerance,
        "got {got}, wanted {wanted}"
    );
}
