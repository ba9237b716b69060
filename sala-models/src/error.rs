//! What can go wrong, said with the place, what was wanted and what was there.

use std::path::PathBuf;

/// An error of this crate.
///
/// Constructors, [`save`](crate::VarStore::save) and [`load`](crate::VarStore::load) return it.
/// Forward functions return [`candle_core::Error`], as every candle layer does; an `Error` turns
/// into one with `?`, keeping its message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of a configuration has a value that makes no sense.
    #[error("{config}.{field} must be {wanted}, got {got}")]
    Config {
        /// The configuration type, such as `MlpConfig`.
        config: &'static str,
        /// Its field.
        field: &'static str,
        /// The values that are allowed.
        wanted: &'static str,
        /// The value that was given.
        got: String,
    },

    /// An argument of an operation has the wrong shape, rank or value.
    #[error("{op}: {argument} must be {wanted}, got {got}")]
    Argument {
        /// The operation or layer.
        op: &'static str,
        /// The argument's name.
        argument: &'static str,
        /// What the operation works on.
        wanted: String,
        /// What it was given.
        got: String,
    },

    /// A variable was asked for under the name of an existing one that is different.
    #[error("variable `{name}`: wanted {wanted}, but the store already holds {got}")]
    Variable {
        /// The full name in the store.
        name: String,
        /// Shape, dtype or device that was asked for.
        wanted: String,
        /// Shape, dtype or device of the variable that exists.
        got: String,
    },

    /// A variable's initial distribution cannot be drawn from.
    #[error("variable `{name}`: initialisation {init} needs {wanted}")]
    Init {
        /// The full name in the store.
        name: String,
        /// The initialisation that was asked for.
        init: String,
        /// What it lacks.
        wanted: &'static str,
    },

    /// A file of parameters does not fit the store; all differences are listed at once.
    #[error("{}", mismatch(.path, .missing, .surplus, .misshapen))]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Names that the store has and the file lacks.
        missing: Vec<String>,
        /// Names that the file has and the store lacks.
        surplus: Vec<String>,
        /// Tensors of another shape or dtype, one sentence each.
        misshapen: Vec<String>,
    },

    /// Published weights do not fit the network; all differences are listed at once, and nothing was loaded.
    #[error(
        "{}; parameters that start afresh are named in `fresh`, tensors to leave out in `ignored`",
        mismatch(.path, .missing, .surplus, .misshapen)
    )]
    Weights {
        /// The file, or the index of the shards.
        path: PathBuf,
        /// Names that the network has and the file lacks.
        missing: Vec<String>,
        /// Names that the file has and the network lacks.
        surplus: Vec<String>,
        /// Tensors of another shape or dtype, one sentence each.
        misshapen: Vec<String>,
    },

    /// A folder has no weights in a form that is read here.
    #[error("{}: no model.safetensors and no model.safetensors.index.json{}", .folder.display(), advice(.found))]
    NoWeights {
        /// The folder.
        folder: PathBuf,
        /// Files with weights in other forms, such as pickles, which are never read.
        found: Vec<String>,
    },

    /// A file of a model is damaged, or does not belong to the others.
    #[error("{}: {problem}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },

    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was being done, such as `read`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },

    /// A file is not valid safetensors, or tensors could not be written as such.
    #[error("{}: {source}", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: safetensors::SafeTensorError,
    },

    /// A file is not JSON.
    #[error("{}: {source}", .path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: serde_json::Error,
    },

    /// A model's configuration has a key with a value that makes no sense or that the network cannot
    /// honour.
    #[error("{place}: `{key}` must be {wanted}, got {got}")]
    ModelConfig {
        /// The file, or `config.json` where there is none.
        place: String,
        /// The key; empty where the whole is meant.
        key: String,
        /// The values that are allowed.
        wanted: String,
        /// The value that is there.
        got: String,
    },

    /// A model could not be brought from the Hugging Face hub.
    #[cfg(feature = "hub")]
    #[error(transparent)]
    Hub(#[from] crate::pretrained::HubError),

    /// An error of candle itself.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(error) => error,
            other => Self::wrap(other),
        }
    }
}

fn mismatch(
    path: &std::path::Path,
    missing: &[String],
    surplus: &[String],
    misshapen: &[String],
) -> String {
    let lists = [
        ("missing in the file", missing),
        ("not in the store", surplus),
        ("of another kind", misshapen),
    ];
    let found: Vec<String> = lists
        .iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(what, names)| format!("{} {what}: {}", names.len(), names.join(", ")))
        .collect();
    format!(
        "{} does not fit the store: {}",
        path.display(),
        found.join("; ")
    )
}

fn advice(found: &[String]) -> String {
    if found.is_empty() {
        return String::new();
    }
    format!(
        ", only {}, which is not read because such files can run code: take the model's safetensors, or convert it in Python with `AutoModel.from_pretrained(FOLDER).save_pretrained(OTHER, safe_serialization=True)`",
        found.join(", ")
    )
}

/// Checks a dropout probability; shared by every configuration that has one.
pub(crate) fn check_probability(config: &'static str, field: &'static str, p: f64) -> Result<()> {
    // A NaN is in no range, so it is refused here as well.
    if (0.0..1.0).contains(&p) {
        return Ok(());
    }
    Err(Error::Config {
        config,
        field,
        wanted: "in [0, 1)",
        got: p.to_string(),
    })
}

/// Checks that every size in a configuration is at least one.
pub(crate) fn check_sizes(
    config: &'static str,
    sizes: impl IntoIterator<Item = (&'static str, usize)>,
) -> Result<()> {
    for (field, size) in sizes {
        if size == 0 {
            return Err(Error::Config {
                config,
                field,
                wanted: "at least 1",
                got: size.to_string(),
            });
        }
    }
    Ok(())
}

/// Checks a number that has to be positive and finite.
pub(crate) fn check_positive(config: &'static str, field: &'static str, value: f64) -> Result<()> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(Error::Config {
        config,
        field,
        wanted: "positive and finite",
        got: value.to_string(),
    })
}
