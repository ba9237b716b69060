//! What the convolutional networks have in common.

use candle_core::{Result, Tensor};
use candle_nn::{
    Init, VarBuilder,
    init::{FanInOut, NonLinearity, NormalOrUniform},
};

use crate::{
    Error,
    ops::{BatchNorm, Conv2d, Conv2dConfig, ImageFormat},
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
    // The layer finds its weight under the name that it would have created it with.
    vb.get_with_hints((outputs, inputs, kernel, kernel), "weight", HE_FAN_OUT)?;
    conv((inputs, outputs), kernel, stride, format, vb)
}

/// A batch norm for images of this format.
pub(super) fn norm(
    channels: usize,
    format: ImageFormat,
    vb: VarBuilder,
) -> crate::Result<BatchNorm> {
    Ok(BatchNorm::new(channels, vb)?.with_format(format))
}

/// Refuses what is not a batch of images with so many channels, and brings it to `format`.
pub(super) fn images(
    op: &'static str,
    x: &Tensor,
    channels: usize,
    format: ImageFormat,
) -> Result<Tensor> {
    if x.rank() != 4 || x.dim(1)? != channels {
        return Err(Error::Argument {
            op,
            argument: "x",
            wanted: format!("of shape (N, {channels}, H, W)"),
            got: format!("shape {:?}", x.dims()),
        }
        .into());
    }
    format.from_channels_first(x)
}
