//! Models as Hugging Face's `transformers` saves them, in `tests/reference/transformers`: built from their
//! `config.json`, with its names, against its logits, losses, gradients and running statistics.

use std::{collections::HashMap, path::PathBuf};

use candle_core::{DType, Device, Tensor};
use sala_core::testing::{Tolerance, values};
use sala_models::{
    Mode, Rng, VarStore,
    kernels::with_choice,
    ops::cross_entropy,
    pretrained::{Built, ModelConfig, Task, names::matches},
    transformer::{Tokens, next_token_loss},
};

use crate::{gradcheck::FORMS, single};

pub(crate) const DEEP_F64: Tolerance = Tolerance {
    atol: 1e-9,
    rtol: 1e-9,
};
/// For language models: in the library, a model of f64 has a loss, and Llama's norms and angles, of f32.
pub(crate) const PARTLY_F32: Tolerance = Tolerance {
    atol: 1e-7,
    rtol: 1e-6,
};

pub(crate) type Tensors = HashMap<String, Tensor>;

pub(crate) fn path(file: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/reference/transformers");
    folder.join(file)
}

pub(crate) fn load(model: &str, file: &str) -> Tensors {
    candle_core::safetensors::load(path(model).join(file), &Device::Cpu).unwrap()
}

pub(crate) fn config(model: &str) -> ModelConfig {
    ModelConfig::read(path(model).join("config.json")).unwrap()
}

pub(crate) fn tokens(expected: &Tensors) -> Tokens {
    let tokens = Tokens::new(expected["input.input_ids"].clone());
    match expected.get("input.attention_mask") {
        Some(mask) => tokens.with_mask(mask.clone()),
        None => tokens,
    }
}

/// Gives a store the published weights, which must be exactly its own but for those said to be ignored.
pub(crate) fn set_parameters(store: &VarStore, config: &ModelConfig, task: Task, model: &str) {
    let weights = load(model, "model.safetensors");
    let ignored = config.ignored_names(task);
    let kept = |name: &&String| !ignored.iter().any(|pattern| matches(pattern, name));
    let mut wanted: Vec<String> = weights.keys().filter(kept).cloned().collect();
    wanted.sort();
    let own = store.all();
    let mut names: Vec<String> = own.iter().map(|(name, _)| config.hub_name(name)).collect();
    names.sort();
    assert_eq!(names, wanted);
    for (name, var) in own {
        let weight = &weights[&config.hub_name(&name)];
        assert_eq!(weight.dims(), var.dims(), "{name}");
        var.set(&weight.to_dtype(var.dtype()).unwrap()).unwrap();
    }
}

/// The logits of a network, for the inputs of the reference.
pub(crate) fn logits(network: &Built, expected: &Tensors, dtype: DType, mode: Mode) -> Tensor {
    match network {
        Built::Tokens(network) => network.forward_tokens(&tokens(expected), mode),
        Built::Images(network) => {
            let images = expected["input.pixel_values"].to_dtype(dtype).unwrap();
            network.forward(&images, mode)
        }
    }
    .unwrap()
}

/// What a network makes of the reference's inputs, called as there.
fn everything(model: &str, dtype: DType) -> Tensors {
    let config = config(model);
    let task = config.task().unwrap();
    let store = VarStore::new(0, dtype, &Device::Cpu);
    let network = config.build(task, &store, Rng::new(0)).unwrap();
    set_parameters(&store, &config, task, model);
    let expected = load(model, "expected.safetensors");
    let logits = logits(&network, &expected, dtype, Mode::train(0));
    let labels = &expected["input.labels"];
    let loss = match task {
        Task::CausalLm => next_token_loss(&logits, labels),
        _ => cross_entropy(&logits, labels),
    }
    .unwrap();
    let gradients = loss.backward().unwrap();
    let mut all = Tensors::from([("logits".into(), logits), ("loss".into(), loss)]);
    for (name, var) in store.trainable() {
        let gradient = gradients.get(&var).unwrap_or_else(|| panic!("no {name}"));
        all.insert(format!("grad.{}", config.hub_name(&name)), gradient.clone());
    }
    for (name, buffer) in store.buffers() {
        let key = format!("buffer.{}", config.hub_name(&name));
        all.insert(key, buffer.as_tensor().clone());
    }
    all
}

/// What a file of the reference has; counts of batches have no counterpart here.
fn wanted(model: &str, file: &str) -> Tensors {
    let mut wanted = load(model, file);
    wanted.retain(|key, _| !key.starts_with("input.") && !key.ends_with("num_batches_tracked"));
    wanted
}

fn check(model: &str, file: &str, tolerance: Tolerance) {
    let got = everything(model, DType::F64);
    let wanted = wanted(model, file);
    assert_eq!(got.len(), wanted.len());
    for (key, wanted) in wanted {
        tolerance.assert_tensors(&format!("{model}: {key}"), &got[&key], &wanted);
    }
}

const ALL: [&str; 8] = [
    "bert",
    "roberta",
    "distilbert",
    "vit",
    "resnet-basic",
    "resnet-bottleneck",
    "gpt2",
    "llama",
];

/// The file with what a model computes in f64 throughout.
fn exact(model: &str) -> &'static str {
    match model {
        "gpt2" | "llama" => "exact.safetensors",
        _ => "expected.safetensors",
    }
}

#[test]
fn all_eight_are_the_published_ones() {
    for model in ALL {
        for form in FORMS {
            with_choice(form, || check(model, exact(model), DEEP_F64));
        }
    }
}

#[test]
fn language_models_are_the_librarys_as_far_as_it_computes_in_f64() {
    for model in ["gpt2", "llama"] {
        check(model, "expected.safetensors", PARTLY_F32);
    }
}

#[test]
fn all_eight_are_as_close_in_single_precision_as_the_librarys() {
    let numbers = |tensors: Tensors| {
        let numbers = tensors.iter().map(|(key, t)| (key.clone(), values(t)));
        numbers.collect()
    };
    for model in ALL {
        let got = numbers(everything(model, DType::F32));
        let exact = numbers(wanted(model, exact(model)));
        single::check(model, &got, &exact, &path("single.json"));
    }
}
