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
        let mut table = self.table(String::clone);
        table.load_style(presets::UTF8_FULL_CONDENSED);
        format!("{table}\n{}", self.legend)
    }

    /// As Markdown, without its title.
    pub(crate) fn markdown(&self) -> String {
        // In Markdown a bar ends a cell, even one between backquotes.
        let mut table = self.table(|cell| cell.replace('|', "\\|"));
        table.load_style(presets::ASCII_MARKDOWN);
        format!("{table}\n\n{}", self.legend)
    }

    fn table(&self, written: impl Fn(&String) -> String) -> Table {
        let mut table = Table::new();
        table.set_header(self.header.iter().map(&written));
        for row in &self.rows {
            table.add_row(row.iter().map(&written));
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}

/// Cells of each line of a table in Markdown.
#[cfg(test)]
pub(crate) fn cells_of_lines(markdown: &str) -> Vec<usize> {
    let lines = markdown.lines().filter(|line| line.starts_with('|'));
    lines
        .map(|line| line.replace("\\|", "").matches('|').count() - 1)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_within_a_cell_does_not_end_it() {
        let grid = Grid {
            title: "t".into(),
            header: ["name", "ρ |w|"].map(String::from).to_vec(),
            rows: vec![["a|b", "1"].map(String::from).to_vec()],
            legend: "|x| is no row.".into(),
        };
        let markdown = grid.markdown();
        assert_eq!(
            cells_of_lines(markdown.split("\n\n").next().unwrap()),
            [2, 2, 2],
            "{markdown}"
        );
        assert!(markdown.contains("a\\|b") && grid.terminal().contains("ρ |w|"));
    }
}
