//! The transformers against the numbers of Python's `transformers` in `tests/reference/transformers`:
//! names and shapes, logits, loss, and the gradient of every parameter.

use std::{collections::HashMap, path::PathBuf};

use candle_core::{DType, Device, Tensor};
use sala_core::testing::{Tolerance, values};
use sala_models::{
    Mode, Network, Rng, VarStore,
    cnn::{ResNet, ResNetBlock, ResNetConfig, ResNetStem, resnet_hub_name},
    kernels::{Choice, with_choice},
    ops::cross_entropy,
    transformer::{
        Bert, BertClassifier, BertConfig, DistilBertClassifier, DistilBertConfig, Gpt2, Gpt2Config,
        Llama, LlamaConfig, Pooling, RobertaClassifier, RobertaConfig, TokenNetwork, Tokens, Vit,
        VitConfig, next_token_loss,
    },
};

const DEEP_F64: Tolerance = Tolerance {
    atol: 1e-9,
    rtol: 1e-9,
};
/// For language models: in the library, a model of f64 has a loss, and Llama's norms and angles, of f32.
const PARTLY_F32: Tolerance = Tolerance {
    atol: 1e-7,
    rtol: 1e-6,
};

type Tensors = HashMap<String, Tensor>;

fn load(model: &str, file: &str) -> Tensors {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/reference/transformers");
    candle_core::safetensors::load(folder.join(model).join(file), &Device::Cpu).unwrap()
}

/// Gives a store the published weights, which must be exactly its own.
fn set_parameters(store: &VarStore, model: &str) {
    let weights = load(model, "model.safetensors");
    let mut names: Vec<&String> = weights.keys().collect();
    names.sort();
    let own = store.all();
    assert_eq!(names, own.iter().map(|(name, _)| name).collect::<Vec<_>>());
    for (name, var) in own {
        let weight = &weights[&name];
        assert_eq!(weight.dims(), var.dims(), "{name}");
        var.set(&weight.to_dtype(var.dtype()).unwrap()).unwrap();
    }
}

fn check_gradients(store: &VarStore, loss: &Tensor, expected: &Tensors, tolerance: Tolerance) {
    let gradients = loss.backward().unwrap();
    for (name, var) in store.trainable() {
        let gradient = gradients.get(&var).unwrap_or_else(|| panic!("no {name}"));
        let key = format!("grad.{name}");
        tolerance.assert_tensors(&key, gradient, &expected[&key]);
    }
}

fn tokens(expected: &Tensors) -> Tokens {
    let tokens = Tokens::new(expected["input.input_ids"].clone());
    match expected.get("input.attention_mask") {
        Some(mask) => tokens.with_mask(mask.clone()),
        None => tokens,
    }
}

fn check_classifier(model: &str, store: &VarStore, network: &dyn TokenNetwork) {
    set_parameters(store, model);
    let expected = load(model, "expected.safetensors");
    let logits = network
        .forward_tokens(&tokens(&expected), Mode::train(0))
        .unwrap();
    DEEP_F64.assert_tensors("logits", &logits, &expected["logits"]);
    let loss = cross_entropy(&logits, &expected["input.labels"]).unwrap();
    DEEP_F64.assert_tensors("loss", &loss, &expected["loss"]);
    check_gradients(store, &loss, &expected, DEEP_F64);
}

fn check_language_model(model: &str, store: &VarStore, network: &(impl TokenNetwork + Network)) {
    set_parameters(store, model);
    let published = load(model, "expected.safetensors");
    let exact = load(model, "exact.safetensors");
    let logits = network
        .forward_tokens(&tokens(&published), Mode::train(0))
        .unwrap();
    let loss = next_token_loss(&logits, &published["input.labels"]).unwrap();
    for (expected, tolerance) in [(&exact, DEEP_F64), (&published, PARTLY_F32)] {
        tolerance.assert_tensors("logits", &logits, &expected["logits"]);
        tolerance.assert_tensors("loss", &loss, &expected["loss"]);
        check_gradients(store, &loss, expected, tolerance);
    }
    let same = network
        .forward(&published["input.input_ids"], Mode::eval())
        .unwrap();
    assert_eq!(values(&same), values(&logits));
}

fn store() -> VarStore {
    VarStore::new(0, DType::F64, &Device::Cpu)
}

fn bert_config() -> BertConfig {
    BertConfig {
        vocab_size: 61,
        hidden_size: 24,
        num_hidden_layers: 2,
        num_attention_heads: 3,
        intermediate_size: 48,
        max_position_embeddings: 20,
        hidden_dropout_prob: 0.0,
        attention_probs_dropout_prob: 0.0,
        num_labels: 3,
        ..BertConfig::default()
    }
}

fn gpt2_config() -> Gpt2Config {
    Gpt2Config {
        vocab_size: 61,
        n_positions: 20,
        n_embd: 24,
        n_layer: 2,
        n_head: 3,
        embd_pdrop: 0.0,
        resid_pdrop: 0.0,
        attn_pdrop: 0.0,
        ..Gpt2Config::default()
    }
}

fn llama_config() -> LlamaConfig {
    LlamaConfig {
        vocab_size: 61,
        hidden_size: 24,
        intermediate_size: 40,
        num_hidden_layers: 2,
        num_attention_heads: 6,
        num_key_value_heads: 2,
        head_dim: Some(4),
        max_position_embeddings: 32,
        rms_norm_eps: 1e-6,
        ..LlamaConfig::default()
    }
}

#[test]
fn bert_is_the_published_one() {
    let store = store();
    let network = BertClassifier::new(&bert_config(), store.builder(), Rng::new(0)).unwrap();
    check_classifier("bert", &store, &network);
}

#[test]
fn roberta_is_the_published_one() {
    let config = RobertaConfig {
        bert: BertConfig {
            max_position_embeddings: 22,
            type_vocab_size: 1,
            ..bert_config()
        },
        pad_token_id: 1,
    };
    let store = store();
    let network = RobertaClassifier::new(&config, store.builder(), Rng::new(0)).unwrap();
    check_classifier("roberta", &store, &network);
}

#[test]
fn distilbert_is_the_published_one() {
    let config = DistilBertConfig {
        vocab_size: 61,
        dim: 24,
        n_layers: 2,
        n_heads: 3,
        hidden_dim: 48,
        max_position_embeddings: 20,
        dropout: 0.0,
        attention_dropout: 0.0,
        seq_classif_dropout: 0.0,
        num_labels: 3,
        ..DistilBertConfig::default()
    };
    let store = store();
    let network = DistilBertClassifier::new(&config, store.builder(), Rng::new(0)).unwrap();
    check_classifier("distilbert", &store, &network);
}

#[test]
fn vit_is_the_published_one() {
    let config = VitConfig {
        image_size: 16,
        patch_size: 4,
        hidden_size: 24,
        num_hidden_layers: 2,
        num_attention_heads: 3,
        intermediate_size: 48,
        num_labels: 5,
        ..VitConfig::default()
    };
    let store = store();
    let network = Vit::new(&config, store.builder(), Rng::new(0)).unwrap();
    set_parameters(&store, "vit");
    let expected = load("vit", "expected.safetensors");
    let logits = network
        .forward(&expected["input.pixel_values"], Mode::train(0))
        .unwrap();
    DEEP_F64.assert_tensors("logits", &logits, &expected["logits"]);
    let loss = cross_entropy(&logits, &expected["input.labels"]).unwrap();
    DEEP_F64.assert_tensors("loss", &loss, &expected["loss"]);
    check_gradients(&store, &loss, &expected, DEEP_F64);
}

/// A residual network with the stem for large images, under the hub's names.
fn check_resnet(model: &str, config: &ResNetConfig) {
    let weights = load(model, "model.safetensors");
    let expected = load(model, "expected.safetensors");
    let store = store();
    let network = ResNet::new(config, store.builder()).unwrap();
    let counted = |name: &&String| !name.ends_with("num_batches_tracked");
    assert_eq!(store.all().len(), weights.keys().filter(counted).count());
    for (name, var) in store.all() {
        let weight = &weights[&resnet_hub_name(&name).unwrap()];
        assert_eq!(weight.dims(), var.dims(), "{name}");
        var.set(&weight.to_dtype(DType::F64).unwrap()).unwrap();
    }
    let images = &expected["input.pixel_values"];
    let logits = network.forward(images, Mode::train(0)).unwrap();
    DEEP_F64.assert_tensors("logits", &logits, &expected["logits"]);
    let loss = cross_entropy(&logits, &expected["input.labels"]).unwrap();
    DEEP_F64.assert_tensors("loss", &loss, &expected["loss"]);
    let gradients = loss.backward().unwrap();
    for (name, var) in store.trainable() {
        let gradient = gradients.get(&var).unwrap_or_else(|| panic!("no {name}"));
        let key = format!("grad.{}", resnet_hub_name(&name).unwrap());
        DEEP_F64.assert_tensors(&key, gradient, &expected[&key]);
    }
    for (name, var) in store.buffers() {
        let key = format!("buffer.{}", resnet_hub_name(&name).unwrap());
        DEEP_F64.assert_tensors(&key, &var, &expected[&key]);
    }
}

#[test]
fn resnets_for_large_images_are_the_published_ones() {
    let basic = ResNetConfig {
        classes: 5,
        stem: ResNetStem::ImageNet,
        depths: [2, 1, 1, 1],
        stem_width: 8,
        widths: [8, 12, 16, 20],
        ..ResNetConfig::resnet18()
    };
    let bottleneck = ResNetConfig {
        block: ResNetBlock::Bottleneck,
        widths: [4, 6, 8, 10],
        ..basic
    };
    for choice in [Choice::Auto, Choice::Composed] {
        with_choice(choice, || {
            check_resnet("resnet-basic", &basic);
            check_resnet("resnet-bottleneck", &bottleneck);
        });
    }
}

#[test]
fn gpt2_is_the_published_one() {
    let store = store();
    let network = Gpt2::new(&gpt2_config(), store.builder(), Rng::new(0)).unwrap();
    check_language_model("gpt2", &store, &network);
}

#[test]
fn llama_is_the_published_one() {
    let store = store();
    let network = Llama::new(&llama_config(), store.builder(), Rng::new(0)).unwrap();
    check_language_model("llama", &store, &network);
}

#[test]
fn the_encoder_alone_takes_both_kinds_of_names_and_means_leave_padding_out() {
    let expected = load("bert", "expected.safetensors");
    let weights = load("bert", "model.safetensors");
    let store = store();
    let bert = Bert::new(&bert_config(), store.builder(), Rng::new(0)).unwrap();
    for (name, var) in store.all() {
        let weight = &weights[&format!("bert.{name}")];
        var.set(&weight.to_dtype(DType::F64).unwrap()).unwrap();
    }
    let tokens = tokens(&expected);
    let mean = bert.sentences(&tokens, Mode::eval()).unwrap();
    // The second text has six tokens, which by themselves give the same mean.
    let alone = Tokens::new(tokens.ids.narrow(0, 1, 1).unwrap().narrow(1, 0, 6).unwrap());
    let wanted = bert.sentences(&alone, Mode::eval()).unwrap();
    DEEP_F64.assert_tensors("mean", &mean.narrow(0, 1, 1).unwrap(), &wanted);
}

#[test]
fn a_classifier_of_means_has_no_pooler_and_trains_every_parameter() {
    let config = BertConfig {
        pooling: Pooling::Mean,
        ..bert_config()
    };
    let store = store();
    let network = BertClassifier::new(&config, store.builder(), Rng::new(0)).unwrap();
    assert!(store.get("bert.pooler.dense.weight").is_none());
    let expected = load("bert", "expected.safetensors");
    let tokens = tokens(&expected);
    let logits = network.forward_tokens(&tokens, Mode::train(0)).unwrap();
    let loss = cross_entropy(&logits, &expected["input.labels"]).unwrap();
    let gradients = loss.backward().unwrap();
    for (name, var) in store.trainable() {
        let gradient = values(gradients.get(&var).unwrap_or_else(|| panic!("no {name}")));
        // A key's bias moves all scores of a query alike.
        let none = name.ends_with("key.bias");
        assert_eq!(gradient.iter().all(|g| g.abs() < 1e-15), none, "{name}");
    }
}

#[test]
fn segments_are_looked_up() {
    let store = store();
    let bert = Bert::new(&bert_config(), store.builder(), Rng::new(0)).unwrap();
    let ids = Tensor::new(&[[5u32, 6, 7]], &Device::Cpu).unwrap();
    let plain = Tokens::new(ids);
    let of = |types: [u32; 3]| {
        let types = Tensor::new(&[types], &Device::Cpu).unwrap();
        let tokens = plain.clone().with_types(types);
        values(&bert.forward(&tokens, Mode::eval()).unwrap())
    };
    let without = values(&bert.forward(&plain, Mode::eval()).unwrap());
    assert_eq!(of([0, 0, 0]), without);
    assert_ne!(of([0, 1, 1]), without);
}

#[test]
fn dropout_of_shares_is_repeatable_and_keeps_masks_and_the_future_hidden() {
    let store = store();
    let config = LlamaConfig {
        attention_dropout: 0.4,
        ..llama_config()
    };
    let network = Llama::new(&config, store.builder(), Rng::new(0)).unwrap();
    let ids = [[3u32, 9, 27, 20, 60], [1, 2, 3, 4, 0]];
    let mask = Tensor::new(&[[1u8, 1, 1, 1, 1], [0, 1, 1, 1, 0]], &Device::Cpu).unwrap();
    let of = |ids: [[u32; 5]; 2], mode| {
        let ids = Tensor::new(&ids, &Device::Cpu).unwrap();
        let tokens = Tokens::new(ids).with_mask(mask.clone());
        let logits = network.forward_tokens(&tokens, mode).unwrap();
        let texts = logits.flatten_from(1).unwrap();
        texts.to_vec2::<f64>().unwrap()
    };
    let first = of(ids, Mode::train(0));
    assert_eq!(first, of(ids, Mode::train(0).without_stats()));
    assert_ne!(first, of(ids, Mode::train(1)));
    assert_ne!(first, of(ids, Mode::eval()));
    // A later token changes nothing before it, a masked one nothing behind it either.
    let other = of([[3, 9, 27, 20, 61 - 2], [40, 2, 3, 4, 0]], Mode::train(0));
    assert_eq!(first[0][..4 * 61], other[0][..4 * 61]);
    assert_ne!(first[0][4 * 61..], other[0][4 * 61..]);
    assert_eq!(first[1][61..4 * 61], other[1][61..4 * 61]);
}

#[test]
fn dropout_of_shares_keeps_their_mean() {
    // With one key, what is kept is 1 / (1 − p) of its value: the mean over masks is the value.
    let with = BertConfig {
        attention_probs_dropout_prob: 0.5,
        num_hidden_layers: 1,
        ..bert_config()
    };
    let store = store();
    let network = BertClassifier::new(&with, store.builder(), Rng::new(0)).unwrap();
    let same = BertConfig {
        attention_probs_dropout_prob: 1e-12,
        ..with
    };
    let close = BertClassifier::new(&same, store.builder(), Rng::new(0)).unwrap();
    let expected = load("bert", "expected.safetensors");
    let tokens = tokens(&expected);
    let of =
        |network: &BertClassifier, mode| values(&network.forward_tokens(&tokens, mode).unwrap());
    // A dropout that drops nothing takes the other path to the same numbers.
    let plain = of(&network, Mode::eval());
    for (got, wanted) in of(&close, Mode::train(0)).iter().zip(&plain) {
        DEEP_F64.assert("without a drop", *got, *wanted);
    }
    assert_ne!(of(&network, Mode::train(0)), plain);
}

#[test]
fn texts_that_do_not_fit_are_refused_with_both_shapes() {
    let store = store();
    let network = BertClassifier::new(&bert_config(), store.builder(), Rng::new(0)).unwrap();
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::U32, &Device::Cpu).unwrap();
    let fails = |tokens: Tokens, parts: &[&str]| {
        let error = network.forward_tokens(&tokens, Mode::eval()).unwrap_err();
        let text = error.to_string();
        for part in parts {
            assert!(text.contains(part), "{text}");
        }
    };
    fails(
        Tokens::new(zeros(&[2, 21])),
        &["ids", "at most 20", "[2, 21]"],
    );
    fails(Tokens::new(zeros(&[7])), &["ids", "[7]"]);
    fails(Tokens::new(zeros(&[2, 0])), &["ids", "[2, 0]"]);
    let ids = || Tokens::new(zeros(&[2, 3]));
    fails(
        ids().with_mask(zeros(&[2, 4])),
        &["mask", "[2, 3]", "[2, 4]"],
    );
    fails(ids().with_types(zeros(&[1, 3])), &["types", "[1, 3]"]);
    let unknown = Tensor::new(&[[61u32]], &Device::Cpu).unwrap();
    fails(Tokens::new(unknown), &["indices", "61"]);
    let vit = VitConfig {
        image_size: 8,
        patch_size: 4,
        hidden_size: 24,
        num_hidden_layers: 1,
        ..VitConfig::default()
    };
    let store = self::store();
    let vit = Vit::new(&vit, store.builder(), Rng::new(0)).unwrap();
    let image = Tensor::zeros((2, 3, 8, 9), DType::F64, &Device::Cpu).unwrap();
    let text = vit.forward(&image, Mode::eval()).unwrap_err().to_string();
    assert!(
        text.contains("[3, 8, 8]") && text.contains("[2, 3, 8, 9]"),
        "{text}"
    );
}
