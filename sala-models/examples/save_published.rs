//! Loads published models, saves each into a folder of its own, and writes what it answers beside it, for
//! `tests/reference/transformers/reload.py` to compare with Python's `transformers`:
//!
//! ```sh
//! cargo run -p sala-models --example save_published -- sala-models/tests/reference/transformers OUT
//! ```
//!
//! Every folder below the first argument that has a `config.json` is taken; its `expected.safetensors` holds
//! the inputs. What classifies texts is saved a second time as `NAME-mean`, a classifier by the mean of the tokens.

use std::{collections::HashMap, error::Error, fs, path::Path};

use candle_core::{DType, Device, Tensor};
use sala_models::{
    Mode, Rng, VarStore,
    pretrained::{
        Built, LoadOptions, ModelConfig, SaveOptions, Snapshot, Task, Weights, save::save,
    },
    transformer::{Pooling, Tokens},
};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [models, out] = arguments.as_slice() else {
        return Err("wanted two arguments: a folder of models, and a folder to write to".into());
    };
    for entry in fs::read_dir(models)? {
        let source = entry?.path();
        if let (true, Some(name)) = (source.join("config.json").is_file(), source.file_name()) {
            let target = Path::new(out).join(name);
            let config = ModelConfig::read(source.join("config.json"))?;
            copy(&source, &target, &config)?;
            if let Some(Task::TextClassification { .. }) = config.task() {
                let mean = format!("{}-mean", name.display());
                let config = config.with_pooling(Pooling::Mean);
                copy(&source, &target.with_file_name(mean), &config)?;
            }
        }
    }
    Ok(())
}

/// A model from `source` to `target`, and its logits to `target/answer.safetensors`.
fn copy(source: &Path, target: &Path, config: &ModelConfig) -> Result<(), Box<dyn Error>> {
    let snapshot = Snapshot::local(source)?;
    let task = config.task().ok_or("a model for none of the tasks here")?;
    let store = VarStore::new(0, DType::F32, &Device::Cpu);
    let network = config.build(task, &store, Rng::new(0))?;
    Weights::open(snapshot.weights())?.load(&store, &LoadOptions::of(config, task))?;
    let options = SaveOptions {
        companions: Some(&snapshot),
        ..SaveOptions::of(config)
    };
    save(&store, &config.to_json(), target, &options)?;

    let inputs = source.join("expected.safetensors");
    let inputs = candle_core::safetensors::load(inputs, &Device::Cpu)?;
    let logits = answer(&network, &inputs)?;
    let answer = HashMap::from([("logits", logits)]);
    candle_core::safetensors::save(&answer, target.join("answer.safetensors"))?;
    Ok(())
}

fn answer(network: &Built, inputs: &HashMap<String, Tensor>) -> Result<Tensor, Box<dyn Error>> {
    let input = |name: &str| inputs.get(&format!("input.{name}"));
    Ok(match network {
        Built::Images(network) => {
            let images = input("pixel_values").ok_or("no input.pixel_values")?;
            network.forward(&images.to_dtype(DType::F32)?, Mode::eval())?
        }
        Built::Tokens(network) => {
            let ids = input("input_ids").ok_or("no input.input_ids")?;
            let tokens = Tokens::new(ids.clone());
            let tokens = match input("attention_mask") {
                Some(mask) => tokens.with_mask(mask.clone()),
                None => tokens,
            };
            network.forward_tokens(&tokens, Mode::eval())?
        }
    })
}
