//! Models from the Hugging Face hub, through its client `hf-hub` (feature `hub`).
//!
//! The client finds and authorises; here a download is cut off and taken up again, measured against what the
//! repository lists, and put into the cache only when it is whole, which the client leaves to others.

mod cache;
mod download;
mod error;

use std::{env, fs, path::PathBuf, time::Duration};

use futures::TryStreamExt;
use hf_hub::{HFClient, HFError, HFRepository, RepoTypeModel, repository::RepoTreeEntry, split_id};
use tokio::runtime;

pub use self::error::HubError;
use self::{
    cache::{Cache, failed},
    download::{Download, Patience, Remote},
};
use super::{
    Snapshot,
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

/// Settings of a [`Hub`]; what is not set comes from the environment.
#[derive(Debug, Clone, Default)]
pub struct HubBuilder {
    endpoint: Option<String>,
    token: Option<String>,
    cache: Option<PathBuf>,
    offline: Option<bool>,
    tries: Option<usize>,
    pause: Option<Duration>,
}

impl HubBuilder {
    /// The hub's address; without one `HF_ENDPOINT`, or the public hub.
    #[must_use]
    pub fn endpoint(self, endpoint: impl Into<String>) -> Self {
        let endpoint = Some(endpoint.into());
        Self { endpoint, ..self }
    }

    /// Who asks; without one `HF_TOKEN`, or what `hf auth login` left in `HF_HOME`.
    #[must_use]
    pub fn token(self, token: impl Into<String>) -> Self {
        let token = Some(token.into());
        Self { token, ..self }
    }

    /// The cache's folder; without one `HF_HUB_CACHE`, or `hub` in `HF_HOME`, or in `~/.cache/huggingface`.
    #[must_use]
    pub fn cache(self, cache: impl Into<PathBuf>) -> Self {
        let cache = Some(cache.into());
        Self { cache, ..self }
    }

    /// Whether only the cache is looked at; without it, whether `HF_HUB_OFFLINE` is `1`, `true`, `yes` or `on`.
    #[must_use]
    pub fn offline(self, offline: bool) -> Self {
        let offline = Some(offline);
        Self { offline, ..self }
    }

    /// How often in turn a file may bring nothing before the download fails (5), and how long to wait after
    /// each break (one second).
    #[must_use]
    pub fn patience(self, tries: usize, pause: Duration) -> Self {
        let (tries, pause) = (Some(tries.max(1)), Some(pause));
        Self {
            tries,
            pause,
            ..self
        }
    }

    /// The hub with these settings.
    ///
    /// # Errors
    /// [`HubError::Client`] when the address is none.
    ///
    /// ```
    /// use sala_models::pretrained::Hub;
    ///
    /// let cache = tempfile::tempdir()?;
    /// let hub = Hub::builder().cache(cache.path()).offline(true).build()?;
    /// let error = hub.snapshot("gpt2", None).unwrap_err();
    /// assert!(error.to_string().contains("is not in the cache"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn build(self) -> Result<Hub> {
        let tries = self.tries.unwrap_or(5);
        let pause = self.pause.unwrap_or(Duration::from_secs(1));
        // Each try of ours has tries of the client in it, for what fails before anything is sent.
        let mut client = HFClient::builder()
            .retry_max_attempts(tries.min(3))
            .retry_base_delay(pause / 4);
        if let Some(endpoint) = self.endpoint {
            client = client.endpoint(endpoint);
        }
        if let Some(token) = self.token {
            client = client.token(token);
        }
        if let Some(cache) = self.cache {
            client = client.cache_dir(cache);
        }
        let client = client.build().map_err(|source| HubError::Client {
            source: Box::new(source),
        })?;
        Ok(Hub {
            client,
            offline: self.offline.unwrap_or_else(offline_by_environment),
            patience: Patience { tries, pause },
        })
    }
}

fn offline_by_environment() -> bool {
    let value = env::var("HF_HUB_OFFLINE").unwrap_or_default();
    ["1", "true", "yes", "on"].contains(&&*value.to_lowercase())
}

/// What was asked for, for errors.
#[derive(Debug)]
struct Asked {
    id: String,
    revision: String,
    endpoint: String,
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
        if self.offline {
            return self.cached(&asked, &cache);
        }
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| failed("start", "the download".as_ref(), source))?;
        // On a thread of its own, because the caller's may belong to another runtime.
        let work = || runtime.block_on(self.fetch(&asked, &cache, progress));
        std::thread::scope(|scope| match scope.spawn(work).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// What the cache has, without a word to the hub.
    fn cached(&self, asked: &Asked, cache: &Cache) -> Result<Snapshot> {
        let found = cache.commit(&asked.revision).and_then(|commit| {
            let snapshot = Snapshot::local(cache.snapshot(&commit)).ok()?;
            Some(snapshot.of_commit(commit))
        });
        let not_cached = || HubError::NotCached {
            id: asked.id.clone(),
            revision: asked.revision.clone(),
            cache: self.client.cache_dir().into(),
        };
        Ok(found.ok_or_else(not_cached)?)
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

impl Asked {
    fn check(&self) -> Result<()> {
        let plain = |part: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !part.is_empty() && part.chars().all(allowed) && !part.starts_with('.')
        };
        let parts: Vec<&str> = self.id.split('/').collect();
        if parts.len() > 2 || !parts.into_iter().all(plain) {
            return Err(HubError::Name {
                id: self.id.clone(),
            }
            .into());
        }
        // It becomes a path in the cache.
        if !self.revision.split('/').all(plain) {
            return Err(self.no_revision());
        }
        Ok(())
    }

    async fn commit(&self, repository: &HFRepository<RepoTypeModel>) -> Result<String> {
        let info = repository.info().revision(&*self.revision).send().await;
        let info = match info {
            Ok(info) => info,
            // The client takes any 404 for a missing revision.
            Err(HFError::RevisionNotFound { .. }) => {
                return Err(match repository.exists().send().await {
                    Ok(true) => self.no_revision(),
                    Ok(false) => HubError::NoRepository {
                        id: self.id.clone(),
                        endpoint: self.endpoint.clone(),
                    }
                    .into(),
                    Err(error) => self.failure(error, ""),
                });
            }
            Err(error) => return Err(self.failure(error, "")),
        };
        let sha = info.sha.ok_or_else(|| {
            let source = HFError::malformed_response("the commit of the revision");
            self.failure(source, "")
        })?;
        Ok(sha)
    }

    /// The files at the root of a commit.
    async fn files(
        &self,
        repository: &HFRepository<RepoTypeModel>,
        commit: &str,
    ) -> Result<Vec<Remote>> {
        let list = async {
            let entries = repository.list_tree().revision(commit).send()?;
            entries.try_collect::<Vec<_>>().await
        };
        let entries = list.await.map_err(|error| self.failure(error, commit))?;
        let file = |entry| match entry {
            RepoTreeEntry::File { path, size, .. } => Some(Remote { name: path, size }),
            RepoTreeEntry::Directory { .. } => None,
        };
        Ok(entries.into_iter().filter_map(file).collect())
    }

    fn no_revision(&self) -> Error {
        HubError::NoRevision {
            id: self.id.clone(),
            revision: self.revision.clone(),
        }
        .into()
    }

    /// What an error of the client means here.
    fn failure(&self, error: HFError, commit: &str) -> Error {
        let id = self.id.clone();
        let error = match error {
            HFError::AuthRequired { context } | HFError::Forbidden { context } => {
                HubError::Denied {
                    id,
                    status: context.status.as_u16(),
                    message: context.server_message.unwrap_or_default(),
                }
            }
            // Lists are not sorted out by the client.
            HFError::Http { context } if [401, 403].contains(&context.status.as_u16()) => {
                HubError::Denied {
                    id,
                    status: context.status.as_u16(),
                    message: context.server_message.unwrap_or_default(),
                }
            }
            HFError::RepoNotFound { .. } => HubError::NoRepository {
                id,
                endpoint: self.endpoint.clone(),
            },
            HFError::EntryNotFound { path, .. } => HubError::NoFile {
                id,
                file: path,
                commit: commit.into(),
            },
            other => HubError::Request {
                id,
                endpoint: self.endpoint.clone(),
                source: Box::new(other),
            },
        };
        error.into()
    }
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

    async fn shards(&mut self, index: &std::path::Path) -> Result<()> {
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
