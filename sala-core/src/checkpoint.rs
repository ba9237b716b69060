//! Checkpoint files: any number of named [`State`]s in one safetensors file.
//!
//! The file is written aside, synced and renamed, so a reader finds the old checkpoint or the new one
//! and never a part. Its metadata carry the format's name and version and, as JSON, the values.

use std::{
    collections::{BTreeMap, HashMap},
    io::Write,
    path::Path,
};

use candle_core::{Device, Tensor};
use safetensors::SafeTensors;

use crate::{
    error::{Error, Result},
    state::State,
};

/// The version of the format that this crate writes and reads. Version 1 held optimizers without radius,
/// weight decay and memories, which a run cannot be continued without: such files are refused.
pub const VERSION: u32 = 2;
const FORMAT: &str = "sala-checkpoint";

/// Named sections (`model`, `optimizer`, …), each a [`State`].
#[derive(Debug, Default)]
pub struct Checkpoint {
    sections: BTreeMap<String, State>,
}

impl Checkpoint {
    /// A checkpoint without sections.
    ///
    /// ```
    /// # use sala_core::{checkpoint::Checkpoint, state::State};
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("run.safetensors");
    /// let mut progress = State::new("progress");
    /// progress.set("epoch", 7);
    /// Checkpoint::new().with("progress", progress).save(&path)?;
    /// let loaded = Checkpoint::load(&path, &candle_core::Device::Cpu)?;
    /// assert!(loaded.section("progress").is_ok());
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces a section. Its name must not contain `/`, which ends it in the file:
    /// [`Checkpoint::save`] refuses it.
    #[must_use]
    pub fn with(mut self, name: &str, state: State) -> Self {
        self.sections.insert(name.into(), state);
        self
    }

    /// The section of that name.
    ///
    /// # Errors
    /// [`Error::State`] that lists the sections there are.
    pub fn section(&self, name: &str) -> Result<&State> {
        self.sections.get(name).ok_or_else(|| Error::State {
            owner: "Checkpoint".into(),
            problem: format!("no section `{name}` among {:?}", self.sections.keys()),
        })
    }

    /// Writes the file, replacing an earlier one in one step.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] with the path, for the name of a section with a `/` in it too; an earlier file is
    /// then still whole.
    pub fn save(&self, path: &Path) -> Result<()> {
        self.write(path).map_err(|problem| at(path, problem))
    }

    fn write(&self, path: &Path) -> std::result::Result<(), String> {
        if let Some(name) = self.sections.keys().find(|name| name.contains('/')) {
            return Err(format!("the name of section `{name}` must be without `/`"));
        }
        let mut tensors = BTreeMap::new();
        let mut values = BTreeMap::new();
        for (section, state) in &self.sections {
            tensors.extend(
                state
                    .tensors
                    .iter()
                    .map(|(n, t)| (format!("{section}/{n}"), t)),
            );
            values.extend(
                state
                    .values
                    .iter()
                    .map(|(n, v)| (format!("{section}/{n}"), v)),
            );
        }
        let values = serde_json::to_string(&values).map_err(|e| e.to_string())?;
        let metadata = HashMap::from([
            ("format".to_owned(), FORMAT.to_owned()),
            ("version".to_owned(), VERSION.to_string()),
            ("values".to_owned(), values),
        ]);
        let bytes = safetensors::serialize(tensors, Some(metadata)).map_err(|e| e.to_string())?;
        write_atomically(path, &bytes).map_err(|e| e.to_string())
    }

    /// Reads a file; tensors go to `device`.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] with the path when the file cannot be read, is no checkpoint, is cut
    /// short, or has a version that this crate does not know.
    pub fn load(path: &Path, device: &Device) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| at(path, e))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| at(path, e))?;
        let metadata = header.metadata().as_ref();
        let entry = |name: &str| {
            let value = metadata.and_then(|m| m.get(name));
            value.ok_or_else(|| {
                at(
                    path,
                    format!("it is no {FORMAT} file: no `{name}` in its metadata"),
                )
            })
        };
        let (format, version) = (entry("format")?, entry("version")?);
        if format != FORMAT || version.parse() != Ok(VERSION) {
            let wanted = format!("wanted {FORMAT} version {VERSION}");
            let advice = match version.parse::<u32>() {
                Ok(older) if format == FORMAT && older < VERSION => {
                    ": an older version wrote it, and lacks what a run is continued from"
                }
                Ok(_) if format == FORMAT => ": a newer version of this program wrote it",
                _ => "",
            };
            return Err(at(
                path,
                format!("{wanted}, got {format} version {version}{advice}"),
            ));
        }
        let values: BTreeMap<String, String> =
            serde_json::from_str(entry("values")?).map_err(|e| at(path, e))?;
        let mut checkpoint = Self::default();
        for (name, value) in values {
            let (state, inner) = checkpoint.entry(&name);
            state.values.insert(inner, value);
        }
        for (name, tensor) in read_tensors(&bytes, device).map_err(|e| at(path, e))? {
            let (state, inner) = checkpoint.entry(&name);
            state.tensors.insert(inner, tensor);
        }
        Ok(checkpoint)
    }

    /// The section of a full name, made if needed, and the name within it.
    fn entry(&mut self, name: &str) -> (&mut State, String) {
        let (section, inner) = name.split_once('/').unwrap_or(("", name));
        (
            self.sections.entry(section.into()).or_default(),
            inner.into(),
        )
    }
}

fn read_tensors(bytes: &[u8], device: &Device) -> candle_core::Result<HashMap<String, Tensor>> {
    candle_core::safetensors::load_buffer(bytes, device)
}

fn at(path: &Path, problem: impl ToString) -> Error {
    Error::Checkpoint {
        path: path.into(),
        problem: problem.to_string(),
    }
}

/// Writes a file beside `path`, syncs it and renames it to `path`: whoever opens `path` finds the old
/// content or the new, also after a crash.
///
/// # Errors
/// Those of the file system; the old content is then still there.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut file = aside().tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    // The new name is on disk only once the folder is; folders cannot be opened on Windows.
    if cfg!(unix) {
        std::fs::File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// A temporary file with the permissions of an ordinary one (temporary files are private otherwise).
fn aside() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.suffix(".partial");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;

    fn example(value: f64) -> Checkpoint {
        let mut state = State::new("Example");
        state.set("loss", value);
        state
            .set_tensor("w", &Tensor::full(value, 3, &Device::Cpu).unwrap())
            .unwrap();
        Checkpoint::new().with("model", state)
    }

    #[test]
    fn a_file_gives_back_values_and_tensors_bit_for_bit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.safetensors");
        example(0.1 + 0.2).save(&path).unwrap();
        example(1.0 / 3.0).save(&path).unwrap();
        let loaded = Checkpoint::load(&path, &Device::Cpu).unwrap();
        let state = loaded.section("model").unwrap();
        assert_eq!(
            state.values["loss"].parse::<f64>().unwrap().to_bits(),
            (1.0f64 / 3.0).to_bits()
        );
        assert_eq!(state.tensors["w"].to_vec1::<f64>().unwrap(), [1.0 / 3.0; 3]);
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            1,
            "nothing is left aside"
        );
    }

    #[test]
    fn files_that_do_not_fit_are_refused_with_path_and_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.safetensors");
        let refused = |words: &str| {
            let message = Checkpoint::load(&path, &Device::Cpu)
                .unwrap_err()
                .to_string();
            assert!(
                message.contains("c.safetensors") && message.contains(words),
                "{message}"
            );
        };
        refused("o such file");
        std::fs::write(&path, b"hello").unwrap();
        refused("checkpoint");
        let w = Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap();
        candle_core::safetensors::save(&HashMap::from([("w", w)]), &path).unwrap();
        refused("no sala-checkpoint file");
        example(1.0).save(&path).unwrap();
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 4]).unwrap();
        refused("checkpoint");
        let version = br#""version":"2""#;
        let place = whole
            .windows(version.len())
            .position(|w| w == version)
            .unwrap();
        for (digit, words) in [
            (
                b'9',
                "wanted sala-checkpoint version 2, got sala-checkpoint version 9: a newer",
            ),
            (
                b'1',
                "wanted sala-checkpoint version 2, got sala-checkpoint version 1: an older",
            ),
        ] {
            let mut other = whole.clone();
            other[place + version.len() - 2] = digit;
            std::fs::write(&path, other).unwrap();
            refused(words);
        }
    }

    #[test]
    fn the_name_of_a_section_has_no_slash() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.safetensors");
        let checkpoint = Checkpoint::new().with("model/best", State::new("M"));
        let message = checkpoint.save(&path).unwrap_err().to_string();
        assert!(
            message.contains("section `model/best` must be without `/`"),
            "{message}"
        );
        assert!(!path.exists());
    }

    #[test]
    fn a_failed_save_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("no-such-folder").join("c.safetensors");
        assert!(
            example(1.0)
                .save(&missing)
                .unwrap_err()
                .to_string()
                .contains("no-such-folder")
        );
    }
}
