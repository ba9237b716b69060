//! Published weights into a [`VarStore`].
//!
//! Weights are safetensors, in one file or in shards with an index, and never a pickle. Only headers are kept;
//! tensors are read one after another, so that loading needs little more memory than the network itself.
//!
//! A network and a file have the same names, but for what [`LoadOptions`] says, the prefix of the base model
//! that one of them may lack, and two names that norms once had (`gamma`, `beta`).

pub(super) mod locate;
mod matching;
mod shard;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::TensorInfo;

use self::{
    locate::{damaged, locate, shards},
    matching::Plan,
    shard::Shard,
};
use super::{ModelConfig, Task, names::HubName};
use crate::{Error, Result, VarStore};

/// The weights of a model on disk, opened: what there is, and how to read it.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    shard: usize,
    info: TensorInfo,
}

impl Weights {
    /// Opens a safetensors file, an index of shards, or a folder with `model.safetensors` or
    /// `model.safetensors.index.json`.
    ///
    /// # Errors
    /// [`Error::NoWeights`] when a folder has none, which lists pickles that it has instead;
    /// [`Error::Damaged`] when a file is cut short or not what it should be; [`Error::Io`] when one is
    /// missing; [`Error::Json`] when the index is not JSON.
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use sala_models::{VarStore, ops::Linear, pretrained::Weights};
    ///
    /// let folder = tempfile::tempdir()?;
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// Linear::new(4, 2, store.builder())?;
    /// store.save(folder.path().join("model.safetensors"))?;
    ///
    /// let weights = Weights::open(folder.path())?;
    /// assert_eq!(weights.names().collect::<Vec<_>>(), ["bias", "weight"]);
    /// assert_eq!(weights.shape("weight"), Some(&[2, 4][..]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn open<P: AsRef<Path>>(path: P) -> Result<Self> {
        let path = locate(path.as_ref())?;
        if path.extension().is_some_and(|ending| ending == "json") {
            return Self::open_shards(path);
        }
        let shards = vec![Shard::open(&path)?];
        Self::of(path, shards)
    }

    fn open_shards(index: PathBuf) -> Result<Self> {
        let listed = shards(&index)?;
        let folder = index.parent().unwrap_or(Path::new("."));
        let paths: Vec<PathBuf> = listed.keys().map(|file| folder.join(file)).collect();
        let absent: Vec<&str> = (listed.keys().zip(&paths))
            .filter(|(_, path)| !path.is_file())
            .map(|(name, _)| name.as_str())
            .collect();
        if !absent.is_empty() {
            let problem = format!("shards that it lists are not there: {}", absent.join(", "));
            return Err(damaged(&index, problem));
        }
        let shards = paths.iter().map(|path| Shard::open(path));
        let weights = Self::of(index, shards.collect::<Result<_>>()?)?;
        for (shard, names) in listed.values().enumerate() {
            let elsewhere = |name: &&String| {
                let found = weights.tensors.get(*name);
                found.is_none_or(|entry| entry.shard != shard)
            };
            if let Some(name) = names.iter().find(elsewhere) {
                let problem = format!("`{name}` is not in the shard that it names");
                return Err(damaged(&weights.path, problem));
            }
        }
        Ok(weights)
    }

    fn of(path: PathBuf, shards: Vec<Shard>) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (shard, file) in shards.iter().enumerate() {
            for (name, info) in file.tensors() {
                let entry = Entry { shard, info };
                if tensors.insert(name.clone(), entry).is_some() {
                    return Err(damaged(
                        &path,
                        format!("`{name}` is in more than one shard"),
                    ));
                }
            }
        }
        Ok(Self {
            path,
            shards,
            tensors,
        })
    }

    /// The file, or the index of the shards.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of a tensor, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| &*entry.info.shape)
    }

    /// Reads a tensor as it is stored.
    ///
    /// # Errors
    /// [`Error::Damaged`] when there is none of that name or candle does not have its dtype; [`Error::Io`]
    /// when it cannot be read.
    pub fn read(&self, name: &str, device: &Device) -> Result<Tensor> {
        let Some(entry) = self.tensors.get(name) else {
            return Err(damaged(&self.path, format!("no tensor `{name}`")));
        };
        let dtype = DType::try_from(entry.info.dtype)?;
        let bytes = self.bytes(entry)?;
        let shape = &*entry.info.shape;
        Ok(Tensor::from_raw_buffer(&bytes, dtype, shape, device)?)
    }

    fn bytes(&self, entry: &Entry) -> Result<Vec<u8>> {
        self.shards[entry.shard].read(&entry.info)
    }

    /// Sets a network's variables, buffers included, to these weights, converted to the variables' dtypes.
    ///
    /// Everything must fit: what is missing, surplus or misshapen is told in one error, and then nothing has
    /// been loaded. A file may be of f16, bf16, f32 or f64.
    ///
    /// # Errors
    /// [`Error::Weights`] with every difference. [`Error::Io`] when a file cannot be read to its end, which
    /// leaves a part of the variables loaded.
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use sala_models::{VarStore, ops::Linear, pretrained::{LoadOptions, Weights}};
    ///
    /// let folder = tempfile::tempdir()?;
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// Linear::new(4, 2, store.builder().pp("body"))?;
    /// store.save(folder.path().join("model.safetensors"))?;
    ///
    /// let other = VarStore::new(1, DType::F64, &Device::Cpu);
    /// Linear::new(4, 2, other.builder().pp("body"))?;
    /// Linear::new(2, 3, other.builder().pp("head"))?;
    /// let weights = Weights::open(folder.path())?;
    /// let error = weights.load(&other, &LoadOptions::default()).unwrap_err();
    /// assert!(error.to_string().contains("2 missing in the file: head.bias, head.weight"));
    ///
    /// let options = LoadOptions { fresh: vec!["head.*"], ..Default::default() };
    /// let report = weights.load(&other, &options)?;
    /// assert_eq!(report.fresh, ["head.bias", "head.weight"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn load(&self, store: &VarStore, options: &LoadOptions<'_>) -> Result<LoadReport> {
        let vars = store.all();
        let Plan {
            pairs,
            tied,
            report,
        } = Plan::new(self, &vars, options)?;
        for (name, other) in &tied {
            if self.bytes(&self.tensors[name])? != self.bytes(&self.tensors[other])? {
                return Err(Error::Weights {
                    path: self.path.clone(),
                    missing: vec![],
                    surplus: vec![],
                    misshapen: vec![format!(
                        "{other} (tied to {name} in the network, with other values in the file)"
                    )],
                });
            }
        }
        for (var, name) in &pairs {
            let value = self.read(name, store.device())?;
            var.set(&value.to_dtype(var.dtype())?)?;
        }
        Ok(report)
    }
}

/// How the names of a file belong to those of a network.
///
/// [`of`](Self::of) knows it for the published architectures. Patterns of names are literal, but `*` stands
/// for any run of characters; they are compared with names as the hub has them, with and without the prefix
/// of the base model.
#[derive(Default)]
pub struct LoadOptions<'a> {
    /// What classes with a head put before the names of the network below it, such as `bert`, and a file of
    /// that network alone leaves out. It may be there in the file and not in the network, or the other way
    /// round.
    pub base_model_prefix: Option<&'a str>,
    /// What the file calls the tensor that the network calls so; without it, the same.
    pub hub_name: Option<HubName<'a>>,
    /// Names, as the hub has them, of two tensors that are one in the network: another name, and the
    /// network's. The file may have either, or both if they are equal.
    pub tied: Vec<(&'a str, &'a str)>,
    /// Patterns of names of the network that keep their initial values, whatever the file has.
    pub fresh: Vec<&'a str>,
    /// Patterns of names that the file may have and the network does not need.
    pub ignored: Vec<&'a str>,
}

impl<'a> LoadOptions<'a> {
    /// Those of a published architecture; nothing starts afresh unless `fresh` is set.
    ///
    /// ```
    /// use sala_models::{pretrained::{LoadOptions, ModelConfig, Task}, transformer::Pooling};
    ///
    /// let config = ModelConfig::from_json(serde_json::json!({"model_type": "bert"}))?;
    /// let task = Task::TextClassification { pooling: Pooling::Mean };
    /// let options = LoadOptions {
    ///     fresh: config.head_names(task), // a new classifier on a base model
    ///     ..LoadOptions::of(&config, task)
    /// };
    /// assert_eq!(options.base_model_prefix, Some("bert"));
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    pub fn of(config: &'a ModelConfig, task: Task) -> Self {
        Self {
            base_model_prefix: Some(config.base_model_prefix()),
            hub_name: Some(Box::new(|name| config.hub_name(name))),
            tied: config.tied_names(),
            fresh: vec![],
            ignored: config.ignored_names(task),
        }
    }
}

/// What [`Weights::load`] did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LoadReport {
    /// The network's variables that were loaded.
    pub loaded: Vec<String>,
    /// The network's variables that kept their initial values.
    pub fresh: Vec<String>,
    /// The file's tensors that were left out.
    pub ignored: Vec<String>,
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tensors loaded", self.loaded.len())?;
        for (names, what) in [(&self.fresh, "start afresh"), (&self.ignored, "left out")] {
            if !names.is_empty() {
                write!(f, ", {} {what} ({})", names.len(), names.join(", "))?;
            }
        }
        Ok(())
    }
}
