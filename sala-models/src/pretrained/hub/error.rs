//! What can go wrong between the hub and the cache.

use std::path::PathBuf;

use hf_hub::HFError;

/// An error of the hub, with what may help.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// A model's name that cannot be one.
    #[error("`{id}` is no model's name on the hub: wanted owner/name, or name alone")]
    Name {
        /// What was given.
        id: String,
    },

    /// There is no such repository.
    #[error("no model `{id}` on the hub at {endpoint}: check owner and name")]
    NoRepository {
        /// Its name.
        id: String,
        /// The hub's address.
        endpoint: String,
    },

    /// There is no such branch, tag or commit.
    #[error(
        "model `{id}` has no revision `{revision}`: wanted a branch, a tag or a whole commit hash"
    )]
    NoRevision {
        /// The repository.
        id: String,
        /// What was asked for.
        revision: String,
    },

    /// A file is not there.
    #[error("model `{id}` has no file `{file}` at commit {commit}")]
    NoFile {
        /// The repository.
        id: String,
        /// The file.
        file: String,
        /// The commit that was looked at.
        commit: String,
    },

    /// The repository holds no weights that can be read here.
    #[error(
        "model `{id}` has no model.safetensors at commit {commit}, but {found}: a pickle can run code and is never \
         read; look for a revision with safetensors, such as a pull request's (refs/pr/N)"
    )]
    NoWeights {
        /// The repository.
        id: String,
        /// The commit that was looked at.
        commit: String,
        /// The files that it has.
        found: String,
    },

    /// The hub wants to know who asks, or does not allow it.
    #[error(
        "the hub refuses model `{id}` ({status}{}): it does not exist, or is private or gated; check its name, \
         accept its terms on the hub, and set HF_TOKEN to a token that may read it",
        said(.message)
    )]
    Denied {
        /// The repository.
        id: String,
        /// 401 or 403.
        status: u16,
        /// What the hub said.
        message: String,
    },

    /// What arrives is not as long as the repository says.
    #[error("{file} of model `{id}`: the hub lists {wanted} bytes, but sends {got}")]
    WrongSize {
        /// The repository.
        id: String,
        /// The file.
        file: String,
        /// As listed.
        wanted: u64,
        /// As sent.
        got: u64,
    },

    /// A download broke off, several times.
    #[error(
        "{file} of model `{id}` broke off after {received} of {size} bytes ({reason}); what has arrived is kept, \
         and the next try goes on from there"
    )]
    Interrupted {
        /// The repository.
        id: String,
        /// The file.
        file: String,
        /// Bytes on disk.
        received: u64,
        /// Bytes of the whole.
        size: u64,
        /// What happened the last time.
        reason: String,
    },

    /// Nothing may be fetched, and the model is not in the cache.
    #[error(
        "model `{id}` at revision `{revision}` is not in the cache {} (or not whole), and offline mode is on \
         (HF_HUB_OFFLINE)",
        .cache.display()
    )]
    NotCached {
        /// The repository.
        id: String,
        /// What was asked for.
        revision: String,
        /// The cache's folder.
        cache: PathBuf,
    },

    /// The hub cannot be reached or answers with something else.
    #[error(
        "model `{id}`: the hub at {endpoint} does not answer as it should, and the cache has no whole copy: {source}"
    )]
    Request {
        /// The repository.
        id: String,
        /// The hub's address.
        endpoint: String,
        /// The reason.
        source: Box<HFError>,
    },

    /// The client could not be made from its settings.
    #[error("the hub's client: {source}")]
    Client {
        /// The reason.
        source: Box<HFError>,
    },
}

fn said(message: &str) -> String {
    if message.is_empty() {
        return String::new();
    }
    format!(": {message}")
}
