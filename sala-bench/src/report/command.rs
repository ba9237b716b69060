//! The command `report`.

use std::path::PathBuf;

use anyhow::Result;

use super::{OnConflict, Report, Settings};
use crate::{cli::ReportArgs, shell};

/// Makes the report that is asked for, writes it and prints its tables.
pub(crate) fn report(args: &ReportArgs) -> Result<()> {
    let settings = Settings {
        margin: args.margin,
        references: args.reference.clone(),
        base: args.base.clone(),
    };
    let on_conflict = if args.prefer_first {
        OnConflict::TakeFirst
    } else {
        OnConflict::Refuse
    };
    let out: PathBuf = match (&args.out, args.directories.as_slice()) {
        (Some(out), _) => out.clone(),
        (None, [one]) => one.clone(),
        (None, _) => "report".into(),
    };
    let report = Report::of(&args.directories, &settings, on_conflict)?;
    report.write(&out)?;
    let page = out.join("report.html");
    shell::print(format!("{}\nPage: {}\n", report.terminal(), page.display()))
}
