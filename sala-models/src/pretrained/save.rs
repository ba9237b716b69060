//! A network into a folder that `transformers` loads.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use tempfile::NamedTempFile;

use super::{
    ModelConfig, Snapshot,
    names::HubName,
    snapshot::CONFIG,
    weights::locate::{INDEX, SINGLE},
};
use crate::{
    Error, Result, VarStore,
    files::{aside, sync_folder},
};

/// How a network is saved.
#[derive(Default)]
pub struct SaveOptions<'a> {
    /// The dtype of its floats in the file; without one, each variable's own.
    pub dtype: Option<DType>,
    /// What the file calls the tensor that the network calls so; without it, the same.
    pub hub_name: Option<HubName<'a>>,
    /// Whether a count of batches, 0, is written beside each running mean. Nothing here keeps or reads one, but
    /// PyTorch's batch norm has it.
    pub batch_counts: bool,
    /// The model whose tokenizer and other files beside the weights are copied, byte for byte.
    pub companions: Option<&'a Snapshot>,
}

impl<'a> SaveOptions<'a> {
    /// Those of a published architecture.
    pub fn of(config: &'a ModelConfig) -> Self {
        Self {
            hub_name: Some(Box::new(|name| config.hub_name(name))),
            batch_counts: true,
            ..Self::default()
        }
    }
}

/// Writes `config.json`, `model.safetensors` and the companions' files into `folder`, which is made if needed.
///
/// `transformers` loads the folder and computes what the network here does, but for a classifier of texts by the mean
/// of their tokens: [`ModelConfig::differs_in_transformers`].
///
/// Where `config` states the dtype of the weights (`dtype`, or `torch_dtype` as it was called before), it is written
/// with the dtype of the saved floats: `transformers` loads in the stated one, and would round weights that were
/// trained in f32 to the bf16 of the model that they started from. Where it states none, `transformers` takes the
/// tensors' own.
///
/// All files are written aside and synced before the first is renamed, and the weights come last: where
/// `model.safetensors` is, the folder is whole. An earlier model in the folder is replaced; when the disk is
/// full, it is still whole.
///
/// # Errors
/// [`Error::Io`] when a file cannot be read or written; [`Error::Argument`] when two variables get one name.
///
/// ```
/// use candle_core::{DType, Device};
/// use sala_models::{VarStore, ops::Linear, pretrained::{LoadOptions, SaveOptions, Weights, save::save}};
///
/// let folder = tempfile::tempdir()?;
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// Linear::new(4, 2, store.builder())?;
/// save(&store, &serde_json::json!({"model_type": "bert"}), folder.path(), &SaveOptions::default())?;
/// Weights::open(folder.path())?.load(&store, &LoadOptions::default())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn save(
    store: &VarStore,
    config: &Value,
    folder: &Path,
    options: &SaveOptions<'_>,
) -> Result<()> {
    fs::create_dir_all(folder).map_err(|source| failed("make", folder, source))?;
    let weights = write_weights(&tensors(store, options)?, folder)?;
    let config = stating_dtype(config.clone(), options.dtype.unwrap_or(store.dtype()));
    let mut others = vec![(CONFIG.to_owned(), write_config(&config, folder)?)];
    for source in options
        .companions
        .map(Snapshot::companions)
        .unwrap_or_default()
    {
        others.extend(copy(&source, folder)?);
    }
    // Where there are no weights there is no model: the old ones go first, the new ones come last.
    for old in [SINGLE, INDEX].map(|name| folder.join(name)) {
        match fs::remove_file(&old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &old, error));
            }
            _ => {}
        }
    }
    for (name, file) in others {
        persist(file, folder.join(name))?;
    }
    let sync = || sync_folder(folder).map_err(|source| failed("write", folder, source));
    sync()?;
    persist(weights, folder.join(SINGLE))?;
    sync()
}

/// The variables by the hub's names, on the CPU, as they are to be written.
fn tensors(store: &VarStore, options: &SaveOptions<'_>) -> Result<BTreeMap<String, Tensor>> {
    let mut tensors = BTreeMap::new();
    for (name, var) in store.all() {
        let hub_name = match &options.hub_name {
            Some(hub_name) => hub_name(&name),
            None => name.clone(),
        };
        let value = match options.dtype {
            Some(dtype) if var.dtype().is_float() => var.to_dtype(dtype)?,
            _ => var.as_tensor().clone(),
        };
        // candle's own conversion panics when a device cannot be read.
        let value = value.to_device(&Device::Cpu)?;
        if let (true, Some(norm)) = (options.batch_counts, hub_name.strip_suffix("running_mean")) {
            let count = Tensor::new(0_i64, &Device::Cpu)?;
            tensors.insert(format!("{norm}num_batches_tracked"), count);
        }
        if tensors.insert(hub_name.clone(), value).is_some() {
            return Err(Error::Argument {
                op: "save",
                argument: "hub_name",
                wanted: "another name for each variable".into(),
                got: format!("`{hub_name}` for `{name}` and another"),
            });
        }
    }
    Ok(tensors)
}

fn write_weights(tensors: &BTreeMap<String, Tensor>, folder: &Path) -> Result<NamedTempFile> {
    let path = folder.join(SINGLE);
    let io = |source| failed("write", &path, source);
    let file = aside(folder).map_err(io)?;
    // Without it, `transformers` refuses the file.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(tensors, Some(metadata), file.path()).map_err(|source| {
        Error::Format {
            path: path.clone(),
            source,
        }
    })?;
    // What lies there now is another file than was made, private and not synced.
    let sync = || {
        let written = fs::File::open(file.path())?;
        written.set_permissions(file.as_file().metadata()?.permissions())?;
        written.sync_all()
    };
    sync().map_err(io)?;
    Ok(file)
}

/// The configuration with the dtype of the saved floats wherever it states one.
fn stating_dtype(mut config: Value, dtype: DType) -> Value {
    // As PyTorch calls them.
    let name = match dtype {
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        DType::F32 => "float32",
        DType::F64 => "float64",
        _ => return config,
    };
    for key in ["dtype", "torch_dtype"] {
        if let Some(stated) = config.get_mut(key).filter(|stated| stated.is_string()) {
            *stated = name.into();
        }
    }
    config
}

fn write_config(config: &Value, folder: &Path) -> Result<NamedTempFile> {
    let write = || {
        let mut file = aside(folder)?;
        serde_json::to_writer_pretty(&mut file, config)?;
        file.write_all(b"\n")?;
        file.as_file().sync_all()?;
        Ok(file)
    };
    write().map_err(|source| failed("write", &folder.join(CONFIG), source))
}

/// A copy of a file with its name; nothing when it is the folder's own.
fn copy(source: &Path, folder: &Path) -> Result<Option<(String, NamedTempFile)>> {
    let Some(name) = source.file_name().and_then(|name| name.to_str()) else {
        return Ok(None);
    };
    let target = folder.join(name);
    if let (Ok(from), Ok(to)) = (source.canonicalize(), target.canonicalize())
        && from == to
    {
        return Ok(None);
    }
    let mut from = fs::File::open(source).map_err(|error| failed("read", source, error))?;
    let mut write = || {
        let mut file = aside(folder)?;
        io::copy(&mut from, &mut file)?;
        file.as_file().sync_all()?;
        Ok(file)
    };
    let file = write().map_err(|error| failed("write", &target, error))?;
    Ok(Some((name.to_owned(), file)))
}

fn persist(file: NamedTempFile, path: PathBuf) -> Result<()> {
    match file.persist(&path) {
        Ok(_) => Ok(()),
        Err(error) => Err(failed("write", &path, error.error)),
    }
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io {
        action,
        path: path.into(),
        source,
    }
}
