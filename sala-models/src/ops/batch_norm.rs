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
//! with `ε = 1e-5`, unless another is chosen, and `a = 0.1`. As in `PyTorch`, the running variance takes the unbiased estimate
//! and the normalisation the biased one. The variance is computed from centred values (two passes):
//! `Σx²/m − μ²` would lose every digit when the mean is large against the spread.
//!
//! candle's own layer updates the statistics in every training forward. In a sharpness-aware step
//! that is twice, once of them at perturbed weights. Here [`Mode::track_stats`] decides. Where a batch would make a
//! channel's running mean or variance infinite or NaN, that channel keeps both: one in which something overflowed, as
//! under a loss scale that is too large, does not spoil the network for good.

use candle_core::{DType, Result, Tensor, Var};
use candle_nn::{Init, VarBuilder};

use super::{
    checks::{accumulator, check_companion, check_positive, check_values, refuse_shape},
    format::ImageFormat,
    relu::relu,
};
use crate::{
    Error, Mode,
    kernels::{
        self,
        card::{self, Card},
    },
};

const OP: &str = "batch_norm";
const EPS: f64 = 1e-5;
const MOMENTUM: f64 = 0.1;

/// Batch norm over the channel axis (axis 1) of `(N, C)` or `(N, C, H, W)`.
///
/// Parameters `weight` (γ, starts at 1) and `bias` (β, starts at 0), buffers `running_mean`
/// (starts at 0) and `running_var` (starts at 1), each of shape `(C)`. Half-precision inputs are
/// normalised in f32, with parameters of f32 as they are, and the buffers of a half-precision store are f32: an average that moves by a
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
    eps: f64,
    format: ImageFormat,
}

/// What follows the normalisation in the same operation.
#[derive(Clone, Copy, Default)]
struct After<'a> {
    residual: Option<&'a Tensor>,
    relu: bool,
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
                op: OP,
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
            eps: EPS,
            format: ImageFormat::ChannelsFirst,
        })
    }

    /// The same layer with another `ε`: 1e-3 in networks that were made in TensorFlow.
    ///
    /// # Errors
    /// When `eps` is not positive and finite.
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use sala_models::{VarStore, ops::BatchNorm};
    ///
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// assert!(BatchNorm::new(3, store.builder())?.with_eps(1e-3).is_ok());
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    pub fn with_eps(self, eps: f64) -> crate::Result<Self> {
        check_positive(OP, "eps", eps)?;
        Ok(Self { eps, ..self })
    }

    /// The same layer for images of another format; features `(N, C)` stay as they are.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use sala_models::{Mode, VarStore, ops::{BatchNorm, ImageFormat}};
    ///
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// let norm = BatchNorm::new(3, store.builder())?.with_format(ImageFormat::ChannelsLast);
    /// let x = Tensor::zeros((2, 5, 5, 3), DType::F32, &Device::Cpu)?;
    /// assert_eq!(norm.forward(&x, Mode::eval())?.dims(), [2, 5, 5, 3]);
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    #[must_use]
    pub fn with_format(self, format: ImageFormat) -> Self {
        Self { format, ..self }
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

    /// Normalises `x`, `(N, C)` or `(N, C, H, W)`, or `(N, H, W, C)` if the format says so; the result
    /// has its shape and dtype.
    ///
    /// In training the statistics are those of the batch, and gradients flow through them; in
    /// evaluation they are the running ones, which are constants. `x` may have any strides. Of a channel with
    /// values that are not finite the result is not finite either, and its running statistics stay as they are.
    ///
    /// # Errors
    /// When `x` is empty, not of floats, of another rank or channel count, when a training batch has
    /// fewer than two values per channel (its variance says nothing; `PyTorch` refuses as well), or when
    /// candle fails.
    pub fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        self.apply(x, mode, After::default())
    }

    /// `relu(norm(x))`, which is one operation where it has a fast form.
    ///
    /// # Errors
    /// As for [`BatchNorm::forward`].
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use sala_models::{Mode, VarStore, ops::BatchNorm};
    ///
    /// let store = VarStore::new(0, DType::F64, &Device::Cpu);
    /// let norm = BatchNorm::new(1, store.builder())?;
    /// let y = norm.forward_relu(&Tensor::new(&[[-3f64], [1.]], &Device::Cpu)?, Mode::train(0))?;
    /// assert_eq!(y.get(0)?.to_vec1::<f64>()?, [0.]);
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    pub fn forward_relu(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let residual = None;
        self.apply(
            x,
            mode,
            After {
                residual,
                relu: true,
            },
        )
    }

    /// `relu(norm(x) + residual)`, the end of a residual block, which is one operation where it has a
    /// fast form. `residual` has `x`'s shape and dtype.
    ///
    /// # Errors
    /// As for [`BatchNorm::forward`], and when `residual` does not fit.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use sala_models::{Mode, VarStore, ops::BatchNorm};
    ///
    /// let store = VarStore::new(0, DType::F64, &Device::Cpu);
    /// let norm = BatchNorm::new(1, store.builder())?;
    /// let x = Tensor::new(&[[1f64], [1.]], &Device::Cpu)?; // normalised: zeros
    /// let residual = Tensor::new(&[[-2f64], [5.]], &Device::Cpu)?;
    /// let y = norm.forward_add_relu(&x, &residual, Mode::train(0))?;
    /// assert_eq!(y.to_vec2::<f64>()?, [[0.], [5.]]);
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    pub fn forward_add_relu(&self, x: &Tensor, residual: &Tensor, mode: Mode) -> Result<Tensor> {
        let residual = Some(residual);
        self.apply(
            x,
            mode,
            After {
                residual,
                relu: true,
            },
        )
    }

    fn apply(&self, x: &Tensor, mode: Mode, after: After) -> Result<Tensor> {
        self.check(x, mode)?;
        if let Some(residual) = after.residual {
            check_values(OP, "residual", residual)?;
            check_companion(OP, "residual", residual, x)?;
            if residual.dims() != x.dims() {
                let wanted = format!("of shape {:?}", x.dims());
                return Err(refuse_shape(OP, "residual", wanted, residual));
            }
        }
        let dtype = accumulator(x.dtype());
        if self.running_mean.dtype() == dtype
            && let Some(card) = card::serving(x)?
        {
            return self.on_card(card, x, mode, after);
        }
        let values = x.to_dtype(dtype)?;
        let residual = after.residual.map(|r| r.to_dtype(dtype)).transpose()?;
        if kernels::fast(&values)? {
            let y = self.fast(&values, mode, residual.as_ref(), after.relu)?;
            return y.to_dtype(x.dtype());
        }
        let mut y = self.composed(&values, mode)?;
        if let Some(residual) = residual {
            y = (y + residual)?;
        }
        if after.relu {
            y = relu(&y)?;
        }
        y.to_dtype(x.dtype())
    }

    /// The whole operation by the kernels of a graphics card.
    fn on_card(&self, card: Card, x: &Tensor, mode: Mode, after: After) -> Result<Tensor> {
        let images = x.rank() == 4;
        let last = |t: &Tensor| -> Result<Tensor> {
            match self.format {
                ImageFormat::ChannelsFirst if images => t.permute((0, 2, 3, 1))?.contiguous(),
                _ => t.contiguous(),
            }
        };
        let residual = after.residual.map(|r| last(&r.to_dtype(x.dtype())?));
        let settings = card::batch_norm::BatchNorm {
            channels: self.channels,
            eps: self.eps,
            relu: after.relu,
            train: mode.train,
            share: if mode.train && mode.track_stats {
                share(mode)
            } else {
                0.0
            },
            running: [self.running_mean.clone(), self.running_var.clone()],
        };
        let y = card::batch_norm::batch_norm(
            card,
            &last(x)?,
            [&self.weight, &self.bias],
            residual.transpose()?.as_ref(),
            settings,
        )?;
        match self.format {
            ImageFormat::ChannelsFirst if images => y.permute((0, 3, 1, 2))?.contiguous(),
            _ => Ok(y),
        }
    }

    /// The whole operation by its fast form, of tensors in the dtype of the computation.
    fn fast(
        &self,
        x: &Tensor,
        mode: Mode,
        residual: Option<&Tensor>,
        relu: bool,
    ) -> Result<Tensor> {
        let weight = self.weight.to_dtype(x.dtype())?;
        let bias = self.bias.to_dtype(x.dtype())?;
        let wide = |t: &Var| t.as_tensor().to_dtype(DType::F64)?.to_vec1();
        let given = if mode.train {
            None
        } else {
            let (mean, variance) = (wide(&self.running_mean)?, wide(&self.running_var)?);
            Some(kernels::batch_norm::Statistics { mean, variance })
        };
        let first = x.rank() == 4 && self.format == ImageFormat::ChannelsFirst;
        let settings = kernels::batch_norm::BatchNorm {
            channels: self.channels,
            positions: first.then(|| x.elem_count() / (x.dims()[0] * self.channels)),
            eps: self.eps,
            relu,
            given,
        };
        let residual = residual.map(Tensor::contiguous).transpose()?;
        let (y, statistics) = kernels::batch_norm::batch_norm(
            &x.contiguous()?,
            [&weight.contiguous()?, &bias.contiguous()?],
            residual.as_ref(),
            settings,
        )?;
        if mode.train && mode.track_stats {
            let tensor = |values: Vec<f64>| Tensor::new(values, x.device());
            let (mean, variance) = (tensor(statistics.mean)?, tensor(statistics.variance)?);
            self.track(&mean, &variance, x.elem_count() / self.channels, mode)?;
        }
        Ok(y)
    }

    /// The normalisation in plain candle operations, of `x` in the dtype of the computation.
    fn composed(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        if x.rank() == 4 {
            let images = self.format.to_channels_first(x)?;
            let (_, _, height, width) = images.dims4()?;
            let values = images.flatten_from(2)?;
            let y = self.normalised(&values, mode)?;
            let y = y.reshape(((), self.channels, height, width))?;
            return self.format.from_channels_first(&y);
        }
        self.normalised(&x.unsqueeze(2)?, mode)?.squeeze(2)
    }

    /// `(N, C, positions)` to the same.
    fn normalised(&self, values: &Tensor, mode: Mode) -> Result<Tensor> {
        let dtype = values.dtype();
        let weight = self.per_channel(&self.weight, dtype)?;
        let bias = self.per_channel(&self.bias, dtype)?;
        let (mean, var) = if mode.train {
            let mean = channel_mean(values)?;
            let var = channel_mean(&values.broadcast_sub(&mean)?.sqr()?)?;
            if mode.track_stats {
                self.track(&mean, &var, values.elem_count() / self.channels, mode)?;
            }
            (mean, var)
        } else {
            // Snapshots, so that no graph holds storage which a later training pass overwrites.
            (
                self.per_channel(&self.running_mean()?, dtype)?,
                self.per_channel(&self.running_var()?, dtype)?,
            )
        };
        values
            .broadcast_sub(&mean)?
            .broadcast_mul(&(weight * inverse_deviation(&var, self.eps)?)?)?
            .broadcast_add(&bias)
    }

    fn check(&self, x: &Tensor, mode: Mode) -> Result<()> {
        check_values(OP, "x", x)?;
        let channels = self.channels;
        let found = match x.rank() {
            2 => x.dim(1)?,
            4 => x.dim(self.format.channel())?,
            _ => 0,
        };
        if found != channels {
            let images = self.format.shape();
            let wanted = format!("of shape (N, C) or {images} with C = {channels}");
            return Err(refuse_shape(OP, "x", wanted, x));
        }
        if mode.train && x.elem_count() < 2 * channels {
            let wanted = "a batch with more than one value per channel in training";
            return Err(refuse_shape(OP, "x", wanted, x));
        }
        Ok(())
    }

    /// Moves the running statistics towards those of a batch with `count` values per channel. A channel whose new ones
    /// would not be finite keeps the old: from infinity or NaN there is no way back.
    fn track(&self, mean: &Tensor, var: &Tensor, count: usize, mode: Mode) -> Result<()> {
        let unbiased = count as f64 / (count as f64 - 1.0);
        let share = share(mode);
        let new_mean = moved(&self.running_mean, mean, share, 1.0)?;
        let new_var = moved(&self.running_var, var, share, unbiased)?;
        // 0 x is 0 for a finite x, and NaN for any other.
        let zeros = (new_mean.affine(0.0, 0.0)? + new_var.affine(0.0, 0.0)?)?;
        let finite = zeros.eq(0.0)?;
        for (running, new) in [(&self.running_mean, new_mean), (&self.running_var, new_var)] {
            running.set(&finite.where_cond(&new, &running.as_detached_tensor())?)?;
        }
        Ok(())
    }

    /// `(C)` to `(1, C, 1)`, in the dtype of the computation.
    fn per_channel(&self, t: &Tensor, dtype: DType) -> Result<Tensor> {
        t.to_dtype(dtype)?.reshape((1, self.channels, 1))
    }
}

/// By how much the running statistics move towards those of a batch.
fn share(mode: Mode) -> f64 {
    mode.averaging.map_or(MOMENTUM, |i| 1.0 / i.get() as f64)
}

/// `(1 − a) running + a · factor · batch` for a share `a`, outside any graph.
fn moved(running: &Var, batch: &Tensor, share: f64, factor: f64) -> Result<Tensor> {
    let batch = batch
        .detach()
        .flatten_all()?
        .to_dtype(running.dtype())?
        .affine(share * factor, 0.0)?;
    let kept = running.as_detached_tensor().affine(1.0 - share, 0.0)?;
    kept + batch
}

/// `(N, C, P)` to the mean over batch and positions, `(1, C, 1)`. Positions first: they are
/// contiguous, which is the case that candle sums fast.
fn channel_mean(values: &Tensor) -> Result<Tensor> {
    let (batch, _, positions) = values.dims3()?;
    let sum = values.sum_keepdim(2)?.sum_keepdim(0)?;
    sum / (batch * positions) as f64
}

fn inverse_deviation(var: &Tensor, eps: f64) -> Result<Tensor> {
    (var + eps)?.sqrt()?.recip()
}

fn snapshot(var: &Var) -> Result<Tensor> {
    // `detach` alone would alias the variable's storage.
    Ok(var.as_tensor().force_contiguous()?.detach())
}
