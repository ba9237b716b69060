//! One file, with as many tries as it takes, each from where the last broke off.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::Path,
    time::Duration,
};

use futures::StreamExt;
use hf_hub::{HFRepository, RepoTypeModel, repository::download::HFByteStream};

use super::{HubError, asked::Asked, cache::failed};
use crate::{Error, Result};

/// A file of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Remote {
    pub(super) name: String,
    pub(super) size: u64,
}

/// How often, and how long between.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    pub(super) tries: usize,
    pub(super) pause: Duration,
}

/// How a try ended.
enum End {
    /// Everything is there.
    Whole,
    /// Nothing more comes, for that reason.
    Broken(String),
}

/// Fetches one file of a commit.
pub(super) struct Download<'a> {
    pub(super) repository: &'a HFRepository<RepoTypeModel>,
    pub(super) asked: &'a Asked,
    pub(super) commit: &'a str,
    pub(super) remote: &'a Remote,
    pub(super) patience: Patience,
}

impl Download<'_> {
    /// Completes the file at `path`, telling `progress` how much there is.
    pub(super) async fn run(
        &self,
        path: &Path,
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<()> {
        let mut failures = 0;
        loop {
            let before = self.received(path)?;
            let reason = match self.attempt(path, before, progress).await? {
                End::Whole => return Ok(()),
                End::Broken(reason) => reason,
            };
            let received = self.received(path)?;
            // A try that brought something does not count: a long file may break off often.
            failures = if received > before { 0 } else { failures + 1 };
            if failures >= self.patience.tries {
                return Err(HubError::Interrupted {
                    id: self.asked.id.clone(),
                    file: self.remote.name.clone(),
                    received,
                    size: self.remote.size,
                    reason,
                }
                .into());
            }
            tokio::time::sleep(self.patience.pause).await;
        }
    }

    /// The bytes that are there; none when there are more than the file has.
    fn received(&self, path: &Path) -> Result<u64> {
        match path.metadata() {
            Ok(metadata) if metadata.len() <= self.remote.size => Ok(metadata.len()),
            Ok(_) => Ok(0),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(failed("read", path, error)),
        }
    }

    async fn attempt(
        &self,
        path: &Path,
        from: u64,
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<End> {
        let size = self.remote.size;
        let file = OpenOptions::new().create(true).append(true).open(path);
        let mut file = file.map_err(|source| failed("write", path, source))?;
        let (from, mut stream) = if from == size {
            (from, None)
        } else {
            match self.open(from).await {
                Ok((from, stream)) => (from, Some(stream)),
                Err(Failure::Later(reason)) => return Ok(End::Broken(reason)),
                Err(Failure::Never(error)) => return Err(error),
            }
        };
        let io = |source| failed("write", path, source);
        file.set_len(from).map_err(io)?;
        let mut received = from;
        progress(received);
        while let Some(stream) = &mut stream
            && let Some(piece) = stream.next().await
        {
            let piece = match piece {
                Ok(piece) => piece,
                Err(error) => return Self::broken(&file, path, error.to_string()),
            };
            received += piece.len() as u64;
            if received > size {
                file.set_len(0).map_err(io)?;
                return Err(self.wrong_size(received).into());
            }
            file.write_all(&piece).map_err(io)?;
            progress(received);
        }
        if received < size {
            return Self::broken(&file, path, "the connection was closed".into());
        }
        file.sync_all().map_err(io)?;
        Ok(End::Whole)
    }

    fn broken(file: &File, path: &Path, reason: String) -> Result<End> {
        file.sync_all()
            .map_err(|source| failed("write", path, source))?;
        Ok(End::Broken(reason))
    }

    /// What the hub sends, and from which byte on.
    async fn open(&self, from: u64) -> Result<(u64, HFByteStream), Failure> {
        let size = self.remote.size;
        let (length, stream) = self.request(from).await?;
        if from == 0 || length == Some(size - from) {
            return match length {
                Some(got) if got != size - from => Err(Failure::Never(self.wrong_size(got).into())),
                _ => Ok((from, stream)),
            };
        }
        // Not the part that was asked for, or nobody says: only the whole file is certain.
        drop(stream);
        let (length, stream) = self.request(0).await?;
        match length {
            Some(got) if got != size => Err(Failure::Never(self.wrong_size(got).into())),
            _ => Ok((0, stream)),
        }
    }

    async fn request(&self, from: u64) -> Result<(Option<u64>, HFByteStream), Failure> {
        let request = self.repository.download_file_stream();
        let request = request.filename(&*self.remote.name).revision(self.commit);
        let range = (from > 0).then_some(from..self.remote.size);
        let answer = request.maybe_range(range).send().await;
        answer.map_err(|error| match error {
            hf_hub::HFError::Request { source, .. } => Failure::Later(source.to_string()),
            other => Failure::Never(self.asked.failure(other, self.commit)),
        })
    }

    fn wrong_size(&self, got: u64) -> HubError {
        HubError::WrongSize {
            id: self.asked.id.clone(),
            file: self.remote.name.clone(),
            wanted: self.remote.size,
            got,
        }
    }
}

/// Why nothing is sent.
enum Failure {
    /// It may be sent another time.
    Later(String),
    /// It will not be.
    Never(Error),
}
