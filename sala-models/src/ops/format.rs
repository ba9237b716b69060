//! How a batch of images lies in memory.

use candle_core::{DType, Device, Result, Tensor};

use super::checks::refuse_shape;
use crate::kernels::{self, parts::permute};

/// The order of a batch of images' dimensions.
///
/// Everything published speaks of `(N, C, H, W)`, which is the default everywhere here. The fast
/// operations on the CPU want the channels of a pixel side by side: a convolution then reads long runs,
/// and a norm works on all channels of a pixel at once. A network that stays in
/// [`ChannelsLast`](Self::ChannelsLast) from its first to its last layer is converted to it once.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use sala_models::ops::ImageFormat;
///
/// let image = Tensor::zeros((2, 3, 8, 9), DType::F32, &Device::Cpu)?;
/// let pixels = ImageFormat::ChannelsLast.from_channels_first(&image)?;
/// assert_eq!(pixels.dims(), [2, 8, 9, 3]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ImageFormat {
    /// `(N, C, H, W)`.
    #[default]
    ChannelsFirst,
    /// `(N, H, W, C)`.
    ChannelsLast,
}

impl ImageFormat {
    /// The format in which a network of this dtype trains fastest on a device: channels last where the
    /// operations have fast forms (half precision is computed by those of f32), else channels first.
    ///
    /// # Errors
    /// When `SALA_KERNELS` has an unknown value.
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use sala_models::{kernels::{Choice, with_choice}, ops::ImageFormat};
    ///
    /// let best = || ImageFormat::fastest(DType::F32, &Device::Cpu);
    /// assert_eq!(with_choice(Choice::Auto, best)?, ImageFormat::ChannelsLast);
    /// assert_eq!(with_choice(Choice::Composed, best)?, ImageFormat::ChannelsFirst);
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    pub fn fastest(dtype: DType, device: &Device) -> crate::Result<Self> {
        let on_cpu = device.is_cpu() && kernels::choice()? == kernels::Choice::Auto;
        if dtype.is_float() && (on_cpu || kernels::card::serves(device)?) {
            return Ok(Self::ChannelsLast);
        }
        Ok(Self::ChannelsFirst)
    }

    /// `x (N, C, H, W)` in this format, contiguous. Gradients flow back.
    ///
    /// # Errors
    /// When `x` does not have rank 4 or candle fails.
    pub fn from_channels_first(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::ChannelsFirst => x.contiguous(),
            Self::ChannelsLast => permuted("from_channels_first", x, [0, 2, 3, 1]),
        }
    }

    /// `x` of this format as `(N, C, H, W)`, contiguous. Gradients flow back.
    ///
    /// # Errors
    /// When `x` does not have rank 4 or candle fails.
    pub fn to_channels_first(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::ChannelsFirst => x.contiguous(),
            Self::ChannelsLast => permuted("to_channels_first", x, [0, 3, 1, 2]),
        }
    }

    /// The dimensions that are height and width.
    pub(crate) const fn spatial(self) -> (usize, usize) {
        match self {
            Self::ChannelsFirst => (2, 3),
            Self::ChannelsLast => (1, 2),
        }
    }

    /// The dimension of the channels.
    pub(crate) const fn channel(self) -> usize {
        match self {
            Self::ChannelsFirst => 1,
            Self::ChannelsLast => 3,
        }
    }

    /// How this format is written in messages.
    pub(crate) const fn shape(self) -> &'static str {
        match self {
            Self::ChannelsFirst => "(N, C, H, W)",
            Self::ChannelsLast => "(N, H, W, C)",
        }
    }
}

fn permuted(op: &'static str, x: &Tensor, order: [usize; 4]) -> Result<Tensor> {
    if x.rank() != 4 {
        return Err(refuse_shape(op, "x", "of rank 4", x));
    }
    permute(x, order)
}
