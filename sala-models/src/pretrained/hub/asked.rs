//! What was asked for: its commit and files, and what the client's errors mean for it.

use futures::TryStreamExt;
use hf_hub::{HFError, HFRepository, RepoTypeModel, repository::RepoTreeEntry};

use super::{HubError, download::Remote};
use crate::{Error, Result};

/// A model at a hub, and a revision of it.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) id: String,
    pub(super) revision: String,
    pub(super) endpoint: String,
}

impl Asked {
    /// Refuses names that cannot be any, before they become addresses and paths.
    pub(super) fn check(&self) -> Result<()> {
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
        let harmless =
            |part: &str| !["", ".", ".."].contains(&part) && !part.contains(['\\', ':', '\0']);
        if !self.revision.split('/').all(harmless) {
            return Err(self.no_revision());
        }
        Ok(())
    }

    /// What the revision is now.
    pub(super) async fn commit(&self, repository: &HFRepository<RepoTypeModel>) -> Result<String> {
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
    pub(super) async fn files(
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
    pub(super) fn failure(&self, error: HFError, commit: &str) -> Error {
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
