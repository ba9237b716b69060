//! Rows of Parquet files.

use std::{fs::File, path::Path, sync::Arc};

use anyhow::{Context, Result, bail};
use parquet::{
    file::reader::{FileReader, SerializedFileReader},
    record::Field,
    schema::types::Type,
};

/// A value of a row.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    column: String,
    field: Field,
}

impl Cell {
    /// As text; whole numbers and truth values as they are written. `place` is the row's, for errors.
    pub(crate) fn text(self, place: &str) -> Result<String> {
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
    pub(crate) fn bytes(self, place: &str) -> Result<Vec<u8>> {
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

/// The error of a column that is not there.
fn no_column(name: &str, schema: &Type) -> anyhow::Error {
    let there = schema.get_fields().iter().map(|f| f.name());
    super::files::no_column(name, there)
}

/// The first of these columns that a file has.
///
/// # Errors
/// When it cannot be read or has none of them; the message lists those there are.
pub(crate) fn column<'a>(path: &Path, names: &[&'a str]) -> Result<&'a str> {
    let reader = SerializedFileReader::new(File::open(path)?)?;
    let schema = reader.metadata().file_metadata().schema();
    let fields = schema.get_fields();
    let is_there = |name: &&&str| fields.iter().any(|f| f.name() == **name);
    let found = names.iter().find(is_there).copied();
    found.ok_or_else(|| no_column(&names.join("` or `"), schema))
}

/// The named columns of every row, in the order of the names.
pub(crate) fn read(path: &Path, columns: &[&str]) -> Result<Vec<Vec<Cell>>> {
    let reader = SerializedFileReader::new(File::open(path)?)?;
    let schema = reader.metadata().file_metadata().schema();
    let of_name = |name: &&str| {
        let found = schema.get_fields().iter().find(|f| f.name() == *name);
        found.cloned().ok_or_else(|| no_column(name, schema))
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

#[cfg(test)]
pub(crate) mod tests {
    use parquet::{
        data_type::{ByteArray, ByteArrayType, Int64Type},
        file::{properties::WriterProperties, writer::SerializedFileWriter},
        schema::parser::parse_message_type,
    };

    use super::*;

    const SCHEMA: &str = "message schema {
        required group image { optional binary bytes; optional binary path (UTF8); }
        required binary text (UTF8);
        required int64 label;
    }";

    /// Rows of images and labels.
    pub(crate) fn write_images(path: &Path, rows: &[(Vec<u8>, i64)]) {
        let schema = "message schema {
            required group img { optional binary bytes; }
            required int64 label;
        }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let file = File::create(path).unwrap();
        let mut writer = SerializedFileWriter::new(file, schema, Arc::default()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let bytes = rows.iter().map(|(bytes, _)| ByteArray::from(bytes.clone()));
        let bytes: Vec<ByteArray> = bytes.collect();
        let levels = vec![1; rows.len()];
        let typed = column.typed::<ByteArrayType>();
        typed.write_batch(&bytes, Some(&levels), None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let labels: Vec<i64> = rows.iter().map(|(_, label)| *label).collect();
        let typed = column.typed::<Int64Type>();
        typed.write_batch(&labels, None, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
    }

    /// Two rows of images, texts and labels, in a group of rows each.
    pub(crate) fn write(path: &Path) {
        let schema = Arc::new(parse_message_type(SCHEMA).unwrap());
        let properties = WriterProperties::builder().build();
        let file = File::create(path).unwrap();
        let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
        for (image, text, label) in [("\u{1}png", "one", 7), ("\u{2}jpg", "two", -1)] {
            let mut group = writer.next_row_group().unwrap();
            let mut bytes = |value: &str, level: Option<&[i16]>| {
                let mut column = group.next_column().unwrap().unwrap();
                let value = [ByteArray::from(value.as_bytes().to_vec())];
                let typed = column.typed::<ByteArrayType>();
                typed.write_batch(&value, level, None).unwrap();
                column.close().unwrap();
            };
            bytes(image, Some(&[1]));
            bytes("a/path", Some(&[1]));
            bytes(text, None);
            let mut column = group.next_column().unwrap().unwrap();
            let typed = column.typed::<Int64Type>();
            typed.write_batch(&[label], None, None).unwrap();
            column.close().unwrap();
            group.close().unwrap();
        }
        writer.close().unwrap();
    }

    fn file() -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.parquet");
        write(&path);
        (folder, path)
    }

    #[test]
    fn columns_come_in_the_order_asked_for() {
        let (_folder, path) = file();
        let rows = read(&path, &["label", "text"]).unwrap();
        let texts: Vec<Vec<String>> = rows
            .into_iter()
            .map(|row| row.into_iter().map(|c| c.text("").unwrap()).collect())
            .collect();
        assert_eq!(texts, [["7", "one"], ["-1", "two"]]);
        let message = read(&path, &["texts"]).unwrap_err().to_string();
        assert!(message.contains("image, text, label"), "{message}");
    }

    #[test]
    fn images_are_the_bytes_of_a_group() {
        let (_folder, path) = file();
        let mut rows = read(&path, &["image", "label"]).unwrap();
        let label = rows[1].pop().unwrap();
        let image = rows[1].pop().unwrap();
        assert_eq!(image.bytes("row 2").unwrap(), b"\x02jpg");
        let message = label.bytes("row 2").unwrap_err().to_string();
        assert!(message.contains("row 2: column `label`"), "{message}");
    }
}
