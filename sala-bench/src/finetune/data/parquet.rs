//! Rows of Parquet files.

use std::{fs::File, path::Path, sync::Arc};

use anyhow::{Context, Result, bail};
use parquet::{
    file::reader::{FileReader, SerializedFileReader},
    record::Field,
    schema::types::Type,
};

use super::table::no_column;

/// A value of a row.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    column: String,
    field: Field,
}

impl Cell {
    /// As text; whole numbers and truth values as they are written. `place` is the row's, for errors.
    pub(super) fn text(self, place: &str) -> Result<String> {
        Ok(match self.field {
            Field::Str(text) => text,
            Field::Bool(value) => value.to_string(),
            Field::Byte(value) => value.to_string(),
            Field::Short(value) => value.to_string(),
            Field::Int(value) => value.to_string(),
            Field::Long(value) => value.to_string(),
            Field::UByte(value) => value.to_string(),
            Field::UShort(value) => value.to_string(),
            Field::UInt(value) => value.to_string(),
            Field::ULong(value) => value.to_string(),
            Field::Bytes(bytes) => String::from_utf8(bytes.data().to_vec())
                .with_context(|| format!("{place}: column `{}` is not UTF-8", self.column))?,
            other => bail!(
                "{place}: column `{}` must be text or a whole number, got {other}",
                self.column
            ),
        })
    }

    /// The bytes of a file: a column of bytes, or of groups with `bytes` in them, which is how image data sets
    /// are published.
    pub(super) fn bytes(self, place: &str) -> Result<Vec<u8>> {
        let bytes = match self.field {
            Field::Bytes(bytes) => Some(bytes),
            Field::Group(row) => row.get_column_iter().find_map(|(name, field)| match field {
                Field::Bytes(bytes) if name == "bytes" => Some(bytes.clone()),
                _ => None,
            }),
            _ => None,
        };
        let bytes = bytes.with_context(|| {
            format!(
                "{place}: column `{}` must hold the bytes of images",
                self.column
            )
        })?;
        Ok(bytes.data().to_vec())
    }
}

/// The named columns of every row, in the order of the names.
pub(super) fn read(path: &Path, columns: &[&str]) -> Result<Vec<Vec<Cell>>> {
    let reader = SerializedFileReader::new(File::open(path)?)?;
    let schema = reader.metadata().file_metadata().schema();
    let of_name = |name: &&str| {
        let found = schema.get_fields().iter().find(|f| f.name() == *name);
        let there = schema.get_fields().iter().map(|f| f.name());
        found.cloned().ok_or_else(|| no_column(name, there))
    };
    let fields: Vec<Arc<Type>> = columns.iter().map(of_name).collect::<Result<_>>()?;
    let wanted = Type::group_type_builder(schema.name())
        .with_fields(fields)
        .build()?;
    let mut rows = Vec::new();
    for row in reader.get_row_iter(Some(wanted))? {
        let mut there: Vec<(String, Field)> = row?.into_columns();
        let mut cells = Vec::with_capacity(columns.len());
        for &name in columns {
            let place = there.iter().position(|(n, _)| n == name);
            let place = place.with_context(|| format!("a row without column `{name}`"))?;
            let (column, field) = there.swap_remove(place);
            cells.push(Cell { column, field });
        }
        rows.push(cells);
    }
    Ok(rows)
}
