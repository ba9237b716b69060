//! Pictures in the rows of Parquet files.

use std::path::Path;
#[cfg(feature = "parquet")]
use std::path::PathBuf;

use anyhow::{Context, Result};
use image::DynamicImage;

use super::Found;
use crate::data::Part;

/// The names that columns of pictures and of labels may have; the first that is there is taken.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(
    not(feature = "parquet"),
    expect(dead_code, reason = "nothing else has columns")
)]
pub(crate) struct Columns<'a> {
    pub(crate) image: &'a [&'a str],
    pub(crate) label: &'a [&'a str],
}

impl Columns<'_> {
    /// Those of the data sets of the hub.
    pub(crate) const USUAL: Self = Columns {
        image: &["image", "img"],
        label: &["label", "fine_label", "labels"],
    };
}

/// A picture as the bytes of a file.
pub(super) struct Row {
    bytes: Vec<u8>,
    /// File and number.
    pub(super) place: String,
}

impl Row {
    #[cfg(feature = "parquet")]
    fn new(cell: Option<crate::data::parquet::Cell>, file: &Path, number: usize) -> Result<Self> {
        let place = format!("{}, row {}", file.display(), number + 1);
        let cell = cell.context("an image was asked for")?;
        let bytes = cell.bytes(&place)?;
        Ok(Self { bytes, place })
    }

    /// The picture.
    pub(super) fn decode(&self) -> Result<DynamicImage> {
        image::load_from_memory(&self.bytes).with_context(|| self.place.clone())
    }
}

/// The files of a part, in the order of their names: those whose names begin with its name.
#[cfg(feature = "parquet")]
fn of_part(path: &Path, part: Option<Part>) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_path_buf()]);
    }
    let part = part.context("a folder of Parquet files has no part for validation of its own")?;
    let mut files = super::entries(path)?;
    let name = |file: &Path| {
        file.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    files.retain(|f| super::ending(f) == "parquet" && name(f).starts_with(part.name()));
    anyhow::ensure!(
        !files.is_empty(),
        "{} holds no file {}*.parquet",
        path.display(),
        part.name()
    );
    Ok(files)
}

#[cfg(feature = "parquet")]
pub(super) fn read(path: &Path, part: Option<Part>, columns: Columns<'_>) -> Result<Found> {
    use crate::data::parquet;

    let mut named = Vec::new();
    for file in of_part(path, part)? {
        let image = parquet::column(&file, columns.image)?;
        let label = parquet::column(&file, columns.label)?;
        for (i, cells) in (0..).zip(parquet::read(&file, &[image, label])?) {
            let mut cells = cells.into_iter();
            let row = Row::new(cells.next(), &file, i)?;
            let label = cells.next().context("a label was asked for")?;
            let label = label.text(&row.place)?;
            named.push((row, label));
        }
    }
    Ok(Found::Rows(super::Pictures::of(named)?))
}

/// The pictures of all rows.
#[cfg(feature = "parquet")]
pub(super) fn unlabelled(path: &Path, column: &str) -> Result<Vec<Row>> {
    let rows = crate::data::parquet::read(path, &[column])?.into_iter();
    let rows = rows.enumerate();
    rows.map(|(i, cells)| Row::new(cells.into_iter().next(), path, i))
        .collect()
}

#[cfg(not(feature = "parquet"))]
pub(super) fn read(path: &Path, _: Option<Part>, _: Columns<'_>) -> Result<Found> {
    Err(without_parquet(path))
}

#[cfg(not(feature = "parquet"))]
pub(super) fn unlabelled(path: &Path, _: &str) -> Result<Vec<Row>> {
    Err(without_parquet(path))
}

#[cfg(not(feature = "parquet"))]
fn without_parquet(path: &Path) -> anyhow::Error {
    let path = path.display();
    anyhow::anyhow!("{path}: this build cannot read Parquet files: build with `--features parquet`")
}
