//! Two-dimensional convolution (cross-correlation, as the field calls it).
//!
//! With kernel `(Kh, Kw)`, stride `s`, padding `p`, dilation `d` and `G` groups, for output channel `o`
//! of group `g`:
//!
//! ```text
//! y[n, o, i, j] = b[o] + Σ_c Σ_u Σ_v w[o, c, u, v] · x[n, g C/G + c, i s + u d − p, j s + v d − p]
//! ```
//!
//! where `x` is zero beyond its border and `i` runs over `⌊(H + 2p − d (Kh − 1) − 1) / s⌋ + 1` values.
//!
//! candle's own convolution has a naive backward on the CPU, and with a stride it is an error when
//! height and width leave different remainders, as 5 × 4 does for a stride of 2.

mod composed;

use candle_core::{Module, Result, Tensor};
use candle_nn::{Init, VarBuilder};

use super::{
    checks::{accumulator, check_companion, check_size, check_values, refuse, refuse_shape},
    format::ImageFormat,
    linear::{check_sizes, fan_in_uniform},
};
use crate::{
    Error,
    kernels::{self, card},
};

const OP: &str = "conv2d";

/// How a kernel moves over the images; the default is a stride of 1 without padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2dConfig {
    /// Steps between windows, vertically and horizontally.
    pub stride: (usize, usize),
    /// Rows of zeros above and below, columns left and right.
    pub padding: (usize, usize),
    /// Steps between the entries of the kernel.
    pub dilation: (usize, usize),
    /// The number of parts that channels are divided into; each output sees one part of the inputs.
    pub groups: usize,
    /// How inputs and outputs lie in memory.
    pub format: ImageFormat,
}

impl Default for Conv2dConfig {
    fn default() -> Self {
        Self {
            stride: (1, 1),
            padding: (0, 0),
            dilation: (1, 1),
            groups: 1,
            format: ImageFormat::ChannelsFirst,
        }
    }
}

impl Conv2dConfig {
    /// Windows that fit a `kernel × kernel` of odd size with a stride: the padding is half the
    /// kernel, so that a stride of 1 keeps the size of the images.
    ///
    /// ```
    /// use sala_models::ops::Conv2dConfig;
    /// assert_eq!(Conv2dConfig::same(3, 2).padding, (1, 1));
    /// ```
    pub fn same(kernel: usize, stride: usize) -> Self {
        Self {
            stride: (stride, stride),
            padding: (kernel / 2, kernel / 2),
            ..Self::default()
        }
    }

    /// The same in another format.
    #[must_use]
    pub const fn with_format(self, format: ImageFormat) -> Self {
        Self { format, ..self }
    }
}

/// Convolves `x (N, C, H, W)` with `weight (O, C / groups, Kh, Kw)` and adds `bias (O)`.
///
/// The result is `(N, O, H', W')` of `x`'s dtype; with another [`ImageFormat`], `x` and the result have
/// that one's dimensions (the weight does not change). Half precision is computed in f32 and rounded
/// once; parameters have `x`'s dtype or the one it is computed in. On a graphics card parameters of f32 are
/// rounded to an `x` of half precision first, as [`linear`](super::linear()) says.
///
/// # Errors
/// When a tensor is empty, not of floats or of another dtype, has another rank, the channels do not
/// fit the weight or the groups, a setting is zero, the kernel is larger than the padded image, padded images
/// could not be addressed, or candle fails.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use sala_models::ops::{Conv2dConfig, conv2d};
///
/// let x = Tensor::ones((1, 1, 3, 3), DType::F32, &Device::Cpu)?;
/// let weight = Tensor::ones((1, 1, 3, 3), DType::F32, &Device::Cpu)?;
/// let y = conv2d(&x, &weight, None, Conv2dConfig::same(3, 2))?;
/// assert_eq!(y.flatten_all()?.to_vec1::<f32>()?, [4., 4., 4., 4.]); // what of each window is inside
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: Conv2dConfig,
) -> Result<Tensor> {
    let geometry = Geometry::of(x, weight, config)?;
    check_bias(bias, x, geometry.outputs)?;
    if let Some(card) = card::serving(x)? {
        let fitting = |t: &Tensor| t.to_dtype(x.dtype())?.contiguous();
        let (weight, bias) = (fitting(weight)?, bias.map(fitting).transpose()?);
        let images = match geometry.format {
            ImageFormat::ChannelsFirst => x.permute((0, 2, 3, 1))?.contiguous()?,
            ImageFormat::ChannelsLast => x.contiguous()?,
        };
        let y = card::conv::conv2d(card, &images, &weight, bias.as_ref(), &geometry)?;
        return match geometry.format {
            ImageFormat::ChannelsFirst => y.permute((0, 3, 1, 2))?.contiguous(),
            ImageFormat::ChannelsLast => Ok(y),
        };
    }
    let dtype = accumulator(x.dtype());
    let bias = bias.map(|bias| bias.to_dtype(dtype)).transpose()?;
    let (values, weight) = (x.to_dtype(dtype)?, weight.to_dtype(dtype)?);
    let y = if kernels::fast(&values)? {
        let bias = bias.map(|bias| bias.contiguous()).transpose()?;
        let (values, weight) = (values.contiguous()?, weight.contiguous()?);
        kernels::conv::conv2d(&values, &weight, bias.as_ref(), &geometry)?
    } else {
        composed::conv2d(&values, &weight, bias.as_ref(), &geometry)?
    };
    y.to_dtype(x.dtype())
}

fn check_bias(bias: Option<&Tensor>, x: &Tensor, outputs: usize) -> Result<()> {
    let Some(bias) = bias else { return Ok(()) };
    if bias.dims() != [outputs] {
        return Err(refuse_shape(
            OP,
            "bias",
            format!("of shape ({outputs})"),
            bias,
        ));
    }
    check_companion(OP, "bias", bias, x)
}

/// The sizes of one convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) format: ImageFormat,
    pub(crate) batch: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) groups: usize,
    pub(crate) rows: Axis,
    pub(crate) columns: Axis,
}

/// The sizes along height or width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Axis {
    /// Of the input, without padding.
    pub(crate) size: usize,
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    pub(crate) padding: usize,
    pub(crate) dilation: usize,
    /// The number of windows.
    pub(crate) windows: usize,
}

impl Geometry {
    fn of(x: &Tensor, weight: &Tensor, config: Conv2dConfig) -> Result<Self> {
        check_values(OP, "x", x)?;
        check_values(OP, "weight", weight)?;
        check_companion(OP, "weight", weight, x)?;
        let Conv2dConfig { groups, format, .. } = config;
        let &[outputs, in_group, kernel_rows, kernel_columns] = weight.dims() else {
            let wanted = "of shape (O, C / groups, Kh, Kw)";
            return Err(refuse_shape(OP, "weight", wanted, weight));
        };
        check_size(OP, "groups", groups)?;
        if !outputs.is_multiple_of(groups) {
            let wanted = format!("of shape (O, C / {groups}, Kh, Kw) with {groups} dividing O");
            return Err(refuse_shape(OP, "weight", wanted, weight));
        }
        let &[batch, ..] = x.dims() else {
            return Err(refuse_shape(
                OP,
                "x",
                format!("of shape {}", format.shape()),
                x,
            ));
        };
        let inputs = in_group * groups;
        if x.rank() != 4 || x.dim(format.channel())? != inputs {
            let wanted = format!("of shape {} with C = {inputs}", format.shape());
            return Err(refuse_shape(OP, "x", wanted, x));
        }
        let (height, width) = format.spatial();
        let axis = |dim, kernel, pick: fn((usize, usize)) -> usize| {
            let (stride, padding) = (pick(config.stride), pick(config.padding));
            Axis::of(x, dim, kernel, (stride, padding, pick(config.dilation)))
        };
        let geometry = Self {
            format,
            batch,
            inputs,
            outputs,
            groups,
            rows: axis(height, kernel_rows, |pair| pair.0)?,
            columns: axis(width, kernel_columns, |pair| pair.1)?,
        };
        geometry.check_countable(config.padding)?;
        Ok(geometry)
    }

    /// Refuses padding with which images or results could not be addressed.
    fn check_countable(&self, padding: (usize, usize)) -> Result<()> {
        let channels = self.inputs.max(self.outputs);
        let sizes = [channels, self.rows.padded(), self.columns.padded()];
        let mut sizes = sizes.into_iter();
        let elements = sizes.try_fold(self.batch, usize::checked_mul);
        // Of eight bytes at most.
        if elements.is_some_and(|elements| elements <= isize::MAX as usize / 8) {
            return Ok(());
        }
        let wanted = "so small that padded images can be addressed";
        Err(refuse(OP, "padding", wanted, format!("{padding:?}")))
    }
}

impl Axis {
    /// Dimension `dim` of `x`, with a kernel that moves by `(stride, padding, dilation)`.
    fn of(
        x: &Tensor,
        dim: usize,
        kernel: usize,
        (stride, padding, dilation): (usize, usize, usize),
    ) -> Result<Self> {
        check_size(OP, "stride", stride)?;
        check_size(OP, "dilation", dilation)?;
        let size = x.dim(dim)?;
        let padded = padding.checked_mul(2).and_then(|p| p.checked_add(size));
        let Some(padded) = padded else {
            let wanted = "so small that padded images can be addressed";
            return Err(refuse(OP, "padding", wanted, padding.to_string()));
        };
        let reach = dilation.checked_mul(kernel - 1);
        let reach = reach.and_then(|reach| reach.checked_add(1));
        let Some(room) = reach.and_then(|reach| padded.checked_sub(reach)) else {
            let reach = reach.map_or("more than can be counted".into(), |r| r.to_string());
            let wanted = format!("at least {reach} long where the kernel is, padding included");
            return Err(refuse_shape(OP, "x", wanted, x));
        };
        Ok(Self {
            size,
            kernel,
            // A longer step leads out of the image just as this one does, and sums with it do not overflow.
            stride: stride.min(padded),
            padding,
            dilation,
            windows: room / stride + 1,
        })
    }

    /// The size of the input with its padding.
    const fn padded(&self) -> usize {
        self.size + 2 * self.padding
    }
}

/// A convolution with its parameters: `weight (outputs, inputs / groups, kernel, kernel)` and, unless
/// it was left out, `bias (outputs)`. Both start from `U(−1/√fan_in, 1/√fan_in)`, as
/// `torch.nn.Conv2d`'s do, where `fan_in = (inputs / groups) kernel²`.
#[derive(Debug, Clone)]
pub struct Conv2d {
    weight: Tensor,
    bias: Option<Tensor>,
    config: Conv2dConfig,
}

impl Conv2d {
    /// A layer with a square kernel, with its parameters under the builder's prefix.
    ///
    /// # Errors
    /// When a size is zero, `groups` does not divide both channel counts, or the store holds such a
    /// name with another shape.
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use sala_models::{VarStore, ops::{Conv2d, Conv2dConfig}};
    ///
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// let layer = Conv2d::new(3, 16, 3, Conv2dConfig::same(3, 1), store.builder())?;
    /// assert_eq!(layer.weight().dims(), [16, 3, 3, 3]);
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    pub fn new(
        inputs: usize,
        outputs: usize,
        kernel: usize,
        config: Conv2dConfig,
        vb: VarBuilder,
    ) -> crate::Result<Self> {
        let init = default_init(inputs, outputs, kernel, config.groups)?;
        let sizes = (inputs, outputs, kernel);
        Self::with_init(sizes, config, init, Some(init), vb)
    }

    /// [`Conv2d::new`] without the bias: what stands before a batch norm, whose own bias would hide it.
    ///
    /// # Errors
    /// As for [`Conv2d::new`].
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use sala_models::{VarStore, ops::{Conv2d, Conv2dConfig}};
    ///
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// let depthwise = Conv2dConfig { groups: 8, ..Default::default() };
    /// let layer = Conv2d::without_bias(8, 8, 3, depthwise, store.builder())?;
    /// assert_eq!(layer.weight().dims(), [8, 1, 3, 3]);
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    pub fn without_bias(
        inputs: usize,
        outputs: usize,
        kernel: usize,
        config: Conv2dConfig,
        vb: VarBuilder,
    ) -> crate::Result<Self> {
        let init = default_init(inputs, outputs, kernel, config.groups)?;
        Self::with_init((inputs, outputs, kernel), config, init, None, vb)
    }

    /// [`Conv2d::new`] of `(inputs, outputs, kernel)` with other initial values: those of the weight, and of the
    /// bias or `None` for no bias.
    ///
    /// # Errors
    /// As for [`Conv2d::new`], and when an initialisation makes no sense.
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use candle_nn::{Init, init::DEFAULT_KAIMING_NORMAL};
    /// use sala_models::{VarStore, ops::{Conv2d, Conv2dConfig}};
    ///
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// let (config, zero) = (Conv2dConfig::same(3, 1), Init::Const(0.0));
    /// let (sizes, normal) = ((3, 8, 3), DEFAULT_KAIMING_NORMAL);
    /// let layer = Conv2d::with_init(sizes, config, normal, Some(zero), store.builder())?;
    /// assert_eq!(layer.bias().ok_or("no bias")?.to_vec1::<f32>()?, [0.0; 8]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[expect(
        clippy::needless_pass_by_value,
        reason = "candle's layers take the builder by value"
    )]
    pub fn with_init(
        (inputs, outputs, kernel): (usize, usize, usize),
        config: Conv2dConfig,
        weight: Init,
        bias: Option<Init>,
        vb: VarBuilder,
    ) -> crate::Result<Self> {
        let in_group = inputs_of_group(inputs, outputs, config.groups)?;
        check_sizes(OP, in_group * kernel, outputs)?;
        let shape = (outputs, in_group, kernel, kernel);
        let bias = bias.map(|init| vb.get_with_hints(outputs, "bias", init));
        Ok(Self {
            weight: vb.get_with_hints(shape, "weight", weight)?,
            bias: bias.transpose()?,
            config,
        })
    }

    /// The weight, `(outputs, inputs / groups, kernel, kernel)`.
    pub const fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The bias, `(outputs)`.
    pub const fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// How the kernel moves.
    pub const fn config(&self) -> Conv2dConfig {
        self.config
    }
}

impl Module for Conv2d {
    /// As [`conv2d()`].
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        conv2d(x, &self.weight, self.bias.as_ref(), self.config)
    }
}

/// `U(−1/√fan_in, 1/√fan_in)`.
fn default_init(
    inputs: usize,
    outputs: usize,
    kernel: usize,
    groups: usize,
) -> crate::Result<Init> {
    let in_group = inputs_of_group(inputs, outputs, groups)?;
    fan_in_uniform(OP, in_group * kernel * kernel, outputs)
}

/// The inputs that one output sees.
fn inputs_of_group(inputs: usize, outputs: usize, groups: usize) -> crate::Result<usize> {
    if groups == 0 || !inputs.is_multiple_of(groups) || !outputs.is_multiple_of(groups) {
        return Err(Error::Argument {
            op: OP,
            argument: "groups",
            wanted: format!("a divisor of {inputs} inputs and {outputs} outputs"),
            got: groups.to_string(),
        });
    }
    Ok(inputs / groups)
}
