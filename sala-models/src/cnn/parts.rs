//! What the convolutional networks have in common.

use candle_core::{Result, Tensor};
use candle_nn::{
    Init, VarBuilder,
    init::{FanInOut, NonLinearity, NormalOrUniform},
};

use crate::{
    Error,
    network::check_dtype,
    ops::{BatchNorm, Conv2d, Conv2dConfig, ImageFormat, Linear, linear::fan_in_uniform},
};

/// The initialisation of He et al. 2015 (arXiv:1502.01852) that keeps the size of gradients: normal, of
/// variance `2 / (outputs · kernel²)`.
pub(super) const HE_FAN_OUT: Init = Init::Kaiming {
    dist: NormalOrUniform::Normal,
    fan: FanInOut::FanOut,
    non_linearity: NonLinearity::ReLU,
};

/// A square convolution without bias whose padding is half its kernel.
pub(super) fn conv(
    (inputs, outputs): (usize, usize),
    kernel: usize,
    stride: usize,
    format: ImageFormat,
    vb: VarBuilder,
) -> crate::Result<Conv2d> {
    let config = Conv2dConfig::same(kernel, stride).with_format(format);
    Conv2d::without_bias(inputs, outputs, kernel, config, vb)
}

/// As [`conv`], starting from [`HE_FAN_OUT`].
pub(super) fn he_conv(
    (inputs, outputs): (usize, usize),
    kernel: usize,
    stride: usize,
    format: ImageFormat,
    vb: VarBuilder,
) -> crate::Result<Conv2d> {
    let config = Conv2dConfig::same(kernel, stride).with_format(format);
    Conv2d::with_init((inputs, outputs, kernel), config, HE_FAN_OUT, None, vb)
}

/// A batch norm for images of this format.
pub(super) fn norm(
    channels: usize,
    format: ImageFormat,
    vb: VarBuilder,
) -> crate::Result<BatchNorm> {
    Ok(BatchNorm::new(channels, vb)?.with_format(format))
}

/// The last layer, whose bias starts at zero.
pub(super) fn head(features: usize, classes: usize, vb: VarBuilder) -> crate::Result<Linear> {
    let weight = fan_in_uniform("linear", features, classes)?;
    Linear::with_init(features, classes, weight, Some(Init::Const(0.0)), vb)
}

/// The number of blocks of each of three groups in a network of `depth` layers, of which `beside` are in no
/// block; nothing where there is no such number.
pub(super) fn blocks_of_a_group(depth: usize, layers: usize, beside: usize) -> Option<usize> {
    let within = depth.checked_sub(beside)?;
    let fits = within > 0 && within.is_multiple_of(3 * layers);
    fits.then_some(within / (3 * layers))
}

/// Refuses a depth for which [`blocks_of_a_group`] has nothing.
pub(super) fn check_depth(
    config: &'static str,
    blocks: Option<usize>,
    wanted: &'static str,
    depth: usize,
) -> crate::Result<usize> {
    blocks.ok_or_else(|| Error::Config {
        config,
        field: "depth",
        wanted,
        got: depth.to_string(),
    })
}

/// The stride of block `number` of a group: the groups after the first begin with 2.
pub(super) const fn group_stride(group: usize, number: usize) -> usize {
    if group > 0 && number == 0 { 2 } else { 1 }
}

/// Refuses what is not a batch of images for a network that begins with `stem`, and brings it to its format.
pub(super) fn images(op: &'static str, x: &Tensor, stem: &Conv2d) -> Result<Tensor> {
    let channels = stem.weight().dim(1)?;
    if x.rank() != 4 || x.dim(1)? != channels {
        return Err(Error::Argument {
            op,
            argument: "x",
            wanted: format!("of shape (N, {channels}, H, W)"),
            got: format!("shape {:?}", x.dims()),
        }
        .into());
    }
    check_dtype(op, x, stem.weight())?;
    stem.config().format.from_channels_first(x)
}
