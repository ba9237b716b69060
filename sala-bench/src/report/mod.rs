//! Reports: from the records of one or several run directories to tables, numbers and one HTML page.
//!
//! ```text
//! load        directories → sources: plans and complete runs, merged where they belong together
//! workload    a source → everything that is said of it, in numbers: compare, cost, curves, search
//! notes       what a reader has to know of these numbers
//! tables      numbers → tables of words (grid), for terminal, Markdown and HTML
//! csv         numbers → comma-separated values
//! plot, html  numbers → figures and the page
//! ```
//!
//! A report is made of records alone, so it can be made again, by a later version too.

mod command;
mod compare;
mod cost;
mod csv;
mod curves;
mod grid;
mod html;
mod load;
mod notes;
mod plan;
mod plot;
mod search;
mod tables;
mod workload;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sala_core::checkpoint::write_atomically;
use serde::{Deserialize, Serialize};

use crate::{
    record::{RunDir, RunRecord},
    stats::{self, Profile},
};
use curves::Measure;
use load::load;

pub(crate) use command::report;
#[cfg(test)]
pub(crate) use grid::cells_of_lines;
pub(crate) use grid::{Grid, NONE};
pub(crate) use load::OnConflict;
pub(crate) use workload::Settings;

use workload::Workload;

/// What one or several comparisons say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) workloads: Vec<Workload>,
    /// Over the workloads, where there are several with the same optimizers.
    pub(crate) profiles: Vec<Profiles>,
}

/// Performance profiles by one measure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Profiles {
    pub(crate) measure: Measure,
    pub(crate) workloads: Vec<String>,
    pub(crate) lines: Vec<Profile>,
}

impl Report {
    /// Of run directories, merged where they hold parts of one comparison.
    pub(crate) fn of(
        directories: &[PathBuf],
        settings: &Settings,
        on_conflict: OnConflict,
    ) -> Result<Self> {
        let sources = load(directories, on_conflict)?;
        let workloads = sources.iter().map(|s| Workload::new(s, settings));
        let mut workloads = workloads.collect::<Result<Vec<Workload>>>()?;
        tell_apart(&mut workloads);
        Ok(Self {
            profiles: profiles(&workloads),
            workloads,
        })
    }

    /// All tables, for a terminal.
    pub(crate) fn terminal(&self) -> String {
        let table = |grid: Grid| format!("{}\n{}\n", grid.title, grid.terminal());
        let mut parts = Vec::new();
        for workload in &self.workloads {
            if self.workloads.len() > 1 {
                let (name, description) = (&workload.experiment, &workload.description);
                parts.push(format!("{name}: {description}\n\n"));
            }
            parts.extend(grids(workload).into_iter().map(table));
        }
        parts.extend(self.profile_grids().map(table));
        parts.concat()
    }

    /// All tables, as Markdown.
    pub(crate) fn markdown(&self) -> String {
        let workloads = self.workloads.iter().map(|w| markdown(w) + "\n");
        let profiles = self
            .profile_grids()
            .map(|grid| format!("## {}\n\n{}\n", grid.title, grid.markdown()));
        workloads.chain(profiles).collect()
    }

    fn profile_grids(&self) -> impl Iterator<Item = Grid> {
        let grid = |p: &Profiles| tables::profiles(p.measure, &p.workloads, &p.lines);
        self.profiles.iter().map(grid)
    }

    /// Writes `report.{html,md,csv,json}` into a folder, which is made if needed.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let files: [(&str, Vec<u8>); 4] = [
            ("report.html", html::page(self).into_bytes()),
            ("report.md", self.markdown().into_bytes()),
            ("report.csv", csv::csv(&self.workloads)?),
            ("report.json", serde_json::to_vec_pretty(self)?),
        ];
        for (name, bytes) in files {
            let path = folder.join(name);
            write_atomically(&path, &bytes)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

/// Writes what a command leaves in its run directory: the records in one file, `summary.{json,csv,md}` and
/// `report.html`. Returns the table for the terminal.
pub(crate) fn conclude(dir: &RunDir, runs: &[RunRecord], description: &str) -> Result<String> {
    let mut report = Report::of(
        &[dir.path().into()],
        &Settings::default(),
        OnConflict::Refuse,
    )?;
    for workload in &mut report.workloads {
        workload.description = description.into();
    }
    let workload = report
        .workloads
        .first()
        .context("a directory without a plan")?;
    dir.write_runs(runs)?;
    dir.write("summary.json", &serde_json::to_vec_pretty(workload)?)?;
    dir.write("summary.csv", &csv::csv(&report.workloads)?)?;
    dir.write("summary.md", markdown(workload).as_bytes())?;
    dir.write("report.html", html::page(&report).as_bytes())?;
    Ok(tables::overview(workload).terminal())
}

/// The tables of a comparison as Markdown.
fn markdown(workload: &Workload) -> String {
    let head = format!("# {}\n\n{}\n", workload.experiment, workload.description);
    let tables = grids(workload)
        .into_iter()
        .enumerate()
        .map(|(number, grid)| {
            let title = match number {
                0 => String::new(),
                _ => format!("\n## {}\n", grid.title),
            };
            format!("{title}\n{}", grid.markdown())
        });
    [head].into_iter().chain(tables).collect()
}

/// All tables of a comparison, the most important first.
fn grids(workload: &Workload) -> Vec<Grid> {
    let mut grids = vec![tables::overview(workload)];
    if workload.is_search() {
        grids.push(tables::sensitivity(workload));
        let all = workload.sensitivity.iter();
        grids.extend(all.flat_map(|s| {
            let names = s.parameters.iter().map(|(name, _)| name);
            names.map(move |name| tables::parameter(workload, s, name))
        }));
        return grids;
    }
    let compared = workload
        .comparisons
        .iter()
        .filter(|c| !c.differences.is_empty());
    grids.extend(compared.map(|c| tables::differences(workload, c)));
    grids.extend(workload.target.iter().map(|t| tables::target(workload, t)));
    grids.extend(workload.views.iter().map(|v| tables::view(workload, v)));
    grids.extend(workload.sharpness.iter().map(tables::sharpness));
    grids
}

/// Gives comparisons of the same name their fingerprint in addition.
fn tell_apart(workloads: &mut [Workload]) {
    let names: Vec<String> = workloads.iter().map(|w| w.experiment.clone()).collect();
    for workload in workloads {
        let name = &workload.experiment;
        if names.iter().filter(|n| *n == name).count() > 1 {
            workload.experiment = format!("{name}-{}", workload.fingerprint);
        }
    }
}

/// The profiles by gradient evaluations and, where times are known, by seconds, of the optimizers that every
/// comparison has.
fn profiles(workloads: &[Workload]) -> Vec<Profiles> {
    let targets: Vec<_> = workloads
        .iter()
        .filter_map(|w| Some((w, w.target.as_ref()?)))
        .collect();
    if targets.len() < 2 {
        return Vec::new();
    }
    let mut all = Vec::new();
    for measure in [Measure::Evaluations, Measure::Seconds] {
        let cost = |name: &str| -> Option<Vec<Option<f64>>> {
            let reach = |(_, target): &(&Workload, &cost::Target)| {
                let row = target.rows.iter().find(|r| r.optimizer == name)?;
                match measure {
                    Measure::Seconds => Some(row.seconds?.median),
                    Measure::Epochs | Measure::Evaluations => Some(row.evaluations.median),
                }
            };
            targets.iter().map(reach).collect()
        };
        let names = targets[0].1.rows.iter().map(|row| row.optimizer.clone());
        let costs: Vec<_> = names.filter_map(|n| Some((n.clone(), cost(&n)?))).collect();
        if costs.len() > 1 {
            all.push(Profiles {
                measure,
                workloads: targets.iter().map(|(w, _)| w.experiment.clone()).collect(),
                lines: stats::profile(&costs),
            });
        }
    }
    all
}

#[cfg(test)]
mod tests;
