//! `finetune`: a pretrained model, some data of one's own, one or more optimizers; and `predict`, which reads
//! what it saved.

pub(crate) mod args;
mod data;
mod groups;
mod model;
mod objective;
mod predict;
mod presets;
mod run;
mod spec;

use std::{path::Path, sync::Mutex};

use anyhow::Result;
use candle_core::{DType, Device};
use sala_models::VarStore;
use sha2::Digest;

pub(crate) use predict::predict;

use crate::{
    hex::hex,
    progress,
    record::{Access, RunDir},
    registry, report,
    runs::{self, Outcome, Plan, Work},
    shell,
};
use data::{Overlap, Parts, load_images, load_language, load_texts, overlaps};
use model::Model;
use run::Trainer;
use spec::{FineTune, Keep, Task};

/// Runs what is missing of a fine-tuning in `out`, writes report and models there and prints the report.
pub(crate) fn finetune(spec: &FineTune, out: &Path, fresh: bool, work: &Work) -> Result<Outcome> {
    let device = spec.device.open()?;
    spec.precision.apply();
    let (model, parts) = prepare(spec)?;
    let (said, start) = check(spec, &model)?;
    progress::say(&said);
    for words in overlaps(&parts).into_iter().map(Overlap::words) {
        progress::say(&format!("Warning: {words}"));
    }
    if spec.training.early_stopping.is_some() && parts.test.is_none() {
        progress::say(
            "Early stopping without a test part: each run is scored on the part that chose its epoch, so its score is too \
             good and the report gives no verdict. --test FILE or --test 0.2 keeps a part for that.",
        );
    }
    let spec = &pinned(spec, &model);
    let dir = RunDir::open(
        out,
        &spec.to_toml()?,
        Access::alone(&spec.device.to_string(), fresh),
    )?;
    let trainer = Trainer {
        spec,
        model: &model,
        parts: &parts,
        device,
        lengths: parts.train.lengths(),
        data: made_of(&parts, &start)?,
        dir: &dir,
        keep: match spec.training.keep {
            Keep::Best | Keep::None if work.running.save_models => Keep::All,
            keep => keep,
        },
        complete: Mutex::default(),
    };
    for &seed in &spec.training.seeds {
        for optimizer in &spec.optimizers {
            let found = dir.finished(&optimizer.name, seed)?;
            runs::lock(&trainer.complete).extend(found);
        }
    }
    let plan = Plan {
        seeds: &spec.training.seeds,
        optimizers: &spec.optimizers,
        title: title(spec, &model, &parts),
        epochs: spec.training.epochs,
        steps: spec.training.epochs * trainer.steps_per_epoch(),
        metric: spec.metric(),
        long: true,
    };
    let (records, outcome) = runs::run_missing(&plan, &trainer, &dir, work)?;
    let description = description(spec, &plan.title);
    let table = report::conclude(&dir, &records, &description)?;
    shell::print(format!("{table}\nRecords: {}\n", out.display()))?;
    if trainer.keep != Keep::None
        && let Some(best) = trainer.best()
    {
        let folder = trainer.model_folder(&best.optimizer, best.seed);
        shell::print(format!(
            "Model:   {} (best on the validation part)\n",
            folder.display()
        ))?;
        if model.differs_in_transformers() {
            progress::say(
                "transformers loads this folder as a classifier by the first token, which this one by the mean is not; \
                 docs/finetuning.md has the lines that load it as it is",
            );
        }
    }
    Ok(outcome)
}

/// The same with the commit of a model of the hub, so that what is continued starts from the same weights.
fn pinned(spec: &FineTune, model: &Model) -> FineTune {
    let mut spec = spec.clone();
    if let Some(commit) = model.commit() {
        let name = spec.model.path.split('@').next().unwrap_or_default();
        spec.model.path = format!("{name}@{commit}");
    }
    spec
}

/// The model, with the classes of the data, and the data as it wants them.
fn prepare(spec: &FineTune) -> Result<(Model, Parts)> {
    let model = Model::open(&spec.model, spec.task)?;
    let data = &spec.data;
    let (labels, parts) = match spec.task {
        Task::TextClassification => {
            let tokenizer = model.tokenizer(data.max_length)?;
            load_texts(data, model.labels(), &tokenizer, model.padding())?
        }
        Task::ImageClassification => load_images(data, model.labels(), &model.preprocessing()?)?,
        Task::CausalLm => {
            let tokenizer = model.tokenizer(data.max_length)?;
            return Ok((model, load_language(data, &tokenizer, 0)?));
        }
    };
    Ok((model.with_labels(labels.names())?, parts))
}

/// Makes a network and the optimizers once, so that what does not fit is known before anything runs; says what
/// was loaded. Yields the network, too.
fn check(spec: &FineTune, model: &Model) -> Result<(String, VarStore)> {
    let (store, _, report) = model.network(0, &Device::Cpu, DType::F32)?;
    let params = groups::params(&store, &spec.training)?;
    for optimizer in &spec.optimizers {
        registry::optimizer(optimizer, params.clone())?;
    }
    let (trained, all) = (params.num_elements(), store.num_parameters());
    let said = format!("{report}; {trained} of {all} parameters are trained");
    Ok((said, store))
}

/// A fingerprint of what runs are made of: the examples as the network sees them, and the network before its first step,
/// whose weights may be replaced in their folder as data may be in theirs.
fn made_of(parts: &Parts, start: &VarStore) -> Result<String> {
    let mut hash = parts.hash();
    for (name, var) in start.all() {
        hash.update(name);
        for values in var.flatten_all()?.to_vec1::<f32>()?.chunks(4096) {
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            hash.update(&bytes);
        }
    }
    Ok(hex(&hash.finalize()))
}

fn title(spec: &FineTune, model: &Model, parts: &Parts) -> String {
    let examples = match spec.task {
        Task::TextClassification => "texts",
        Task::ImageClassification => "images",
        Task::CausalLm => "blocks of text",
    };
    let test = match &parts.test {
        Some(test) => format!(", {} for test", test.len()),
        None => ", none for test".into(),
    };
    let classes = match spec.task {
        Task::CausalLm => String::new(),
        _ => format!("; {} classes", model.labels().len()),
    };
    format!(
        "{}, {}: {} {examples} to train on, {} for validation{test}{classes}",
        spec.model.path,
        spec.task,
        parts.train.len(),
        parts.validation.len()
    )
}

fn description(spec: &FineTune, title: &str) -> String {
    let description = &spec.description;
    if description.is_empty() {
        return format!("{title}.");
    }
    format!("{description}\n\n{title}.")
}
