//! The file of one run: a line an epoch, then one for the run.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{EpochRecord, RunRecord};

/// A line of a run's file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "lowercase")]
enum Line {
    Epoch(EpochRecord),
    Run(RunRecord),
}

/// The epochs and the record of a complete run; nothing where there is no file.
///
/// # Errors
/// When the file is there and not whole, with the line.
pub(crate) fn read_run(path: &Path) -> Result<Option<(Vec<EpochRecord>, RunRecord)>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let (mut epochs, mut run) = (Vec::new(), None);
    for (number, line) in text.lines().enumerate() {
        let place = || format!("{}, line {}", path.display(), number + 1);
        let line: Line = serde_json::from_str(line).with_context(|| {
            let place = place();
            format!("{place}, is no record; delete the file to run it again")
        })?;
        ensure!(
            run.is_none(),
            "{}, comes after the last line; delete the file to run it again",
            place()
        );
        match line {
            Line::Epoch(record) => epochs.push(record),
            Line::Run(record) => run = Some(record),
        }
    }
    let run = run.with_context(|| {
        let place = path.display();
        format!("{place} has no last line; delete it to run it again")
    })?;
    Ok(Some((epochs, run)))
}

/// Writes a run line by line.
#[derive(Debug)]
pub(crate) struct RunWriter {
    file: File,
    partial: PathBuf,
    path: PathBuf,
}

impl RunWriter {
    /// Begins the file that will be at `path`; what an interrupted run has left of it goes.
    pub(super) fn begin(path: PathBuf) -> Result<Self> {
        let partial = partial(&path);
        let file = File::create(&partial)
            .with_context(|| format!("cannot write {}", partial.display()))?;
        Ok(Self {
            file,
            partial,
            path,
        })
    }

    pub(crate) fn epoch(&mut self, record: &EpochRecord) -> Result<()> {
        self.line(&Line::Epoch(record.clone()))
    }

    /// The last line; the file gets its final name.
    pub(crate) fn finish(mut self, record: &RunRecord) -> Result<()> {
        self.line(&Line::Run(record.clone()))?;
        self.publish()
            .with_context(|| format!("cannot complete {}", self.path.display()))
    }

    /// The content first, then the name, then the folder that has the name: each on disk before the next.
    fn publish(&self) -> std::io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.partial, &self.path)?;
        // Folders cannot be opened on Windows.
        match self.path.parent() {
            Some(folder) if cfg!(unix) => File::open(folder)?.sync_all(),
            _ => Ok(()),
        }
    }

    fn line(&mut self, line: &Line) -> Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        let written = self
            .file
            .write_all(text.as_bytes())
            .and_then(|()| self.file.flush());
        written.with_context(|| {
            format!(
                "cannot write {}; make room or check the folder, then give the same command again: nothing that is \
                 complete or saved is lost",
                self.partial.display()
            )
        })
    }
}

/// What a run's file is called while the run is under way.
pub(super) fn partial(path: &Path) -> PathBuf {
    path.with_extension("jsonl.partial")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::run;

    fn begin(folder: &Path) -> (RunWriter, PathBuf) {
        let path = folder.join("sgd-seed0.jsonl");
        (RunWriter::begin(path.clone()).unwrap(), path)
    }

    #[test]
    fn a_run_exists_only_once_it_is_complete_and_comes_back_exactly() {
        let folder = tempfile::tempdir().unwrap();
        let (writer, path) = begin(folder.path());
        assert_eq!(read_run(&path).unwrap(), None);
        writer.finish(&run("sgd", 0)).unwrap();
        assert_eq!(read_run(&path).unwrap(), Some((Vec::new(), run("sgd", 0))));
        assert!(!partial(&path).exists());
    }

    #[test]
    fn a_spoiled_record_is_refused_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let (writer, path) = begin(folder.path());
        writer.finish(&run("sgd", 0)).unwrap();
        let whole = fs::read_to_string(&path).unwrap();
        let cases = [
            (
                format!("{{\"record\":\"ep\n{whole}"),
                "jsonl, line 1, is no",
            ),
            (whole[..whole.len() / 2].to_owned(), "jsonl, line 1, is no"),
            (format!("{whole}{whole}"), "jsonl, line 2, comes after"),
            (String::new(), "no last line"),
        ];
        for (text, words) in cases {
            fs::write(&path, text).unwrap();
            let message = format!("{:#}", read_run(&path).unwrap_err());
            assert!(message.contains(words), "{words} in {message}");
            assert!(message.contains("to run it again"), "{message}");
        }
    }
}
