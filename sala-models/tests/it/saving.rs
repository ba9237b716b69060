//! Networks into folders that `transformers` loads: bit by bit, and never half.

use std::fs;

use candle_core::DType;
use candle_nn::Init;
use safetensors::SafeTensors;
use sala_models::{
    Error, VarStore,
    pretrained::{LoadOptions, ModelConfig, SaveOptions, Snapshot, Weights, save::save},
};
use serde_json::json;

use crate::folders::{
    CLASSIFY, MODELS, bits, build, config, folder, names, published, read, store_bits, task, write,
};

/// A published model in memory.
fn loaded(model: &str, dtype: DType) -> (ModelConfig, VarStore) {
    let config = config(model);
    let task = task(&config);
    let (store, _) = build(&config, task, 0, dtype);
    let weights = Weights::open(folder(model)).unwrap();
    weights
        .load(&store, &LoadOptions::of(&config, task))
        .unwrap();
    (config, store)
}

#[test]
fn loading_saving_and_loading_again_changes_no_bit() {
    for model in MODELS {
        let (config, store) = loaded(model, DType::F32);
        let target = tempfile::tempdir().unwrap();
        let target = target.path().join("made/when/needed");
        save(
            &store,
            &config.to_json(),
            &target,
            &SaveOptions::of(&config),
        )
        .unwrap();
        assert_eq!(names(&target), ["config.json", "model.safetensors"]);

        let mut original = published(model);
        for (name, t) in &mut original {
            // Nothing here counts batches.
            if name.ends_with("num_batches_tracked") {
                *t = t.zeros_like().unwrap();
            }
        }
        let saved = read(&target.join("model.safetensors"));
        assert!(saved.keys().eq(original.keys()), "{model}");
        for (name, t) in &saved {
            assert_eq!(bits(t), bits(&original[name]), "{model} {name}");
        }

        let again = ModelConfig::read(target.join("config.json")).unwrap();
        assert_eq!(again, config);
        let keys = |config: &ModelConfig| -> Vec<String> {
            let json = config.to_json();
            json.as_object().unwrap().keys().cloned().collect()
        };
        assert_eq!(keys(&again), keys(&config), "{model}");
        let task = task(&again);
        let (other, _) = build(&again, task, 9, DType::F32);
        let weights = Weights::open(&target).unwrap();
        weights
            .load(&other, &LoadOptions::of(&again, task))
            .unwrap();
        assert_eq!(store_bits(&other), store_bits(&store), "{model}");
    }
}

#[test]
fn the_file_says_that_it_is_of_the_kind_that_transformers_reads() {
    let (config, store) = loaded("bert", DType::F32);
    let target = tempfile::tempdir().unwrap();
    save(
        &store,
        &config.to_json(),
        target.path(),
        &SaveOptions::of(&config),
    )
    .unwrap();
    let bytes = fs::read(target.path().join("model.safetensors")).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().as_ref().unwrap();
    assert_eq!(metadata.get("format").map(String::as_str), Some("pt"));
}

#[test]
fn floats_are_saved_as_they_are_or_as_asked_for() {
    for own in [DType::BF16, DType::F16, DType::F64] {
        let (config, store) = loaded("bert", own);
        let ids = store.builder();
        let ids = ids.get_with_hints_dtype(2, "extra.ids", Init::Const(7.0), DType::U32);
        ids.unwrap();
        for asked in [None, Some(DType::F32), Some(DType::BF16)] {
            let target = tempfile::tempdir().unwrap();
            let options = SaveOptions {
                dtype: asked,
                ..SaveOptions::of(&config)
            };
            save(&store, &config.to_json(), target.path(), &options).unwrap();
            let saved = read(&target.path().join("model.safetensors"));
            for (name, var) in store.all() {
                let dtype = if var.dtype().is_float() {
                    asked.unwrap_or(own)
                } else {
                    DType::U32
                };
                let wanted = var.to_dtype(dtype).unwrap();
                assert_eq!(bits(&saved[&name]), bits(&wanted), "{name}");
            }
        }
    }
}

// Catches f32 weights beside the bf16 of the model that they started from, in which `transformers` would load them.
#[test]
fn the_configuration_states_the_dtype_that_was_saved() {
    let (config, store) = loaded("bert", DType::F32);
    let mut json = config.to_json();
    let keys = json.as_object_mut().unwrap();
    keys.insert("dtype".into(), "bfloat16".into());
    keys.insert("torch_dtype".into(), "bfloat16".into());
    let stated = |json: &serde_json::Value, dtype| {
        let target = tempfile::tempdir().unwrap();
        let options = SaveOptions {
            dtype,
            ..SaveOptions::of(&config)
        };
        save(&store, json, target.path(), &options).unwrap();
        let saved = ModelConfig::read(target.path().join("config.json")).unwrap();
        let saved = saved.to_json();
        ["dtype", "torch_dtype"].map(|key| saved.get(key).cloned())
    };
    for (asked, name) in [
        (None, "float32"),
        (Some(DType::F16), "float16"),
        (Some(DType::BF16), "bfloat16"),
    ] {
        assert_eq!(stated(&json, asked), [Some(json!(name)), Some(json!(name))]);
    }
    let keys = json.as_object_mut().unwrap();
    keys.remove("dtype");
    keys["torch_dtype"] = serde_json::Value::Null;
    assert_eq!(stated(&json, None), [None, Some(serde_json::Value::Null)]);
}

#[test]
fn the_tokenizers_files_are_copied_and_nothing_else() {
    let source = tempfile::tempdir().unwrap();
    let target = tempfile::tempdir().unwrap();
    write(&source.path().join("model.safetensors"), &published("bert"));
    let copied = [
        ("merges.txt", "#version: 0.2\r\n\u{120} t\n"),
        ("tokenizer.json", "{\"b\": 1,  \"a\":\t2}"),
        ("vocab.txt", "[PAD]\n"),
    ];
    for (name, text) in copied
        .iter()
        .chain(&[("README.md", "x"), ("pytorch_model.bin", "x")])
    {
        fs::write(source.path().join(name), text).unwrap();
    }
    let (config, store) = loaded("bert", DType::F32);
    let snapshot = Snapshot::local(source.path().join("model.safetensors")).unwrap();
    let options = SaveOptions {
        companions: Some(&snapshot),
        ..SaveOptions::of(&config)
    };
    save(&store, &config.to_json(), target.path(), &options).unwrap();
    let wanted = [
        "config.json",
        "merges.txt",
        "model.safetensors",
        "tokenizer.json",
        "vocab.txt",
    ];
    assert_eq!(names(target.path()), wanted);
    for (name, text) in copied {
        let copy = fs::read_to_string(target.path().join(name)).unwrap();
        assert_eq!(copy, text, "{name}");
    }

    // A model is saved into its own folder.
    save(&store, &config.to_json(), source.path(), &options).unwrap();
    for (name, text) in copied {
        let copy = fs::read_to_string(source.path().join(name)).unwrap();
        assert_eq!(copy, text, "{name}");
    }
}

#[test]
fn an_earlier_model_is_replaced_shards_and_all() {
    let target = tempfile::tempdir().unwrap();
    let index = target.path().join("model.safetensors.index.json");
    fs::write(&index, r#"{"weight_map": {"a": "gone.safetensors"}}"#).unwrap();
    let (config, store) = loaded("bert", DType::F32);
    save(
        &store,
        &config.to_json(),
        target.path(),
        &SaveOptions::of(&config),
    )
    .unwrap();
    assert!(!index.exists());
    for (_, var) in store.all() {
        var.set(&(var.as_tensor() * 2.0).unwrap()).unwrap();
    }
    save(
        &store,
        &config.to_json(),
        target.path(),
        &SaveOptions::of(&config),
    )
    .unwrap();
    let (other, _) = build(&config, CLASSIFY, 9, DType::F32);
    let weights = Weights::open(target.path()).unwrap();
    weights
        .load(&other, &LoadOptions::of(&config, CLASSIFY))
        .unwrap();
    assert_eq!(store_bits(&other), store_bits(&store));
}

#[test]
fn a_save_that_fails_leaves_the_old_model_or_none() {
    let target = tempfile::tempdir().unwrap();
    let (config, store) = loaded("bert", DType::F32);
    save(
        &store,
        &config.to_json(),
        target.path(),
        &SaveOptions::of(&config),
    )
    .unwrap();
    let old = fs::read(target.path().join("model.safetensors")).unwrap();

    // While files are written: what was there stays.
    let options = SaveOptions {
        hub_name: Some(Box::new(|_| "same".into())),
        ..SaveOptions::default()
    };
    let error = save(&store, &json!({}), target.path(), &options).unwrap_err();
    assert!(matches!(error, Error::Argument { .. }), "{error}");
    assert!(error.to_string().contains("`same`"), "{error}");
    assert_eq!(
        fs::read(target.path().join("model.safetensors")).unwrap(),
        old
    );

    // While they are put in their places: there are no weights, so there is no model.
    fs::remove_file(target.path().join("config.json")).unwrap();
    fs::create_dir(target.path().join("config.json")).unwrap();
    let saved = save(
        &store,
        &config.to_json(),
        target.path(),
        &SaveOptions::of(&config),
    );
    let error = saved.unwrap_err();
    assert!(error.to_string().contains("config.json"), "{error}");
    let error = Weights::open(target.path()).unwrap_err();
    assert!(matches!(error, Error::NoWeights { .. }), "{error}");
    assert_eq!(names(target.path()), ["config.json"], "files lie about");
}

#[cfg(unix)]
#[test]
fn saved_files_are_as_readable_as_any_new_file() {
    use std::os::unix::fs::PermissionsExt;

    let target = tempfile::tempdir().unwrap();
    let (config, store) = loaded("bert", DType::F32);
    save(
        &store,
        &config.to_json(),
        target.path(),
        &SaveOptions::of(&config),
    )
    .unwrap();
    fs::write(target.path().join("plain"), "").unwrap();
    let mode = |name: &str| {
        fs::metadata(target.path().join(name))
            .unwrap()
            .permissions()
            .mode()
    };
    for name in ["config.json", "model.safetensors"] {
        assert_eq!(mode(name), mode("plain"), "{name}");
    }
}
