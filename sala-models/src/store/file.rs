//! The store on disk: safetensors, written aside and renamed, read strictly.

use std::{collections::BTreeMap, fs, path::Path};

use candle_core::{DType, Device, Tensor, Var, safetensors::Load};
use safetensors::SafeTensors;

use super::describe;
use crate::{Error, Result, files::write_atomically};

pub(super) fn save(vars: &BTreeMap<String, Var>, path: &Path) -> Result<()> {
    // To the CPU first: candle's own conversion panics when a device cannot be read.
    let tensors = vars
        .iter()
        .map(|(name, var)| Ok((name, var.to_device(&Device::Cpu)?)))
        .collect::<Result<Vec<_>>>()?;
    let bytes = safetensors::serialize(tensors, None).map_err(|source| Error::Format {
        path: path.into(),
        source,
    })?;
    write_atomically(path, &bytes).map_err(|source| Error::Io {
        action: "write",
        path: path.into(),
        source,
    })
}

pub(super) fn load(vars: &BTreeMap<String, Var>, path: &Path, device: &Device) -> Result<()> {
    let bytes = fs::read(path).map_err(|source| Error::Io {
        action: "read",
        path: path.into(),
        source,
    })?;
    let file = SafeTensors::deserialize(&bytes).map_err(|source| Error::Format {
        path: path.into(),
        source,
    })?;
    check(vars, &file, path)?;
    // All tensors are on the device before the first variable changes.
    let values = vars
        .keys()
        .map(|name| {
            let view = file.tensor(name).map_err(|source| Error::Format {
                path: path.into(),
                source,
            })?;
            Ok(view.load(device)?)
        })
        .collect::<Result<Vec<Tensor>>>()?;
    for (var, value) in vars.values().zip(&values) {
        var.set(value)?;
    }
    Ok(())
}

/// Names, shapes and dtypes of the file against those of the store: all differences in one error.
fn check(vars: &BTreeMap<String, Var>, file: &SafeTensors<'_>, path: &Path) -> Result<()> {
    let found: BTreeMap<String, String> = file
        .iter()
        .map(|(name, view)| {
            // A dtype that candle does not know fits no variable; its name is enough.
            let kind = DType::try_from(view.dtype()).map_or_else(
                |_| format!("{:?} {:?}", view.shape(), view.dtype()),
                |dtype| describe(view.shape(), dtype),
            );
            (name.to_owned(), kind)
        })
        .collect();
    let names = |keep: &dyn Fn(&str) -> bool, all: Vec<&String>| -> Vec<String> {
        all.into_iter().filter(|n| keep(n)).cloned().collect()
    };
    let missing = names(&|n| !found.contains_key(n), vars.keys().collect());
    let surplus = names(&|n| !vars.contains_key(n), found.keys().collect());
    let misshapen: Vec<String> = vars
        .iter()
        .filter_map(|(name, var)| {
            let wanted = describe(var.dims(), var.dtype());
            let got = found.get(name)?;
            (wanted != *got).then(|| format!("{name} (wanted {wanted}, got {got})"))
        })
        .collect();
    if missing.is_empty() && surplus.is_empty() && misshapen.is_empty() {
        return Ok(());
    }
    Err(Error::Mismatch {
        path: path.into(),
        missing,
        surplus,
        misshapen,
    })
}
