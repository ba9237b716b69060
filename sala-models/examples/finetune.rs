//! Fine-tunes a published BERT with SALA over AdamW, on texts that are token ids already.
//!
//! ```sh
//! cargo run --release -p sala-models --example finetune -- models/all-MiniLM-L6-v2 out
//! ```
//!
//! The folder `out` is then one that `transformers` loads. `sala-bench finetune` does the same with a tokenizer,
//! tables, validation, checkpoints and several optimizers.

#![allow(clippy::print_stdout)]

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use sala_core::{Adam, Minimizer, ParamSet, ParamsAdam, ParamsSala, Pass, Sala};
use sala_models::{
    Mode, Rng, VarStore,
    ops::cross_entropy,
    pretrained::{
        Built, LoadOptions, ModelConfig, SaveOptions, Snapshot, Task, Weights, save::save,
    },
    transformer::{Pooling, Tokens},
};

const SEED: u64 = 0;
const STEPS: u64 = 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, out] = &arguments[..] else {
        return Err("wanted two folders: a model of BERT's shape, and where to save".into());
    };

    // The published network with a head for two classes, which starts afresh from the seed.
    let snapshot = Snapshot::local(model)?;
    let config = ModelConfig::read(snapshot.config()?)?.with_labels(["statement", "question"])?;
    let config = config.with_pooling(Pooling::Mean);
    let task = Task::TextClassification {
        pooling: Pooling::Mean,
    };
    let store = VarStore::new(SEED, DType::F32, &Device::Cpu);
    let Built::Tokens(network) = config.build(task, &store, Rng::new(SEED))? else {
        return Err("wanted a model of texts".into());
    };
    let options = LoadOptions {
        fresh: config.head_names(task),
        ..LoadOptions::of(&config, task)
    };
    println!(
        "{}",
        Weights::open(snapshot.weights())?.load(&store, &options)?
    );

    // "it is late . / is it late ?" and the like in bert-base-uncased's vocabulary.
    let ids: [[u32; 6]; 4] = [
        [101, 2009, 2003, 2397, 1012, 102],
        [101, 2003, 2009, 2397, 1029, 102],
        [101, 2002, 2003, 2182, 1012, 102],
        [101, 2003, 2002, 2182, 1029, 102],
    ];
    let tokens = Tokens::new(Tensor::new(&ids, &Device::Cpu)?);
    let labels = Tensor::new(&[0u32, 1, 0, 1], &Device::Cpu)?;

    let params = ParamSet::new(store.trainable())?.without_decay_on_norms_and_biases();
    let adamw = Adam::new(
        &params,
        ParamsAdam {
            lr: 5e-5,
            ..ParamsAdam::adamw()
        },
    )?;
    let mut optimizer = Sala::new(
        params,
        adamw,
        ParamsSala {
            rho: 0.1,
            ..Default::default()
        },
    )?;
    for step in 0..STEPS {
        // The same masks in both passes of a step.
        let report = optimizer.step(&mut |_: Pass| {
            cross_entropy(
                &network.forward_tokens(&tokens, Mode::train(step))?,
                &labels,
            )
        })?;
        println!(
            "step {:2}  loss {:.4}  climbed {}",
            report.step, report.loss, report.ascent
        );
    }

    let options = SaveOptions {
        companions: Some(&snapshot),
        ..SaveOptions::of(&config)
    };
    optimizer.with_slow_weights(|| {
        save(&store, &config.to_json(), Path::new(out), &options)
            .map_err(candle_core::Error::from)?;
        Ok::<_, sala_core::Error>(())
    })?;
    println!("saved in {out}");
    Ok(())
}
