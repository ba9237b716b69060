//! What `speed` measured: every time as JSON, and a table.

use std::fmt::Write;

use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};

use super::{
    machine::{Ceilings, Machine},
    place::Precision,
    protocol::{Hello, Round},
};
use crate::stats::median;

/// Everything that was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    /// Threads of each participant.
    pub(crate) threads: usize,
    #[serde(default)]
    pub(crate) precision: Precision,
    pub(crate) ceilings: Ceilings,
    pub(crate) workloads: Vec<Measured>,
}

/// One workload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) workload: String,
    pub(crate) title: String,
    #[serde(default)]
    pub(crate) work: Work,
    /// Why it was not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) left_out: Option<String>,
    pub(crate) participants: Vec<Participant>,
}

/// What a step takes at least; what was not counted is nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Work {
    /// Operations of matrix products.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) flops: Option<f64>,
    /// Bytes that are moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) bytes: Option<f64>,
}

impl Work {
    /// The share of what the machine can do at most that a step of so many milliseconds uses.
    fn share(self, step_ms: f64, ceilings: &Ceilings) -> Option<f64> {
        let used = |work: Option<f64>, most: &[f64]| Some(work? / (step_ms * 1e6) / median(most)?);
        used(self.flops, &ceilings.gemm_gflops).or_else(|| used(self.bytes, ceilings.bandwidth()))
    }
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

    pub(super) fn step(&self) -> Vec<f64> {
        let of_round = |round: &Round| median(&round.step_ms);
        self.rounds.iter().filter_map(of_round).collect()
    }

    fn peak_mib(&self) -> Option<f64> {
        self.rounds.last()?.peak_mib
    }

    fn cells(&self, measured: &Measured, ceilings: &Ceilings) -> Vec<String> {
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
        let step = median(&self.step());
        let share = step.and_then(|ms| measured.work.share(ms, ceilings));
        cells.push(share.map_or("–".into(), |share| format!("{:.0} %", 100.0 * share)));
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
            "of the most",
        ]);
        for measured in &self.workloads {
            for participant in &measured.participants {
                table.add_row(participant.cells(measured, &self.ceilings));
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
            device_is,
            environment,
        } = &self.machine;
        let device = device_is.as_ref().unwrap_or(&environment.device);
        let mut text = format!(
            "Medians over rounds (least–most), {}, device {}, {} threads. A step is forward, backward and SGD with \
             momentum, or the update alone; ratios are of steps, taken within each round. Grown: the peak without \
             what the process had before it made the network. Of the most: matrix products against those of the \
             machine alone, or bytes of updates against its bandwidth.\n",
            self.precision.name(),
            device,
            self.threads
        );
        for measured in &self.workloads {
            if let Some(reason) = &measured.left_out {
                // Writing to a string does not fail.
                let _ = writeln!(text, "Left out: {}: {reason}.", measured.workload);
            }
        }
        let mut versions: Vec<&str> = vec![];
        for participant in self.workloads.iter().flat_map(|w| &w.participants) {
            let version = participant.hello.version.as_str();
            if !versions.contains(&version) {
                versions.push(version);
            }
        }
        let _ = writeln!(
            text,
            "{cpu}, {} cores, {}; sala-bench {} ({}), {}.",
            environment.threads,
            instructions.join(" "),
            environment.version,
            environment.commit,
            versions.join(", ")
        );
        let bandwidth = match self.ceilings.copy_gb_s[..] {
            [] => "updates in place",
            _ => "copies",
        };
        let most = (
            median(&self.ceilings.gemm_gflops),
            median(self.ceilings.bandwidth()),
        );
        if let (Some(gemm), Some(bytes)) = most {
            let _ = writeln!(
                text,
                "The machine: matrix products {gemm:.0} GFLOP/s, {bandwidth} {bytes:.0} GB/s."
            );
        }
        text
    }
}

/// `median (least–most)`.
pub(super) fn spread(values: &[f64]) -> String {
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
pub(super) mod tests {
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

    pub(in crate::speed) fn report() -> Report {
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
            precision: Precision::F32,
            ceilings: Ceilings {
                gemm_gflops: vec![100.0, 120.0],
                update_gb_s: vec![50.0],
                copy_gb_s: vec![],
            },
            workloads: vec![Measured {
                workload: "net".into(),
                title: "a network".into(),
                work: Work {
                    flops: Some(4.84e9),
                    bytes: None,
                },
                left_out: None,
                participants: vec![ours, torch],
            }],
        }
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
            rows[0][1..10],
            [
                "net",
                "sala",
                "22.0 (20.0–40.0)",
                "88.0 (80.0–160.0)",
                "0.80",
                "–",
                "300",
                "200",
                // 4.84 GFLOP in 88 ms are 55 GFLOP/s of 110.
                "50 %"
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

    #[test]
    fn bytes_are_held_against_the_bandwidth() {
        let work = Work {
            flops: None,
            bytes: Some(2e9),
        };
        let mut ceilings = report().ceilings;
        assert_eq!(work.share(80.0, &ceilings), Some(0.5));
        ceilings.copy_gb_s = vec![100.0];
        assert_eq!(work.share(80.0, &ceilings), Some(0.25));
        assert_eq!(Work::default().share(80.0, &ceilings), None);
    }

    #[test]
    fn what_was_left_out_is_named_with_its_reason() {
        let mut report = report();
        report.workloads[0].left_out = Some("wants 20 GiB".into());
        assert!(report.markdown().contains("Left out: net: wants 20 GiB."));
    }

    // Catches a new field without which an older file would no longer be read.
    #[test]
    fn files_of_older_versions_can_be_read() {
        let text = include_str!("../../../results/2026-11-22-speed/speed.json");
        let old: Report = serde_json::from_str(text).unwrap();
        assert_eq!(old.precision, Precision::F32);
        assert_eq!(old.workloads[0].work, Work::default());
        assert!(median(old.ceilings.bandwidth()).unwrap() > 10.0);
    }
}
