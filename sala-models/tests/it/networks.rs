//! The networks: gradients of every parameter, repeatability, shapes and learning.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{AdamW, Optimizer, loss};
use sala_models::{Mlp, MlpConfig, Mode, Network, Rng, SimpleCnn, SimpleCnnConfig, VarStore};

use crate::gradcheck::{check, normal, normal_var, values};

fn cnn_config() -> SimpleCnnConfig {
    // 5 → 2 → 1: the first pooling leaves a row and a column out.
    SimpleCnnConfig {
        in_channels: 2,
        image_size: 5,
        classes: 3,
        widths: vec![3, 2],
        dropout: 0.3,
    }
}

fn mlp_config() -> MlpConfig {
    MlpConfig {
        inputs: 6,
        hidden: vec![5, 4],
        classes: 3,
        dropout: 0.3,
    }
}

fn cnn(seed: u64, dtype: DType) -> (VarStore, SimpleCnn) {
    let store = VarStore::new(seed, dtype, &Device::Cpu);
    let network = SimpleCnn::new(&cnn_config(), store.builder(), Rng::new(seed)).unwrap();
    (store, network)
}

fn mlp(seed: u64, dtype: DType) -> (VarStore, Mlp) {
    let store = VarStore::new(seed, dtype, &Device::Cpu);
    let network = Mlp::new(&mlp_config(), store.builder(), Rng::new(seed)).unwrap();
    (store, network)
}

fn names(store: &VarStore) -> Vec<String> {
    store.all().into_iter().map(|(name, _)| name).collect()
}

fn cross_entropy(network: &dyn Network, x: &Tensor, mode: Mode) -> Result<Tensor> {
    let labels: Vec<u32> = [0, 2, 1, 1, 0].into_iter().take(x.dim(0)?).collect();
    let labels = Tensor::new(labels, &Device::Cpu)?;
    loss::cross_entropy(&network.forward(x, mode)?, &labels)
}

#[test]
fn every_parameter_of_the_cnn_has_the_gradient_of_differences() {
    let (store, network) = cnn(1, DType::F64);
    let x = normal_var("x", &[4, 2, 5, 5]);
    let mut vars = store.trainable();
    vars.push(("x".into(), x.clone()));
    for mode in [Mode::train(3), Mode::train(3).without_stats(), Mode::eval()] {
        check(&vars, || cross_entropy(&network, &x, mode));
    }
}

#[test]
fn every_parameter_of_the_mlp_has_the_gradient_of_differences() {
    let (store, network) = mlp(1, DType::F64);
    let x = normal_var("x", &[5, 2, 3]);
    let mut vars = store.trainable();
    vars.push(("x".into(), x.clone()));
    for mode in [Mode::train(3), Mode::eval()] {
        check(&vars, || cross_entropy(&network, &x, mode));
    }
}

#[test]
fn parameters_are_called_as_documented() {
    let (store, _) = cnn(0, DType::F32);
    assert_eq!(
        names(&store),
        [
            "classifier.bias",
            "classifier.weight",
            "features.0.conv.weight",
            "features.0.norm.bias",
            "features.0.norm.running_mean",
            "features.0.norm.running_var",
            "features.0.norm.weight",
            "features.1.conv.weight",
            "features.1.norm.bias",
            "features.1.norm.running_mean",
            "features.1.norm.running_var",
            "features.1.norm.weight",
        ]
    );
    // 3·2·9 + 2·3 + 2·3·9 + 2·2 + 2·3 + 3.
    assert_eq!(store.num_parameters(), 54 + 6 + 54 + 4 + 6 + 3);
    let (store, _) = mlp(0, DType::F32);
    let wanted: Vec<String> = (0..3)
        .flat_map(|i| [format!("layers.{i}.bias"), format!("layers.{i}.weight")])
        .collect();
    assert_eq!(names(&store), wanted);
}

#[test]
fn the_documented_image_sizes_work() {
    for (channels, size, widths) in [(1, 28, vec![4, 4]), (3, 32, vec![4, 4, 4])] {
        let config = SimpleCnnConfig {
            in_channels: channels,
            image_size: size,
            widths,
            ..Default::default()
        };
        let store = VarStore::new(0, DType::F32, &Device::Cpu);
        let network = SimpleCnn::new(&config, store.builder(), Rng::new(0)).unwrap();
        let x = Tensor::zeros((2, channels, size, size), DType::F32, &Device::Cpu).unwrap();
        let logits = network.forward(&x, Mode::train(0)).unwrap();
        assert_eq!(logits.dims(), [2, 10]);
    }
    let store = VarStore::new(0, DType::F32, &Device::Cpu);
    let linear = MlpConfig {
        hidden: vec![],
        ..Default::default()
    };
    let network = Mlp::new(&linear, store.builder(), Rng::new(0)).unwrap();
    let x = Tensor::zeros((2, 1, 28, 28), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(network.forward(&x, Mode::eval()).unwrap().dims(), [2, 10]);
}

#[test]
fn both_passes_of_a_step_see_one_network_and_the_next_step_another() {
    let networks: [(Box<dyn Network>, Tensor); 2] = [
        (Box::new(cnn(0, DType::F32).1), normal("x", &[4, 2, 5, 5])),
        (Box::new(mlp(0, DType::F32).1), normal("x", &[4, 6])),
    ];
    for (network, x) in networks {
        let x = x.to_dtype(DType::F32).unwrap();
        let of = |mode| values(&network.forward(&x, mode).unwrap());
        let first = of(Mode::train(0));
        assert_eq!(first, of(Mode::train(0).without_stats()));
        assert_ne!(first, of(Mode::train(1)));
        assert_eq!(of(Mode::eval()), of(Mode::eval()));
    }
}

#[test]
fn hidden_layers_have_masks_of_their_own() {
    // Equal widths and inputs: with one mask for both, the same columns would die in both layers.
    let store = VarStore::new(0, DType::F64, &Device::Cpu);
    let config = MlpConfig {
        inputs: 40,
        hidden: vec![40, 40],
        classes: 40,
        dropout: 0.5,
    };
    let network = Mlp::new(&config, store.builder(), Rng::new(0)).unwrap();
    let identity = Tensor::eye(40, DType::F64, &Device::Cpu).unwrap();
    for (name, var) in store.trainable() {
        let value = if name.ends_with("bias") {
            var.zeros_like().unwrap()
        } else {
            identity.clone()
        };
        var.set(&value).unwrap();
    }
    let x = Tensor::ones((1, 40), DType::F64, &Device::Cpu).unwrap();
    let alive = values(&network.forward(&x, Mode::train(0)).unwrap());
    let count = alive.iter().filter(|&&v| v > 0.0).count();
    // A quarter survives both; a half would survive twice the same mask.
    assert!((3..=17).contains(&count), "{count}");
}

#[test]
fn inputs_of_another_shape_are_refused() {
    let (_, network) = cnn(0, DType::F32);
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap();
    for dims in [vec![2, 5, 5], vec![2, 1, 5, 5], vec![2, 2, 5, 4]] {
        let text = network
            .forward(&zeros(&dims), Mode::eval())
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("SimpleCnn") && text.contains(&format!("{dims:?}")),
            "{text}"
        );
    }
    let (_, network) = mlp(0, DType::F32);
    for dims in [vec![6], vec![6, 1], vec![2, 7]] {
        let text = network
            .forward(&zeros(&dims), Mode::eval())
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("Mlp") && text.contains(&format!("{dims:?}")),
            "{text}"
        );
    }
}

#[test]
fn configurations_that_make_no_network_are_refused_by_field() {
    for (bad, field) in [
        (
            SimpleCnnConfig {
                in_channels: 0,
                ..cnn_config()
            },
            "in_channels",
        ),
        (
            SimpleCnnConfig {
                classes: 0,
                ..cnn_config()
            },
            "classes",
        ),
        (
            SimpleCnnConfig {
                widths: vec![3, 0],
                ..cnn_config()
            },
            "widths",
        ),
        (
            SimpleCnnConfig {
                widths: vec![2; 3],
                ..cnn_config()
            },
            "image_size",
        ),
        (
            SimpleCnnConfig {
                widths: vec![],
                image_size: 0,
                ..cnn_config()
            },
            "image_size",
        ),
        (
            SimpleCnnConfig {
                dropout: f64::NAN,
                ..cnn_config()
            },
            "dropout",
        ),
    ] {
        let text = bad.validate().unwrap_err().to_string();
        assert!(text.contains(field), "{text}");
        let store = VarStore::new(0, DType::F32, &Device::Cpu);
        assert!(SimpleCnn::new(&bad, store.builder(), Rng::new(0)).is_err());
    }
    for (bad, field) in [
        (
            MlpConfig {
                inputs: 0,
                ..mlp_config()
            },
            "inputs",
        ),
        (
            MlpConfig {
                hidden: vec![0],
                ..mlp_config()
            },
            "hidden",
        ),
        (
            MlpConfig {
                classes: 0,
                ..mlp_config()
            },
            "classes",
        ),
        (
            MlpConfig {
                dropout: -0.5,
                ..mlp_config()
            },
            "dropout",
        ),
    ] {
        let text = bad.validate().unwrap_err().to_string();
        assert!(text.contains(&format!("MlpConfig.{field}")), "{text}");
    }
}

/// Trains for some steps and returns the losses.
fn losses(store: &VarStore, network: &dyn Network, x: &Tensor, steps: u64) -> Vec<f64> {
    let vars = store.trainable().into_iter().map(|(_, var)| var).collect();
    let mut optimizer = AdamW::new_lr(vars, 0.02).unwrap();
    (0..steps)
        .map(|step| {
            let loss = cross_entropy(network, x, Mode::train(step)).unwrap();
            optimizer.backward_step(&loss).unwrap();
            values(&loss)[0]
        })
        .collect()
}

#[test]
fn networks_learn_five_examples_and_repeat_themselves_bit_by_bit() {
    let images = normal("x", &[5, 2, 5, 5]).to_dtype(DType::F32).unwrap();
    let run = |seed| {
        let (store, network) = cnn(seed, DType::F32);
        losses(&store, &network, &images, 60)
    };
    let first = run(3);
    assert_eq!(first, run(3));
    assert_ne!(first, run(4));
    assert!(
        first[50..].iter().sum::<f64>() < 0.6 * first[..10].iter().sum::<f64>(),
        "{first:?}"
    );
    let (store, network) = mlp(3, DType::F32);
    let x = normal("x", &[5, 6]).to_dtype(DType::F32).unwrap();
    let all = losses(&store, &network, &x, 60);
    assert!(
        all[50..].iter().sum::<f64>() < 0.6 * all[..10].iter().sum::<f64>(),
        "{all:?}"
    );
}
