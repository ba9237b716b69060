//! Which tensor of a file belongs to which variable, and all that does not fit.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Var};
use safetensors::Dtype;

use super::{super::names::matches, Entry, LoadOptions, LoadReport, Weights};
use crate::{Error, Result};

/// The names that norms' parameters had in the first published models, and have now.
const OLD_ENDINGS: [(&str, &str); 2] = [(".gamma", ".weight"), (".beta", ".bias")];

/// What is to be read, for a file that fits.
pub(super) struct Plan {
    /// Variables, each with the file's name of its value.
    pub(super) pairs: Vec<(Var, String)>,
    /// Names of the file that the network has as one, and that must be equal.
    pub(super) tied: Vec<(String, String)>,
    pub(super) report: LoadReport,
}

impl Plan {
    pub(super) fn new(
        weights: &Weights,
        vars: &[(String, Var)],
        options: &LoadOptions<'_>,
    ) -> Result<Self> {
        let hub = |name: &str| (options.hub_name.as_ref()).map_or(name.to_owned(), |hub| hub(name));
        let hub_names: Vec<String> = vars.iter().map(|(name, _)| hub(name)).collect();
        let names = Names::new(&weights.tensors, &hub_names, options.base_model_prefix);
        let mut plan = Self {
            pairs: vec![],
            tied: vec![],
            report: LoadReport::default(),
        };
        let mut used = BTreeSet::new();
        let (mut missing, mut misshapen) = (vec![], vec![]);
        for ((name, var), hub_name) in vars.iter().zip(&hub_names) {
            if names.is_among(hub_name, &options.fresh) || names.is_among(name, &options.fresh) {
                plan.report.fresh.push(name.clone());
                continue;
            }
            let aliases = options.tied.iter().filter(|(_, own)| own == hub_name);
            let aliases = aliases.map(|(alias, _)| *alias);
            let mut found = (std::iter::once(hub_name.as_str()).chain(aliases))
                .filter_map(|candidate| names.find(candidate));
            let Some(first) = found.next() else {
                missing.push(both(name, hub_name));
                continue;
            };
            used.insert(first.clone());
            for other in found {
                used.insert(other.clone());
                plan.tied.push((first.clone(), other));
            }
            let entry = &weights.tensors[&first];
            misshapen.extend(unfit(name, hub_name, var, entry));
            plan.pairs.push((var.clone(), first));
            plan.report.loaded.push(name.clone());
        }
        let unused = weights.names().filter(|name| !used.contains(*name));
        let (ignored, surplus): (Vec<&str>, Vec<&str>) = unused.partition(|name| {
            names.is_among(name, &options.ignored) || names.is_among(name, &options.fresh)
        });
        plan.report.ignored = owned(&ignored);
        if missing.is_empty() && surplus.is_empty() && misshapen.is_empty() {
            return Ok(plan);
        }
        Err(Error::Weights {
            path: weights.path.clone(),
            missing,
            surplus: owned(&surplus),
            misshapen,
        })
    }
}

/// Where the prefix of the base model stands.
#[derive(Clone, Copy)]
enum Prefix<'a> {
    /// In both or in neither.
    Same,
    /// In the network alone.
    Network(&'a str),
    /// In the file alone.
    File(&'a str),
}

/// The names of a file, found by those that the hub would give to a network's tensors.
struct Names<'a> {
    tensors: &'a BTreeMap<String, Entry>,
    prefix: Prefix<'a>,
}

impl<'a> Names<'a> {
    fn new(
        tensors: &'a BTreeMap<String, Entry>,
        hub_names: &[String],
        base: Option<&'a str>,
    ) -> Self {
        let prefix = base.map_or(Prefix::Same, |base| {
            let has = |name: &String| without(name, base).is_some();
            match (hub_names.iter().any(has), tensors.keys().any(has)) {
                (true, false) => Prefix::Network(base),
                (false, true) => Prefix::File(base),
                _ => Prefix::Same,
            }
        });
        Self { tensors, prefix }
    }

    /// The file's name of what is called `name` by the hub.
    fn find(&self, name: &str) -> Option<String> {
        let other = match self.prefix {
            Prefix::Same => None,
            Prefix::Network(base) => without(name, base).map(str::to_owned),
            Prefix::File(base) => Some(format!("{base}.{name}")),
        };
        let spellings = other.into_iter().chain([name.to_owned()]);
        let mut candidates = spellings.flat_map(|name| [Some(name.clone()), old_name(&name)]);
        candidates.find_map(|name| name.filter(|name| self.tensors.contains_key(name)))
    }

    /// Whether a pattern names it, with or without the base model's prefix and by its old name or its new one.
    fn is_among(&self, name: &str, patterns: &[&str]) -> bool {
        let other = match self.prefix {
            Prefix::Same => None,
            Prefix::Network(base) | Prefix::File(base) => {
                let without = without(name, base).map(str::to_owned);
                Some(without.unwrap_or_else(|| format!("{base}.{name}")))
            }
        };
        patterns.iter().any(|pattern| {
            matches(pattern, name) || other.as_ref().is_some_and(|other| matches(pattern, other))
        })
    }
}

fn without<'n>(name: &'n str, base: &str) -> Option<&'n str> {
    name.strip_prefix(base)?.strip_prefix('.')
}

fn old_name(name: &str) -> Option<String> {
    let renamed = |(old, new): &(&str, &str)| Some(format!("{}{old}", name.strip_suffix(new)?));
    OLD_ENDINGS.iter().find_map(renamed)
}

/// What keeps a tensor of the file from being the value of a variable.
fn unfit(name: &str, hub_name: &str, var: &Var, entry: &Entry) -> Option<String> {
    let (shape, dtype) = (&*entry.info.shape, entry.info.dtype);
    let convertible = if var.dtype().is_float() {
        matches!(dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64)
    } else {
        DType::try_from(dtype).is_ok_and(|dtype| dtype == var.dtype())
    };
    if shape == var.dims() && convertible {
        return None;
    }
    let kind = if var.dtype().is_float() {
        "float"
    } else {
        var.dtype().as_str()
    };
    let name = both(name, hub_name);
    let wanted = format!("{:?} {kind}", var.dims());
    Some(format!("{name} (wanted {wanted}, got {shape:?} {dtype:?})"))
}

/// A variable's name, and the hub's where that is another.
fn both(name: &str, hub_name: &str) -> String {
    if name == hub_name {
        return name.to_owned();
    }
    format!("{name} ({hub_name} on the hub)")
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}
