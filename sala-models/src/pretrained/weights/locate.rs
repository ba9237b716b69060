//! Which files hold a model's weights.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{Error, Result};

/// The name of weights in one file.
pub(crate) const SINGLE: &str = "model.safetensors";
/// The name of the index of weights in several files.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// Endings of weights in other forms.
const OTHER_FORMS: [&str; 8] = ["bin", "pt", "pth", "ckpt", "h5", "msgpack", "onnx", "gguf"];

/// The file of weights or the index of its shards: `path` itself, or what is in that folder.
pub(crate) fn locate(path: &Path) -> Result<PathBuf> {
    let kind = fs::metadata(path).map_err(|source| unreadable(path, source))?;
    if !kind.is_dir() {
        return match path.file_name() {
            Some(name) if is_other_form(name.as_ref()) => Err(Error::NoWeights {
                folder: path.parent().unwrap_or(path).into(),
                found: vec![name.display().to_string()],
            }),
            _ => Ok(path.to_path_buf()),
        };
    }
    let candidates = [SINGLE, INDEX].map(|name| path.join(name));
    match candidates.into_iter().find(|candidate| candidate.is_file()) {
        Some(found) => Ok(found),
        None => Err(Error::NoWeights {
            folder: path.into(),
            found: other_forms(path)?,
        }),
    }
}

fn other_forms(folder: &Path) -> Result<Vec<String>> {
    let mut found = vec![];
    for entry in fs::read_dir(folder).map_err(|source| unreadable(folder, source))? {
        let name = entry.map_err(|source| unreadable(folder, source))?;
        let name = name.file_name();
        if is_other_form(name.as_ref()) {
            found.push(name.display().to_string());
        }
    }
    found.sort();
    Ok(found)
}

fn is_other_form(name: &Path) -> bool {
    let ending = name.extension().and_then(|ending| ending.to_str());
    ending.is_some_and(|ending| OTHER_FORMS.contains(&ending))
}

/// The shards that an index lists, each with the names of its tensors.
pub(crate) fn shards(index: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let bytes = fs::read(index).map_err(|source| unreadable(index, source))?;
    let json: Value = serde_json::from_slice(&bytes).map_err(|source| Error::Json {
        path: index.into(),
        source,
    })?;
    let Some(map) = json.get("weight_map").and_then(Value::as_object) else {
        return Err(damaged(index, "no object `weight_map`"));
    };
    let mut shards = BTreeMap::<String, Vec<String>>::new();
    for (tensor, file) in map {
        match file.as_str() {
            // Names come from outside: none may lead out of the folder.
            Some(file) if is_plain(file) => {
                shards.entry(file.into()).or_default().push(tensor.clone());
            }
            _ => {
                let problem =
                    format!("`{tensor}` is said to be in {file}, wanted the name of a file");
                return Err(damaged(index, problem));
            }
        }
    }
    if shards.is_empty() {
        return Err(damaged(index, "`weight_map` is empty"));
    }
    Ok(shards)
}

fn is_plain(name: &str) -> bool {
    !name.contains('\\') && Path::new(name).file_name().is_some_and(|last| last == name)
}

pub(super) fn damaged(path: &Path, problem: impl Into<String>) -> Error {
    Error::Damaged {
        path: path.into(),
        problem: problem.into(),
    }
}

pub(super) fn unreadable(path: &Path, source: std::io::Error) -> Error {
    Error::Io {
        action: "read",
        path: path.into(),
        source,
    }
}
