//! Names of classes and their numbers.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};

use crate::data::files::in_order;

/// The classes of a classifier, in the order of its outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Labels {
    names: Vec<String>,
}

impl Labels {
    /// The different names among those of examples, in order: that of the model where it knows the very same
    /// classes already, so that its head can be taken over; else sorted, as numbers where all are.
    ///
    /// # Errors
    /// When there are fewer than two.
    pub(crate) fn of<'a>(
        found: impl IntoIterator<Item = &'a str>,
        model: &[String],
    ) -> Result<Self> {
        let found: BTreeSet<&str> = found.into_iter().collect();
        ensure!(
            found.len() > 1,
            "a classifier wants examples of at least two classes, got {found:?}"
        );
        if model.len() == found.len() && model.iter().all(|name| found.contains(name.as_str())) {
            return Ok(Self {
                names: model.to_vec(),
            });
        }
        Ok(Self {
            names: in_order(found),
        })
    }

    /// In the order of the outputs.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    /// The number of a class.
    ///
    /// # Errors
    /// When the name is none of the training examples'.
    pub(crate) fn number(&self, name: &str) -> Result<u32> {
        let place = self.names.iter().position(|n| n == name);
        let place = place.with_context(|| {
            let known = self.names.join(", ");
            format!("no training example has the label `{name}`; they have {known}")
        })?;
        Ok(u32::try_from(place)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_and_numbers_by_value() {
        let labels = Labels::of(["pos", "neg", "pos", "mixed"], &[]).unwrap();
        assert_eq!(labels.names(), ["mixed", "neg", "pos"]);
        assert_eq!(labels.number("pos").unwrap(), 2);
        // As texts, 10 would come before 9.
        assert_eq!(
            Labels::of(["10", "9", "-1"], &[]).unwrap().names(),
            ["-1", "9", "10"]
        );
        assert_eq!(
            Labels::of(["10", "9", "x"], &[]).unwrap().names(),
            ["10", "9", "x"]
        );
    }

    #[test]
    fn the_models_own_order_is_kept_only_for_the_very_same_classes() {
        let model = ["pos".to_owned(), "neg".to_owned()];
        assert_eq!(Labels::of(["neg", "pos"], &model).unwrap().names(), model);
        assert_eq!(
            Labels::of(["neg", "sad"], &model).unwrap().names(),
            ["neg", "sad"]
        );
        let more = Labels::of(["neg", "pos", "sad"], &model).unwrap();
        assert_eq!(more.names(), ["neg", "pos", "sad"]);
    }

    #[test]
    fn an_unknown_name_and_a_single_class_are_refused() {
        let labels = Labels::of(["a", "b"], &[]).unwrap();
        let message = labels.number("c").unwrap_err().to_string();
        assert!(
            message.contains("`c`") && message.contains("a, b"),
            "{message}"
        );
        assert!(Labels::of(["a", "a"], &[]).is_err());
    }
}
