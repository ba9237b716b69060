//! `config.json`: defaults, what is refused, labels, and what is kept.

use candle_core::{DType, Device};
use sala_models::{
    Rng, VarStore,
    cnn::ResNetConfig,
    pretrained::{Architecture, ModelConfig, ProblemType, Task},
    transformer::{
        BertConfig, DistilBertConfig, Gpt2Config, LlamaConfig, Pooling, RobertaConfig, VitConfig,
    },
};
use serde_json::{Map, Value, json};

use crate::{
    gradcheck::refused,
    published::{config, path},
};

pub(crate) const CLASSIFICATION: Task = Task::TextClassification {
    pooling: Pooling::First,
};

/// A configuration of this type with these keys more.
fn with(model_type: &str, keys: &Value) -> sala_models::Result<ModelConfig> {
    let mut json = json!({ "model_type": model_type });
    for (key, value) in keys.as_object().unwrap() {
        json[key] = value.clone();
    }
    ModelConfig::from_json(json)
}

fn architecture(model_type: &str, keys: &Value) -> Architecture {
    with(model_type, keys).unwrap().architecture().clone()
}

#[test]
fn absent_keys_mean_what_they_mean_to_the_library() {
    // Of the classes of transformers 5.23, which are not the published models in every case.
    let default = |model_type| architecture(model_type, &json!({}));
    assert_eq!(default("bert"), Architecture::Bert(BertConfig::default()));
    let roberta = BertConfig {
        vocab_size: 50_265,
        ..BertConfig::default()
    };
    let roberta = RobertaConfig {
        bert: roberta,
        pad_token_id: 1,
    };
    assert_eq!(default("roberta"), Architecture::Roberta(roberta));
    let distilbert = DistilBertConfig::default();
    assert_eq!(default("distilbert"), Architecture::DistilBert(distilbert));
    let vit = VitConfig {
        num_labels: 2,
        ..VitConfig::default()
    };
    assert_eq!(default("vit"), Architecture::Vit(vit));
    assert_eq!(default("gpt2"), Architecture::Gpt2(Gpt2Config::default()));
    let llama = LlamaConfig {
        max_position_embeddings: 2048,
        rms_norm_eps: 1e-6,
        ..LlamaConfig::default()
    };
    assert_eq!(default("llama"), Architecture::Llama(llama));
    let resnet = ResNetConfig {
        classes: 2,
        stem: sala_models::cnn::ResNetStem::ImageNet,
        ..ResNetConfig::resnet50()
    };
    assert_eq!(default("resnet"), Architecture::ResNet(resnet));
}

/// Every key of the seven types, with a value that is not its default, and what must then be different.
#[test]
fn every_key_reaches_the_network() {
    let keys = json!({
        "bert": {
            "vocab_size": 7, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
            "intermediate_size": 9, "hidden_act": "relu", "max_position_embeddings": 11,
            "type_vocab_size": 5, "layer_norm_eps": 0.25, "hidden_dropout_prob": 0.2,
            "attention_probs_dropout_prob": 0.3, "classifier_dropout": 0.4, "initializer_range": 0.5,
            "classifier_pooling": "mean", "num_labels": 4
        },
        "roberta": {"pad_token_id": 3, "hidden_size": 24, "num_labels": 4, "type_vocab_size": 1},
        "distilbert": {
            "vocab_size": 7, "dim": 24, "n_layers": 3, "n_heads": 4, "hidden_dim": 9,
            "activation": "relu", "max_position_embeddings": 11, "dropout": 0.2,
            "attention_dropout": 0.3, "seq_classif_dropout": 0.4, "initializer_range": 0.5,
            "classifier_pooling": "mean", "num_labels": 4
        },
        "vit": {
            "image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 24,
            "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 9,
            "hidden_act": "relu", "qkv_bias": false, "layer_norm_eps": 0.25,
            "hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3, "initializer_range": 0.5,
            "num_labels": 4
        },
        "gpt2": {
            "vocab_size": 7, "n_positions": 11, "n_embd": 24, "n_layer": 3, "n_head": 4,
            "n_inner": 9, "activation_function": "relu", "layer_norm_epsilon": 0.25,
            "embd_pdrop": 0.2, "resid_pdrop": 0.3, "attn_pdrop": 0.4, "initializer_range": 0.5
        },
        "llama": {
            "vocab_size": 7, "hidden_size": 24, "intermediate_size": 9, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10,
            "hidden_act": "gelu", "max_position_embeddings": 11, "rms_norm_eps": 0.25,
            "rope_theta": 100.0, "attention_bias": true, "attention_dropout": 0.3, "mlp_bias": true,
            "tie_word_embeddings": true, "initializer_range": 0.5,
            "rope_scaling": {"type": "linear", "factor": 2.0}
        },
        "resnet": {
            "num_channels": 1, "embedding_size": 8, "hidden_sizes": [8, 12, 16, 20],
            "depths": [1, 2, 3, 4], "layer_type": "basic", "downsample_in_first_stage": true,
            "downsample_in_bottleneck": true, "num_labels": 4
        }
    });
    for (model_type, keys) in keys.as_object().unwrap() {
        let whole = architecture(model_type, keys);
        for key in keys.as_object().unwrap().keys() {
            let mut fewer = keys.as_object().unwrap().clone();
            fewer.remove(key);
            // Without the key either the sizes no longer fit, or the network is another.
            if let Ok(other) = with(model_type, &Value::Object(fewer)) {
                assert_ne!(*other.architecture(), whole, "{model_type}: {key}");
            }
        }
        let debug = format!("{whole:?}");
        for value in ["24", "Relu", "0.25", "0.5"] {
            let given = keys.to_string();
            let wanted = given.to_lowercase().contains(&value.to_lowercase());
            assert!(!wanted || debug.contains(value), "{model_type}: {debug}");
        }
    }
}

/// A type, keys, and what the error must say of them.
type Case<'a> = (&'a str, Value, [&'a str; 3]);

#[track_caller]
fn all_refused<const N: usize>(cases: [Case; N]) {
    for (model_type, keys, parts) in cases {
        refused(with(model_type, &keys), &parts);
    }
}

#[test]
fn what_an_encoder_cannot_honour_is_refused_with_key_wanted_and_got() {
    all_refused([
        (
            "bert",
            json!({"position_embedding_type": "relative_key"}),
            ["`position_embedding_type`", "\"absolute\"", "relative_key"],
        ),
        (
            "bert",
            json!({"is_decoder": true}),
            ["`is_decoder`", "false", "true"],
        ),
        (
            "roberta",
            json!({"add_cross_attention": true}),
            ["`add_cross_attention`", "false", "true"],
        ),
        (
            "bert",
            json!({"hidden_act": "mish"}),
            ["`hidden_act`", "gelu_new", "`mish`"],
        ),
        (
            "bert",
            json!({"hidden_size": "768"}),
            ["`hidden_size`", "whole number", "\"768\""],
        ),
        (
            "bert",
            json!({"hidden_size": 7.5}),
            ["`hidden_size`", "whole number", "7.5"],
        ),
        (
            "bert",
            json!({"hidden_size": null}),
            ["`hidden_size`", "whole number", "null"],
        ),
        (
            "bert",
            json!({"hidden_size": 100}),
            ["num_attention_heads", "divisor", "12 for 100"],
        ),
        (
            "bert",
            json!({"classifier_pooling": "max"}),
            ["`classifier_pooling`", "mean", "`max`"],
        ),
        (
            "roberta",
            json!({"pad_token_id": null}),
            ["`pad_token_id`", "whole number", "null"],
        ),
        (
            "distilbert",
            json!({"sinusoidal_pos_embds": true}),
            ["`sinusoidal_pos_embds`", "false", "true"],
        ),
    ]);
}

#[test]
fn what_a_language_model_cannot_honour_is_refused_with_key_wanted_and_got() {
    all_refused([
        (
            "gpt2",
            json!({"scale_attn_weights": false}),
            ["`scale_attn_weights`", "true", "false"],
        ),
        (
            "gpt2",
            json!({"scale_attn_by_inverse_layer_idx": true}),
            ["inverse_layer_idx`", "false", "true"],
        ),
        (
            "gpt2",
            json!({"tie_word_embeddings": false}),
            ["`tie_word_embeddings`", "true", "false"],
        ),
        (
            "llama",
            json!({"rope_scaling": 2}),
            ["`rope_scaling`", "object", "2"],
        ),
        (
            "llama",
            json!({"rope_scaling": {"type": "longrope", "factor": 2.0}}),
            ["`rope_type`", "llama3 or yarn", "`longrope`"],
        ),
        (
            "llama",
            json!({"rope_scaling": {"rope_type": "linear"}}),
            ["`factor`", "a number", "nothing"],
        ),
        (
            "llama",
            json!({"rope_parameters": {"rope_type": "linear", "factor": 0.5}}),
            ["RopeScaling.factor", "at least 1", "0.5"],
        ),
        (
            "llama",
            json!({"rope_parameters": {"partial_rotary_factor": 0.5}}),
            ["`partial_rotary_factor`", "1.0", "0.5"],
        ),
    ]);
}

#[test]
fn what_a_network_on_images_cannot_honour_is_refused_with_key_wanted_and_got() {
    all_refused([
        (
            "vit",
            json!({"image_size": [224, 224]}),
            ["`image_size`", "number", "[224,224]"],
        ),
        (
            "resnet",
            json!({"hidden_act": "silu"}),
            ["`hidden_act`", "relu", "silu"],
        ),
        (
            "resnet",
            json!({"layer_type": "wide"}),
            ["`layer_type`", "basic or bottleneck", "`wide`"],
        ),
        (
            "resnet",
            json!({"depths": [2, 2]}),
            ["`depths`", "4 whole numbers", "[2,2]"],
        ),
        (
            "resnet",
            json!({"hidden_sizes": [6, 8, 8, 8]}),
            ["`hidden_sizes`", "multiples of 4", "[6, 8, 8, 8]"],
        ),
    ]);
}

#[test]
fn types_and_labels_that_make_no_sense_are_refused() {
    all_refused([
        ("t5", json!({}), ["`model_type`", "distilbert", "`t5`"]),
        (
            "bert",
            json!({"num_labels": 2, "id2label": {"0": "a", "1": "b", "2": "c"}}),
            ["`num_labels`", "3", "2"],
        ),
        (
            "bert",
            json!({"id2label": {"0": "a", "2": "c"}}),
            ["`id2label`", "\"0\", \"1\"", "\"2\":\"c\""],
        ),
        (
            "bert",
            json!({"problem_type": "ranking"}),
            ["`problem_type`", "regression", "`ranking`"],
        ),
    ]);
    refused(
        ModelConfig::from_json(json!([])),
        &["config.json", "an object", "[]"],
    );
    refused(
        ModelConfig::from_json(json!({})),
        &["`model_type`", "bert, roberta"],
    );
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    refused(ModelConfig::read(&file), &["cannot read", "config.json"]);
    std::fs::write(&file, "{").unwrap();
    refused(ModelConfig::read(&file), &["config.json", "EOF"]);
    std::fs::write(&file, r#"{"model_type": "bert", "vocab_size": -1}"#).unwrap();
    let place = file.display().to_string();
    refused(ModelConfig::read(&file), &[&place, "`vocab_size`", "-1"]);
}

#[test]
fn a_configuration_that_is_written_back_is_what_was_read() {
    for model in [
        "bert",
        "roberta",
        "distilbert",
        "vit",
        "gpt2",
        "llama",
        "resnet-basic",
    ] {
        let text = std::fs::read_to_string(path(model).join("config.json")).unwrap();
        let written = serde_json::to_string_pretty(&config(model).to_json()).unwrap();
        // Numbers may be written otherwise (1e-05), keys and their order may not.
        let (read, again): (Map<String, Value>, Map<String, Value>) = (
            serde_json::from_str(&text).unwrap(),
            serde_json::from_str(&written).unwrap(),
        );
        assert_eq!(read, again);
        assert!(read.keys().eq(again.keys()));
    }
}

#[test]
fn new_labels_replace_the_old_ones_everywhere() {
    let old = with(
        "bert",
        &json!({
            "architectures": ["BertModel"], "num_labels": 1, "problem_type": "regression",
            "unknown": {"kept": [1, 2]}, "vocab_size": 30
        }),
    )
    .unwrap();
    assert_eq!(old.labels(), ["LABEL_0"]);
    assert_eq!(old.problem_type(), Some(ProblemType::Regression));
    assert_eq!(old.task(), Some(Task::SentenceEmbedding));
    let new = old.with_labels(["bad", "fair", "good"]).unwrap();
    assert_eq!(new.labels(), ["bad", "fair", "good"]);
    assert_eq!(new.problem_type(), Some(ProblemType::SingleLabel));
    assert_eq!(new.task(), Some(CLASSIFICATION));
    let wanted = json!({
        "model_type": "bert", "architectures": ["BertForSequenceClassification"],
        "problem_type": "single_label_classification", "unknown": {"kept": [1, 2]},
        "vocab_size": 30, "id2label": {"0": "bad", "1": "fair", "2": "good"},
        "label2id": {"bad": 0, "fair": 1, "good": 2}
    });
    assert_eq!(new.to_json(), wanted);
    // What was written is read as the same.
    assert_eq!(ModelConfig::from_json(new.to_json()).unwrap(), new);

    for model in ["bert", "roberta", "distilbert", "vit", "resnet-basic"] {
        let config = config(model).with_labels(["a", "b", "c", "d"]).unwrap();
        let store = VarStore::new(0, DType::F32, &Device::Cpu);
        config
            .build(config.task().unwrap(), &store, Rng::new(0))
            .unwrap();
        let head = ["classifier.bias", "classifier.out_proj.bias", "linear.bias"];
        let bias = head.iter().find_map(|name| store.get(name)).unwrap();
        assert_eq!(bias.dims(), [4], "{model}");
    }
    refused(
        new.clone().with_labels(["one"]),
        &["`id2label`", "two or more", "one"],
    );
    refused(
        new.with_labels(["a", "b", "a"]),
        &["`id2label`", "different"],
    );
    refused(
        config("gpt2").with_labels(["a", "b"]),
        &["classifier", "`gpt2`"],
    );
}

#[test]
fn the_pooling_of_a_classifier_is_kept() {
    let config = with("distilbert", &json!({})).unwrap();
    assert_eq!(config.pooling(), Pooling::First);
    assert_eq!(config.clone().with_pooling(Pooling::First), config);
    let mean = config.with_pooling(Pooling::Mean);
    let again = ModelConfig::from_json(mean.to_json()).unwrap();
    assert_eq!(again.pooling(), Pooling::Mean);
    assert_eq!(
        again.with_pooling(Pooling::First).to_json()["classifier_pooling"],
        "cls"
    );
}
