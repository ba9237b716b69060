//! The files of weights: one or shards, whole or damaged, and none.

use std::{fs, path::Path};

use candle_core::{DType, Device, Tensor};
use sala_models::{
    Error,
    pretrained::{LoadOptions, Snapshot, Weights},
};

use crate::{
    folders::{CLASSIFY, Tensors, bits, build, folder, published, read, write},
    weights::{bert, refused},
};

fn open(path: &Path) -> Weights {
    Weights::open(path).unwrap()
}

/// Puts tensors in two shards by turns, with an index that says so.
pub(crate) fn write_shards(folder: &Path, tensors: &Tensors) {
    let mut parts = [Tensors::new(), Tensors::new()];
    let mut map = serde_json::Map::new();
    for (i, (name, t)) in tensors.iter().enumerate() {
        parts[i % 2].insert(name.clone(), t.clone());
        map.insert(name.clone(), shard(i % 2).into());
    }
    for (i, part) in parts.iter().enumerate() {
        write(&folder.join(shard(i)), part);
    }
    let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
    fs::write(index_of(folder), index.to_string()).unwrap();
}

fn shard(i: usize) -> String {
    format!("model-0000{}-of-00002.safetensors", i + 1)
}

fn index_of(folder: &Path) -> std::path::PathBuf {
    folder.join("model.safetensors.index.json")
}

#[test]
fn shards_are_one_file_in_parts() {
    let folder = tempfile::tempdir().unwrap();
    let weights = published("bert");
    write_shards(folder.path(), &weights);
    let (config, store) = bert();
    let snapshot = Snapshot::local(folder.path()).unwrap();
    for path in [folder.path(), snapshot.weights(), &index_of(folder.path())] {
        let (store, _) = build(&config, CLASSIFY, 0, DType::F32);
        let options = LoadOptions::of(&config, CLASSIFY);
        open(path).load(&store, &options).unwrap();
        for (name, var) in store.all() {
            assert_eq!(bits(&var), bits(&weights[&name]), "{name}");
        }
    }
    // One shard alone is a file like any other, which lacks half of the names.
    let half = open(&folder.path().join(shard(1)));
    let (missing, surplus, _) = refused(&half, &store, &LoadOptions::of(&config, CLASSIFY));
    assert_eq!(missing.len(), weights.len().div_ceil(2));
    assert!(surplus.is_empty());
}

#[test]
fn an_index_that_does_not_fit_its_shards_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let one =
        |name: &str| Tensors::from([(name.to_owned(), Tensor::new(1f32, &Device::Cpu).unwrap())]);
    let write_index = |text: &str| fs::write(index_of(path), text).unwrap();
    let fails = |parts: &[&str]| {
        let text = Weights::open(path).unwrap_err().to_string();
        for part in parts {
            assert!(text.contains(part), "{text}");
        }
    };
    write(&path.join(shard(0)), &one("a"));
    write_index(
        r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "x.safetensors", "c": "y.safetensors"}}"#,
    );
    fails(&["index.json", "not there: x.safetensors, y.safetensors"]);
    write(&path.join("x.safetensors"), &one("c"));
    write_index(
        r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "x.safetensors"}}"#,
    );
    fails(&["`b` is not in the shard"]);
    write(&path.join("x.safetensors"), &one("a"));
    write_index(
        r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "x.safetensors"}}"#,
    );
    fails(&["`a` is in more than one shard"]);
    for outside in [
        "../x.safetensors",
        "/x.safetensors",
        "a/x.safetensors",
        "..",
        "",
    ] {
        write_index(&serde_json::json!({"weight_map": {"a": outside}}).to_string());
        fails(&["`a` is said to be in", "wanted the name of a file"]);
    }
    write_index(r#"{"weight_map": {}}"#);
    fails(&["is empty"]);
    write_index(r#"{"weights": {}}"#);
    fails(&["no object `weight_map`"]);
    write_index("{");
    fails(&["index.json", "EOF"]);
}

#[test]
fn pickles_are_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let fails = || {
        let error = Snapshot::local(path).unwrap_err();
        assert!(matches!(error, Error::NoWeights { .. }));
        assert_eq!(
            Weights::open(path).unwrap_err().to_string(),
            error.to_string()
        );
        error.to_string()
    };
    assert!(
        fails().ends_with("no model.safetensors.index.json"),
        "{}",
        fails()
    );
    for name in ["pytorch_model.bin", "flax_model.msgpack", "notes.txt"] {
        fs::write(path.join(name), "x").unwrap();
    }
    let text = fails();
    assert!(
        text.contains("only flax_model.msgpack, pytorch_model.bin, which"),
        "{text}"
    );
    assert!(text.contains("safe_serialization=True"), "{text}");
    let text = Weights::open(path.join("pytorch_model.bin"))
        .unwrap_err()
        .to_string();
    assert!(text.contains("only pytorch_model.bin, which"), "{text}");
    let error = Snapshot::local(path.join("absent")).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
}

#[test]
fn a_damaged_file_is_named_with_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let whole = fs::read(crate::folders::folder("bert").join("model.safetensors")).unwrap();
    let fails = |bytes: &[u8], part: &str| {
        fs::write(&path, bytes).unwrap();
        let error = Weights::open(&path).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains("model.safetensors: ") && text.contains(part),
            "{text}"
        );
    };
    let length = whole.len();
    let cut = |end: usize| &whole[..end];
    fails(cut(length - 1), &format!("wanted {length} bytes"));
    fails(cut(length / 2), &format!("got {}", length / 2));
    fails(cut(100), "cut short");
    fails(cut(7), "7 bytes are no safetensors file");
    fails(cut(0), "0 bytes");
    fails(&[&whole[..], b"x"].concat(), &format!("got {}", length + 1));
    fails(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
        "git lfs pull",
    );
    fails(
        b"PK\x03\x04 a zip file, which is a pickle of PyTorch",
        "no safetensors file",
    );
    let mut other = whole.clone();
    other[9] = b'!';
    fails(&other, "its header is not safetensors'");
    // Offsets that leave a gap.
    let text = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    let header = [
        &(text.len() as u64).to_le_bytes()[..],
        text.as_bytes(),
        &[0; 8],
    ]
    .concat();
    fails(&header, "its header is not safetensors'");
}

#[test]
fn single_tensors_can_be_read() {
    let weights = open(&folder("bert"));
    let all = read(weights.path());
    assert!(weights.names().eq(all.keys()));
    for (name, wanted) in &all {
        assert_eq!(weights.shape(name), Some(wanted.dims()));
        assert_eq!(
            bits(&weights.read(name, &Device::Cpu).unwrap()),
            bits(wanted)
        );
    }
    let error = weights.read("absent", &Device::Cpu).unwrap_err();
    assert!(error.to_string().contains("no tensor `absent`"), "{error}");
}
