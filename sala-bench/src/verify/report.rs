//! What `verify` found: tables for a terminal, and everything as JSON.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::check::{Check, Section};
use crate::speed::Machine;

#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) machine: Machine,
    pub(super) seconds: f64,
    pub(super) checks: Vec<Check>,
}

/// Whose worst share goes into a column.
type Column = (&'static str, Section, Option<&'static str>);

const OF_OPERATIONS: [Column; 5] = [
    ("differences", Section::Differences, None),
    ("f64", Section::Operations, Some("f64")),
    ("f32", Section::Operations, Some("f32")),
    ("bf16", Section::Operations, Some("bf16")),
    ("f16", Section::Operations, Some("f16")),
];
const OF_METHODS: [Column; 3] = [
    ("f64", Section::Trajectories, Some("f64")),
    ("f32", Section::Trajectories, Some("f32")),
    ("bf16", Section::Trajectories, Some("bf16")),
];
const OF_TRAININGS: [Column; 2] = [
    ("f32", Section::Repetition, Some("f32")),
    ("bf16", Section::Repetition, Some("bf16")),
];

impl Report {
    pub(super) fn failures(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| !check.passed)
    }

    pub(super) fn terminal(&self) -> String {
        let mut text = String::new();
        for (title, columns) in [
            ("operation", &OF_OPERATIONS[..]),
            ("50 steps", &OF_METHODS),
            ("repetition", &OF_TRAININGS),
        ] {
            if let Some(table) = self.table(title, columns) {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "{table}");
            }
        }
        text.push_str(
            "Largest difference as a share of what is allowed, of both kinds of kernels; – was not compared.\n",
        );
        for check in self.failures() {
            let _ = writeln!(text, "FAILED {check}");
        }
        let numbers: usize = self.checks.iter().map(|check| check.verdict.compared).sum();
        let _ = writeln!(
            text,
            "{} checks of {numbers} numbers on {} in {:.0} s: {} failed",
            self.checks.len(),
            self.machine.environment.device,
            self.seconds,
            self.failures().count()
        );
        text
    }

    /// A row for each name, in the order of the checks; nothing without any.
    fn table(&self, title: &str, columns: &[Column]) -> Option<Table> {
        let concerned = |check: &&Check| columns.iter().any(|c| belongs(check, c));
        let mut names: Vec<&str> = vec![];
        for check in self.checks.iter().filter(concerned) {
            if !names.contains(&check.name.as_str()) {
                names.push(&check.name);
            }
        }
        if names.is_empty() {
            return None;
        }
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_header([title].into_iter().chain(columns.iter().map(|c| c.0)));
        for name in names {
            let cells = columns.iter().map(|column| {
                let all = self.checks.iter();
                cell(all.filter(|check| check.name == name && belongs(check, column)))
            });
            table.add_row([name.to_owned()].into_iter().chain(cells));
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        Some(table)
    }
}

fn belongs(check: &Check, &(_, section, dtype): &Column) -> bool {
    check.section == section && dtype.is_none_or(|dtype| check.dtype == dtype)
}

/// The worst of some checks.
fn cell<'a>(checks: impl Iterator<Item = &'a Check>) -> String {
    let mut worst: Option<f64> = None;
    for check in checks {
        if !check.passed {
            return "FAILED".into();
        }
        let share = check.verdict.share.unwrap_or(0.0);
        worst = Some(worst.map_or(share, |worst| worst.max(share)));
    }
    worst.map_or("–".into(), |share| format!("{:.1} %", 100.0 * share))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::check::{Verdict, Worst};

    fn check(name: &str, dtype: &'static str, kernels: &'static str, share: f64) -> Check {
        let verdict = Verdict {
            share: Some(share),
            worst: Some(Worst {
                part: "result".into(),
                element: 3,
                wanted: 1.0,
                got: 1.0 + share * 1e-6,
                difference: share * 1e-6,
                allowed: 1e-6,
            }),
            compared: 10,
            error: None,
        };
        Check {
            section: Section::Operations,
            name: name.into(),
            dtype,
            kernels,
            passed: verdict.passed(),
            verdict,
            seconds: 0.1,
        }
    }

    fn report() -> Report {
        Report {
            machine: Machine::here(),
            seconds: 2.0,
            checks: vec![
                check("relu", "f32", "auto", 0.25),
                check("relu", "f32", "composed", 0.5),
                check("gelu", "bf16", "auto", 12.0),
            ],
        }
    }

    #[test]
    fn a_row_has_the_worst_of_both_kernels_and_failures_are_told_in_full() {
        let text = report().terminal();
        let row = |name: &str| {
            let line = text.lines().find(|l| l.contains(name)).unwrap();
            line.split(['│', '┆']).map(str::trim).collect::<Vec<_>>()
        };
        assert_eq!(row("relu")[1..7], ["relu", "–", "–", "50.0 %", "–", "–"]);
        assert_eq!(row("gelu")[1..7], ["gelu", "–", "–", "–", "FAILED", "–"]);
        for part in [
            "FAILED gelu in bf16, kernels auto",
            "off by 1.20e-5, 1.00e-6 allowed",
            "3 checks of 30 numbers on cpu in 2 s: 1 failed",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn json_has_every_check_with_its_numbers() {
        let json: serde_json::Value = serde_json::to_value(report()).unwrap();
        let gelu = &json["checks"][2];
        assert_eq!(gelu["passed"], false);
        assert_eq!(gelu["section"], "operations");
        assert_eq!(gelu["worst"]["allowed"], 1e-6);
        assert_eq!(json["machine"]["device"], "cpu");
    }
}
