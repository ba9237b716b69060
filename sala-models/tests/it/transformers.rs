//! The transformers: masks, means, segments, dropout, and what is refused. Their numbers are compared with
//! the library's in `published`.

use candle_core::{DType, Device, Tensor};
use sala_core::testing::values;
use sala_models::{
    Mode, Network, Rng, VarStore,
    ops::cross_entropy,
    pretrained::{Architecture, Built, Task},
    transformer::{
        Bert, BertClassifier, BertConfig, Llama, LlamaConfig, Pooling, TokenNetwork, Tokens, Vit,
        VitConfig,
    },
};

use crate::published::{DEEP_F64, config, load, tokens};

fn store() -> VarStore {
    VarStore::new(0, DType::F64, &Device::Cpu)
}

fn bert_config() -> BertConfig {
    match config("bert").architecture() {
        Architecture::Bert(config) => config.clone(),
        other => panic!("{other:?}"),
    }
}

fn llama_config() -> LlamaConfig {
    match config("llama").architecture() {
        Architecture::Llama(config) => config.clone(),
        other => panic!("{other:?}"),
    }
}

/// The second text of the reference without its padding: it has six tokens.
fn second_text_alone(tokens: &Tokens) -> Tokens {
    Tokens::new(tokens.ids.narrow(0, 1, 1).unwrap().narrow(1, 0, 6).unwrap())
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
    let wanted = bert
        .sentences(&second_text_alone(&tokens), Mode::eval())
        .unwrap();
    DEEP_F64.assert_tensors("mean", &mean.narrow(0, 1, 1).unwrap(), &wanted);
}

#[test]
fn classifiers_of_means_train_every_parameter_and_leave_padding_out() {
    for model in ["bert", "roberta", "distilbert"] {
        let store = store();
        let task = Task::TextClassification {
            pooling: Pooling::Mean,
        };
        let network = config(model).build(task, &store, Rng::new(0)).unwrap();
        let network = network.tokens().unwrap();
        assert!(store.get("bert.pooler.dense.weight").is_none());
        let expected = load(model, "expected.safetensors");
        let tokens = tokens(&expected);
        let logits = network.forward_tokens(&tokens, Mode::train(0)).unwrap();
        let loss = cross_entropy(&logits, &expected["input.labels"]).unwrap();
        let gradients = loss.backward().unwrap();
        for (name, var) in store.trainable() {
            let gradient = values(gradients.get(&var).unwrap_or_else(|| panic!("no {name}")));
            // A key's bias moves all scores of a query alike.
            let none = name.ends_with("key.bias") || name.ends_with("k_lin.bias");
            assert_eq!(gradient.iter().all(|g| g.abs() < 1e-15), none, "{name}");
        }
        let evaluated = network.forward_tokens(&tokens, Mode::eval()).unwrap();
        let alone = second_text_alone(&tokens);
        let alone = network.forward_tokens(&alone, Mode::eval()).unwrap();
        DEEP_F64.assert_tensors(model, &evaluated.narrow(0, 1, 1).unwrap(), &alone);
    }
}

#[test]
fn a_mean_is_the_first_token_for_one_token_only() {
    // These heads have the same parameters for both.
    for model in ["roberta", "distilbert"] {
        let store = store();
        let logits = |pooling, length| {
            let task = Task::TextClassification { pooling };
            let network = config(model).build(task, &store, Rng::new(0)).unwrap();
            let ids = Tensor::new(&[[5u32, 6, 7]], &Device::Cpu).unwrap();
            let tokens = Tokens::new(ids.narrow(1, 0, length).unwrap());
            let network = network.tokens().unwrap();
            values(&network.forward_tokens(&tokens, Mode::eval()).unwrap())
        };
        assert_eq!(logits(Pooling::Mean, 1), logits(Pooling::First, 1));
        assert_ne!(logits(Pooling::Mean, 3), logits(Pooling::First, 3));
    }
}

#[test]
fn sentence_encoders_are_the_means_of_their_encoders() {
    for (model, prefix) in [
        ("bert", "bert"),
        ("roberta", "roberta"),
        ("distilbert", "distilbert"),
    ] {
        let store = store();
        let config = config(model);
        let built = config
            .build(Task::SentenceEmbedding, &store, Rng::new(0))
            .unwrap();
        let Built::Tokens(network) = built else {
            panic!("{model}")
        };
        let below = |(name, _): &(String, _)| name.starts_with(&format!("{prefix}."));
        assert!(store.all().iter().all(below));
        let expected = load(model, "expected.safetensors");
        let tokens = tokens(&expected);
        let means = network.forward_tokens(&tokens, Mode::eval()).unwrap();
        assert_eq!(means.dims(), [tokens.ids.dim(0).unwrap(), 24]);
        let alone = second_text_alone(&tokens);
        let alone = network.forward_tokens(&alone, Mode::eval()).unwrap();
        DEEP_F64.assert_tensors(model, &means.narrow(0, 1, 1).unwrap(), &alone);
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
fn dropout_of_shares_that_drops_none_changes_nothing() {
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
