//! Scores: how well a network does on one part of the data.
//!
//! Notation: `C[t][p]` counts examples of class t that were taken for class p, `n` is their number.
//!
//! ```text
//! accuracy    Σ_c C[c][c] / n
//! macro F1    mean over classes c that occur of 2 C[c][c] / (row c + column c)
//! Matthews    (n Σ_c C[c][c] − Σ_c row c · column c) / √((n² − Σ_c (row c)²)(n² − Σ_c (column c)²))
//! perplexity  exp(mean cross-entropy of a token)
//! ```
//!
//! A class occurs if it is the label of an example or was said of one. Matthews' coefficient for more than two
//! classes is Gorodkin's `R_K` (2004, doi:10.1016/j.compbiolchem.2004.09.006), and 0 where a root is. All
//! agree with scikit-learn's.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// What was measured on one part of the data; which of it depends on the task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Score {
    /// Mean cross-entropy, of an example or a token.
    pub(crate) loss: f64,
    /// Share of examples classified rightly, in [0, 1].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) accuracy: Option<f64>,
    /// In [0, 1].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) macro_f1: Option<f64>,
    /// In [-1, 1].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) matthews: Option<f64>,
    /// At least 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) perplexity: Option<f64>,
}

impl Score {
    /// Of a language model, from the mean loss of a token.
    pub(crate) fn of_language_model(loss: f64) -> Self {
        Self {
            loss,
            perplexity: Some(loss.exp()),
            ..Self::default()
        }
    }
}

/// One number of a score: what validation chooses by, and what runs are compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Metric {
    Accuracy,
    MacroF1,
    Matthews,
    Perplexity,
    Loss,
}

impl Metric {
    /// The number, if the score has it.
    pub(crate) fn of(self, score: &Score) -> Option<f64> {
        match self {
            Self::Accuracy => score.accuracy,
            Self::MacroF1 => score.macro_f1,
            Self::Matthews => score.matthews,
            Self::Perplexity => score.perplexity,
            Self::Loss => Some(score.loss),
        }
    }

    /// Whether `one` is strictly better than `other`.
    pub(crate) fn is_better(self, one: f64, other: f64) -> bool {
        match self {
            Self::Accuracy | Self::MacroF1 | Self::Matthews => one > other,
            Self::Perplexity | Self::Loss => one < other,
        }
    }

    /// What it is called in text.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::MacroF1 => "macro F1",
            Self::Matthews => "Matthews",
            Self::Perplexity => "perplexity",
            Self::Loss => "loss",
        }
    }

    /// Whether its values are shares, which lie within ±1.
    pub(crate) fn is_share(self) -> bool {
        matches!(self, Self::Accuracy | Self::MacroF1 | Self::Matthews)
    }

    /// Factor and unit in tables: shares are shown in per cent.
    pub(crate) fn unit(self) -> (f64, &'static str) {
        if self.is_share() {
            (100.0, " %")
        } else {
            (1.0, "")
        }
    }

    /// Digits behind the point in tables.
    pub(crate) fn digits(self) -> usize {
        if self == Self::Loss { 4 } else { 2 }
    }

    /// The number as text with its unit.
    pub(crate) fn show(self, value: f64) -> String {
        let ((factor, unit), digits) = (self.unit(), self.digits());
        format!("{:.digits$}{unit}", factor * value)
    }
}

/// Counts of what was right and what was said.
#[derive(Debug, Clone)]
pub(crate) struct Confusion {
    /// Row by row; a row is a class as it is.
    counts: Vec<u64>,
    classes: usize,
}

impl Confusion {
    /// Without an example yet.
    pub(crate) fn new(classes: usize) -> Self {
        Self {
            counts: vec![0; classes * classes],
            classes,
        }
    }

    /// An example of class `right` was taken for `said`.
    pub(crate) fn add(&mut self, right: u32, said: u32) -> Result<()> {
        let (right, said) = (right as usize, said as usize);
        ensure!(
            right < self.classes && said < self.classes,
            "a class below {} was wanted, got {right} taken for {said}",
            self.classes
        );
        self.counts[right * self.classes + said] += 1;
        Ok(())
    }

    /// The score of the examples so far, with their mean loss.
    pub(crate) fn score(&self, loss: f64) -> Result<Score> {
        ensure!(self.total() > 0.0, "there is no example to evaluate");
        Ok(Score {
            loss,
            accuracy: Some(self.right() / self.total()),
            macro_f1: Some(self.macro_f1()),
            matthews: Some(self.matthews()),
            perplexity: None,
        })
    }

    fn total(&self) -> f64 {
        self.counts.iter().sum::<u64>() as f64
    }

    fn right(&self) -> f64 {
        let diagonal = self.counts.iter().step_by(self.classes + 1);
        diagonal.sum::<u64>() as f64
    }

    /// Examples of a class, and examples taken for it.
    fn margins(&self, class: usize) -> (f64, f64) {
        let row = &self.counts[class * self.classes..][..self.classes];
        let column = self.counts.iter().skip(class).step_by(self.classes);
        (row.iter().sum::<u64>() as f64, column.sum::<u64>() as f64)
    }

    fn macro_f1(&self) -> f64 {
        let (mut sum, mut occurring) = (0.0, 0.0);
        for class in 0..self.classes {
            let (row, column) = self.margins(class);
            if row + column > 0.0 {
                let hits = self.counts[class * (self.classes + 1)] as f64;
                sum += 2.0 * hits / (row + column);
                occurring += 1.0;
            }
        }
        sum / occurring
    }

    fn matthews(&self) -> f64 {
        let n = self.total();
        let (mut product, mut rows, mut columns) = (0.0, 0.0, 0.0);
        for (row, column) in (0..self.classes).map(|c| self.margins(c)) {
            product += row * column;
            rows += row * row;
            columns += column * column;
        }
        let root = ((n * n - rows) * (n * n - columns)).sqrt();
        if root > 0.0 {
            (n * self.right() - product) / root
        } else {
            0.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(classes: usize, right: &[u32], said: &[u32]) -> Score {
        let mut confusion = Confusion::new(classes);
        for (&right, &said) in right.iter().zip(said) {
            confusion.add(right, said).unwrap();
        }
        confusion.score(0.5).unwrap()
    }

    fn assert_scores(score: Score, accuracy: f64, macro_f1: f64, matthews: f64) {
        let got = [score.accuracy, score.macro_f1, score.matthews].map(Option::unwrap);
        for (got, wanted) in got.into_iter().zip([accuracy, macro_f1, matthews]) {
            assert!((got - wanted).abs() < 1e-12, "got {got}, wanted {wanted}");
        }
    }

    #[test]
    fn two_classes_by_hand() {
        // Class 1: 3 hits, 1 miss, 2 false alarms; 4 right rejections.
        let right = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0];
        let said = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0];
        // F1 of 1: 6 / (6 + 3), of 0: 8 / (8 + 3). Matthews: (3·4 − 2·1) / √(5·4·6·5).
        let f1 = f64::midpoint(6.0 / 9.0, 8.0 / 11.0);
        assert_scores(score(2, &right, &said), 0.7, f1, 10.0 / 600_f64.sqrt());
    }

    #[test]
    fn three_classes_agree_with_scikit_learn() {
        let right = [0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2];
        let said = [0, 0, 0, 0, 1, 2, 1, 1, 0, 2, 0, 0];
        // scikit-learn 1.9.1: f1_score(average="macro"), matthews_corrcoef.
        let (f1, matthews) = (0.560_683_760_683_760_6, 0.314_293_633_096_310_2);
        assert_scores(score(3, &right, &said), 7.0 / 12.0, f1, matthews);
    }

    #[test]
    fn a_class_that_never_occurs_does_not_enter_the_mean() {
        let score = score(5, &[0, 0, 3], &[0, 3, 3]);
        let wanted = 2.0 / 3.0;
        assert!((score.macro_f1.unwrap() - wanted).abs() < 1e-12);
    }

    #[test]
    fn saying_one_class_of_everything_is_no_correlation() {
        assert_scores(score(2, &[0, 1, 1, 0], &[1; 4]), 0.5, 1.0 / 3.0, 0.0);
    }

    #[test]
    fn perplexity_is_the_exponential_of_the_loss() {
        let score = Score::of_language_model(8_f64.ln());
        assert!((Metric::Perplexity.of(&score).unwrap() - 8.0).abs() < 1e-12);
        assert_eq!(Metric::Accuracy.of(&score), None);
    }

    #[test]
    fn more_is_better_for_shares_and_less_for_losses() {
        for metric in [Metric::Accuracy, Metric::MacroF1, Metric::Matthews] {
            assert!(metric.is_better(0.6, 0.5) && !metric.is_better(0.5, 0.5));
        }
        for metric in [Metric::Perplexity, Metric::Loss] {
            assert!(metric.is_better(5.0, 6.0) && !metric.is_better(f64::NAN, 6.0));
        }
    }

    #[test]
    fn a_class_that_is_none_and_an_empty_part_are_refused() {
        let mut confusion = Confusion::new(2);
        assert!(confusion.score(0.0).is_err());
        let message = confusion.add(2, 0).unwrap_err().to_string();
        assert!(message.contains("below 2") && message.contains("got 2"));
    }
}
