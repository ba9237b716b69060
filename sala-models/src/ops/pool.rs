//! Max and average pooling with any windows, and adaptive average pooling.
//!
//! Along each axis of size `L`, with kernel `k`, stride `s` and padding `p`, window `i` covers the
//! places `[i s − p, i s − p + k)`, and there are
//!
//! ```text
//! ⌊(L + 2p − k) / s⌋ + 1 windows        ⌈…⌉ with ceil_mode, without those that start behind L + p
//! ```
//!
//! The largest and the mean value of a rectangle can be taken along one axis after the other. The
//! rules are `PyTorch`'s, ties included: the gradient of a maximum goes to the first entry, row by
//! row, that attains it. Dilation is left out, and where `PyTorch` and the fast form make NaN the maximum
//! of a window that holds one, candle's search may pass over it.
//!
//! candle pools without padding, and its backward needs strides equal to the kernel. That of its
//! max pooling is wrong, and silently so: it multiplies the gradient by the share of a window's entries
//! that attain the maximum, that is by `1/k²` when there is one winner, so each pooling layer shrinks the
//! gradients below it by `k²`. When the window does not divide the image, it also looks for the maxima in
//! the wrong windows.

use candle_core::{D, DType, Device, Result, Tensor};

use super::{
    checks::{accumulator, check_size, check_values, refuse, refuse_shape},
    format::ImageFormat,
};
use crate::kernels::{
    self, card,
    graph::reshaped,
    pool::{MAX_PLACES, Window, Windows},
};

/// The windows of a pooling layer: pairs are for height and width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool2d {
    /// Size of a window.
    pub kernel: (usize, usize),
    /// Distance between windows.
    pub stride: (usize, usize),
    /// Places added on each side, at most half the kernel: −∞ for maxima, 0 for averages.
    pub padding: (usize, usize),
    /// Whether a last window may reach beyond the padded image.
    pub ceil_mode: bool,
    /// Whether an average counts padded places in its divisor.
    pub count_include_pad: bool,
    /// How inputs and outputs lie in memory.
    pub format: ImageFormat,
}

/// What one pooling does along one axis.
#[derive(Debug, Clone, Copy)]
struct Axis {
    dim: usize,
    size: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
    windows: usize,
}

impl Pool2d {
    /// Square windows side by side, without padding, with `PyTorch`'s other defaults.
    ///
    /// ```
    /// use sala_models::ops::Pool2d;
    ///
    /// let overlapping = Pool2d { stride: (2, 2), padding: (1, 1), ..Pool2d::square(3) };
    /// assert!(overlapping.kernel == (3, 3) && overlapping.count_include_pad);
    /// ```
    pub const fn square(size: usize) -> Self {
        Self {
            kernel: (size, size),
            stride: (size, size),
            padding: (0, 0),
            ceil_mode: false,
            count_include_pad: true,
            format: ImageFormat::ChannelsFirst,
        }
    }

    /// The same windows for images of another format.
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use sala_models::ops::{ImageFormat, Pool2d};
    ///
    /// let x = Tensor::arange(0f32, 8., &Device::Cpu)?.reshape((1, 2, 2, 2))?;
    /// let y = Pool2d::square(2).with_format(ImageFormat::ChannelsLast).max(&x)?;
    /// assert_eq!(y.flatten_all()?.to_vec1::<f32>()?, [6., 7.]);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    #[must_use]
    pub const fn with_format(self, format: ImageFormat) -> Self {
        Self { format, ..self }
    }

    /// The largest value of each window of `x (N, C, H, W)`, as `torch.nn.MaxPool2d`.
    ///
    /// # Errors
    /// When `x` is empty, not of floats or not of rank 4, a kernel or stride is zero, a padding is
    /// larger than half the kernel, no window fits, or candle fails.
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use sala_models::ops::Pool2d;
    ///
    /// let x = Tensor::arange(0f32, 9., &Device::Cpu)?.reshape((1, 1, 3, 3))?;
    /// let overlapping = Pool2d { stride: (1, 1), ..Pool2d::square(2) };
    /// let y = overlapping.max(&x)?.flatten_all()?.to_vec1::<f32>()?;
    /// assert_eq!(y, [4., 5., 7., 8.]);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn max(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, columns) = self.axes("max_pool2d", x)?;
        if let Some(card) = card::serving(x)? {
            let of = |axis: Axis| axis.on_card(self.count_include_pad);
            let max = |x: &Tensor| card::pool::max(card, x, of(rows), of(columns));
            return on_channels_last(x, self.format, max);
        }
        let values = x.to_dtype(accumulator(x.dtype()))?;
        let places = self.kernel.0.saturating_mul(self.kernel.1);
        let y = if places <= MAX_PLACES && kernels::fast(&values)? {
            let values = values.contiguous()?;
            self.windows(&values, rows, columns)?.max(&values)?
        } else {
            let images = self.format.to_channels_first(&values)?;
            self.format
                .from_channels_first(&composed_max(&images, rows, columns)?)?
        };
        y.to_dtype(x.dtype())
    }

    /// The mean of each window of `x (N, C, H, W)`, as `torch.nn.AvgPool2d`; half precision is
    /// computed in f32.
    ///
    /// # Errors
    /// As for [`Pool2d::max`].
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use sala_models::ops::Pool2d;
    ///
    /// let x = Tensor::arange(0f32, 9., &Device::Cpu)?.reshape((1, 1, 3, 3))?;
    /// let overlapping = Pool2d { stride: (1, 1), ..Pool2d::square(2) };
    /// let y = overlapping.average(&x)?.flatten_all()?.to_vec1::<f32>()?;
    /// assert_eq!(y, [2., 3., 5., 6.]);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn average(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, columns) = self.axes("avg_pool2d", x)?;
        if let Some(card) = card::serving(x)? {
            let of = |axis: Axis| axis.on_card(self.count_include_pad);
            let mean = |x: &Tensor| card::pool::mean(card, x, of(rows), of(columns));
            return on_channels_last(x, self.format, mean);
        }
        let values = x.to_dtype(accumulator(x.dtype()))?;
        let y = if kernels::fast(&values)? {
            let values = values.contiguous()?;
            self.windows(&values, rows, columns)?.mean(&values)?
        } else {
            let images = self.format.to_channels_first(&values)?;
            self.format
                .from_channels_first(&self.composed_mean(&images, rows, columns)?)?
        };
        y.to_dtype(x.dtype())
    }

    fn composed_mean(&self, x: &Tensor, rows: Axis, columns: Axis) -> Result<Tensor> {
        let sums = sums(&sums(x, columns)?, rows)?;
        let counts: Vec<f64> = (rows.counts(self.count_include_pad))
            .flat_map(|r| columns.counts(self.count_include_pad).map(move |c| r * c))
            .collect();
        let counts = Tensor::from_vec(counts, (rows.windows, columns.windows), &Device::Cpu)?
            .to_dtype(sums.dtype())?
            .to_device(x.device())?;
        sums.broadcast_div(&counts)
    }

    fn windows(&self, x: &Tensor, rows: Axis, columns: Axis) -> Result<Windows> {
        let of = |axis: Axis| axis.inside(self.count_include_pad).collect();
        Windows::new(x, self.format, of(rows), of(columns))
    }

    /// The axes of rows and columns, as those of `(N, C, H, W)`.
    fn axes(&self, op: &'static str, x: &Tensor) -> Result<(Axis, Axis)> {
        let (height, width) = image_size(op, x, self.format)?;
        let axis = |dim, size, kernel: usize, stride, padding: usize| -> Result<Axis> {
            check_size(op, "kernel", kernel)?;
            check_size(op, "stride", stride)?;
            if padding > kernel / 2 {
                let wanted = format!("at most half the kernel of {kernel}");
                return Err(refuse(op, "padding", wanted, padding.to_string()));
            }
            let windows = self.count(size, kernel, stride, padding);
            if windows == 0 {
                let wanted = format!("large enough for a window of {:?}", self.kernel);
                return Err(refuse_shape(op, "x", wanted, x));
            }
            Ok(Axis {
                dim,
                size,
                kernel,
                stride,
                padding,
                windows,
            })
        };
        Ok((
            axis(2, height, self.kernel.0, self.stride.0, self.padding.0)?,
            axis(3, width, self.kernel.1, self.stride.1, self.padding.1)?,
        ))
    }

    /// How many windows there are along an axis.
    const fn count(&self, size: usize, kernel: usize, stride: usize, padding: usize) -> usize {
        let rounding = if self.ceil_mode { stride - 1 } else { 0 };
        let Some(room) = size
            .saturating_add(2 * padding)
            .saturating_add(rounding)
            .checked_sub(kernel)
        else {
            return 0;
        };
        let windows = room / stride + 1;
        if self.ceil_mode && (windows - 1) * stride >= size + padding {
            return windows - 1;
        }
        windows
    }
}

impl Axis {
    /// The windows as the kernels of graphics cards take them.
    const fn on_card(self, count_padding: bool) -> card::pool::Axis {
        card::pool::Axis {
            size: self.size,
            windows: self.windows,
            steps: card::pool::Steps::Even {
                kernel: self.kernel,
                stride: self.stride,
                padding: self.padding,
                count_padding,
            },
        }
    }

    /// `x` with `fill` where windows reach beyond it.
    fn pad(&self, x: &Tensor, fill: f32) -> Result<Tensor> {
        let reach = (self.windows - 1) * self.stride + self.kernel;
        let after = reach.saturating_sub(self.padding + self.size);
        let margin = |width: usize| -> Result<Tensor> {
            let mut dims = x.dims().to_vec();
            dims[self.dim] = width;
            Tensor::full(fill, dims, x.device())?.to_dtype(x.dtype())
        };
        let mut parts = vec![x.clone()];
        if self.padding > 0 {
            parts.insert(0, margin(self.padding)?);
        }
        if after > 0 {
            parts.push(margin(after)?);
        }
        Tensor::cat(&parts, self.dim)?.contiguous()
    }

    /// For each place in a window, a tensor with that entry of every window.
    fn entries(&self, x: &Tensor, fill: f32) -> Result<Vec<Tensor>> {
        let padded = self.pad(x, fill)?;
        let entry = |place: usize| -> Result<Tensor> {
            let at = (0..self.windows).map(|i| index(i * self.stride + place));
            let at = at.collect::<Result<Vec<u32>>>()?;
            padded.index_select(&Tensor::from_vec(at, self.windows, x.device())?, self.dim)
        };
        (0..self.kernel).map(entry).collect()
    }

    /// How many places of each window count for an average: those in the image, or also those in
    /// its padding, but none beyond that.
    fn counts(self, include_pad: bool) -> impl Iterator<Item = f64> {
        let (first, end) = if include_pad {
            (0, self.size + 2 * self.padding)
        } else {
            (self.padding, self.padding + self.size)
        };
        (0..self.windows).map(move |i| {
            let start = i * self.stride;
            ((start + self.kernel).min(end) - start.max(first)) as f64
        })
    }

    /// What each window covers of the image.
    fn inside(self, include_pad: bool) -> impl Iterator<Item = Window> {
        (0..self.windows)
            .zip(self.counts(include_pad))
            .map(move |(i, count)| {
                let start = i * self.stride;
                Window {
                    first: start.saturating_sub(self.padding),
                    end: (start + self.kernel - self.padding).min(self.size),
                    count,
                }
            })
    }
}

/// Windows that cover an axis between them, as the kernels of graphics cards take them.
const fn on_card(size: usize, windows: usize) -> card::pool::Axis {
    card::pool::Axis {
        size,
        windows,
        steps: card::pool::Steps::Covering,
    }
}

/// Pools images of a format as contiguous ones with their channels last.
fn on_channels_last(
    x: &Tensor,
    format: ImageFormat,
    pool: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    match format {
        ImageFormat::ChannelsLast => pool(&x.contiguous()?),
        ImageFormat::ChannelsFirst => {
            let images = x.permute((0, 2, 3, 1))?.contiguous()?;
            pool(&images)?.permute((0, 3, 1, 2))?.contiguous()
        }
    }
}

/// The largest values. Columns first: then the first row with the maximum decides, and in it the first
/// column.
fn composed_max(x: &Tensor, rows: Axis, columns: Axis) -> Result<Tensor> {
    largest(&largest(x, columns)?, rows)
}

fn index(place: usize) -> Result<u32> {
    let index = u32::try_from(place).ok();
    index.ok_or_else(|| refuse("pool2d", "x", "of at most 2³² rows", place.to_string()))
}

/// The largest entry of each window along one axis. Choosing by index sends the gradient to exactly
/// one entry, the first of several equal ones; candle's own search finds any of them on CUDA.
fn largest(x: &Tensor, axis: Axis) -> Result<Tensor> {
    let entries = Tensor::stack(&axis.entries(x, f32::NEG_INFINITY)?, x.rank())?.contiguous()?;
    let values = entries.detach();
    let attained = values.broadcast_eq(&values.max_keepdim(D::Minus1)?)?;
    let ranks = (1..=axis.kernel).rev().map(|rank| rank as f32);
    let ranks = Tensor::from_iter(ranks, x.device())?;
    let ranked = attained.to_dtype(DType::F32)?.broadcast_mul(&ranks)?;
    let winners = ranked.argmax_keepdim(D::Minus1)?;
    entries.gather(&winners, D::Minus1)?.squeeze(D::Minus1)
}

/// The sum of each window along one axis.
fn sums(x: &Tensor, axis: Axis) -> Result<Tensor> {
    Tensor::stack(&axis.entries(x, 0.0)?, x.rank())?.sum(D::Minus1)
}

/// The means of `outputs.0 × outputs.1` windows that cover `x (N, C, H, W)`, as
/// `torch.nn.AdaptiveAvgPool2d`: along an axis of size `L` with `n` outputs, window `i` covers
/// `[⌊i L / n⌋, ⌈(i + 1) L / n⌉)`. Half precision is computed in f32.
///
/// # Errors
/// When `x` is empty, not of floats or not of rank 4, a number of outputs is zero, or candle fails.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use sala_models::ops::adaptive_avg_pool2d;
///
/// let x = Tensor::arange(0f32, 6., &Device::Cpu)?.reshape((1, 1, 2, 3))?;
/// let y = adaptive_avg_pool2d(&x, (1, 2))?.flatten_all()?.to_vec1::<f32>()?;
/// assert_eq!(y, [2., 3.]); // columns 0 and 1; columns 1 and 2
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn adaptive_avg_pool2d(x: &Tensor, outputs: (usize, usize)) -> Result<Tensor> {
    const OP: &str = "adaptive_avg_pool2d";
    const FORMAT: ImageFormat = ImageFormat::ChannelsFirst;
    let (height, width) = image_size(OP, x, FORMAT)?;
    check_size(OP, "outputs", outputs.0)?;
    check_size(OP, "outputs", outputs.1)?;
    if let Some(card) = card::serving(x)? {
        let (rows, columns) = (on_card(height, outputs.0), on_card(width, outputs.1));
        let mean = |x: &Tensor| card::pool::mean(card, x, rows, columns);
        return on_channels_last(x, FORMAT, mean);
    }
    let values = x.to_dtype(accumulator(x.dtype()))?;
    let y = if kernels::fast(&values)? {
        let values = values.contiguous()?;
        let of = |size, outputs| covering(size, outputs).collect();
        let windows = Windows::new(&values, FORMAT, of(height, outputs.0), of(width, outputs.1))?;
        windows.mean(&values)?
    } else {
        means(&means(&values, 3, outputs.1)?, 2, outputs.0)?
    };
    y.to_dtype(x.dtype())
}

/// `outputs` windows that cover `size` places.
fn covering(size: usize, outputs: usize) -> impl Iterator<Item = Window> {
    (0..outputs).map(move |i| {
        let (first, end) = (i * size / outputs, ((i + 1) * size).div_ceil(outputs));
        Window {
            first,
            end,
            count: (end - first) as f64,
        }
    })
}

/// The means of `outputs` windows along `dim`.
fn means(x: &Tensor, dim: usize, outputs: usize) -> Result<Tensor> {
    let mean = |window: Window| -> Result<Tensor> {
        x.narrow(dim, window.first, window.end - window.first)?
            .mean_keepdim(dim)
    };
    let parts = covering(x.dim(dim)?, outputs)
        .map(mean)
        .collect::<Result<Vec<_>>>()?;
    Tensor::cat(&parts, dim)
}

/// The mean over all pixels of each channel: `x (N, C, H, W)`, or of another format, to `(N, C)`. Half
/// precision is computed in f32.
///
/// # Errors
/// When `x` is empty, not of floats or not of rank 4, or candle fails.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use sala_models::ops::{ImageFormat, global_avg_pool2d};
///
/// let x = Tensor::new(&[[[[1f32, 10.], [3., 30.]]]], &Device::Cpu)?; // one row of two pixels
/// let y = global_avg_pool2d(&x, ImageFormat::ChannelsLast)?;
/// assert_eq!(y.to_vec2::<f32>()?, [[2., 20.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn global_avg_pool2d(x: &Tensor, format: ImageFormat) -> Result<Tensor> {
    let (height, width) = image_size("global_avg_pool2d", x, format)?;
    if let Some(card) = card::serving(x)? {
        let mean = |x: &Tensor| card::pool::mean(card, x, on_card(height, 1), on_card(width, 1));
        let means = on_channels_last(x, format, mean)?;
        return reshaped(&means, (x.dim(0)?, x.dim(format.channel())?));
    }
    let values = x.to_dtype(accumulator(x.dtype()))?;
    let y = if kernels::fast(&values)? {
        let values = values.contiguous()?;
        let whole = |size| covering(size, 1).collect();
        let means = Windows::new(&values, format, whole(height), whole(width))?.mean(&values)?;
        reshaped(&means, (x.dim(0)?, x.dim(format.channel())?))?
    } else {
        format
            .to_channels_first(&values)?
            .flatten_from(2)?
            .mean(2)?
    };
    y.to_dtype(x.dtype())
}

/// Height and width of a batch of images.
fn image_size(op: &'static str, x: &Tensor, format: ImageFormat) -> Result<(usize, usize)> {
    check_values(op, "x", x)?;
    if x.rank() != 4 {
        let wanted = format!("of shape {}", format.shape());
        return Err(refuse_shape(op, "x", wanted, x));
    }
    let (height, width) = format.spatial();
    Ok((x.dim(height)?, x.dim(width)?))
}
