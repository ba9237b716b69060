//! What `speed` measured: every time as JSON, and a table.

use std::fmt::Write;

use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};

use super::{
    machine::{Ceilings, Machine},
    protocol::{Hello, Round},
};

/// Everything that was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    /// Threads of each participant.
    pub(crate) threads: usize,
    pub(crate) ceilings: Ceilings,
    pub(crate) workloads: Vec<Measured>,
}

/// One workload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) workload: String,
    pub(crate) title: String,
    pub(crate) participants: Vec<Participant>,
}

/// One side of a workload, in the order in which each round asks them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Participant {
    pub(crate) name: String,
    #[serde(flatten)]
    pub(crate) hello: Hello,
    pub(crate) rounds: Vec<Round>,
}

/// The sides that ratios are taken to.
const REFERENCES: [&str; 2] = ["torch", "torch-channels-last"];

impl Participant {
    fn forward(&self) -> Vec<f64> {
        let of_round = |round: &Round| median(&round.forward_ms);
        self.rounds.iter().filter_map(of_round).collect()
    }

    fn step(&self) -> Vec<f64> {
        let of_round = |round: &Round| median(&round.step_ms);
        self.rounds.iter().filter_map(of_round).collect()
    }

    fn peak_mib(&self) -> Option<f64> {
        self.rounds.last()?.peak_mib
    }

    fn cells(&self, measured: &Measured) -> Vec<String> {
        let mut cells = vec![
            measured.workload.clone(),
            self.name.clone(),
            spread(&self.forward()),
            spread(&self.step()),
        ];
        for reference in REFERENCES {
            let other = measured.participants.iter().find(|p| p.name == reference);
            let ratio = other.and_then(|other| ratio(&self.step(), &other.step()));
            cells.push(ratio.map_or("–".into(), |ratio| format!("{ratio:.2}")));
        }
        let peak = self.peak_mib();
        let grown = peak
            .zip(self.hello.start_mib)
            .map(|(peak, start)| peak - start);
        for size in [peak, grown] {
            cells.push(size.map_or("–".into(), |mib| format!("{mib:.0}")));
        }
        cells
    }
}

impl Report {
    /// The tables for a terminal.
    pub(super) fn terminal(&self) -> String {
        let mut table = self.table();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        format!("{table}\n{}", self.legend())
    }

    /// The table as Markdown.
    pub(super) fn markdown(&self) -> String {
        let mut table = self.table();
        table.load_style(presets::ASCII_MARKDOWN);
        format!("{table}\n\n{}", self.legend())
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.set_header([
            "workload",
            "side",
            "forward ms",
            "step ms",
            "/ torch",
            "/ torch channels last",
            "peak MiB",
            "grown MiB",
        ]);
        for measured in &self.workloads {
            for participant in &measured.participants {
                table.add_row(participant.cells(measured));
            }
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    fn legend(&self) -> String {
        let Machine {
            cpu,
            instructions,
            environment,
        } = &self.machine;
        let mut text = format!(
            "Medians over rounds (least–most), f32, {} threads. A step is forward, backward and SGD with \
             momentum; ratios are of steps, taken within each round. Grown: the peak without what the \
             process had before it made the network.\n",
            self.threads
        );
        let mut versions: Vec<&str> = vec![];
        for participant in self.workloads.iter().flat_map(|w| &w.participants) {
            let version = participant.hello.version.as_str();
            if !versions.contains(&version) {
                versions.push(version);
            }
        }
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{cpu}, {} cores, {}; sala-bench {} ({}), {}.",
            environment.threads,
            instructions.join(" "),
            environment.version,
            environment.commit,
            versions.join(", ")
        );
        let Ceilings {
            gemm_gflops,
            update_gb_s,
        } = &self.ceilings;
        if let (Some(gemm), Some(update)) = (median(gemm_gflops), median(update_gb_s)) {
            let _ = writeln!(
                text,
                "The machine: matrix products {gemm:.0} GFLOP/s, updates in place {update:.0} GB/s."
            );
        }
        text
    }
}

/// The middle value, or the mean of the two middle ones.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some(f64::midpoint(sorted[middle - 1], upper))
}

/// `median (least–most)`.
fn spread(values: &[f64]) -> String {
    let Some(median) = median(values) else {
        return "–".into();
    };
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let digits = usize::from(median < 100.0);
    format!("{median:.digits$} ({least:.digits$}–{most:.digits$})")
}

/// The median of the ratios of rounds that both have taken.
fn ratio(values: &[f64], others: &[f64]) -> Option<f64> {
    let ratios = values.iter().zip(others).map(|(a, b)| a / b);
    median(&ratios.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn participant(name: &str, version: &str, steps: &[&[f64]]) -> Participant {
        let round = |step: &&[f64]| Round {
            forward_ms: step.iter().map(|ms| ms / 4.0).collect(),
            step_ms: step.to_vec(),
            loss: 2.0,
            peak_mib: Some(300.0),
        };
        Participant {
            name: name.into(),
            hello: Hello {
                version: version.into(),
                parameters: 10,
                start_mib: Some(100.0),
            },
            rounds: steps.iter().map(round).collect(),
        }
    }

    fn report() -> Report {
        // The second round is disturbed on both sides alike.
        let ours = participant(
            "sala",
            "candle 1",
            &[&[80.0, 90.0, 70.0], &[160.0], &[88.0]],
        );
        let torch = participant("torch", "torch 2", &[&[100.0], &[200.0], &[80.0]]);
        Report {
            machine: Machine::here(),
            threads: 2,
            ceilings: Ceilings {
                gemm_gflops: vec![100.0, 120.0],
                update_gb_s: vec![50.0],
            },
            workloads: vec![Measured {
                workload: "net".into(),
                title: "a network".into(),
                participants: vec![ours, torch],
            }],
        }
    }

    #[test]
    fn medians_are_of_sorted_values() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn ratios_are_taken_within_rounds() {
        assert_eq!(
            ratio(&[80.0, 160.0, 88.0], &[100.0, 200.0, 80.0]),
            Some(0.8)
        );
        assert_eq!(ratio(&[1.0], &[]), None);
    }

    #[test]
    fn the_table_has_a_row_for_each_side() {
        let text = report().markdown();
        let rows: Vec<Vec<&str>> = text
            .lines()
            .filter(|line| line.contains("| net"))
            .map(|line| line.split('|').map(str::trim).collect())
            .collect();
        assert_eq!(
            rows[0][1..9],
            [
                "net",
                "sala",
                "22.0 (20.0–40.0)",
                "88.0 (80.0–160.0)",
                "0.80",
                "–",
                "300",
                "200"
            ]
        );
        assert_eq!(rows[1][4..6], ["100 (80–200)", "1.00"]);
        for part in ["110 GFLOP/s", "50 GB/s", "candle 1, torch 2", "2 threads"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn records_survive_the_way_through_json() {
        let report = report();
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }
}
