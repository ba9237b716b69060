//! The blocks of EfficientNet-Lite, and their convolutions.

use candle_core::{Module, Result, Tensor};
use candle_nn::{Init, VarBuilder};

use super::super::parts::norm;
use crate::{
    Mode,
    kernels::parts::{pad, scale},
    ops::{BatchNorm, Conv2d, Conv2dConfig, Dropout, ImageFormat, add, conv2d, relu6},
};

const EPS: f64 = 1e-3;

/// The sizes of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) kernel: usize,
    pub(super) stride: usize,
    pub(super) expansion: usize,
}

#[derive(Debug, Clone)]
pub(super) struct Block {
    /// Those that relu6 follows.
    inner: Vec<Layer>,
    last: Layer,
    /// Drops what is added to the input, in blocks that add.
    drop_path: Option<Dropout>,
}

impl Block {
    pub(super) fn new(
        shape: Shape,
        drop_path: Dropout,
        format: ImageFormat,
        vb: &VarBuilder,
    ) -> crate::Result<Self> {
        let Shape {
            inputs,
            outputs,
            kernel,
            stride,
            expansion,
        } = shape;
        let width = inputs * expansion;
        let layer = |filter, names| Layer::new(filter, names, format, vb);
        let depthwise = Filter {
            sizes: (width, width),
            kernel,
            stride,
            groups: width,
        };
        let narrow = Filter::dense((width, outputs), 1, 1);
        let (inner, last) = if expansion == 1 {
            (
                vec![layer(depthwise, ("conv_dw", "bn1"))?],
                layer(narrow, ("conv_pw", "bn2"))?,
            )
        } else {
            (
                vec![
                    layer(Filter::dense((inputs, width), 1, 1), ("conv_pw", "bn1"))?,
                    layer(depthwise, ("conv_dw", "bn2"))?,
                ],
                layer(narrow, ("conv_pwl", "bn3"))?,
            )
        };
        Ok(Self {
            inner,
            last,
            drop_path: (stride == 1 && inputs == outputs).then_some(drop_path),
        })
    }

    pub(super) fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let mut y = x.clone();
        for layer in &self.inner {
            y = relu6(&layer.forward(&y, mode)?)?;
        }
        let y = self.last.forward(&y, mode)?;
        match self.drop_path {
            None => Ok(y),
            Some(drop_path) if mode.train && drop_path.p() > 0.0 => {
                // One number for each image, in every format.
                let ones = Tensor::ones((x.dim(0)?, 1, 1, 1), x.dtype(), x.device())?;
                add(x, &scale(&y, &drop_path.forward(&ones, mode)?)?)
            }
            Some(_) => add(x, &y),
        }
    }
}

/// The sizes of a convolution.
#[derive(Clone, Copy)]
pub(super) struct Filter {
    sizes: (usize, usize),
    kernel: usize,
    stride: usize,
    groups: usize,
}

impl Filter {
    /// One that mixes all channels.
    pub(super) const fn dense(sizes: (usize, usize), kernel: usize, stride: usize) -> Self {
        Self {
            sizes,
            kernel,
            stride,
            groups: 1,
        }
    }
}

/// A convolution and its norm.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    conv: Conv2d,
    norm: BatchNorm,
}

impl Layer {
    pub(super) fn new(
        filter: Filter,
        (conv, norm_name): (&str, &str),
        format: ImageFormat,
        vb: &VarBuilder,
    ) -> crate::Result<Self> {
        let Filter {
            sizes: (inputs, outputs),
            kernel,
            stride,
            groups,
        } = filter;
        let config = Conv2dConfig {
            groups,
            ..Conv2dConfig::same(kernel, stride).with_format(format)
        };
        let fan_out = kernel * kernel * outputs / groups;
        let normal = Init::Randn {
            mean: 0.0,
            stdev: (2.0 / fan_out as f64).sqrt(),
        };
        let sizes = (inputs, outputs, kernel);
        Ok(Self {
            conv: Conv2d::with_init(sizes, config, normal, None, vb.pp(conv))?,
            norm: norm(outputs, format, vb.pp(norm_name))?.with_eps(EPS)?,
        })
    }

    pub(super) const fn conv(&self) -> &Conv2d {
        &self.conv
    }

    pub(super) fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let config = self.conv.config();
        let y = match config.stride {
            (1, 1) => self.conv.forward(x)?,
            _ => self.halved(x, config)?,
        };
        self.norm.forward(&y, mode)
    }

    /// With a stride of 2. An odd side is padded alike at both ends; an even one needs one place less, at
    /// its beginning.
    fn halved(&self, x: &Tensor, config: Conv2dConfig) -> Result<Tensor> {
        let (rows, columns) = config.format.spatial();
        let (x, row) = around(x, rows, config.padding.0)?;
        let (x, column) = around(&x, columns, config.padding.1)?;
        let padding = (row, column);
        conv2d(
            &x,
            self.conv.weight(),
            None,
            Conv2dConfig { padding, ..config },
        )
    }
}

/// `x` with what an even side needs around it, and how much the convolution still has to add at both ends.
fn around(x: &Tensor, dim: usize, padding: usize) -> Result<(Tensor, usize)> {
    if x.dim(dim)? % 2 == 1 {
        return Ok((x.clone(), padding));
    }
    Ok((pad(x, dim, padding - 1, padding)?, 0))
}
