//! Published weights into networks: names, dtypes, shards, and all that does not fit.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use sala_models::{
    Error, Rng, VarStore,
    pretrained::{LoadOptions, ModelConfig, Task, Weights},
    transformer::{Bert, Pooling},
};

use crate::folders::{
    CLASSIFY, MODELS, Tensors, bits, build, config, folder, published, renamed, store_bits, task,
    write,
};

/// A folder with these tensors as `model.safetensors`.
fn folder_of(tensors: &Tensors) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("model.safetensors"), tensors);
    folder
}

fn open(path: &Path) -> Weights {
    Weights::open(path).unwrap()
}

/// A BERT classifier in f32, with initial weights.
pub(crate) fn bert() -> (ModelConfig, VarStore) {
    let config = config("bert");
    let (store, _) = build(&config, CLASSIFY, 0, DType::F32);
    (config, store)
}

/// The differences that loading tells, after checking that it changed nothing.
pub(crate) fn refused(
    weights: &Weights,
    store: &VarStore,
    options: &LoadOptions<'_>,
) -> (Vec<String>, Vec<String>, Vec<String>) {
    let before = store_bits(store);
    match weights.load(store, options).unwrap_err() {
        Error::Weights {
            missing,
            surplus,
            misshapen,
            ..
        } => {
            assert_eq!(store_bits(store), before, "loaded in part");
            (missing, surplus, misshapen)
        }
        other => panic!("{other}"),
    }
}

#[test]
fn every_published_model_is_loaded_bit_by_bit() {
    for model in MODELS {
        let config = config(model);
        let task = task(&config);
        let (store, _) = build(&config, task, 0, DType::F32);
        let report = open(&folder(model))
            .load(&store, &LoadOptions::of(&config, task))
            .unwrap();
        let weights = published(model);
        for (name, var) in store.all() {
            let hub_name = config.hub_name(&name);
            assert_eq!(bits(&var), bits(&weights[&hub_name]), "{model} {name}");
        }
        assert_eq!(report.loaded.len(), store.all().len(), "{model}");
        assert_eq!(report.loaded.len() + report.ignored.len(), weights.len());
        assert!(report.fresh.is_empty());
        let counts = |name: &String| name.ends_with("num_batches_tracked");
        assert!(report.ignored.iter().all(counts), "{report}");
    }
}

#[test]
fn floats_of_every_width_become_the_networks() {
    let weights = published("bert");
    for stored in [DType::F16, DType::BF16, DType::F32, DType::F64] {
        let converted = |t: &Tensor| t.to_dtype(stored).unwrap();
        let tensors = weights.iter().map(|(n, t)| (n.clone(), converted(t)));
        let folder = folder_of(&tensors.collect());
        for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
            let config = config("bert");
            let (store, _) = build(&config, CLASSIFY, 0, dtype);
            let options = LoadOptions::of(&config, CLASSIFY);
            open(folder.path()).load(&store, &options).unwrap();
            for (name, var) in store.all() {
                let wanted = converted(&weights[&name]).to_dtype(dtype).unwrap();
                assert_eq!(bits(&var), bits(&wanted), "{name}: {stored:?} as {dtype:?}");
            }
        }
    }
}

#[test]
fn a_base_models_file_lacks_the_prefix_and_the_head_that_is_asked_for_afresh() {
    let weights = published("bert");
    let base = renamed(&weights, |name| {
        Some(name.strip_prefix("bert.")?.to_owned())
    });
    let folder = folder_of(&base);
    let (config, store) = bert();
    let before = store_bits(&store);
    let options = LoadOptions::of(&config, CLASSIFY);
    let (missing, surplus, misshapen) = refused(&open(folder.path()), &store, &options);
    assert_eq!(missing, ["classifier.bias", "classifier.weight"]);
    assert!(surplus.is_empty() && misshapen.is_empty());

    let options = LoadOptions {
        fresh: config.head_names(CLASSIFY),
        ..LoadOptions::of(&config, CLASSIFY)
    };
    let report = open(folder.path()).load(&store, &options).unwrap();
    assert_eq!(report.fresh, ["classifier.bias", "classifier.weight"]);
    for (name, var) in store.all() {
        let wanted = base.get(name.strip_prefix("bert.").unwrap_or(""));
        let wanted = wanted.map_or_else(|| before[&name].clone(), bits);
        assert_eq!(bits(&var), wanted, "{name}");
    }

    // Without the pooler the file's is left out, which its full name asks for.
    let task = Task::TextClassification {
        pooling: Pooling::Mean,
    };
    let (store, _) = build(&config, task, 0, DType::F32);
    let options = LoadOptions {
        fresh: config.head_names(task),
        ..LoadOptions::of(&config, task)
    };
    let report = open(folder.path()).load(&store, &options).unwrap();
    assert_eq!(report.ignored, ["pooler.dense.bias", "pooler.dense.weight"]);
}

#[test]
fn an_encoder_at_the_root_takes_a_file_with_the_prefix() {
    let config = config("bert");
    let sala_models::pretrained::Architecture::Bert(sizes) = config.architecture() else {
        panic!()
    };
    let store = VarStore::new(0, DType::F32, &Device::Cpu);
    Bert::new(sizes, store.builder(), Rng::new(0)).unwrap();
    let prefixed = LoadOptions {
        base_model_prefix: Some("bert"),
        ..LoadOptions::default()
    };
    let (missing, surplus, _) = refused(&open(&folder("bert")), &store, &prefixed);
    assert!(missing.is_empty());
    assert_eq!(
        surplus,
        [
            "bert.pooler.dense.bias",
            "bert.pooler.dense.weight",
            "classifier.bias",
            "classifier.weight"
        ]
    );
    let options = LoadOptions {
        ignored: vec!["pooler.*", "classifier.*"],
        ..prefixed
    };
    let report = open(&folder("bert")).load(&store, &options).unwrap();
    assert_eq!(report.ignored, surplus);
    let weights = published("bert");
    for (name, var) in store.all() {
        assert_eq!(
            bits(&var),
            bits(&weights[&format!("bert.{name}")]),
            "{name}"
        );
    }
}

#[test]
fn norms_may_have_their_first_names() {
    let weights = published("bert");
    let old = renamed(&weights, |name| {
        let name = name.replace("LayerNorm.weight", "LayerNorm.gamma");
        Some(name.replace("LayerNorm.bias", "LayerNorm.beta"))
    });
    assert!(old.contains_key("bert.embeddings.LayerNorm.gamma"));
    let (config, store) = bert();
    let folder = folder_of(&old);
    let report = open(folder.path())
        .load(&store, &LoadOptions::of(&config, CLASSIFY))
        .unwrap();
    assert_eq!(report.loaded.len(), weights.len());
    for (name, var) in store.all() {
        assert_eq!(bits(&var), bits(&weights[&name]), "{name}");
    }
}

#[test]
fn constants_that_old_files_hold_are_left_out_and_said() {
    let mut weights = published("bert");
    let ids = Tensor::arange(0i64, 20, &Device::Cpu).unwrap();
    weights.insert("bert.embeddings.position_ids".into(), ids.clone());
    weights.insert("cls.predictions.bias".into(), ids);
    let folder = folder_of(&weights);
    let (config, store) = bert();
    let report = open(folder.path())
        .load(&store, &LoadOptions::of(&config, CLASSIFY))
        .unwrap();
    let names = ["bert.embeddings.position_ids", "cls.predictions.bias"];
    assert_eq!(report.ignored, names);
    assert!(report.to_string().contains(&names.join(", ")), "{report}");
    let (_, surplus, _) = refused(&open(folder.path()), &store, &LoadOptions::default());
    assert_eq!(surplus, names);
}

#[test]
fn tied_weights_are_taken_from_either_name_and_must_agree() {
    let config = config("gpt2");
    let weights = published("gpt2");
    let (table, head) = ("transformer.wte.weight", "lm_head.weight");
    let load = |tensors: &Tensors| {
        let (store, _) = build(&config, Task::CausalLm, 0, DType::F32);
        let folder = folder_of(tensors);
        let options = LoadOptions::of(&config, Task::CausalLm);
        let report = open(folder.path()).load(&store, &options);
        report.map(|_| bits(&store.get(table).unwrap()))
    };
    let mut both = weights.clone();
    both.insert(head.into(), weights[table].clone());
    assert_eq!(load(&both).unwrap(), bits(&weights[table]));
    let mut only_head = both.clone();
    only_head.remove(table);
    assert_eq!(load(&only_head).unwrap(), bits(&weights[table]));
    let other = (&weights[table] + 1.0).unwrap();
    both.insert(head.into(), other);
    let text = load(&both).unwrap_err().to_string();
    assert!(
        text.contains("lm_head.weight (tied to transformer.wte.weight"),
        "{text}"
    );
    only_head.remove(head);
    let text = load(&only_head).unwrap_err().to_string();
    assert!(
        text.contains("1 missing in the file: transformer.wte.weight"),
        "{text}"
    );
}

#[test]
fn one_error_lists_everything_that_does_not_fit() {
    let mut weights = published("bert");
    let change = |t: &Tensor, dtype| t.to_dtype(dtype).unwrap();
    weights.remove("bert.embeddings.LayerNorm.bias").unwrap();
    weights.remove("bert.pooler.dense.bias").unwrap();
    let wide = Tensor::zeros((3, 25), DType::F32, &Device::Cpu).unwrap();
    weights.insert("classifier.weight".into(), wide);
    let whole = change(&weights["classifier.bias"], DType::I64);
    weights.insert("classifier.bias".into(), whole.clone());
    weights.insert("surplus.weight".into(), whole);
    let folder = folder_of(&weights);
    let (config, store) = bert();
    let options = LoadOptions::of(&config, CLASSIFY);
    let (missing, surplus, misshapen) = refused(&open(folder.path()), &store, &options);
    assert_eq!(
        missing,
        ["bert.embeddings.LayerNorm.bias", "bert.pooler.dense.bias"]
    );
    assert_eq!(surplus, ["surplus.weight"]);
    assert_eq!(
        misshapen,
        [
            "classifier.bias (wanted [3] float, got [3] I64)",
            "classifier.weight (wanted [3, 24] float, got [3, 25] F32)"
        ]
    );
    let text = open(folder.path())
        .load(&store, &options)
        .unwrap_err()
        .to_string();
    assert!(text.contains(&*folder.path().to_string_lossy()), "{text}");
    assert!(
        text.contains("`fresh`") && text.contains("`ignored`"),
        "{text}"
    );
}

#[test]
fn a_networks_own_name_stands_beside_the_hubs() {
    let config = config("resnet-basic");
    let task = Task::ImageClassification;
    let (store, _) = build(&config, task, 0, DType::F32);
    let mut weights = published("resnet-basic");
    weights
        .remove("resnet.embedder.embedder.convolution.weight")
        .unwrap();
    let folder = folder_of(&weights);
    let options = LoadOptions::of(&config, task);
    let (missing, ..) = refused(&open(folder.path()), &store, &options);
    assert_eq!(
        missing,
        ["conv1.weight (resnet.embedder.embedder.convolution.weight on the hub)"]
    );
}

#[test]
fn a_head_of_another_size_is_an_error_unless_it_starts_afresh() {
    let config = config("bert")
        .with_labels(["a", "b", "c", "d", "e"])
        .unwrap();
    let (store, _) = build(&config, CLASSIFY, 0, DType::F32);
    let before = store_bits(&store);
    let options = LoadOptions::of(&config, CLASSIFY);
    let (_, _, misshapen) = refused(&open(&folder("bert")), &store, &options);
    assert_eq!(misshapen.len(), 2);
    let options = LoadOptions {
        fresh: config.head_names(CLASSIFY),
        ..options
    };
    let report = open(&folder("bert")).load(&store, &options).unwrap();
    for names in [&report.fresh, &report.ignored] {
        assert_eq!(names, &["classifier.bias", "classifier.weight"]);
    }
    for name in &report.fresh {
        assert_eq!(store_bits(&store)[name], before[name]);
    }
}
