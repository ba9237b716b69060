//! The files of a model on disk.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::weights::locate::locate;
use crate::{Error, Result};

/// The name of a model's configuration.
pub(super) const CONFIG: &str = "config.json";

/// Files beside the weights that a model needs to be used: those of its tokenizer, of its preparation of
/// images, and of its generation of text.
pub(super) const COMPANIONS: [&str; 16] = [
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "normalizer.json",
    "preprocessor_config.json",
    "processor_config.json",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];

/// Where the files of a model lie. Nothing is read yet but the names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    folder: PathBuf,
    weights: PathBuf,
    commit: Option<String>,
}

impl Snapshot {
    /// The model in a folder, or that of a single file of weights, whose other files lie beside it.
    ///
    /// # Errors
    /// [`Error::Io`] when there is nothing at `path`; [`Error::NoWeights`] when a folder has no safetensors.
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use sala_models::{VarStore, pretrained::Snapshot};
    ///
    /// let folder = tempfile::tempdir()?;
    /// VarStore::new(0, DType::F32, &Device::Cpu).save(folder.path().join("model.safetensors"))?;
    /// let snapshot = Snapshot::local(folder.path())?;
    /// assert!(snapshot.weights().ends_with("model.safetensors"));
    /// assert!(snapshot.config().is_err()); // there is no config.json
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn local<P: AsRef<Path>>(path: P) -> Result<Self> {
        let path = path.as_ref();
        let weights = locate(path)?;
        let folder = weights.parent().unwrap_or(path).to_path_buf();
        Ok(Self {
            folder,
            weights,
            commit: None,
        })
    }

    /// The same, known to be of this commit.
    #[cfg(feature = "hub")]
    pub(super) fn of_commit(self, commit: String) -> Self {
        let commit = Some(commit);
        Self { commit, ..self }
    }

    /// The folder with all of them.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The commit on the hub, where it came from there.
    pub fn commit(&self) -> Option<&str> {
        self.commit.as_deref()
    }

    /// The file of weights, or the index of its shards: what [`Weights::open`](super::Weights::open) takes.
    pub fn weights(&self) -> &Path {
        &self.weights
    }

    /// `config.json`.
    ///
    /// # Errors
    /// [`Error::Io`] when there is none.
    pub fn config(&self) -> Result<PathBuf> {
        self.required(CONFIG)
    }

    /// `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Io`] when there is none.
    pub fn tokenizer(&self) -> Result<PathBuf> {
        self.required("tokenizer.json")
    }

    /// The files of the tokenizer, of the preparation of images and of generation that are there.
    pub fn companions(&self) -> Vec<PathBuf> {
        let there = COMPANIONS.map(|name| self.folder.join(name)).into_iter();
        there.filter(|path| path.is_file()).collect()
    }

    fn required(&self, name: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        match fs::metadata(&path) {
            Ok(_) => Ok(path),
            Err(source) => Err(Error::Io {
                action: "read",
                path,
                source,
            }),
        }
    }
}
