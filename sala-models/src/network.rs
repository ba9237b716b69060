//! What every network here can do.

use candle_core::{DType, Result, Tensor};

use crate::{Error, Mode};

/// A network: from a batch of inputs to a batch of outputs.
///
/// The trait is object-safe, and networks can be shared between threads, so a caller holds a
/// `Box<dyn Network>` or an `Arc<dyn Network>`.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use sala_models::{Mlp, MlpConfig, Mode, Network, Rng, VarStore};
///
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let config = MlpConfig { inputs: 4, hidden: vec![8], classes: 3, dropout: 0.0 };
/// let network: Box<dyn Network> = Box::new(Mlp::new(&config, store.builder(), Rng::new(0))?);
/// let logits = network.forward(&Tensor::zeros((2, 4), DType::F32, &Device::Cpu)?, Mode::eval())?;
/// assert_eq!(logits.dims(), [2, 3]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Network: Send + Sync {
    /// Maps a batch `x`, of the shape that the network documents, to its outputs (for the
    /// classifiers here: logits of shape `(N, classes)`, before any softmax).
    ///
    /// # Errors
    /// When `x` has another shape, dtype or device than the network, or when candle fails.
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor>;
}

/// Refuses an input that is not of the dtype of a network's weights. Those of f32 also take half precision, which is
/// computed in f32.
pub(crate) fn check_dtype(op: &'static str, x: &Tensor, weight: &Tensor) -> Result<()> {
    let (dtype, of_weights) = (x.dtype(), weight.dtype());
    let single = of_weights == DType::F32;
    if dtype == of_weights || (single && matches!(dtype, DType::BF16 | DType::F16)) {
        return Ok(());
    }
    let halves = if single { ", BF16 or F16" } else { "" };
    Err(Error::Argument {
        op,
        argument: "x",
        wanted: format!("of dtype {of_weights:?}{halves}, for weights of {of_weights:?}"),
        got: format!("{dtype:?}"),
    }
    .into())
}
