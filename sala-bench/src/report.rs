//! From run records to a table: in the terminal, as Markdown and as JSON.

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};

use crate::{
    metrics::{Metric, Score},
    record::{RunDir, RunRecord},
    stats::{self, Paired, Summary},
};

/// What a report is about.
#[derive(Debug, Clone)]
pub(crate) struct Heading {
    pub(crate) name: String,
    pub(crate) fingerprint: String,
    /// What runs are compared by.
    pub(crate) metric: Metric,
    /// Whose weights were scored, in words.
    pub(crate) weights: &'static str,
    /// The first is the base of the comparison.
    pub(crate) optimizers: Vec<String>,
    pub(crate) seeds: usize,
}

/// The comparison in numbers. Accuracies and their differences are shares, not per cent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) experiment: String,
    pub(crate) fingerprint: String,
    /// Whether every run of the experiment is in it.
    pub(crate) complete: bool,
    pub(crate) base: String,
    pub(crate) metric: Metric,
    /// Whose weights were scored.
    pub(crate) weights: String,
    pub(crate) rows: Vec<Row>,
}

/// One optimizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) optimizer: String,
    /// Complete runs, failed ones included.
    pub(crate) runs: usize,
    /// Runs that diverged. Where there is one, no accuracy is given: a mean over the others would
    /// flatter the optimizer.
    pub(crate) failed: usize,
    pub(crate) validation: Option<Summary>,
    pub(crate) test: Option<Summary>,
    /// The metric minus the base's, paired by seed; on the test part if that was read, else on the
    /// validation part. Nothing for the base itself.
    pub(crate) difference: Option<Paired>,
    /// Gradient evaluations of a whole batch per step.
    pub(crate) evaluations_per_step: Option<f64>,
    /// Mean over seeds of the training time relative to the base's run with the same seed.
    pub(crate) time_ratio: Option<f64>,
    /// Share of cycles that climbed, for methods that decide that as they go.
    pub(crate) climbed: Option<f64>,
}

impl Report {
    pub(crate) fn new(heading: &Heading, runs: &[RunRecord]) -> Result<Self> {
        let base = heading.optimizers[0].clone();
        let of = |name: &str| {
            runs.iter()
                .filter(|r| r.optimizer == name)
                .collect::<Vec<_>>()
        };
        let base_runs = of(&base);
        let row = |name: &String| Row::new(name, heading.metric, &of(name), &base_runs);
        let rows: Result<_> = heading.optimizers.iter().map(row).collect();
        let wanted = heading.optimizers.len() * heading.seeds;
        Ok(Self {
            experiment: heading.name.clone(),
            fingerprint: heading.fingerprint.clone(),
            complete: runs.len() == wanted,
            base,
            metric: heading.metric,
            weights: heading.weights.into(),
            rows: rows?,
        })
    }

    /// Writes the records and the report in its three forms.
    pub(crate) fn write(&self, dir: &RunDir, runs: &[RunRecord], description: &str) -> Result<()> {
        dir.write_runs(runs)?;
        dir.write("summary.json", &serde_json::to_vec_pretty(self)?)?;
        dir.write("summary.csv", &self.csv()?)?;
        let heading = format!("# {}\n\n{description}\n\n", self.experiment);
        let text = format!("{heading}{}", self.markdown());
        dir.write("summary.md", text.as_bytes())
    }

    /// One line an optimizer, plain numbers; what is not known is empty.
    fn csv(&self) -> Result<Vec<u8>> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record([
            "optimizer",
            "metric",
            "runs",
            "diverged",
            "validation_mean",
            "validation_sd",
            "test_mean",
            "test_sd",
            "difference_mean",
            "difference_low",
            "difference_high",
            "evaluations_per_step",
            "time_ratio",
            "climbed",
        ])?;
        for row in &self.rows {
            let number = |x: Option<f64>| x.map_or_else(String::new, |x| x.to_string());
            let pair =
                |s: Option<Summary>| [number(s.map(|s| s.mean)), number(s.and_then(|s| s.sd))];
            let ci = row.difference.and_then(|d| d.ci95);
            let mut fields = vec![
                row.optimizer.clone(),
                self.metric.name().into(),
                row.runs.to_string(),
                row.failed.to_string(),
            ];
            fields.extend(pair(row.validation));
            fields.extend(pair(row.test));
            fields.extend([
                number(row.difference.map(|d| d.mean)),
                number(ci.map(|(low, _)| low)),
                number(ci.map(|(_, high)| high)),
                number(row.evaluations_per_step),
                number(row.time_ratio),
                number(row.climbed),
            ]);
            writer.write_record(fields)?;
        }
        Ok(writer.into_inner()?)
    }

    /// The table for a terminal.
    pub(crate) fn terminal(&self) -> String {
        let mut table = self.table();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        format!("{table}\n{}", self.legend())
    }

    /// The table as Markdown.
    pub(crate) fn markdown(&self) -> String {
        let mut table = self.table();
        table.load_style(presets::ASCII_MARKDOWN);
        format!("{table}\n\n{}", self.legend())
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        let unit = self.metric.unit().1;
        let difference = format!("{} − {}", self.part(), self.base);
        table.set_header([
            "optimizer",
            "runs",
            &format!("validation{unit}"),
            &format!("test{unit}"),
            &difference,
            "gradients / step",
            "time ×",
            "climbed",
        ]);
        for row in &self.rows {
            table.add_row(row.cells(self.metric));
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    fn part(&self) -> &'static str {
        if self.rows.iter().any(|row| row.test.is_some()) {
            "test"
        } else {
            "validation"
        }
    }

    fn legend(&self) -> String {
        let base = &self.base;
        let metric = capitalised(self.metric.name());
        let incomplete = if self.complete {
            ""
        } else {
            "\nNot all runs are complete; run the same command again to continue."
        };
        format!(
            "{metric} of {}, mean ± sd over seeds. Difference to {base} paired by seed, with its 95 % t \
             interval. Time: training relative to {base}'s. Climbed: share of SALA's \
             cycles that took the second gradient.{incomplete}\n",
            self.weights
        )
    }
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    let first = letters.next().into_iter().flat_map(char::to_uppercase);
    first.chain(letters).collect()
}

impl Row {
    fn new(name: &str, metric: Metric, runs: &[&RunRecord], base: &[&RunRecord]) -> Result<Self> {
        let failed = runs.iter().filter(|r| r.failure.is_some()).count();
        let whole = if failed == 0 { runs } else { &[] };
        let value = |score: Option<Score>| score.and_then(|s| metric.of(&s));
        let test = summary(whole, |r| value(r.test))?;
        let compared = |r: &RunRecord| value(if test.is_some() { r.test } else { r.validation });
        let pairs = pairs(whole, base);
        let values: Option<Vec<(f64, f64)>> = pairs
            .iter()
            .map(|(own, base)| Some((compared(own)?, compared(base)?)))
            .collect();
        let is_base = base.first().is_some_and(|b| b.optimizer == name);
        let difference = match values {
            Some(pairs) if !is_base && !pairs.is_empty() => {
                let (own, base): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
                Some(stats::paired_difference(&own, &base)?)
            }
            _ => None,
        };
        let ratios: Vec<f64> = pairs
            .iter()
            .map(|(own, base)| own.train_s / base.train_s)
            .collect();
        let steps: u64 = runs.iter().map(|r| r.steps).sum();
        let evaluations: f64 = runs.iter().map(|r| r.evaluations).sum();
        let cycles: Option<u64> = runs.iter().map(|r| r.cycles).sum();
        let ascents: u64 = runs.iter().map(|r| r.ascents).sum();
        Ok(Self {
            optimizer: name.into(),
            runs: runs.len(),
            failed,
            validation: summary(whole, |r| value(r.validation))?,
            test,
            difference,
            evaluations_per_step: (steps > 0).then(|| evaluations / steps as f64),
            time_ratio: stats::mean(&ratios),
            climbed: cycles.filter(|&c| c > 0).map(|c| ascents as f64 / c as f64),
        })
    }

    fn cells(&self, metric: Metric) -> [String; 8] {
        let none = || "–".to_owned();
        let ((factor, _), digits) = (metric.unit(), metric.digits());
        let spread = |s: &Summary| match s.sd {
            Some(sd) => format!("{:.digits$} ± {:.digits$}", factor * s.mean, factor * sd),
            None => format!("{:.digits$}", factor * s.mean),
        };
        let score = |s: &Option<Summary>| match (s, self.failed) {
            (Some(s), _) => spread(s),
            (None, 0) => none(),
            (None, failed) => format!("{failed} diverged"),
        };
        let signed = |x: f64| format!("{:+.digits$}", factor * x);
        let difference = |d: &Paired| match d.ci95 {
            Some((low, high)) => format!("{} [{}, {}]", signed(d.mean), signed(low), signed(high)),
            None => signed(d.mean),
        };
        [
            self.optimizer.clone(),
            self.runs.to_string(),
            score(&self.validation),
            score(&self.test),
            self.difference.as_ref().map_or_else(none, difference),
            self.evaluations_per_step
                .map_or_else(none, |e| format!("{e:.3}")),
            self.time_ratio.map_or_else(none, |t| format!("{t:.2}")),
            self.climbed
                .map_or_else(none, |c| format!("{:.0} %", 100.0 * c)),
        ]
    }
}

type Pair<'a> = (&'a RunRecord, &'a RunRecord);

/// Runs with the base's run of the same seed, where both are complete and did not diverge.
fn pairs<'a>(runs: &[&'a RunRecord], base: &[&'a RunRecord]) -> Vec<Pair<'a>> {
    let partner = |run: &&'a RunRecord| {
        let same = base
            .iter()
            .find(|b| b.seed == run.seed && b.failure.is_none())?;
        Some((*run, *same))
    };
    runs.iter().filter_map(partner).collect()
}

fn summary(
    runs: &[&RunRecord],
    value: impl Fn(&RunRecord) -> Option<f64>,
) -> Result<Option<Summary>> {
    let values: Option<Vec<f64>> = runs.iter().map(|r| value(r)).collect();
    values
        .filter(|a| !a.is_empty())
        .map(|a| Summary::of(&a))
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        record::tests::{run, score},
        spec::{Experiment, tests::SMALL},
    };

    fn records() -> Vec<RunRecord> {
        let mut all = Vec::new();
        for seed in [0, 1] {
            let shift = 0.1 * seed as f64;
            let sgd = RunRecord {
                test: Some(score(0.5 + shift)),
                cycles: None,
                ..run("sgd", seed)
            };
            let sala = RunRecord {
                test: Some(score(0.625 + shift)),
                train_s: 3.0,
                ..run("sala", seed)
            };
            all.extend([sgd, sala]);
        }
        all
    }

    fn report(records: &[RunRecord]) -> Report {
        let experiment = Experiment::from_toml(SMALL, "small").unwrap();
        Report::new(&experiment.heading().unwrap(), records).unwrap()
    }

    #[test]
    fn differences_are_paired_by_seed() {
        let report = report(&records());
        assert!(report.complete);
        assert_eq!(report.rows[0].difference, None);
        // Unpaired, the spread between the seeds would hide the difference.
        let difference = report.rows[1].difference.unwrap();
        assert!((difference.mean - 0.125).abs() < 1e-12);
        assert!(difference.sd.unwrap() < 1e-12);
        assert!((report.rows[1].time_ratio.unwrap() - 2.0).abs() < 1e-12);
        assert!((report.rows[1].climbed.unwrap() - 1.0).abs() < 1e-12);
        assert!((report.rows[1].evaluations_per_step.unwrap() - 1.25).abs() < 1e-12);
    }

    #[test]
    fn the_pairing_does_not_depend_on_the_order_of_the_records() {
        let mut shuffled = records();
        shuffled.swap(0, 2);
        assert_eq!(
            report(&records()).rows[1].difference,
            report(&shuffled).rows[1].difference
        );
    }

    #[test]
    fn a_diverged_seed_is_shown_and_not_averaged_away() {
        let mut records = records();
        records[3].failure = Some("clean pass: the loss is not finite".into());
        let report = report(&records);
        assert_eq!((report.rows[1].failed, report.rows[1].test), (1, None));
        assert!(
            report.markdown().contains("1 diverged"),
            "{}",
            report.markdown()
        );
    }

    #[test]
    fn an_incomplete_comparison_says_so() {
        let report = report(&records()[..3]);
        assert!(!report.complete && report.terminal().contains("Not all runs are complete"));
        assert_eq!(report.rows[1].difference.unwrap().n, 1);
    }

    #[test]
    fn without_test_scores_the_difference_is_on_validation() {
        let records: Vec<_> = records()
            .into_iter()
            .map(|r| RunRecord { test: None, ..r })
            .collect();
        let report = report(&records);
        assert!((report.rows[1].difference.unwrap().mean).abs() < 1e-12);
        assert!(report.markdown().contains("validation − sgd"));
    }

    #[test]
    fn the_csv_has_plain_numbers_and_leaves_out_what_is_not_known() {
        let text = String::from_utf8(report(&records()).csv().unwrap()).unwrap();
        let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split(',').collect()).collect();
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|l| l.len() == 14), "{text}");
        assert_eq!(lines[1][..4], ["sgd", "accuracy", "2", "0"]);
        assert_eq!((lines[1][8], lines[2][8]), ("", "0.125"));
    }

    #[test]
    fn another_metric_has_its_own_unit() {
        let experiment = Experiment::from_toml(SMALL, "small").unwrap();
        let heading = Heading {
            metric: Metric::Loss,
            ..experiment.heading().unwrap()
        };
        let report = Report::new(&heading, &records()).unwrap();
        let text = report.markdown();
        assert!(
            !text.contains("test %") && text.contains("0.5000 ± 0.0000"),
            "{text}"
        );
        assert!(text.contains("Loss of the weights at the end"), "{text}");
    }
}
