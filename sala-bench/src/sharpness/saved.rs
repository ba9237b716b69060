//! What `sharpness` has left in a run directory, as reports show it.

use std::{io::ErrorKind, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{
    FOLDER, TABLE,
    table::{Figure, Sharpness},
};

/// The table and its figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Saved {
    #[serde(flatten)]
    pub(crate) table: Sharpness,
    /// The SVG of each figure of the table; not in records, where the files themselves are.
    #[serde(skip)]
    pub(crate) drawings: Vec<String>,
}

impl Saved {
    /// Nothing where sharpness has not been measured.
    ///
    /// # Errors
    /// When a file cannot be read, or is none of `sharpness`.
    pub(crate) fn read(run_dir: &Path) -> Result<Option<Self>> {
        let folder = run_dir.join(FOLDER);
        let path = folder.join(TABLE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        let table: Sharpness = serde_json::from_slice(&bytes).with_context(|| {
            format!(
                "{} is no table of sharpness; delete it to report without",
                path.display()
            )
        })?;
        let drawing = |Figure { file, .. }: &Figure| {
            let path = folder.join(file);
            std::fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))
        };
        let drawings = table.figures.iter().map(drawing).collect::<Result<_>>()?;
        Ok(Some(Self { table, drawings }))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{
        super::table::tests::{SETTINGS, measures},
        *,
    };

    pub(crate) fn table() -> Sharpness {
        let names = ["sgd", "sala"].map(String::from);
        let solutions = vec![measures("sgd", 0, 10.0), measures("sala", 0, 1.0)];
        let mut table =
            Sharpness::new(("e", "f"), &names, SETTINGS, solutions, Vec::new()).unwrap();
        table.figures.push(Figure {
            file: "density.svg".into(),
            title: "Densities".into(),
        });
        table
    }

    #[test]
    fn what_was_written_is_read_with_its_drawings_and_broken_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Saved::read(dir.path()).unwrap(), None);
        let folder = dir.path().join(FOLDER);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join(TABLE), serde_json::to_vec(&table()).unwrap()).unwrap();
        let error = format!("{:#}", Saved::read(dir.path()).unwrap_err());
        assert!(error.contains("density.svg"), "{error}");
        std::fs::write(folder.join("density.svg"), "<svg/>").unwrap();
        let saved = Saved::read(dir.path()).unwrap().unwrap();
        assert_eq!(
            (saved.table, saved.drawings),
            (table(), vec!["<svg/>".to_owned()])
        );
        std::fs::write(folder.join(TABLE), "{}").unwrap();
        let error = format!("{:#}", Saved::read(dir.path()).unwrap_err());
        assert!(
            error.contains("sharpness.json is no table of sharpness"),
            "{error}"
        );
    }
}
