//! Work that waits to be launched with more of its kind.

use std::{
    collections::HashSet,
    sync::{Arc, OnceLock},
};

use candle_core::Tensor;

use super::{Scalar, table::Job};

/// Sums of a launch's jobs, f64 on the device, once it has been made.
pub(in super::super) type Sums = Arc<OnceLock<Tensor>>;

/// A kernel's name, and whether its jobs yield sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kernel {
    pub(super) rule: &'static str,
    pub(super) dtype: &'static str,
    pub(super) sums: bool,
}

/// Jobs of one kernel, none of which touches what another one writes.
#[derive(Debug)]
pub(super) struct Launch {
    pub(super) kernel: Kernel,
    pub(super) jobs: Vec<Job>,
    pub(super) sums: Sums,
}

/// Launches that are still to be made, in any order.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    launches: Vec<Launch>,
    /// Storages that jobs read and write, by address.
    read: HashSet<u64>,
    written: HashSet<u64>,
    /// What jobs point into.
    kept: Vec<Tensor>,
}

impl Recorder {
    /// Whether work on these storages must wait for what is recorded.
    pub(super) fn conflicts(&self, reads: &[u64], writes: &[u64]) -> bool {
        let touched = |at: &u64| self.read.contains(at) || self.written.contains(at);
        reads.iter().any(|at| self.written.contains(at)) || writes.iter().any(touched)
    }

    /// Adds a job that does not conflict; yields where its sum will be.
    pub(super) fn push(
        &mut self,
        kernel: Kernel,
        job: Job,
        (reads, writes): (&[u64], &[u64]),
    ) -> Scalar {
        self.read.extend(reads);
        self.written.extend(writes);
        let known = self.launches.iter_mut().position(|l| l.kernel == kernel);
        let at = known.unwrap_or(self.launches.len());
        if at == self.launches.len() {
            self.launches.push(Launch {
                kernel,
                jobs: Vec::new(),
                sums: Sums::default(),
            });
        }
        let launch = &mut self.launches[at];
        launch.jobs.push(job);
        Scalar::Summed(launch.sums.clone(), launch.jobs.len() - 1)
    }

    /// Keeps tensors alive until the launch.
    pub(super) fn keep(&mut self, tensors: impl IntoIterator<Item = Tensor>) {
        self.kept.extend(tensors);
    }

    /// Hands out what is recorded, with what must live until it has been launched.
    pub(super) fn take(&mut self) -> (Vec<Launch>, Vec<Tensor>) {
        // Their memory is wanted again by the next update.
        self.read.clear();
        self.written.clear();
        let (launches, kept) = (&mut self.launches, &mut self.kept);
        (std::mem::take(launches), std::mem::take(kept))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NORM: Kernel = Kernel {
        rule: "squared_norm",
        dtype: "f32",
        sums: true,
    };

    // Catches one launch for each tensor, and sums that are read from another job's place.
    #[test]
    fn jobs_of_one_kernel_share_a_launch_and_know_their_places() {
        let mut recorder = Recorder::default();
        let assign = Kernel {
            rule: "assign",
            ..NORM
        };
        let double = Kernel {
            dtype: "f64",
            ..NORM
        };
        let kernels = [NORM, assign, NORM, double, NORM, assign];
        let places = kernels.map(|kernel| {
            let Scalar::Summed(_, at) = recorder.push(kernel, Job::default(), (&[], &[])) else {
                panic!("a recorded job's sum is not known yet");
            };
            at
        });
        assert_eq!(places, [0, 0, 1, 0, 2, 1]);
        let (launches, _) = recorder.take();
        let sizes: Vec<_> = launches.iter().map(|l| (l.kernel, l.jobs.len())).collect();
        assert_eq!(sizes, [(NORM, 3), (assign, 2), (double, 1)]);
        assert!(recorder.take().0.is_empty());
    }

    // Catches jobs that run beside each other although one needs what the other writes.
    #[test]
    fn only_reading_twice_is_no_conflict() {
        let mut recorder = Recorder::default();
        recorder.push(NORM, Job::default(), (&[1, 2], &[3]));
        assert!(!recorder.conflicts(&[1, 2], &[4]));
        assert!(recorder.conflicts(&[3], &[]), "reads what is written");
        assert!(recorder.conflicts(&[], &[3]), "writes what is written");
        assert!(recorder.conflicts(&[], &[1]), "writes what is read");
        recorder.take();
        assert!(!recorder.conflicts(&[3], &[1, 3]));
    }
}
