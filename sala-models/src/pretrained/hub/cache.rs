//! The cache on disk, which Python's `huggingface_hub` and `hf-hub` share.
//!
//! A commit's files are `models--OWNER--NAME/snapshots/COMMIT/FILE`, `refs/REVISION` holds a branch's last known
//! commit. Others put links to `blobs` there; here a file is put there itself, as they do on systems without
//! links. What has not arrived yet is in `.partial/COMMIT`, where it is found again.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use crate::{Error, Result, files::write_atomically};

/// The part of the cache that belongs to one repository.
#[derive(Debug)]
pub(super) struct Cache {
    folder: PathBuf,
    locks: PathBuf,
}

impl Cache {
    pub(super) fn new(cache: &Path, id: &str) -> Self {
        let name = format!("models--{}", id.replace('/', "--"));
        Self {
            folder: cache.join(&name),
            locks: cache.join(".locks").join(name),
        }
    }

    /// The commit that a revision was the last time, or that it is itself.
    pub(super) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let commit = fs::read_to_string(self.reference(revision)).ok()?;
        Some(commit.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Keeps what a revision is now.
    pub(super) fn set_commit(&self, revision: &str, commit: &str) -> Result<()> {
        if is_commit(revision) {
            return Ok(());
        }
        let path = self.reference(revision);
        make_parent(&path)?;
        write_atomically(&path, commit.as_bytes()).map_err(|source| failed("write", &path, source))
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The place of a file that is arriving.
    pub(super) fn partial(&self, commit: &str, file: &str) -> Result<PathBuf> {
        let path = self.folder.join(".partial").join(commit).join(file);
        make_parent(&path)?;
        Ok(path)
    }

    /// Puts a file that has arrived in its place.
    pub(super) fn finish(&self, commit: &str, file: &str) -> Result<()> {
        let to = self.snapshot(commit).join(file);
        make_parent(&to)?;
        let from = self.partial(commit, file)?;
        fs::rename(from, &to).map_err(|source| failed("write", &to, source))
    }

    /// Removes the folder of what is arriving, once it is empty.
    pub(super) fn clean(&self, commit: &str) {
        // Nothing is lost when that fails.
        let partial = self.folder.join(".partial");
        let _ = fs::remove_dir(partial.join(commit));
        let _ = fs::remove_dir(partial);
    }

    /// Waits until no other process downloads this commit, and keeps others waiting until it is dropped.
    pub(super) fn lock(&self, commit: &str) -> Result<File> {
        let path = self.locks.join(format!("{commit}.lock"));
        make_parent(&path)?;
        let lock = || {
            let file = File::create(&path)?;
            file.lock()?;
            Ok(file)
        };
        lock().map_err(|source| failed("lock", &path, source))
    }

    fn reference(&self, revision: &str) -> PathBuf {
        self.folder.join("refs").join(revision)
    }
}

/// Whether a revision is a whole commit hash, which never means anything else.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn make_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent).map_err(|source| failed("make", parent, source)),
        None => Ok(()),
    }
}

pub(super) fn failed(action: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io {
        action,
        path: path.into(),
        source,
    }
}
