//! Fast forms of the operations, for f32 and f64 on the CPU.
//!
//! Every operation of [`ops`](crate::ops) has a *composed* form, of plain candle operations: it runs on
//! every device, it is the readable reference, and what is here is tested against it. An operation
//! takes the fast form when all its tensors are on the CPU and of f32 or f64 (half precision is
//! computed in f32), and the process's [`Choice`] allows it; the choice is made in the forward pass and
//! holds for its backward.
//!
//! | part | what it is |
//! |---|---|
//! | `element` | arithmetic of f32 and f64, as scalars and as vectors of the processor at hand |
//! | `access` | slices of tensors, and tensors of what a kernel computed |
//! | `graph` | operations in candle's graph, and their gradients from one to the next |
//! | `matmul` | matrix products, the core of convolutions, linear layers and attention |
//! | `scratch` | memory that kernels borrow instead of allocating it |
//! | `pieces` | how work is cut and shared among threads |
//! | `functions` | exp and the normal distribution, in a form that the compiler makes vectors of |
//! | `rows` | sums and maxima of a row |
//! | the others | an operation, or a family of them, with the equations of its backward |
//!
//! **Threads.** Work is cut into pieces that depend on its size alone, and sums over pieces are added
//! in the order of the pieces. Threads (rayon's, `RAYON_NUM_THREADS`) only take pieces, so the result
//! has the same bits for any number of them.
//!
//! **Instruction sets** are chosen at run time (`pulp`): AVX-512, AVX2 with fused multiply-add, NEON,
//! or plain scalars. Sums may be grouped differently on each, so bits are repeatable on one machine
//! and may differ between kinds of processors.

pub(crate) mod access;
pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod batch_norm;
pub(crate) mod card;
pub(crate) mod conv;
pub(crate) mod cross_entropy;
pub(crate) mod dropout;
pub(crate) mod element;
pub(crate) mod embedding;
pub(crate) mod functions;
pub(crate) mod graph;
pub(crate) mod linear;
pub(crate) mod matmul;
pub(crate) mod norm;
pub(crate) mod parts;
pub(crate) mod pieces;
pub(crate) mod pool;
pub(crate) mod rope;
pub(crate) mod rows;
pub(crate) mod scratch;
pub(crate) mod softmax;
pub(crate) mod sum;
pub(crate) mod transpose;

use std::{cell::Cell, sync::OnceLock};

use candle_core::{DType, Result, Tensor};

pub use self::card::conv::search::{ConvSearch, conv_search};
pub use self::conv::precision::{ConvPrecision, conv_precision, with_conv_precision};
pub use self::graph::backward;
use crate::Error;

/// Which forms may be used.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// The fast form where there is one for the tensors' device and dtype, else the composed form.
    #[default]
    Auto,
    /// The composed form everywhere.
    Composed,
    /// The kernels of graphics cards, run by the processor on tensors of the CPU: how tests check them without a card.
    /// Exists with the feature `cuda-emulated`, and is [`Composed`](Self::Composed) where there is no C++ compiler.
    #[cfg(feature = "cuda-emulated")]
    Emulated,
}

impl Choice {
    /// Reads a value of `SALA_KERNELS`.
    fn parse(value: Option<&str>) -> crate::Result<Self> {
        match value {
            None | Some("" | "auto") => Ok(Self::Auto),
            Some("composed") => Ok(Self::Composed),
            Some(other) => Err(Error::Argument {
                op: "environment",
                argument: "SALA_KERNELS",
                wanted: "`auto` or `composed`".into(),
                got: format!("`{other}`"),
            }),
        }
    }
}

thread_local! {
    static FORCED: Cell<Option<Choice>> = const { Cell::new(None) };
}

/// The choice of the calling thread: that of [`with_choice`], else that of the environment variable
/// `SALA_KERNELS` (`auto`, the default, or `composed`), which is read once.
///
/// # Errors
/// When the variable has an unknown value.
///
/// ```
/// use sala_models::kernels::{self, Choice};
/// let choice = kernels::choice()?;
/// assert!(choice == Choice::Auto || choice == Choice::Composed);
/// # Ok::<(), sala_models::Error>(())
/// ```
pub fn choice() -> crate::Result<Choice> {
    static VALUE: OnceLock<Option<String>> = OnceLock::new();
    if let Some(choice) = FORCED.get() {
        return Ok(choice);
    }
    Choice::parse(variable("SALA_KERNELS", &VALUE))
}

/// The value of an environment variable, which is read once.
fn variable(name: &str, value: &'static OnceLock<Option<String>>) -> Option<&'static str> {
    let read = || std::env::var_os(name).map(|v| v.to_string_lossy().into_owned());
    value.get_or_init(read).as_deref()
}

/// Runs `work` with this choice, whatever the environment says, on the calling thread: to compare
/// both forms within one process.
///
/// ```
/// use sala_models::kernels::{self, Choice};
/// let inside = kernels::with_choice(Choice::Composed, || kernels::choice())?;
/// assert_eq!(inside, Choice::Composed);
/// # Ok::<(), sala_models::Error>(())
/// ```
pub fn with_choice<R>(choice: Choice, work: impl FnOnce() -> R) -> R {
    struct Reset(Option<Choice>);
    impl Drop for Reset {
        fn drop(&mut self) {
            FORCED.set(self.0);
        }
    }
    let _reset = Reset(FORCED.replace(Some(choice)));
    work()
}

/// Whether the fast form may be used for tensors like `x`, and there is one for its device and dtype.
///
/// Operations ask [`card::serving`] first.
pub(crate) fn fast(x: &Tensor) -> Result<bool> {
    let supported = x.device().is_cpu() && matches!(x.dtype(), DType::F32 | DType::F64);
    Ok(supported && choice()? == Choice::Auto)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_is_read_strictly() {
        assert_eq!(Choice::parse(None).unwrap(), Choice::Auto);
        assert_eq!(Choice::parse(Some("auto")).unwrap(), Choice::Auto);
        assert_eq!(Choice::parse(Some("composed")).unwrap(), Choice::Composed);
        let error = Choice::parse(Some("fastest")).unwrap_err().to_string();
        for part in ["SALA_KERNELS", "`composed`", "fastest"] {
            assert!(error.contains(part), "{error}");
        }
    }
}
