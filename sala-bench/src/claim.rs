//! Which process makes a run: the one that holds the lock on a file beside its record.
//!
//! The operating system takes the lock away when the process ends, however it ends, so that what a killed
//! process had begun is free for the next one.

use std::{
    fs::{self, File, TryLockError},
    path::PathBuf,
};

use anyhow::{Context, Result};

/// A run that belongs to this process.
#[derive(Debug)]
pub(crate) struct Claim {
    path: PathBuf,
    _lock: File,
}

impl Claim {
    /// Takes what is locked by this file; nothing while another process holds it.
    pub(crate) fn take(path: PathBuf) -> Result<Option<Self>> {
        let lock =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Self { path, _lock: lock })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock {}", path.display()))
            }
        }
    }

    /// Gives up what is complete, and takes the file away.
    ///
    /// Only then: a process that has opened the file and waits for it would lock a file that no longer has a
    /// name, beside another process with a new one. Both find that the run is complete.
    pub(crate) fn complete(self) {
        // A file that stays does no harm.
        let _ = fs::remove_file(&self.path);
    }
}
