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
    match (weight.dtype(), x.dtype()) {
        (DType::F32, DType::F32 | DType::BF16 | DType::F16) => Ok(()),
        (DType::F32, _) => Err(refuse_dtype(op, "of dtype F32, BF16 or F16", x, weight)),
        _ => check_same_dtype(op, x, weight),
    }
}

/// As [`check_dtype`], for a network that puts parameters beside its input.
pub(crate) fn check_same_dtype(op: &'static str, x: &Tensor, weight: &Tensor) -> Result<()> {
    if x.dtype() == weight.dtype() {
        return Ok(());
    }
    let wanted = format!("of dtype {:?}", weight.dtype());
    Err(refuse_dtype(op, &wanted, x, weight))
}

fn refuse_dtype(op: &'static str, wanted: &str, x: &Tensor, weight: &Tensor) -> candle_core::Error {
    Error::Argument {
        op,
        argument: "x",
        wanted: format!("{wanted}, for weights of {:?}", weight.dtype()),
        got: format!("{:?}", x.dtype()),
    }
    .into()
}
