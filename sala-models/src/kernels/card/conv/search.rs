//! How cuDNN's algorithm for a convolution is chosen.

use std::sync::OnceLock;

use crate::{Error, kernels::variable};

/// Which of cuDNN's algorithms a convolution on a graphics card takes, of those that yield the same bits every time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ConvSearch {
    /// The one that cuDNN expects to be the fastest: the same one in every run.
    #[default]
    Heuristic,
    /// The one that is the fastest when all are tried, once for each shape, as with PyTorch's
    /// `torch.backends.cudnn.benchmark`. Two that are equally fast may be chosen one in this run and the other in the
    /// next, so a run's results may differ from another's, or from those of a run that goes on, in the last digits.
    Benchmark,
}

impl ConvSearch {
    /// Reads a value of `SALA_CUDNN`.
    fn parse(value: Option<&str>) -> crate::Result<Self> {
        match value {
            None | Some("" | "heuristic") => Ok(Self::Heuristic),
            Some("benchmark") => Ok(Self::Benchmark),
            Some(other) => Err(Error::Argument {
                op: "environment",
                argument: "SALA_CUDNN",
                wanted: "`heuristic` or `benchmark`".into(),
                got: format!("`{other}`"),
            }),
        }
    }
}

/// What the environment variable `SALA_CUDNN` says (`heuristic`, the default, or `benchmark`), which is read once.
///
/// # Errors
/// When the variable has an unknown value.
///
/// ```
/// use sala_models::kernels::{ConvSearch, conv_search};
/// let search = conv_search()?;
/// assert!(search == ConvSearch::Heuristic || search == ConvSearch::Benchmark);
/// # Ok::<(), sala_models::Error>(())
/// ```
pub fn conv_search() -> crate::Result<ConvSearch> {
    static VALUE: OnceLock<Option<String>> = OnceLock::new();
    ConvSearch::parse(variable("SALA_CUDNN", &VALUE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_is_read_strictly() {
        for (value, wanted) in [
            (None, ConvSearch::Heuristic),
            (Some(""), ConvSearch::Heuristic),
            (Some("heuristic"), ConvSearch::Heuristic),
            (Some("benchmark"), ConvSearch::Benchmark),
        ] {
            assert_eq!(ConvSearch::parse(value).unwrap(), wanted);
        }
        for wrong in ["Benchmark", "true", "1"] {
            let error = ConvSearch::parse(Some(wrong)).unwrap_err().to_string();
            for part in ["SALA_CUDNN", "`heuristic`", wrong] {
                assert!(error.contains(part), "{error}");
            }
        }
    }
}
