//! The classes of a classifier: `id2label`, `label2id`, `num_labels` and `problem_type`.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::Fields;
use crate::Result;

const NAMES: &str = "id2label";
const PROBLEM: &str = "problem_type";

/// What a classifier's outputs are for: the key `problem_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProblemType {
    /// `single_label_classification`: each input is of one class.
    SingleLabel,
    /// `multi_label_classification`: each input may be of several.
    MultiLabel,
    /// `regression`: the outputs are numbers.
    Regression,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Labels {
    /// In the order of the outputs.
    pub(super) names: Vec<String>,
    pub(super) problem: Option<ProblemType>,
}

impl Labels {
    /// The classes of a new classifier.
    pub(super) fn new(names: Vec<String>, fields: Fields) -> Result<Self> {
        let different: BTreeSet<&String> = names.iter().collect();
        if names.len() < 2 || different.len() != names.len() {
            let wanted = "two or more names, all different";
            return Err(fields.refuse(NAMES, wanted, format!("{names:?}")));
        }
        let problem = Some(ProblemType::SingleLabel);
        Ok(Self { names, problem })
    }

    pub(super) fn read(fields: Fields) -> Result<Self> {
        let number = fields.maybe_size("num_labels")?;
        let names = match fields.object(NAMES)? {
            Some(map) => named(map, fields)?,
            None => (0..number.unwrap_or(2))
                .map(|i| format!("LABEL_{i}"))
                .collect(),
        };
        if let Some(number) = number
            && number != names.len()
        {
            let wanted = format!("the number of entries of {NAMES}, {}", names.len());
            return Err(fields.refuse("num_labels", wanted, number));
        }
        let problem = fields.maybe_text(PROBLEM)?.map(|name| match name {
            "single_label_classification" => Ok(ProblemType::SingleLabel),
            "multi_label_classification" => Ok(ProblemType::MultiLabel),
            "regression" => Ok(ProblemType::Regression),
            other => {
                let wanted =
                    "single_label_classification, multi_label_classification or regression";
                Err(fields.refuse(PROBLEM, wanted, format!("`{other}`")))
            }
        });
        Ok(Self {
            names,
            problem: problem.transpose()?,
        })
    }

    /// Puts these classes into a configuration, in place of others.
    pub(super) fn write(&self, json: &mut Map<String, Value>) {
        let numbered = || self.names.iter().enumerate();
        let names: Map<String, Value> =
            numbered().map(|(i, n)| (i.to_string(), json!(n))).collect();
        let numbers: Map<String, Value> = numbered().map(|(i, n)| (n.clone(), json!(i))).collect();
        json.insert(NAMES.into(), names.into());
        json.insert("label2id".into(), numbers.into());
        json.insert(PROBLEM.into(), "single_label_classification".into());
        // The library computes it from the names.
        json.shift_remove("num_labels");
    }
}

/// The values of `{"0": …, "1": …}` in the order of their keys.
fn named(map: &Map<String, Value>, fields: Fields) -> Result<Vec<String>> {
    let name = |i: usize| Some(map.get(&i.to_string())?.as_str()?.to_owned());
    let names: Option<Vec<String>> = (0..map.len()).map(name).collect();
    let wanted = "names under \"0\", \"1\", …";
    names.ok_or_else(|| fields.refuse(NAMES, wanted, Value::from(map.clone())))
}
