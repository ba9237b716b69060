//! Batch normalisation that tracks its statistics only when told to.
//!
//! For each channel, over the `m` values of a batch (Ioffe and Szegedy 2015, arXiv:1502.03167):
//!
//! ```text
//! μ = Σ x / m        σ² = Σ (x − μ)² / m        y = γ (x − μ) / √(σ² + ε) + β
//! running_mean ← (1 − a) running_mean + a μ
//! running_var  ← (1 − a) running_var  + a σ² m / (m − 1)
//! ```
//!
//! with `ε = 1e-5` and `a = 0.1`. As in `PyTorch`, the running variance takes the unbiased estimate
//! and the normalisation the biased one. The variance is computed from centred values (two passes):
//! `Σx²/m − μ²` would lose every digit when the mean is large against the spread.
//!
//! candle's own layer updates the statistics in every training forward. In a sharpness-aware step
//! that is twice, once of them at perturbed weights. Here [`Mode::track_stats`] decides.

use candle_core::{DType, Result, Tensor, Var};
use candle_nn::{Init, VarBuilder};

use super::checks::accumulator;
use crate::{Error, Mode};

const EPS: f64 = 1e-5;
const MOMENTUM: f64 = 0.1;

/// Batch norm over the channel axis (axis 1) of `(N, C)` or `(N, C, H, W)`.
///
/// Parameters `weight` (γ, starts at 1) and `bias` (β, starts at 0), buffers `running_mean`
/// (starts at 0) and `running_var` (starts at 1), each of shape `(C)`. Half-precision inputs are
/// normalised in f32, and the buffers of a half-precision store are f32: an average that moves by a
/// tenth of a small difference would stand still in bf16.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use sala_models::{Mode, VarStore, ops::BatchNorm};
///
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let norm = BatchNorm::new(2, store.builder().pp("norm"))?;
/// let x = Tensor::new(&[[1f32, 10.], [3., 30.]], &Device::Cpu)?;
/// norm.forward(&x, Mode::train(0).without_stats())?; // changes nothing
/// assert_eq!(norm.running_mean()?.to_vec1::<f32>()?, [0., 0.]);
/// norm.forward(&x, Mode::train(0))?;                 // moves a tenth of the way to (2, 20)
/// assert_eq!(norm.running_mean()?.to_vec1::<f32>()?, [0.2, 2.]);
/// # Ok::<(), sala_models::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Var,
    running_var: Var,
    channels: usize,
}

impl BatchNorm {
    /// A layer for `channels` channels, with its tensors under the builder's prefix.
    ///
    /// # Errors
    /// When `channels` is zero or the store holds one of the names with another shape.
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use sala_models::{VarStore, ops::BatchNorm};
    ///
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// BatchNorm::new(8, store.builder().pp("norm"))?;
    /// assert_eq!(store.num_parameters(), 16); // weight and bias; the rest are buffers
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    #[expect(
        clippy::needless_pass_by_value,
        reason = "candle's layers take the builder by value"
    )]
    pub fn new(channels: usize, vb: VarBuilder) -> crate::Result<Self> {
        if channels == 0 {
            return Err(Error::Argument {
                op: "batch_norm",
                argument: "channels",
                wanted: "at least 1".into(),
                got: "0".into(),
            });
        }
        let stats = |name: &str, start: f64| {
            let init = Init::Const(start);
            let tensor = vb.get_with_hints_dtype(channels, name, init, accumulator(vb.dtype()))?;
            // A tensor that already is a variable of the store stays that variable.
            Var::from_tensor(&tensor)
        };
        Ok(Self {
            weight: vb.get_with_hints(channels, "weight", Init::Const(1.0))?,
            bias: vb.get_with_hints(channels, "bias", Init::Const(0.0))?,
            running_mean: stats("running_mean", 0.0)?,
            running_var: stats("running_var", 1.0)?,
            channels,
        })
    }

    /// A snapshot of the running mean, `(C)`.
    ///
    /// # Errors
    /// When candle fails.
    pub fn running_mean(&self) -> Result<Tensor> {
        snapshot(&self.running_mean)
    }

    /// A snapshot of the running (unbiased) variance, `(C)`.
    ///
    /// # Errors
    /// When candle fails.
    pub fn running_var(&self) -> Result<Tensor> {
        snapshot(&self.running_var)
    }

    /// Normalises `x`, `(N, C)` or `(N, C, H, W)`; the result has its shape and dtype.
    ///
    /// In training the statistics are those of the batch, and gradients flow through them; in
    /// evaluation they are the running ones, which are constants. `x` may have any strides.
    ///
    /// # Errors
    /// When `x` has another rank or channel count, when a training batch has fewer than two values
    /// per channel (its variance says nothing; `PyTorch` refuses as well), or when candle fails.
    pub fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let (batch, positions) = self.check(x, mode)?;
        let dtype = accumulator(x.dtype());
        let values = x
            .reshape((batch, self.channels, positions))?
            .to_dtype(dtype)?;
        let weight = self.per_channel(&self.weight, dtype)?;
        let bias = self.per_channel(&self.bias, dtype)?;
        let normalised = if mode.train {
            let mean = channel_mean(&values)?;
            let centred = values.broadcast_sub(&mean)?;
            let var = channel_mean(&centred.sqr()?)?;
            if mode.track_stats {
                self.track(&mean, &var, batch * positions)?;
            }
            centred.broadcast_mul(&(weight * inverse_deviation(&var)?)?)?
        } else {
            // Snapshots, so that no graph holds storage which a later training pass overwrites.
            let mean = self.per_channel(&self.running_mean()?, dtype)?;
            let var = self.per_channel(&self.running_var()?, dtype)?;
            values
                .broadcast_sub(&mean)?
                .broadcast_mul(&(weight * inverse_deviation(&var)?)?)?
        };
        normalised
            .broadcast_add(&bias)?
            .to_dtype(x.dtype())?
            .reshape(x.shape())
    }

    /// The batch size and the number of positions per image (1 for features).
    fn check(&self, x: &Tensor, mode: Mode) -> crate::Result<(usize, usize)> {
        let channels = self.channels;
        let refuse = |wanted: String| Error::Argument {
            op: "batch_norm",
            argument: "x",
            wanted,
            got: format!("shape {:?}", x.dims()),
        };
        let (batch, positions) = match *x.dims() {
            [n, c] if c == channels => (n, 1),
            [n, c, h, w] if c == channels => (n, h * w),
            _ => {
                return Err(refuse(format!(
                    "of shape (N, {channels}) or (N, {channels}, H, W)"
                )));
            }
        };
        if mode.train && batch * positions < 2 {
            return Err(refuse(
                "a batch with more than one value per channel in training".into(),
            ));
        }
        Ok((batch, positions))
    }

    /// Moves the running statistics towards those of a batch with `count` values per channel.
    fn track(&self, mean: &Tensor, var: &Tensor, count: usize) -> Result<()> {
        let unbiased = count as f64 / (count as f64 - 1.0);
        move_towards(&self.running_mean, mean, 1.0)?;
        move_towards(&self.running_var, var, unbiased)
    }

    /// `(C)` to `(1, C, 1)`, in the dtype of the computation.
    fn per_channel(&self, t: &Tensor, dtype: DType) -> Result<Tensor> {
        t.to_dtype(dtype)?.reshape((1, self.channels, 1))
    }
}

/// `running ← (1 − a) running + a · factor · batch`, outside any graph.
fn move_towards(running: &Var, batch: &Tensor, factor: f64) -> Result<()> {
    let batch = batch
        .detach()
        .flatten_all()?
        .to_dtype(running.dtype())?
        .affine(MOMENTUM * factor, 0.0)?;
    let kept = running.as_detached_tensor().affine(1.0 - MOMENTUM, 0.0)?;
    running.set(&(kept + batch)?)
}

/// `(N, C, P)` to the mean over batch and positions, `(1, C, 1)`. Positions first: they are
/// contiguous, which is the case that candle sums fast.
fn channel_mean(values: &Tensor) -> Result<Tensor> {
    let (batch, _, positions) = values.dims3()?;
    let sum = values.sum_keepdim(2)?.sum_keepdim(0)?;
    sum / (batch * positions) as f64
}

fn inverse_deviation(var: &Tensor) -> Result<Tensor> {
    (var + EPS)?.sqrt()?.recip()
}

fn snapshot(var: &Var) -> Result<Tensor> {
    // `detach` alone would alias the variable's storage.
    Ok(var.as_tensor().copy()?.detach())
}
