//! The published convolutional networks against PyTorch's numbers in `tests/reference/cnn`: outputs,
//! gradients, running statistics, names and numbers of parameters.

use std::{collections::HashMap, fs, path::PathBuf};

use candle_core::{DType, Device, Tensor, Var};
use sala_core::testing::{Tolerance, values};
use sala_models::{
    Mode, Network, Rng, VarStore,
    cnn::{
        EfficientNetLite, EfficientNetLiteConfig, PyramidNet, PyramidNetBlock, PyramidNetConfig,
        ResNet, ResNetConfig, WideResNet, WideResNetConfig,
    },
    kernels::{Choice, with_choice},
    ops::cross_entropy,
};

use crate::single::{self, Values};

/// What a hundred layers leave of f64's sixteen digits, with some room.
const DEEP_F64: Tolerance = Tolerance {
    atol: 1e-9,
    rtol: 1e-9,
};

fn path(file: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/reference/cnn");
    folder.join(file)
}

/// Values in (−1, 1) that follow from a name: entry `i` is the finaliser of splitmix64 of the name's
/// FNV-1a hash plus `i`, its upper 53 bits as a fraction.
fn units(name: &str, count: usize) -> Vec<f64> {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let unit = |i: u64| {
        let z = hash.wrapping_add(i).wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    };
    (0..count as u64).map(unit).collect()
}

fn unit_tensor(name: &str, dims: &[usize]) -> Tensor {
    let count = dims.iter().product();
    Tensor::from_vec(units(name, count), dims, &Device::Cpu).unwrap()
}

/// The value that the reference gives a parameter; the weights of norms lie around `norm`.
fn parameter(name: &str, dims: &[usize], norm: f64) -> Tensor {
    let unit = unit_tensor(name, dims);
    let fan_in = dims[1..].iter().product::<usize>() as f64;
    let (scale, shift) = match dims {
        [_] if name.ends_with("weight") => (0.1, norm),
        [_] => (0.1, 0.0),
        [_, _] => ((3.0 / fan_in).sqrt(), 0.0),
        _ => ((6.0 / fan_in).sqrt(), 0.0),
    };
    unit.affine(scale, shift).unwrap()
}

fn layout(file: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(path(file)).unwrap();
    let mut lines: Vec<(String, String)> = text
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(name, shape)| (name.to_owned(), shape.to_owned()))
        // A count of batches, which nothing here reads.
        .filter(|(name, _)| !name.ends_with("num_batches_tracked"))
        .collect();
    lines.sort();
    lines
}

fn stored(store: &VarStore) -> Vec<(String, String)> {
    let shape = |var: &Var| {
        let sizes = var.dims().iter().map(ToString::to_string);
        sizes.collect::<Vec<_>>().join("x")
    };
    (store.all().iter())
        .map(|(name, var)| (name.clone(), shape(var)))
        .collect()
}

/// A network of the reference.
#[derive(Clone, Copy)]
struct Reference {
    name: &'static str,
    /// For so many classes.
    build: fn(usize, &VarStore) -> Box<dyn Network>,
    image: [usize; 2],
    /// What the weights of norms lie around.
    norm: f64,
}

const fn of(name: &'static str, build: fn(usize, &VarStore) -> Box<dyn Network>) -> Reference {
    Reference {
        name,
        build,
        image: [32, 32],
        norm: 1.0,
    }
}

const RESNET18: Reference = of("resnet18", resnet18);
const RESNET50: Reference = of("resnet50", resnet50);
const RESNET101: Reference = of("resnet101", resnet101);
const WIDE_RESNET: Reference = of("wideresnet28-10", wide_resnet);
const PYRAMIDNET: Reference = of("pyramidnet110-270", pyramidnet);
const BOTTLENECKS: Reference = of("pyramidnet20-15-bottleneck", bottlenecks);
/// Sides that are even in some stages and odd in others, and values beyond 6.
const EFFICIENTNET_LITE: Reference = Reference {
    image: [72, 50],
    norm: 2.0,
    ..of("efficientnet-lite0", efficientnet_lite)
};

impl Reference {
    fn wanted(self) -> Values {
        let file = path(&format!("{}.safetensors", self.name));
        let tensors = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
        (tensors.iter())
            .map(|(name, tensor)| (name.clone(), values(tensor)))
            .collect()
    }

    /// Names, shapes and numbers of parameters.
    fn check_layout(self) {
        let Self { name, build, .. } = self;
        let bytes = fs::read(path(&format!("{name}.safetensors"))).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = header.metadata().as_ref().unwrap();
        for classes in [10, 100] {
            let store = VarStore::new(0, DType::F32, &Device::Cpu);
            build(classes, &store);
            let wanted = &metadata[&format!("params_{classes}")];
            assert_eq!(&store.num_parameters().to_string(), wanted, "{name}");
            if classes == 10 {
                assert_eq!(stored(&store), layout(&format!("{name}.layout.txt")));
            }
        }
    }

    /// Outputs, gradients and running statistics, called as in the file.
    fn values(self, dtype: DType) -> Values {
        let store = VarStore::new(0, dtype, &Device::Cpu);
        let network = (self.build)(10, &store);
        for (name, var) in store.trainable() {
            let value = parameter(&name, var.dims(), self.norm);
            var.set(&value.to_dtype(dtype).unwrap()).unwrap();
        }
        let [height, width] = self.image;
        let images = unit_tensor("input", &[4, 3, height, width]);
        let images = images.to_dtype(dtype).unwrap();
        let labels = Tensor::new(&[0u32, 7, 4, 1], &Device::Cpu).unwrap();

        let logits = network.forward(&images, Mode::train(0)).unwrap();
        let loss = cross_entropy(&logits, &labels).unwrap();
        let mut all = gradients(&store, &loss);
        all.insert("logits.train".into(), values(&logits));
        all.insert("loss".into(), values(&loss));
        for (name, buffer) in store.buffers() {
            all.insert(format!("buffer.{name}"), values(&buffer));
        }
        let logits = network.forward(&images, Mode::eval()).unwrap();
        all.insert("logits.eval".into(), values(&logits));
        all
    }

    /// In f64, each number agrees.
    fn check(self, choice: Choice) {
        let got = with_choice(choice, || self.values(DType::F64));
        let wanted = self.wanted();
        assert_eq!(got.len(), wanted.len());
        for (key, wanted) in wanted {
            for (i, (got, wanted)) in got[&key].iter().zip(wanted).enumerate() {
                DEEP_F64.assert(&format!("{}: {key}, entry {i}", self.name), *got, wanted);
            }
        }
    }
}

/// The norm and the first entries of each parameter's gradient.
fn gradients(store: &VarStore, loss: &Tensor) -> Values {
    let gradients = loss.backward().unwrap();
    let mut all = HashMap::new();
    for (name, var) in store.trainable() {
        let gradient = gradients.get(&var).unwrap_or_else(|| panic!("no {name}"));
        let mut entries = values(gradient);
        let norm = entries.iter().map(|g| g * g).sum::<f64>().sqrt();
        entries.truncate(8);
        all.insert(format!("grad_norm.{name}"), vec![norm]);
        all.insert(format!("grad_head.{name}"), entries);
    }
    all
}

fn resnet(config: ResNetConfig, classes: usize, store: &VarStore) -> Box<dyn Network> {
    let config = ResNetConfig { classes, ..config };
    Box::new(ResNet::new(&config, store.builder()).unwrap())
}

fn resnet18(classes: usize, store: &VarStore) -> Box<dyn Network> {
    resnet(ResNetConfig::resnet18(), classes, store)
}

fn resnet50(classes: usize, store: &VarStore) -> Box<dyn Network> {
    resnet(ResNetConfig::resnet50(), classes, store)
}

fn resnet101(classes: usize, store: &VarStore) -> Box<dyn Network> {
    resnet(ResNetConfig::resnet101(), classes, store)
}

fn wide_resnet(classes: usize, store: &VarStore) -> Box<dyn Network> {
    let config = WideResNetConfig {
        classes,
        ..Default::default()
    };
    Box::new(WideResNet::new(&config, store.builder(), Rng::new(0)).unwrap())
}

fn pyramidnet(classes: usize, store: &VarStore) -> Box<dyn Network> {
    let config = PyramidNetConfig {
        classes,
        ..Default::default()
    };
    Box::new(PyramidNet::new(&config, store.builder()).unwrap())
}

fn bottlenecks(classes: usize, store: &VarStore) -> Box<dyn Network> {
    let config = PyramidNetConfig {
        classes,
        block: PyramidNetBlock::Bottleneck,
        depth: 20,
        widening: 15,
        ..Default::default()
    };
    Box::new(PyramidNet::new(&config, store.builder()).unwrap())
}

fn efficientnet_lite(classes: usize, store: &VarStore) -> Box<dyn Network> {
    let config = EfficientNetLiteConfig {
        classes,
        dropout: 0.0,
        drop_path: 0.0,
        ..Default::default()
    };
    Box::new(EfficientNetLite::new(&config, store.builder(), Rng::new(0)).unwrap())
}

const ALL: [Reference; 7] = [
    RESNET18,
    RESNET50,
    RESNET101,
    WIDE_RESNET,
    PYRAMIDNET,
    BOTTLENECKS,
    EFFICIENTNET_LITE,
];

#[test]
fn names_shapes_and_numbers_of_parameters_are_pytorchs() {
    for network in ALL {
        network.check_layout();
    }
}

#[test]
fn resnet18_is_pytorchs() {
    RESNET18.check(Choice::Auto);
}

#[test]
fn resnet50_is_pytorchs() {
    RESNET50.check(Choice::Auto);
}

#[test]
fn resnet101_is_pytorchs() {
    RESNET101.check(Choice::Auto);
}

#[test]
fn wide_resnet_28_10_is_pytorchs() {
    WIDE_RESNET.check(Choice::Auto);
}

#[test]
fn pyramidnet_110_270_is_pytorchs() {
    PYRAMIDNET.check(Choice::Auto);
}

#[test]
fn a_pyramidnet_of_bottlenecks_is_pytorchs() {
    BOTTLENECKS.check(Choice::Auto);
}

#[test]
fn efficientnet_lite0_is_pytorchs() {
    EFFICIENTNET_LITE.check(Choice::Auto);
}

#[test]
fn small_networks_are_pytorchs_in_composed_operations() {
    for network in [RESNET18, BOTTLENECKS, EFFICIENTNET_LITE] {
        network.check(Choice::Composed);
    }
}

// The kernels of graphics cards, with images that keep their channels last from the first layer to the last.
#[test]
fn small_networks_are_pytorchs_on_a_card() {
    for network in [RESNET18, BOTTLENECKS, EFFICIENTNET_LITE] {
        network.check(Choice::Emulated);
    }
}

#[test]
fn all_networks_are_as_close_in_single_precision_as_pytorchs() {
    for network in ALL {
        let (got, exact) = (network.values(DType::F32), network.wanted());
        single::check(network.name, &got, &exact, &path("single.json"));
    }
}
