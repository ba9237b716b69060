//! Which parameters are trained, and at which learning rate and weight decay each.

use anyhow::{Context, Result};
use sala_core::ParamSet;
use sala_models::{VarStore, pretrained::names::matches};

use super::spec::Training;

/// The parameters of a network: no decay for norms and biases, learning rates by layer, some frozen.
///
/// # Errors
/// When a pattern of `freeze` matches nothing, or everything is frozen.
pub(crate) fn params(store: &VarStore, training: &Training) -> Result<ParamSet> {
    let mut params = ParamSet::new(store.trainable())?.without_decay_on_norms_and_biases();
    if training.layerwise_lr_decay < 1.0 {
        params = params.with_layerwise_lr_decay(training.layerwise_lr_decay, layer)?;
    }
    for pattern in &training.freeze {
        params = params
            .freeze(|name| matches(pattern, name))
            .with_context(|| format!("training.freeze: `{pattern}`"))?;
    }
    Ok(params)
}

/// The number of the layer that a parameter belongs to, embeddings being the lowest; nothing for what lies above
/// all layers.
fn layer(name: &str) -> Option<u32> {
    const EMBEDDINGS: [&str; 6] = ["embeddings", "embed_tokens", "wte", "wpe", "conv1", "bn1"];
    let parts: Vec<&str> = name.split('.').collect();
    let numbered = parts.windows(2).find_map(|pair| {
        let known = ["layer", "layers", "h"].contains(&pair[0]);
        known.then(|| pair[1].parse::<u32>().ok()).flatten()
    });
    // PyTorch's residual networks: layer1 to layer4, each with blocks of its own.
    let stage = || {
        parts
            .iter()
            .find_map(|p| p.strip_prefix("layer")?.parse::<u32>().ok())
    };
    match numbered {
        Some(number) => Some(number + 1),
        None => stage().or_else(|| {
            let lowest = parts.iter().any(|p| EMBEDDINGS.contains(p));
            lowest.then_some(0)
        }),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use sala_models::pretrained::{ModelConfig, Task};
    use sala_models::{Rng, transformer::Pooling};
    use serde_json::json;

    use super::*;

    fn store(config: serde_json::Value, task: Task) -> VarStore {
        let store = VarStore::new(0, DType::F32, &Device::Cpu);
        let config = ModelConfig::from_json(config).unwrap();
        config.build(task, &store, Rng::new(0)).unwrap();
        store
    }

    fn bert() -> VarStore {
        let config = json!({"model_type": "bert", "hidden_size": 12, "num_attention_heads": 2,
            "intermediate_size": 8, "num_hidden_layers": 2, "vocab_size": 9});
        let pooling = Pooling::First;
        store(config, Task::TextClassification { pooling })
    }

    #[test]
    fn every_architecture_has_its_layers_in_order() {
        let text = Task::TextClassification {
            pooling: Pooling::First,
        };
        let small = json!({"vocab_size": 9, "hidden_size": 12, "num_attention_heads": 2,
            "intermediate_size": 8, "num_hidden_layers": 2, "dim": 12, "n_heads": 2, "n_layers": 2,
            "hidden_dim": 8, "n_embd": 12, "n_head": 2, "n_layer": 2, "n_positions": 8, "image_size": 8,
            "patch_size": 4, "num_key_value_heads": 2, "max_position_embeddings": 16});
        let cases = [
            ("bert", text, vec!["classifier", "pooler"]),
            ("roberta", text, vec!["classifier"]),
            ("distilbert", text, vec!["classifier"]),
            (
                "vit",
                Task::ImageClassification,
                vec!["classifier", "vit.layernorm"],
            ),
            ("gpt2", Task::CausalLm, vec!["ln_f"]),
            ("llama", Task::CausalLm, vec!["lm_head", "model.norm"]),
        ];
        for (kind, task, above) in cases {
            let mut config = small.clone();
            config["model_type"] = kind.into();
            let mut seen = std::collections::BTreeSet::new();
            for (name, _) in store(config, task).trainable() {
                let got = layer(&name);
                let is_above = above.iter().any(|a| name.contains(a));
                assert_eq!(got.is_none(), is_above, "{kind}: {name} is in {got:?}");
                seen.extend(got);
            }
            assert!(seen.into_iter().eq(0..=2), "{kind}");
        }
        let resnet = [
            "conv1.weight",
            "layer1.0.conv1.weight",
            "layer4.1.bn2.bias",
            "fc.weight",
        ];
        assert_eq!(resnet.map(layer), [Some(0), Some(1), Some(4), None]);
    }

    #[test]
    fn rates_fall_from_layer_to_layer_and_norms_and_biases_do_not_decay() {
        let training = Training {
            layerwise_lr_decay: 0.5,
            ..Training::default()
        };
        let params = params(&bert(), &training).unwrap();
        let of = |name: &str| params.iter().find(|p| p.name() == name).unwrap();
        for (name, wanted) in [
            ("classifier.weight", 1.0),
            ("bert.encoder.layer.1.output.dense.weight", 1.0),
            ("bert.encoder.layer.0.output.dense.weight", 0.5),
            ("bert.embeddings.word_embeddings.weight", 0.25),
        ] {
            let got = of(name).lr_scale();
            assert!((got - wanted).abs() < 1e-15, "{name}: {got}");
        }
        assert_eq!(
            of("bert.embeddings.LayerNorm.weight").weight_decay(),
            Some(0.0)
        );
        assert_eq!(of("classifier.bias").weight_decay(), Some(0.0));
        assert_eq!(of("classifier.weight").weight_decay(), None);
    }

    #[test]
    fn what_is_frozen_is_not_trained_and_a_pattern_without_a_match_is_refused() {
        let frozen = |patterns: &[&str]| {
            let freeze = patterns.iter().map(|p| (*p).to_owned()).collect();
            let training = Training {
                freeze,
                ..Training::default()
            };
            params(&bert(), &training)
        };
        let kept = frozen(&["bert.embeddings.*", "bert.encoder.layer.0.*"]).unwrap();
        let expected = |n: &str| !n.starts_with("bert.embeddings") && !n.contains("layer.0.");
        assert!(kept.names().all(expected) && kept.len() > 4);
        let message = format!("{:#}", frozen(&["no.such.*"]).unwrap_err());
        assert!(message.contains("`no.such.*`"), "{message}");
        assert!(frozen(&["*"]).is_err());
    }
}
