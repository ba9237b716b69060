//! Reading TOML so that a slip of the pen is answered with what was probably meant.

use anyhow::{Result, anyhow};
use serde::de::DeserializeOwned;

/// Reads a whole file of TOML.
///
/// # Errors
/// With line, column and what was expected there; an unknown key or name comes with the nearest known one.
pub(crate) fn from_toml<T: DeserializeOwned>(text: &str) -> Result<T> {
    toml::from_str(text).map_err(explained)
}

/// Reads a table, whose errors have no line.
pub(crate) fn from_table<T: DeserializeOwned>(table: toml::Table) -> Result<T> {
    table.try_into().map_err(explained)
}

fn explained(error: toml::de::Error) -> anyhow::Error {
    let text = error.to_string();
    let text = text.trim_end();
    match meant(error.message()) {
        Some(nearest) => anyhow!("{text}\nDid you mean `{nearest}`?"),
        None => anyhow!("{text}"),
    }
}

/// The nearest of the names that serde's message lists: ``unknown field `a`, expected one of `b`, `c` ``.
fn meant(message: &str) -> Option<&str> {
    let unknown = ["unknown field", "unknown variant"];
    let start = unknown.iter().find_map(|words| message.find(words))?;
    let (wrong, known) = message[start..].split_once(", expected")?;
    let quoted = |text| str::split(text, '`').skip(1).step_by(2);
    nearest(quoted(wrong).next()?, quoted(known))
}

/// The known name that a wrong one is nearest to, if it is near at all: at most every third letter lost,
/// added, changed or swapped with its neighbour.
pub(crate) fn nearest<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let distance = |name: &str| strsim::damerau_levenshtein(wrong, name);
    let length = |name: &str| name.chars().count().max(wrong.chars().count());
    known
        .filter(|name| 3 * distance(name) <= length(name))
        .min_by_key(|name| distance(name))
}

/// `; did you mean …?` for the end of an error about a name, or nothing.
pub(crate) fn did_you_mean<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> String {
    nearest(wrong, known).map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only read")]
    struct Part {
        batch_size: u64,
        kind: Kind,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum Kind {
        LookSam,
        Sam,
    }

    fn message(text: &str) -> String {
        format!("{:#}", from_toml::<Part>(text).unwrap_err())
    }

    #[test]
    fn a_misspelt_key_is_answered_with_its_line_and_the_nearest_known_one() {
        let text = message("batch_size = 1\nbatchsize = 2\nkind = \"sam\"");
        assert!(
            text.contains("line 2") && text.ends_with("Did you mean `batch_size`?"),
            "{text}"
        );
    }

    #[test]
    fn a_misspelt_name_of_a_choice_is_answered_likewise() {
        let text = message("batch_size = 1\nkind = \"loksam\"");
        assert!(text.ends_with("Did you mean `look-sam`?"), "{text}");
    }

    #[test]
    fn nothing_is_suggested_for_what_resembles_nothing_or_is_no_name() {
        let text = message("batch_size = 1\nmomentum = 2\nkind = \"sam\"");
        assert!(
            text.contains("`momentum`") && !text.contains("mean"),
            "{text}"
        );
        let text = message("batch_size = -1\nkind = \"sam\"");
        assert!(!text.contains("mean"), "{text}");
    }

    #[test]
    fn swapped_letters_count_once_and_short_names_are_not_guessed_freely() {
        assert_eq!(nearest("mpl", ["mlp", "cnn"].into_iter()), Some("mlp"));
        assert_eq!(nearest("k", ["a", "b"].into_iter()), None);
        assert_eq!(
            nearest("epocs", ["epochs", "steps"].into_iter()),
            Some("epochs")
        );
    }
}
