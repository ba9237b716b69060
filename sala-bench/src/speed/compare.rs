//! Two files of `speed` side by side.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result, ensure};
use comfy_table::{CellAlignment, Table, presets};

use super::report::{Report, spread};
use crate::stats::median;

/// The table of what both files have, and what there is to know of each.
pub(super) fn compare(before: &Path, after: &Path) -> Result<String> {
    let (a, b) = (read(before)?, read(after)?);
    let rows = rows(&a, &b);
    ensure!(
        !rows.is_empty(),
        "{} and {} have no workload and side in common",
        before.display(),
        after.display()
    );
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["workload", "side", "A: step ms", "B: step ms", "B / A"]);
    table.add_rows(rows);
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut text =
        format!("{table}\nMedians over rounds (least–most), and the ratio of the medians.\n");
    for (letter, path, report) in [("A", before, &a), ("B", after, &b)] {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{letter}: {}, {}", path.display(), report.facts());
    }
    Ok(text)
}

fn read(path: &Path) -> Result<Report> {
    let text = fs::read_to_string(path);
    let text = text.with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no file of `speed`", path.display()))
}

fn rows(a: &Report, b: &Report) -> Vec<[String; 5]> {
    let mut rows = vec![];
    for after in &b.workloads {
        let Some(before) = a.workloads.iter().find(|w| w.workload == after.workload) else {
            continue;
        };
        for side in &after.participants {
            let Some(other) = before.participants.iter().find(|p| p.name == side.name) else {
                continue;
            };
            let (was, is) = (other.step(), side.step());
            let ratio = median(&was).zip(median(&is)).map(|(was, is)| is / was);
            rows.push([
                after.workload.clone(),
                side.name.clone(),
                spread(&was),
                spread(&is),
                ratio.map_or("–".into(), |ratio| format!("{ratio:.2}")),
            ]);
        }
    }
    rows
}

impl Report {
    /// The device, the precision, the version and what the machine can do, in a line.
    fn facts(&self) -> String {
        let environment = &self.machine.environment;
        let mut text = format!(
            "{} on {} ({}), {} threads, sala-bench {} ({})",
            self.precision.name(),
            self.machine
                .device_is
                .as_ref()
                .unwrap_or(&environment.device),
            self.machine.cpu,
            self.threads,
            environment.version,
            environment.commit
        );
        let (gemm, bytes) = (&self.ceilings.gemm_gflops, self.ceilings.bandwidth());
        if let (Some(gemm), Some(bytes)) = (median(gemm), median(bytes)) {
            let _ = write!(text, ", {gemm:.0} GFLOP/s, {bytes:.0} GB/s");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::speed::report::tests::report;

    #[test]
    fn a_file_against_itself_with_slower_steps() {
        let folder = tempfile::tempdir().unwrap();
        let (before, after) = (folder.path().join("a.json"), folder.path().join("b.json"));
        let mut slower = report();
        for round in &mut slower.workloads[0].participants[0].rounds {
            round.step_ms.iter_mut().for_each(|ms| *ms *= 1.5);
        }
        fs::write(&before, serde_json::to_string(&report()).unwrap()).unwrap();
        fs::write(&after, serde_json::to_string(&slower).unwrap()).unwrap();
        let text = compare(&before, &after).unwrap();
        let row = text.lines().find(|line| line.contains("sala ")).unwrap();
        let cells: Vec<&str> = row.split(['│', '┆']).map(str::trim).collect();
        assert_eq!(
            cells[1..6],
            ["net", "sala", "88.0 (80.0–160.0)", "132 (120–240)", "1.50"]
        );
        assert!(
            text.contains("A: ") && text.contains("110 GFLOP/s, 50 GB/s"),
            "{text}"
        );
    }

    #[test]
    fn wrong_files_are_errors_with_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("a.json"), folder.path().join("b.json"));
        let message = format!("{:#}", compare(&path, &path).unwrap_err());
        assert!(
            message.contains("cannot read") && message.contains("a.json"),
            "{message}"
        );
        fs::write(&path, "{}").unwrap();
        let message = format!("{:#}", compare(&path, &path).unwrap_err());
        assert!(message.contains("is no file of `speed`"), "{message}");
        let mut report = report();
        fs::write(&path, serde_json::to_string(&report).unwrap()).unwrap();
        report.workloads.clear();
        fs::write(&other, serde_json::to_string(&report).unwrap()).unwrap();
        let message = compare(&path, &other).unwrap_err().to_string();
        assert!(message.contains("in common"), "{message}");
    }
}
