//! A table of words, for every form of a report.

use comfy_table::{CellAlignment, Table, presets};

/// A table whose first column says what a row is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grid {
    pub(crate) title: String,
    pub(crate) header: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
    /// What the columns mean.
    pub(crate) legend: String,
}

/// What stands where nothing is known.
pub(crate) const NONE: &str = "–";

impl Grid {
    /// For a terminal.
    pub(crate) fn terminal(&self) -> String {
        let mut table = self.table();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        format!("{table}\n{}", self.legend)
    }

    /// As Markdown, without its title.
    pub(crate) fn markdown(&self) -> String {
        let mut table = self.table();
        table.load_style(presets::ASCII_MARKDOWN);
        format!("{table}\n\n{}", self.legend)
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.set_header(&self.header);
        for row in &self.rows {
            table.add_row(row);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}
