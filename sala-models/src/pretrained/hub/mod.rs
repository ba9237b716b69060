//! Models from the Hugging Face hub, through its client `hf-hub` (feature `hub`).
//!
//! The client finds and authorises; here a download is cut off and taken up again, measured against what the
//! repository lists, and put into the cache only when it is whole, which the client leaves to others.

mod asked;
mod cache;
mod download;
mod error;
mod settings;

use std::{fs, path::Path};

use hf_hub::{HFClient, HFRepository, RepoTypeModel, split_id};
use tokio::runtime;

use self::{
    asked::Asked,
    cache::{Cache, failed, is_commit},
    download::{Download, Patience, Remote},
};
pub use self::{error::HubError, settings::HubBuilder};
use super::{
    Snapshot, Weights,
    snapshot::{COMPANIONS, CONFIG},
    weights::locate::{INDEX, SINGLE, shards},
};
use crate::{Error, Result};

/// The branch that is taken when none is asked for.
const DEFAULT_REVISION: &str = "main";

/// How much of a model has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The file that is arriving.
    pub file: &'a str,
    /// Its bytes on disk.
    pub received: u64,
    /// All its bytes.
    pub size: u64,
}

/// The hub, and the cache of what came from it.
///
/// ```no_run
/// use sala_models::pretrained::{Hub, ModelConfig};
///
/// let hub = Hub::new()?;
/// let snapshot = hub.snapshot("sentence-transformers/all-MiniLM-L6-v2", None)?;
/// let config = ModelConfig::read(snapshot.config()?)?;
/// # Ok::<(), sala_models::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Hub {
    client: HFClient,
    offline: bool,
    patience: Patience,
}

impl Hub {
    /// The hub with all settings from the environment.
    ///
    /// # Errors
    /// As for [`HubBuilder::build`].
    ///
    /// ```
    /// let hub = sala_models::pretrained::Hub::new()?;
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    pub fn new() -> Result<Self> {
        Self::builder().build()
    }

    /// Settings to begin with.
    pub fn builder() -> HubBuilder {
        HubBuilder::default()
    }

    /// A model's configuration, weights and tokenizer, from the cache as far as they are there. `id` is
    /// `owner/name`; a revision is a branch, a tag or a commit, `main` without one.
    ///
    /// The hub is asked what a branch or tag is now. Where it cannot be reached, the model that the cache has whole for
    /// that revision is taken, with a warning (an event of `tracing`); a whole commit hash that the cache has is taken
    /// without asking, and `HF_HUB_OFFLINE` or [`HubBuilder::offline`] do so for every revision.
    ///
    /// # Errors
    /// [`Error::Hub`], which says what is wrong and what may help; [`Error::Io`] of the cache.
    pub fn snapshot(&self, id: &str, revision: Option<&str>) -> Result<Snapshot> {
        self.snapshot_with(id, revision, &mut |_| {})
    }

    /// As [`snapshot`](Self::snapshot), telling `progress` of every piece that arrives.
    ///
    /// # Errors
    /// As for [`snapshot`](Self::snapshot).
    pub fn snapshot_with(
        &self,
        id: &str,
        revision: Option<&str>,
        progress: &mut (dyn FnMut(Progress<'_>) + Send),
    ) -> Result<Snapshot> {
        let asked = Asked {
            id: id.into(),
            revision: revision.unwrap_or(DEFAULT_REVISION).into(),
            endpoint: self.client.endpoint().into(),
        };
        asked.check()?;
        let cache = Cache::new(self.client.cache_dir(), id);
        let not_cached = || HubError::NotCached {
            id: id.into(),
            revision: asked.revision.clone(),
            cache: self.client.cache_dir().into(),
        };
        if self.offline {
            return Ok(cached(&asked, &cache).ok_or_else(not_cached)?);
        }
        // A commit never changes. Downloads bring companions first, so where there is one, nothing is missing; where there is
        // none, another program may have fetched the weights alone.
        if is_commit(&asked.revision)
            && let Some(found) = cached(&asked, &cache)
            && !found.companions().is_empty()
        {
            return Ok(found);
        }
        match self.online(&asked, &cache, progress) {
            Err(error @ Error::Hub(HubError::Request { .. })) => {
                let Some(found) = cached(&asked, &cache) else {
                    return Err(error);
                };
                tracing::warn!(
                    id,
                    revision = asked.revision,
                    commit = found.commit(),
                    %error,
                    "taking the model that the cache has; HF_HUB_OFFLINE=1 does so without asking"
                );
                Ok(found)
            }
            result => result,
        }
    }

    /// What the hub has, as far as it is not in the cache.
    fn online(
        &self,
        asked: &Asked,
        cache: &Cache,
        progress: &mut (dyn FnMut(Progress<'_>) + Send),
    ) -> Result<Snapshot> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| failed("start", "the download".as_ref(), source))?;
        // On a thread of its own, because the caller's may belong to another runtime.
        let work = || runtime.block_on(self.fetch(asked, cache, progress));
        std::thread::scope(|scope| match scope.spawn(work).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    async fn fetch(
        &self,
        asked: &Asked,
        cache: &Cache,
        progress: &mut (dyn FnMut(Progress<'_>) + Send),
    ) -> Result<Snapshot> {
        let (owner, name) = split_id(&asked.id);
        let repository = self.client.model(owner, name);
        let commit = asked.commit(&repository).await?;
        let files = asked.files(&repository, &commit).await?;
        let lock = cache.lock(&commit)?;
        let folder = cache.snapshot(&commit);
        let mut work = Fetch {
            asked,
            cache,
            commit: &commit,
            files: &files,
            repository: &repository,
            patience: self.patience,
            progress,
        };
        // Weights, or what lists them, come last: where they are, everything is.
        for name in COMPANIONS {
            if files.iter().any(|file| file.name == name) {
                work.file(name).await?;
            }
        }
        work.file(CONFIG).await?;
        work.weights().await?;
        cache.clean(&commit);
        cache.set_commit(&asked.revision, &commit)?;
        drop(lock);
        Ok(Snapshot::local(folder)?.of_commit(commit))
    }
}

/// What the cache has, without a word to the hub: nothing where it is not whole.
fn cached(asked: &Asked, cache: &Cache) -> Option<Snapshot> {
    let commit = cache.commit(&asked.revision)?;
    let snapshot = Snapshot::local(cache.snapshot(&commit)).ok()?;
    // A program may have fetched weights alone, or an index before its shards, or have been stopped.
    snapshot.config().ok()?;
    Weights::open(snapshot.weights()).ok()?;
    Some(snapshot.of_commit(commit))
}

/// The files of one commit on their way into the cache.
struct Fetch<'a> {
    asked: &'a Asked,
    cache: &'a Cache,
    commit: &'a str,
    files: &'a [Remote],
    repository: &'a HFRepository<RepoTypeModel>,
    patience: Patience,
    progress: &'a mut (dyn FnMut(Progress<'_>) + Send),
}

impl Fetch<'_> {
    /// A file, in its place.
    async fn file(&mut self, name: &str) -> Result<()> {
        let remote = self.remote(name)?;
        if self.is_there(&remote) {
            return Ok(());
        }
        self.download(&remote).await?;
        self.cache.finish(self.commit, name)
    }

    /// One file, or the shards and then their index.
    async fn weights(&mut self) -> Result<()> {
        let has = |name: &str| self.files.iter().any(|file| file.name == name);
        if has(SINGLE) {
            return self.file(SINGLE).await;
        }
        if !has(INDEX) {
            return Err(self.no_weights());
        }
        let index = self.remote(INDEX)?;
        if self.is_there(&index) {
            let there = self.cache.snapshot(self.commit).join(INDEX);
            return self.shards(&there).await;
        }
        self.download(&index).await?;
        let partial = self.cache.partial(self.commit, INDEX)?;
        self.shards(&partial).await?;
        self.cache.finish(self.commit, INDEX)
    }

    async fn shards(&mut self, index: &Path) -> Result<()> {
        for shard in shards(index)?.keys() {
            self.file(shard).await?;
        }
        Ok(())
    }

    async fn download(&mut self, remote: &Remote) -> Result<()> {
        let path = self.cache.partial(self.commit, &remote.name)?;
        let download = Download {
            repository: self.repository,
            asked: self.asked,
            commit: self.commit,
            remote,
            patience: self.patience,
        };
        let progress = &mut *self.progress;
        let mut tell = |received| {
            progress(Progress {
                file: &remote.name,
                received,
                size: remote.size,
            });
        };
        download.run(&path, &mut tell).await
    }

    /// Whether a file of the right size is in its place.
    fn is_there(&self, remote: &Remote) -> bool {
        let path = self.cache.snapshot(self.commit).join(&remote.name);
        fs::metadata(path).is_ok_and(|metadata| metadata.len() == remote.size)
    }

    fn remote(&self, name: &str) -> Result<Remote> {
        let found = self.files.iter().find(|file| file.name == name);
        let missing = || HubError::NoFile {
            id: self.asked.id.clone(),
            file: name.into(),
            commit: self.commit.into(),
        };
        Ok(found.cloned().ok_or_else(missing)?)
    }

    fn no_weights(&self) -> Error {
        let names: Vec<&str> = self.files.iter().map(|file| &*file.name).collect();
        HubError::NoWeights {
            id: self.asked.id.clone(),
            commit: self.commit.into(),
            found: names.join(", "),
        }
        .into()
    }
}
