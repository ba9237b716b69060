//! Tables of texts: rows of named columns in CSV, TSV, JSON Lines or Parquet files.
//!
//! | ending | what is read |
//! |---|---|
//! | `.csv` | comma-separated with a header, quoted as RFC 4180 says |
//! | `.tsv` | tab-separated with a header; quotation marks are ordinary characters |
//! | `.jsonl`, `.ndjson` | one object a line |
//! | `.parquet` | columns at the top level (needs a build with `--features parquet`) |

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use crate::data::files::{ending, no_column};

/// One example of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) text: String,
    /// Where a column of labels was asked for.
    pub(crate) label: Option<String>,
}

/// The columns to read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Columns<'a> {
    pub(crate) text: &'a str,
    pub(crate) label: Option<&'a str>,
}

impl<'a> Columns<'a> {
    fn names(self) -> impl Iterator<Item = &'a str> {
        [Some(self.text), self.label].into_iter().flatten()
    }
}

/// Whether a file is one of the tables that can be read.
pub(crate) fn is_table(path: &Path) -> bool {
    matches!(
        ending(path).as_str(),
        "csv" | "tsv" | "jsonl" | "ndjson" | "parquet"
    )
}

/// Reads all rows.
///
/// # Errors
/// When the file cannot be read, has no rows, lacks a column (the message lists those there are), or a row
/// has no text or label.
pub(crate) fn read(path: &Path, columns: Columns) -> Result<Vec<Row>> {
    let rows = match ending(path).as_str() {
        "csv" => separated(path, b',', columns),
        "tsv" => separated(path, b'\t', columns),
        "jsonl" | "ndjson" => json_lines(path, columns),
        "parquet" => parquet(path, columns),
        other => bail!(
            "{}: wanted a file that ends in .csv, .tsv, .jsonl or .parquet, got `.{other}`",
            path.display()
        ),
    };
    let rows = rows.with_context(|| format!("cannot read the table {}", path.display()))?;
    ensure!(!rows.is_empty(), "{} has no rows", path.display());
    Ok(rows)
}

/// A row of these cells; `number` is its place, for errors.
fn row(text: String, label: Option<String>, columns: Columns, place: &str) -> Result<Row> {
    if let (Some(name), Some(label)) = (columns.label, &label) {
        ensure!(
            !label.trim().is_empty(),
            "{place}: column `{name}` is empty"
        );
    }
    ensure!(
        !text.trim().is_empty(),
        "{place}: column `{}` is empty",
        columns.text
    );
    Ok(Row { text, label })
}

fn separated(path: &Path, separator: u8, columns: Columns) -> Result<Vec<Row>> {
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(separator)
        .quoting(separator == b',')
        .from_path(path)?;
    let header = reader.headers()?.clone();
    let place = |name: &str| {
        // A mark that some programs put at the beginning of a file is no part of the first name.
        let mut names = header.iter().map(|h| h.trim_start_matches('\u{feff}'));
        let place = names.position(|h| h == name);
        place.ok_or_else(|| no_column(name, header.iter()))
    };
    let text = place(columns.text)?;
    let label = columns.label.map(place).transpose()?;
    let mut rows = Vec::new();
    for (number, record) in reader.records().enumerate() {
        let record = record?;
        let cell = |place: usize| record.get(place).unwrap_or_default().to_owned();
        let label = label.map(|place| cell(place).trim().to_owned());
        rows.push(row(
            cell(text),
            label,
            columns,
            &format!("row {}", number + 1),
        )?);
    }
    Ok(rows)
}

fn json_lines(path: &Path, columns: Columns) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (number, line) in BufReader::new(File::open(path)?).lines().enumerate() {
        let (line, place) = (line?, format!("line {}", number + 1));
        if line.trim().is_empty() {
            continue;
        }
        let object: Map<String, Value> =
            serde_json::from_str(&line).with_context(|| format!("{place} is no JSON object"))?;
        for name in columns.names() {
            if !object.contains_key(name) {
                let there = object.keys().map(String::as_str);
                return Err(no_column(name, there).context(place));
            }
        }
        let cell = |name: &str| match &object[name] {
            Value::String(text) => Ok(text.clone()),
            Value::Bool(_) | Value::Number(_) => Ok(object[name].to_string()),
            other => bail!("{place}: column `{name}` must be text or a number, got {other}"),
        };
        let label = columns.label.map(&cell).transpose()?;
        rows.push(row(cell(columns.text)?, label, columns, &place)?);
    }
    Ok(rows)
}

#[cfg(feature = "parquet")]
fn parquet(path: &Path, columns: Columns) -> Result<Vec<Row>> {
    let names: Vec<&str> = columns.names().collect();
    let records = crate::data::parquet::read(path, &names)?;
    let mut rows = Vec::with_capacity(records.len());
    for (number, record) in records.into_iter().enumerate() {
        let place = format!("row {}", number + 1);
        let mut cells = record.into_iter().map(|value| value.text(&place));
        let text = cells.next().context("a text was asked for")??;
        let label = cells.next().transpose()?;
        rows.push(row(text, label, columns, &place)?);
    }
    Ok(rows)
}

#[cfg(not(feature = "parquet"))]
fn parquet(_: &Path, _: Columns) -> Result<Vec<Row>> {
    bail!("this build cannot read Parquet files: build with `--features parquet`")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const BOTH: Columns = Columns {
        text: "text",
        label: Some("label"),
    };

    fn table(name: &str, content: &str) -> Result<Vec<Row>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        read(&path, BOTH)
    }

    fn row(text: &str, label: &str) -> Row {
        Row {
            text: text.into(),
            label: Some(label.into()),
        }
    }

    #[test]
    fn each_format_gives_the_same_rows() {
        let wanted = [row("a, \"b\"", "1"), row("c", "0")];
        let csv = "label,other,text\r\n1,x,\"a, \"\"b\"\"\"\r\n0,y,c\r\n";
        let tsv = "text\tlabel\na, \"b\"\t1\nc\t0\n";
        let jsonl =
            "{\"text\": \"a, \\\"b\\\"\", \"label\": 1}\n\n{\"label\": \"0\", \"text\": \"c\"}\n";
        for (name, content) in [("t.csv", csv), ("t.TSV", tsv), ("t.jsonl", jsonl)] {
            assert_eq!(table(name, content).unwrap(), wanted, "{name}");
        }
        // The mark of UTF-8 that spreadsheets write.
        assert_eq!(
            table("t.csv", &format!("\u{feff}{}", "text,label\nc,0\n")).unwrap(),
            wanted[1..]
        );
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let cases = [
            (
                "t.csv",
                "text,lable\na,1\n",
                "no column `label`; there are text, lable",
            ),
            ("t.csv", "text,label\n", "has no rows"),
            ("t.csv", "", "no column `text`"),
            (
                "t.csv",
                "text,label\na,1\n ,0\n",
                "row 2: column `text` is empty",
            ),
            (
                "t.tsv",
                "text\tlabel\na\t\n",
                "row 1: column `label` is empty",
            ),
            ("t.csv", "text,label\na\n", "found record with 1 fields"),
            (
                "t.jsonl",
                "{\"text\": \"a\"}\n",
                "line 1: there is no column `label`; there are text",
            ),
            ("t.jsonl", "[1]\n", "line 1 is no JSON object"),
            (
                "t.jsonl",
                "{\"text\": null, \"label\": 1}",
                "`text` must be text or a number, got null",
            ),
            ("t.txt", "a", "got `.txt`"),
        ];
        for (name, content, words) in cases {
            let message = format!("{:#}", table(name, content).unwrap_err());
            assert!(
                message.contains(words) && message.contains("t."),
                "{words}: {message}"
            );
        }
        let message = format!("{:#}", read(Path::new("no.csv"), BOTH).unwrap_err());
        assert!(message.contains("no.csv"), "{message}");
    }

    #[cfg(not(feature = "parquet"))]
    #[test]
    fn a_build_without_parquet_says_so() {
        let message = format!("{:#}", table("t.parquet", "").unwrap_err());
        assert!(message.contains("--features parquet"), "{message}");
    }

    #[cfg(feature = "parquet")]
    #[test]
    fn a_table_of_texts_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.parquet");
        crate::data::parquet::tests::write(&path);
        let columns = Columns {
            text: "text",
            label: Some("label"),
        };
        let rows = read(&path, columns).unwrap();
        assert_eq!(
            (rows[0].text.as_str(), rows[0].label.as_deref()),
            ("one", Some("7"))
        );
    }
}
