//! What the tests of published models share: the folders of `tests/reference/transformers`, networks built
//! from them, and files made for a test.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use sala_models::{
    Rng, VarStore,
    pretrained::{Built, ModelConfig, Task},
    transformer::Pooling,
};

/// The folders, one for each architecture.
pub(crate) const MODELS: [&str; 8] = [
    "bert",
    "roberta",
    "distilbert",
    "vit",
    "resnet-basic",
    "resnet-bottleneck",
    "gpt2",
    "llama",
];

/// Classifying texts as BERT does.
pub(crate) const CLASSIFY: Task = Task::TextClassification {
    pooling: Pooling::First,
};

pub(crate) type Tensors = BTreeMap<String, Tensor>;

pub(crate) fn folder(model: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/reference/transformers");
    folder.join(model)
}

pub(crate) fn config(model: &str) -> ModelConfig {
    ModelConfig::read(folder(model).join("config.json")).unwrap()
}

/// The task that a model was published for.
pub(crate) fn task(config: &ModelConfig) -> Task {
    config.task().unwrap()
}

/// A network as its configuration says, with initial weights of that seed.
pub(crate) fn build(
    config: &ModelConfig,
    task: Task,
    seed: u64,
    dtype: DType,
) -> (VarStore, Built) {
    let store = VarStore::new(seed, dtype, &Device::Cpu);
    let network = config.build(task, &store, Rng::new(0)).unwrap();
    (store, network)
}

/// The tensors of a published file.
pub(crate) fn published(model: &str) -> Tensors {
    read(&folder(model).join("model.safetensors"))
}

pub(crate) fn read(path: &Path) -> Tensors {
    let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    tensors.into_iter().collect()
}

/// Writes tensors as published files are written.
pub(crate) fn write(path: &Path, tensors: &Tensors) {
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = safetensors::serialize(tensors, Some(metadata)).unwrap();
    fs::write(path, bytes).unwrap();
}

/// The same tensors under other names; those that get none are left out.
pub(crate) fn renamed(tensors: &Tensors, name: impl Fn(&str) -> Option<String>) -> Tensors {
    let pairs = tensors.iter();
    (pairs.filter_map(|(old, t)| Some((name(old)?, t.clone())))).collect()
}

/// A tensor's dtype, shape and bytes.
pub(crate) type Bits = (String, Vec<usize>, Vec<u8>);

pub(crate) fn bits(t: &Tensor) -> Bits {
    let view = safetensors::View::data(&t).into_owned();
    (format!("{:?}", t.dtype()), t.dims().to_vec(), view)
}

/// Every variable of a store, bit by bit.
pub(crate) fn store_bits(store: &VarStore) -> BTreeMap<String, Bits> {
    let all = store.all().into_iter();
    all.map(|(name, var)| (name, bits(&var))).collect()
}

/// The names of a folder's files, sorted.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
