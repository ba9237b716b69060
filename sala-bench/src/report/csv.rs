//! A report as comma-separated values: one line an optimizer, plain numbers; what is not known is empty.

use anyhow::Result;

use super::workload::Workload;
use crate::stats::Summary;

const HEADER: [&str; 26] = [
    "experiment",
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
    "bootstrap_low",
    "bootstrap_high",
    "p",
    "p_holm",
    "margin",
    "p_equivalence",
    "verdict",
    "evaluations_per_step",
    "evaluations_ratio",
    "time_ratio",
    "climbed",
    "target",
    "evaluations_to_target",
    "seconds_to_target",
];

/// The lines of all comparisons, with their header.
pub(crate) fn csv(workloads: &[Workload]) -> Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(HEADER)?;
    for workload in workloads {
        for fields in lines(workload)? {
            writer.write_record(fields)?;
        }
    }
    Ok(writer.into_inner()?)
}

fn lines(workload: &Workload) -> Result<Vec<[String; HEADER.len()]>> {
    let number = |x: Option<f64>| x.map_or_else(String::new, |x| x.to_string());
    let mean = |s: Option<Summary>| number(s.map(|s| s.mean));
    let sd = |s: Option<Summary>| number(s.and_then(|s| s.sd));
    let differences = workload.to_base();
    let line = |row: &super::workload::Row| {
        let difference = differences.and_then(|c| c.of(&row.optimizer));
        let paired = difference.map(|d| d.paired);
        let (t, bootstrap) = (
            paired.and_then(|p| p.ci95),
            paired.and_then(|p| p.bootstrap95),
        );
        let equivalence = difference.and_then(|d| d.equivalence);
        let target = workload.target.as_ref();
        let reach = target.and_then(|t| t.rows.iter().find(|r| r.optimizer == row.optimizer));
        let verdict = difference
            .map(|d| serde_json::to_value(d.verdict))
            .transpose()?;
        let verdict = verdict
            .as_ref()
            .and_then(|v| v.as_str())
            .unwrap_or_default();
        Ok([
            workload.experiment.clone(),
            row.optimizer.clone(),
            workload.metric.name().into(),
            row.runs.to_string(),
            row.failed.to_string(),
            mean(row.validation),
            sd(row.validation),
            mean(row.test),
            sd(row.test),
            number(paired.map(|p| p.mean)),
            number(t.map(|i| i.0)),
            number(t.map(|i| i.1)),
            number(bootstrap.map(|i| i.0)),
            number(bootstrap.map(|i| i.1)),
            number(paired.and_then(|p| p.p)),
            number(difference.and_then(|d| d.p_holm)),
            number(equivalence.map(|e| e.margin)),
            number(equivalence.map(|e| e.p)),
            verdict.to_owned(),
            number(row.evaluations_per_step),
            number(row.evaluations_ratio),
            number(row.time_ratio),
            number(row.climbed),
            number(target.map(|t| t.score)),
            number(reach.and_then(|r| r.evaluations.median)),
            number(reach.and_then(|r| r.seconds).and_then(|r| r.median)),
        ])
    };
    workload.rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{tests::source, workload::Settings};
    use super::*;

    #[test]
    fn numbers_are_plain_and_what_is_not_known_is_left_out() {
        let workload = Workload::new(&source(), &Settings::default()).unwrap();
        let text = String::from_utf8(csv(&[workload]).unwrap()).unwrap();
        let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split(',').collect()).collect();
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|l| l.len() == HEADER.len()), "{text}");
        let at = |name: &str| HEADER.iter().position(|h| *h == name).unwrap();
        assert_eq!(lines[1][..5], ["small", "sgd", "accuracy", "2", "0"]);
        let difference = at("difference_mean");
        assert_eq!(lines[1][difference], "");
        assert!((lines[2][difference].parse::<f64>().unwrap() - 0.125).abs() < 1e-12);
        assert_eq!(lines[2][at("evaluations_to_target")], "60");
        assert_eq!(
            lines[1][at("evaluations_to_target")],
            "",
            "half of the seeds never get there"
        );
        assert_eq!(lines[2][at("verdict")], "better");
    }
}
