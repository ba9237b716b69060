//! From `config.json` to a network: tasks, names of parameters, and rotary angles, which are the library's.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use sala_core::testing::{FUSED_F32, values};
use sala_models::{
    Mode, Rng, VarStore,
    pretrained::{Architecture, ModelConfig, Task, names::matches},
    transformer::{Pooling, RopeScaling},
};
use serde_json::{Map, Value, json};

use crate::{
    gradcheck::refused,
    model_config::CLASSIFICATION,
    published::{DEEP_F64, PARTLY_F32, Tensors, config, load, logits, path, set_parameters},
};

#[test]
fn tasks_that_an_architecture_does_not_have_are_refused() {
    for (model, task, wanted) in [
        ("bert", Task::ImageClassification, "TextClassification"),
        ("vit", CLASSIFICATION, "ImageClassification"),
        ("gpt2", CLASSIFICATION, "CausalLm"),
        ("llama", Task::SentenceEmbedding, "CausalLm"),
        ("resnet-basic", Task::CausalLm, "ImageClassification"),
    ] {
        let store = VarStore::new(0, DType::F32, &Device::Cpu);
        refused(
            config(model).build(task, &store, Rng::new(0)),
            &["task", wanted],
        );
    }
}

#[test]
fn patterns_tell_heads_and_leftovers_from_parameters() {
    let of = |model: &str, task, name: &str| {
        let config = config(model);
        let any = |patterns: Vec<&str>| patterns.iter().any(|pattern| matches(pattern, name));
        (
            any(config.ignored_names(task)),
            any(config.head_names(task)),
        )
    };
    let neither = (false, false);
    let (ignored, head) = ((true, false), (false, true));
    let embedding = Task::SentenceEmbedding;
    let mean = Task::TextClassification {
        pooling: Pooling::Mean,
    };
    for (model, task, name, wanted) in [
        (
            "bert",
            CLASSIFICATION,
            "bert.embeddings.position_ids",
            ignored,
        ),
        ("bert", CLASSIFICATION, "cls.predictions.bias", ignored),
        ("bert", CLASSIFICATION, "bert.pooler.dense.weight", neither),
        ("bert", mean, "bert.pooler.dense.weight", ignored),
        ("bert", embedding, "bert.pooler.dense.weight", ignored),
        ("bert", CLASSIFICATION, "classifier.weight", head),
        ("bert", embedding, "classifier.weight", ignored),
        (
            "bert",
            CLASSIFICATION,
            "bert.embeddings.position_embeddings.weight",
            neither,
        ),
        (
            "roberta",
            CLASSIFICATION,
            "roberta.pooler.dense.bias",
            ignored,
        ),
        ("roberta", CLASSIFICATION, "lm_head.dense.weight", ignored),
        (
            "roberta",
            CLASSIFICATION,
            "classifier.out_proj.weight",
            head,
        ),
        (
            "distilbert",
            CLASSIFICATION,
            "vocab_transform.weight",
            ignored,
        ),
        ("distilbert", CLASSIFICATION, "pre_classifier.weight", head),
        (
            "vit",
            Task::ImageClassification,
            "vit.pooler.dense.weight",
            ignored,
        ),
        ("gpt2", Task::CausalLm, "transformer.h.3.attn.bias", ignored),
        (
            "gpt2",
            Task::CausalLm,
            "transformer.h.3.attn.masked_bias",
            ignored,
        ),
        ("gpt2", Task::CausalLm, "lm_head.weight", ignored),
        (
            "gpt2",
            Task::CausalLm,
            "transformer.h.3.attn.c_attn.bias",
            neither,
        ),
        (
            "llama",
            Task::CausalLm,
            "model.layers.0.self_attn.rotary_emb.inv_freq",
            ignored,
        ),
        ("llama", Task::CausalLm, "lm_head.weight", head),
        (
            "resnet-basic",
            Task::ImageClassification,
            "classifier.1.bias",
            head,
        ),
        (
            "resnet-basic",
            Task::ImageClassification,
            "resnet.encoder.num_batches_tracked",
            ignored,
        ),
    ] {
        assert_eq!(of(model, task, name), wanted, "{model}: {name}");
    }
}

/// The cases of a file: their names, the keys that each adds to a model's configuration, and the tensors.
fn cases(file: &str) -> (HashMap<String, String>, Tensors) {
    let file = path(file);
    let bytes = std::fs::read(&file).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let keys = header.metadata().clone().unwrap();
    let tensors = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    (keys, tensors)
}

/// What a model of the reference says with another configuration, in evaluation mode.
fn logits_with(config: &ModelConfig, model: &str) -> Tensor {
    let task = config.task().unwrap();
    let store = VarStore::new(0, DType::F64, &Device::Cpu);
    let network = config.build(task, &store, Rng::new(0)).unwrap();
    set_parameters(&store, config, task, model);
    let expected = load(model, "expected.safetensors");
    logits(&network, &expected, DType::F64, Mode::eval())
}

#[test]
fn stretched_angles_are_the_librarys() {
    let (cases, wanted) = cases("rope.safetensors");
    let base = config("llama").to_json();
    for (name, keys) in &cases {
        let mut json = base.clone();
        let keys: Map<String, Value> = serde_json::from_str(keys).unwrap();
        if !keys.contains_key("rope_parameters") {
            json.as_object_mut().unwrap().remove("rope_parameters");
        }
        json.as_object_mut().unwrap().extend(keys);
        let config = ModelConfig::from_json(json).unwrap();
        let Architecture::Llama(llama) = config.architecture() else {
            panic!("{name}");
        };
        let features = llama.head_dim.unwrap();
        let (speeds, scale) = llama.rope_scaling.speeds(features, llama.rope_theta);
        let published = values(&wanted[&format!("{name}.speeds")]);
        assert_eq!(speeds.len(), published.len());
        for (got, wanted) in speeds.iter().zip(published) {
            FUSED_F32.assert(name, *got, wanted);
        }
        FUSED_F32.assert(name, scale, values(&wanted[&format!("{name}.scale")])[0]);
        if let Some(wanted) = wanted.get(&format!("{name}.logits")) {
            PARTLY_F32.assert_tensors(name, &logits_with(&config, "llama"), wanted);
        }
    }
}

#[test]
fn strides_stand_where_the_configuration_says() {
    let (cases, wanted) = cases("strides.safetensors");
    for (name, keys) in &cases {
        let mut json = config("resnet-bottleneck").to_json();
        let keys: Map<String, Value> = serde_json::from_str(keys).unwrap();
        json.as_object_mut().unwrap().extend(keys);
        let config = ModelConfig::from_json(json).unwrap();
        let got = logits_with(&config, "resnet-bottleneck");
        DEEP_F64.assert_tensors(name, &got, &wanted[&format!("{name}.logits")]);
    }
}

#[test]
fn the_older_key_for_stretched_angles_comes_first() {
    let both = json!({
        "model_type": "llama",
        "rope_theta": 7.0,
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 5.0}
    });
    let config = ModelConfig::from_json(both).unwrap();
    let Architecture::Llama(llama) = config.architecture() else {
        panic!("{config:?}");
    };
    assert_eq!(llama.rope_scaling, RopeScaling::Linear { factor: 2.0 });
    assert_eq!(llama.rope_theta, 7.0);
}
