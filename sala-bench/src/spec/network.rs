//! The network of an experiment.

use serde::{Deserialize, Serialize};

/// The network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Network {
    /// Fully connected layers of these widths.
    Mlp { hidden: Vec<usize>, dropout: f64 },
    /// Convolutions of these widths, each with batch norm and a halving of the image.
    Cnn { widths: Vec<usize>, dropout: f64 },
}
