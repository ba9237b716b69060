//! The published convolutional networks at small sizes: both formats of images, dropout, and what is refused.
//! Their gradients are compared with PyTorch's in `cnn_reference` and `published`.

use candle_core::{DType, Device, Tensor};
use sala_core::testing::TRAJECTORY_F64;
use sala_models::{
    Mlp, MlpConfig, Mode, Network, Rng, SimpleCnn, SimpleCnnConfig, VarStore,
    cnn::{
        EfficientNetLite, EfficientNetLiteConfig, PyramidNet, PyramidNetBlock, PyramidNetConfig,
        ResNet, ResNetConfig, ResNetStem, WideResNet, WideResNetConfig,
    },
    kernels::{Choice, with_choice},
    ops::cross_entropy,
    transformer::{Vit, VitConfig},
};

use crate::gradcheck::{normal, values};

type Make = fn(&VarStore) -> Box<dyn Network>;

fn basic(store: &VarStore) -> Box<dyn Network> {
    let config = ResNetConfig {
        in_channels: 2,
        classes: 3,
        depths: [1, 1, 1, 1],
        stem_width: 3,
        widths: [3, 4, 5, 6],
        ..ResNetConfig::resnet18()
    };
    Box::new(ResNet::new(&config, store.builder()).unwrap())
}

fn bottleneck(store: &VarStore) -> Box<dyn Network> {
    let config = ResNetConfig {
        in_channels: 2,
        classes: 3,
        stem: ResNetStem::ImageNet,
        depths: [2, 1, 1, 1],
        stem_width: 3,
        widths: [1, 2, 1, 2],
        ..ResNetConfig::resnet50()
    };
    Box::new(ResNet::new(&config, store.builder()).unwrap())
}

fn wide(store: &VarStore) -> Box<dyn Network> {
    let config = WideResNetConfig {
        in_channels: 2,
        classes: 3,
        depth: 10,
        widening: 1,
        dropout: 0.3,
    };
    Box::new(WideResNet::new(&config, store.builder(), Rng::new(1)).unwrap())
}

fn pyramid(store: &VarStore) -> Box<dyn Network> {
    let config = PyramidNetConfig {
        in_channels: 2,
        classes: 3,
        depth: 8,
        widening: 4,
        ..Default::default()
    };
    Box::new(PyramidNet::new(&config, store.builder()).unwrap())
}

fn pyramid_of_bottlenecks(store: &VarStore) -> Box<dyn Network> {
    let config = PyramidNetConfig {
        in_channels: 2,
        classes: 3,
        block: PyramidNetBlock::Bottleneck,
        depth: 11,
        widening: 4,
    };
    Box::new(PyramidNet::new(&config, store.builder()).unwrap())
}

fn lite(store: &VarStore) -> Box<dyn Network> {
    let config = EfficientNetLiteConfig {
        in_channels: 2,
        classes: 3,
        width: 0.2,
        depth: 0.5,
        dropout: 0.3,
        drop_path: 0.9,
    };
    Box::new(EfficientNetLite::new(&config, store.builder(), Rng::new(1)).unwrap())
}

fn simple(store: &VarStore) -> Box<dyn Network> {
    let config = SimpleCnnConfig {
        in_channels: 2,
        image_size: 16,
        classes: 3,
        widths: vec![3, 5],
        dropout: 0.3,
    };
    Box::new(SimpleCnn::new(&config, store.builder(), Rng::new(1)).unwrap())
}

const ALL: [(&str, Make, usize); 7] = [
    ("basic", basic, 16),
    ("bottleneck", bottleneck, 64),
    ("wide", wide, 8),
    ("pyramid", pyramid, 8),
    ("pyramid of bottlenecks", pyramid_of_bottlenecks, 8),
    ("lite", lite, 36),
    ("simple", simple, 16),
];

fn labels() -> Tensor {
    Tensor::new(&[2u32, 0], &Device::Cpu).unwrap()
}

/// Logits in training and evaluation, the gradient of every parameter, and the running statistics.
fn everything(make: Make, x: &Tensor) -> Vec<(String, Tensor)> {
    let store = VarStore::new(5, DType::F64, &Device::Cpu);
    let network = make(&store);
    let logits = network.forward(x, Mode::train(3)).unwrap();
    let gradients = cross_entropy(&logits, &labels())
        .unwrap()
        .backward()
        .unwrap();
    let mut all = vec![("logits".to_owned(), logits)];
    for (name, var) in store.trainable() {
        let gradient = gradients.get(&var).unwrap_or_else(|| panic!("no {name}"));
        all.push((name, gradient.clone()));
    }
    for (name, var) in store.buffers() {
        all.push((name, var.as_tensor().force_contiguous().unwrap()));
    }
    let evaluated = network.forward(x, Mode::eval()).unwrap();
    all.push(("evaluated".into(), evaluated));
    all
}

#[test]
fn both_formats_of_images_are_one_network() {
    for (name, make, size) in ALL {
        let x = normal(name, &[2, 2, size, size]);
        let of = |choice| with_choice(choice, || everything(make, &x));
        for ((what, fast), (_, plain)) in of(Choice::Auto).iter().zip(of(Choice::Composed)) {
            TRAJECTORY_F64.assert_tensors(&format!("{name}: {what}"), fast, &plain);
        }
    }
}

#[test]
fn blocks_have_dropout_masks_of_their_own_that_repeat() {
    let store = VarStore::new(0, DType::F32, &Device::Cpu);
    let network = wide(&store);
    let x = normal("x", &[2, 2, 8, 8]).to_dtype(DType::F32).unwrap();
    let of = |mode| values(&network.forward(&x, mode).unwrap());
    let first = of(Mode::train(0));
    assert_eq!(first, of(Mode::train(0).without_stats()));
    assert_ne!(first, of(Mode::train(1)));
}

#[test]
fn dropped_blocks_are_those_of_single_images_and_repeat() {
    // Two equal images differ as soon as a block is dropped for one of them only.
    let store = VarStore::new(0, DType::F64, &Device::Cpu);
    let config = EfficientNetLiteConfig {
        dropout: 0.0,
        drop_path: 0.5,
        width: 0.2,
        ..Default::default()
    };
    let network = EfficientNetLite::new(&config, store.builder(), Rng::new(1)).unwrap();
    let one = normal("x", &[1, 3, 32, 32]);
    let pair = Tensor::cat(&[&one, &one], 0).unwrap();
    let of = |mode| {
        let logits = network.forward(&pair, mode).unwrap();
        logits.to_vec2::<f64>().unwrap()
    };
    let first = of(Mode::train(0));
    assert_eq!(first, of(Mode::train(0).without_stats()));
    assert_ne!(first, of(Mode::train(1)));
    assert_ne!(first[0], first[1]);
    let evaluated = of(Mode::eval());
    assert_eq!(evaluated[0], evaluated[1]);
}

#[test]
fn the_family_of_lite_networks_has_the_published_numbers_of_parameters() {
    // Of timm's tf_efficientnet_lite0 to 4, for a thousand classes.
    for (config, wanted) in [
        (EfficientNetLiteConfig::lite0(), 4_652_008),
        (EfficientNetLiteConfig::lite1(), 5_416_680),
        (EfficientNetLiteConfig::lite2(), 6_092_072),
        (EfficientNetLiteConfig::lite3(), 8_197_096),
        (EfficientNetLiteConfig::lite4(), 13_006_568),
    ] {
        let store = VarStore::new(0, DType::F32, &Device::Cpu);
        EfficientNetLite::new(&config, store.builder(), Rng::new(0)).unwrap();
        assert_eq!(store.num_parameters(), wanted);
    }
}

#[test]
fn images_of_other_channels_ranks_or_sizes_are_refused() {
    for (name, make, size) in ALL {
        let store = VarStore::new(0, DType::F32, &Device::Cpu);
        let network = make(&store);
        for dims in [vec![2, 3, size, size], vec![2, size, size]] {
            let x = Tensor::zeros(dims.clone(), DType::F32, &Device::Cpu).unwrap();
            let text = network.forward(&x, Mode::eval()).unwrap_err().to_string();
            let wanted = if name == "simple" {
                "(N, [2"
            } else {
                "(N, 2, H, W)"
            };
            assert!(
                text.contains(wanted) && text.contains(&format!("{dims:?}")),
                "{name}: {text}"
            );
        }
    }
    let store = VarStore::new(0, DType::F32, &Device::Cpu);
    let x = Tensor::zeros((1, 2, 8, 6), DType::F32, &Device::Cpu).unwrap();
    let text = pyramid(&store)
        .forward(&x, Mode::eval())
        .unwrap_err()
        .to_string();
    assert!(text.contains("multiples of 4"), "{text}");
}

// Catches an error about a weight, of which a caller knows nothing, where the images are of the wrong dtype.
#[test]
fn images_of_a_dtype_that_does_not_fit_the_weights_are_refused_by_name() {
    let vit: Make = |store| {
        let config = VitConfig {
            image_size: 8,
            patch_size: 4,
            num_channels: 2,
            hidden_size: 8,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            intermediate_size: 8,
            ..VitConfig::default()
        };
        Box::new(Vit::new(&config, store.builder(), Rng::new(0)).unwrap())
    };
    let mlp: Make = |store| {
        let config = MlpConfig {
            inputs: 2 * 8 * 8,
            ..MlpConfig::default()
        };
        Box::new(Mlp::new(&config, store.builder(), Rng::new(0)).unwrap())
    };
    for (name, make, size) in ALL.into_iter().chain([("vit", vit, 8), ("mlp", mlp, 8)]) {
        let run = |weights, images| {
            let network = make(&VarStore::new(0, weights, &Device::Cpu));
            let x = Tensor::ones((2, 2, size, size), images, &Device::Cpu).unwrap();
            network.forward(&x, Mode::eval())
        };
        // Its tokens stand beside a parameter.
        let alone = name == "vit";
        let single = if alone { "F32," } else { "F32, BF16 or F16," };
        for (weights, images, wanted) in [
            (DType::BF16, DType::F32, "BF16,"),
            (DType::F32, DType::F64, single),
            (DType::F32, DType::U8, single),
        ] {
            let text = run(weights, images).unwrap_err().to_string();
            let wanted = format!("x must be of dtype {wanted}");
            let got = format!("got {images:?}");
            assert!(
                text.contains(&wanted) && text.contains(&got),
                "{name}: {text}"
            );
        }
        let narrow = run(DType::F32, DType::BF16);
        assert_eq!(narrow.is_err(), alone, "{name}");
        if let Ok(logits) = narrow {
            assert_eq!(logits.dtype(), DType::BF16, "{name}");
        }
    }
}

#[test]
fn the_stem_for_large_images_quarters_their_sides() {
    // 64 → 32 → 16 in the stem, and 2 after three strides: a 33rd row more gives another place.
    let store = VarStore::new(0, DType::F32, &Device::Cpu);
    let network = bottleneck(&store);
    for size in [32, 33, 64] {
        let x = Tensor::ones((1, 2, size, size), DType::F32, &Device::Cpu).unwrap();
        let logits = network.forward(&x, Mode::eval()).unwrap();
        assert_eq!(logits.dims(), [1, 3]);
    }
    assert_eq!(store.get("conv1.weight").unwrap().dims(), [3, 2, 7, 7]);
}

#[test]
fn configurations_that_make_no_network_are_refused_by_field() {
    let resnet = |change: fn(&mut ResNetConfig)| {
        let mut config = ResNetConfig::default();
        change(&mut config);
        config.validate().unwrap_err().to_string()
    };
    assert!(resnet(|c| c.in_channels = 0).contains("ResNetConfig.in_channels"));
    assert!(resnet(|c| c.classes = 0).contains("ResNetConfig.classes"));
    assert!(resnet(|c| c.stem_width = 0).contains("ResNetConfig.stem_width"));
    assert!(resnet(|c| c.widths[1] = 0).contains("ResNetConfig.widths"));
    assert!(resnet(|c| c.depths[3] = 0).contains("ResNetConfig.depths"));
    let wide = |change: fn(&mut WideResNetConfig)| {
        let mut config = WideResNetConfig::default();
        change(&mut config);
        config.validate().unwrap_err().to_string()
    };
    assert!(wide(|c| c.depth = 4).contains("depth"));
    assert!(wide(|c| c.widening = 0).contains("widening"));
    assert!(wide(|c| c.dropout = 1.0).contains("dropout"));
    let pyramid = |change: fn(&mut PyramidNetConfig)| {
        let mut config = PyramidNetConfig::default();
        change(&mut config);
        config.validate().unwrap_err().to_string()
    };
    assert!(pyramid(|c| c.depth = 2).contains("depth"));
    assert!(pyramid(|c| c.widening = 0).contains("widening"));
    let bottlenecks = |c: &mut PyramidNetConfig| {
        (c.block, c.depth) = (PyramidNetBlock::Bottleneck, 26);
    };
    assert!(pyramid(bottlenecks).contains("9 n + 2"));
    let lite = |change: fn(&mut EfficientNetLiteConfig)| {
        let mut config = EfficientNetLiteConfig::default();
        change(&mut config);
        config.validate().unwrap_err().to_string()
    };
    assert!(lite(|c| c.classes = 0).contains("EfficientNetLiteConfig.classes"));
    assert!(lite(|c| c.width = f64::NAN).contains("width"));
    assert!(lite(|c| c.depth = 1e9).contains("depth must be at most 1000"));
    assert!(lite(|c| c.dropout = -0.1).contains("dropout"));
    assert!(lite(|c| c.drop_path = 1.0).contains("drop_path"));
}
