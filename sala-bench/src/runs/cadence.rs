//! When a run under way is saved.

use std::time::{Duration, Instant};

use crate::spec::Running;

/// From one checkpoint to the next, unless something else is asked for.
const USUAL: Duration = Duration::from_secs(30);
/// Then saving takes one part in so many of a run's time at most.
const SHARE: u32 = 20;

/// Says when a checkpoint is due: by steps, by epochs, by time.
#[derive(Debug, Clone)]
pub(crate) struct Cadence {
    steps: Option<u64>,
    epochs: Option<u64>,
    time: Option<Duration>,
    /// Whether the time is not asked for, and so may grow.
    usual: bool,
    /// The end of the last save, or the beginning.
    last: Instant,
}

impl Cadence {
    /// What was asked for, which has been validated; by time alone if that is nothing.
    pub(crate) fn new(running: &Running) -> Self {
        let seconds = running.checkpoint_seconds;
        let time = seconds.and_then(|s| Duration::try_from_secs_f64(s).ok());
        let (steps, epochs) = (running.checkpoint_steps, running.checkpoint_epochs);
        let usual = time.is_none() && steps.is_none() && epochs.is_none();
        Self {
            steps,
            epochs,
            time: if usual { Some(USUAL) } else { time },
            usual,
            last: Instant::now(),
        }
    }

    /// After this step, counted from the beginning of the run.
    pub(crate) fn is_due_after_step(&self, step: u64) -> bool {
        self.steps.is_some_and(|n| step.is_multiple_of(n))
            || self.time.is_some_and(|t| self.last.elapsed() >= t)
    }

    /// After this epoch, counted from 1, has ended.
    pub(crate) fn is_due_after_epoch(&self, epoch: u64) -> bool {
        self.epochs.is_some_and(|n| epoch.is_multiple_of(n))
    }

    /// A checkpoint has been written, which took so long.
    pub(crate) fn saved(&mut self, took: Duration) {
        self.last = Instant::now();
        if self.usual {
            self.time = Some(USUAL.max(took * (SHARE - 1)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cadence(text: &str) -> Cadence {
        Cadence::new(&toml::from_str(text).unwrap())
    }

    /// Steps of ten, and epochs of ten, after which a checkpoint is due.
    fn due(cadence: &Cadence) -> (Vec<u64>, Vec<u64>) {
        let steps = (1..=10).filter(|&n| cadence.is_due_after_step(n));
        let epochs = (1..=10).filter(|&n| cadence.is_due_after_epoch(n));
        (steps.collect(), epochs.collect())
    }

    #[test]
    fn each_interval_counts_for_itself() {
        let all: Vec<u64> = (1..=10).collect();
        assert_eq!(due(&cadence("")), (vec![], vec![]));
        assert_eq!(due(&cadence("checkpoint_steps = 4")), (vec![4, 8], vec![]));
        assert_eq!(
            due(&cadence("checkpoint_epochs = 5")),
            (vec![], vec![5, 10])
        );
        assert_eq!(due(&cadence("checkpoint_seconds = 0.0")), (all, vec![]));
        let both = cadence("checkpoint_steps = 9\ncheckpoint_epochs = 9");
        assert_eq!(due(&both), (vec![9], vec![9]));
    }

    #[test]
    fn time_counts_from_the_last_save() {
        let mut cadence = cadence("checkpoint_seconds = 60.0");
        cadence.last -= Duration::from_secs(61);
        assert!(cadence.is_due_after_step(1));
        cadence.saved(Duration::from_secs(1));
        assert!(!cadence.is_due_after_step(2));
    }

    #[test]
    fn the_usual_interval_grows_with_the_time_that_saving_takes_and_one_asked_for_does_not() {
        let second = Duration::from_secs(1);
        let mut usual = cadence("");
        usual.saved(second);
        assert_eq!(usual.time, Some(30 * second));
        usual.saved(10 * second);
        assert_eq!(usual.time, Some(190 * second));
        let mut asked = cadence("checkpoint_seconds = 5.0");
        asked.saved(10 * second);
        assert_eq!(asked.time, Some(5 * second));
    }
}
