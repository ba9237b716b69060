//! The store: seeds, order, buffers, ties, and files that do not fit.

use std::{collections::BTreeMap, path::Path};

use candle_core::{DType, Device, Tensor};
use candle_nn::Init;
use sala_models::{
    Error, Mode, Network, Rng, SimpleCnn, SimpleCnnConfig, VarStore, ops::BatchNorm,
};

use crate::gradcheck::{normal, values};

const NORMAL: Init = Init::Randn {
    mean: 0.0,
    stdev: 1.0,
};

fn store(seed: u64) -> VarStore {
    VarStore::new(seed, DType::F32, &Device::Cpu)
}

/// Every variable's bits (of its values in f64, which holds any smaller float exactly).
fn bits(store: &VarStore) -> Vec<(String, Vec<u64>)> {
    let of = |t: &Tensor| values(t).into_iter().map(f64::to_bits).collect();
    store
        .all()
        .into_iter()
        .map(|(name, var)| (name, of(&var)))
        .collect()
}

fn fill(store: &VarStore, names: &[&str]) {
    for name in names {
        store
            .builder()
            .get_with_hints((3, 2), name, NORMAL)
            .unwrap();
    }
}

fn config() -> SimpleCnnConfig {
    SimpleCnnConfig {
        image_size: 4,
        widths: vec![2],
        ..Default::default()
    }
}

fn network(seed: u64) -> (VarStore, SimpleCnn) {
    let store = store(seed);
    let network = SimpleCnn::new(&config(), store.builder(), Rng::new(0)).unwrap();
    (store, network)
}

#[test]
fn one_seed_gives_one_set_of_bits_whatever_the_order_of_creation() {
    let (a, b, c) = (store(1), store(1), store(2));
    fill(&a, &["x", "y", "z"]);
    fill(&b, &["z", "x", "y"]);
    fill(&c, &["x", "y", "z"]);
    assert_eq!(bits(&a), bits(&b));
    for ((_, one), (_, other)) in bits(&a).iter().zip(&bits(&c)) {
        assert_ne!(one, other);
    }
    let [x, y, _] = &bits(&a)[..] else { panic!() };
    assert_ne!(x.1, y.1, "names must have values of their own");
}

/// These numbers may change only with an entry under "Numerics" in the change log.
#[test]
fn initial_values_are_pinned() {
    let store = VarStore::new(42, DType::F64, &Device::Cpu);
    let vb = store.builder().pp("layer");
    let uniform = vb
        .get_with_hints(2, "u", Init::Uniform { lo: -1.0, up: 1.0 })
        .unwrap();
    let normal = vb.get_with_hints(3, "n", NORMAL).unwrap();
    assert_eq!(values(&uniform), PINNED_UNIFORM);
    assert_eq!(values(&normal), PINNED_NORMAL);
}

/// Computed by a separate implementation in another language.
const PINNED_UNIFORM: [f64; 2] = [-0.909_430_373_449_578_3, 0.252_979_051_987_533];
const PINNED_NORMAL: [f64; 3] = [
    -0.155_430_558_339_826_52,
    -0.771_844_704_733_687_5,
    0.040_493_915_888_543_69,
];

#[test]
fn narrower_dtypes_are_the_rounded_values_of_the_wider() {
    let of = |dtype| {
        let store = VarStore::new(3, dtype, &Device::Cpu);
        let t = store.builder().get_with_hints(50, "w", NORMAL).unwrap();
        assert_eq!(t.dtype(), dtype);
        t
    };
    let wide = of(DType::F64);
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        assert_eq!(values(&of(dtype)), values(&wide.to_dtype(dtype).unwrap()));
    }
}

#[test]
fn names_come_sorted_and_buffers_apart() {
    let store = store(0);
    BatchNorm::new(2, store.builder().pp("z")).unwrap();
    fill(&store, &["b", "a.running_mean.weight"]);
    let vb = store.builder();
    vb.get_with_hints_dtype((), "z.num_batches_tracked", Init::Const(0.0), DType::I64)
        .unwrap();
    vb.get_with_hints_dtype(4, "position_ids", Init::Const(0.0), DType::U32)
        .unwrap();
    let names = |vars: Vec<(String, candle_core::Var)>| -> Vec<String> {
        vars.into_iter().map(|(name, _)| name).collect()
    };
    assert_eq!(
        names(store.trainable()),
        ["a.running_mean.weight", "b", "z.bias", "z.weight"]
    );
    let buffers = [
        "position_ids",
        "z.num_batches_tracked",
        "z.running_mean",
        "z.running_var",
    ];
    assert_eq!(names(store.buffers()), buffers);
    assert_eq!(store.all().len(), 8);
    assert_eq!(store.num_parameters(), 6 + 6 + 2 + 2);
}

#[test]
fn asking_again_ties_and_asking_differently_is_an_error() {
    let store = store(0);
    let vb = store.builder().pp("embed");
    let first = vb.get_with_hints((3, 2), "weight", NORMAL).unwrap();
    let again = vb
        .get_with_hints((3, 2), "weight", Init::Const(7.0))
        .unwrap();
    assert_eq!(first.id(), again.id());
    assert_eq!(store.all().len(), 1);
    assert_eq!(vb.get_unchecked("weight").unwrap().id(), first.id());
    assert!(vb.contains_tensor("weight") && !vb.contains_tensor("bias"));
    assert!(
        vb.get_unchecked("bias")
            .unwrap_err()
            .to_string()
            .contains("embed.bias")
    );

    let text = vb.get((2, 3), "weight").unwrap_err().to_string();
    for part in ["embed.weight", "wanted [2, 3] f32", "[3, 2] f32"] {
        assert!(text.contains(part), "{text}");
    }
    let text = vb
        .to_dtype(DType::F64)
        .get((3, 2), "weight")
        .unwrap_err()
        .to_string();
    assert!(text.contains("wanted [3, 2] f64"), "{text}");
}

#[test]
fn clones_and_tensors_see_the_same_variables() {
    let store = store(0);
    let other = store.clone();
    let t = store.builder().get(2, "w").unwrap();
    let new = Tensor::new(&[5f32, 6.], &Device::Cpu).unwrap();
    other.get("w").unwrap().set(&new).unwrap();
    assert_eq!(values(&t), [5.0, 6.0]);
    assert!(store.get("v").is_none());
}

#[test]
fn a_saved_store_is_loaded_bit_by_bit_with_its_buffers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let (a, cnn) = network(1);
    let x = normal("x", &[3, 1, 4, 4]).to_dtype(DType::F32).unwrap();
    cnn.forward(&x, Mode::train(0)).unwrap(); // so that the buffers are not those of a new store
    let vb = a.builder();
    vb.get_with_hints_dtype(2, "half", NORMAL, DType::BF16)
        .unwrap();
    vb.get_with_hints_dtype((), "count", Init::Const(3.0), DType::I64)
        .unwrap();
    a.save(&path).unwrap();

    let (b, _) = network(2);
    b.builder()
        .get_with_hints_dtype(2, "half", NORMAL, DType::BF16)
        .unwrap();
    b.builder()
        .get_with_hints_dtype((), "count", Init::Const(0.0), DType::I64)
        .unwrap();
    assert_ne!(bits(&a), bits(&b));
    b.load(&path).unwrap();
    assert_eq!(bits(&a), bits(&b));
    assert_eq!(values(&b.get("count").unwrap()), [3.0]);
    // The same content gives the same file, and nothing is left beside it.
    let first = std::fs::read(&path).unwrap();
    b.save(&path).unwrap();
    assert_eq!(first, std::fs::read(&path).unwrap());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_file_that_does_not_fit_is_refused_with_all_its_faults_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.safetensors");
    let (store, _) = network(1);
    let mut tensors: BTreeMap<String, Tensor> = store
        .all()
        .into_iter()
        .map(|(n, v)| (n, v.as_tensor().ones_like().unwrap()))
        .collect();
    tensors.remove("classifier.bias");
    tensors.remove("features.0.norm.running_var");
    for name in ["extra.weight", "extra.bias"] {
        tensors.insert(
            name.into(),
            Tensor::ones(1, DType::F32, &Device::Cpu).unwrap(),
        );
    }
    let wrong_shape = Tensor::ones((2, 1, 3, 2), DType::F32, &Device::Cpu).unwrap();
    tensors.insert("features.0.conv.weight".into(), wrong_shape);
    let wrong_dtype = Tensor::ones(2, DType::F64, &Device::Cpu).unwrap();
    tensors.insert("features.0.norm.weight".into(), wrong_dtype);
    write(&tensors, &path);

    let before = bits(&store);
    let error = store.load(&path).unwrap_err();
    assert_eq!(bits(&store), before);
    let text = error.to_string();
    for part in [
        "bad.safetensors",
        "2 missing in the file: classifier.bias, features.0.norm.running_var",
        "2 not in the store: extra.bias, extra.weight",
        "features.0.conv.weight (wanted [2, 1, 3, 3] f32, got [2, 1, 3, 2] f32)",
        "features.0.norm.weight (wanted [2] f32, got [2] f64)",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let Error::Mismatch {
        missing,
        surplus,
        misshapen,
        ..
    } = error
    else {
        panic!()
    };
    assert_eq!((missing.len(), surplus.len(), misshapen.len()), (2, 2, 2));
}

#[test]
fn each_fault_alone_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.safetensors");
    let store = store(1);
    fill(&store, &["a", "b"]);
    let one = |dims: &[usize]| Tensor::ones(dims, DType::F32, &Device::Cpu).unwrap();
    let cases: [&[(&str, &[usize])]; 3] = [
        &[("a", &[3, 2])],
        &[("a", &[3, 2]), ("b", &[3, 2]), ("c", &[1])],
        &[("a", &[3, 2]), ("b", &[2, 3])],
    ];
    let before = bits(&store);
    for case in cases {
        let tensors = case
            .iter()
            .map(|(n, dims)| ((*n).to_owned(), one(dims)))
            .collect();
        write(&tensors, &path);
        assert!(matches!(store.load(&path), Err(Error::Mismatch { .. })));
        assert_eq!(bits(&store), before);
    }
}

#[test]
fn unreadable_files_and_missing_folders_are_errors_with_the_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let store = store(1);
    fill(&store, &["a"]);
    let text = store.load(&path).unwrap_err().to_string();
    assert!(
        text.contains("cannot read") && text.contains("x.safetensors"),
        "{text}"
    );
    std::fs::write(&path, b"not a tensor").unwrap();
    assert!(matches!(store.load(&path), Err(Error::Format { .. })));
    // A file cut short by a full disk or a stopped copy.
    store.save(&path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let before = bits(&store);
    assert!(matches!(store.load(&path), Err(Error::Format { .. })));
    assert_eq!(bits(&store), before);
    let text = store
        .save(folder.path().join("none/x"))
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("cannot write") && text.contains("none"),
        "{text}"
    );
}

#[cfg(unix)]
#[test]
fn a_saved_file_has_the_permissions_of_any_new_file() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let (ours, plain) = (folder.path().join("ours"), folder.path().join("plain"));
    let store = store(1);
    fill(&store, &["a"]);
    store.save(&ours).unwrap();
    std::fs::write(&plain, b"").unwrap();
    let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode();
    assert_eq!(mode(&ours), mode(&plain));
}

#[test]
fn errors_keep_their_message_as_errors_of_candle() {
    let ours = Error::Argument {
        op: "op",
        argument: "x",
        wanted: "this".into(),
        got: "that".into(),
    };
    let text = ours.to_string();
    assert_eq!(text, "op: x must be this, got that");
    assert!(
        candle_core::Error::from(ours)
            .to_string()
            .starts_with(&text)
    );
}

fn write(tensors: &BTreeMap<String, Tensor>, path: &Path) {
    let bytes = safetensors::serialize(tensors, None).unwrap();
    std::fs::write(path, bytes).unwrap();
}
