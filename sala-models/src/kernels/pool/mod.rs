//! Maxima and means of windows of images.
//!
//! ```text
//! y = max x over the window      dx[winner] += dy        the winner: first of the largest, row by row
//! y = Σ x / n                    dx += dy / n            for all places of the window
//! ```
//!
//! Pixels of `(N, H, W, C)` are vectors of channels, and all loops run over those. Images of `(N, C, H, W)` are taken for N·C images of one channel,
//! which is slower and reads no more. The forward of a maximum keeps the winner's place in its window, one
//! byte per output; it reads the input once where windows do not overlap, and writes the output. The
//! backward fills one image after the other, which stays in cache, window by window: so sums of several
//! windows have one order, whatever the number of threads. A NaN is larger than everything.

mod loops;

use std::sync::OnceLock;

use candle_core::{DType, Result, Tensor, bail};

use self::loops::{BackMax, BackMean, Largest, Means};
use super::{
    access,
    element::Element,
    graph::{self, Input, Operation},
    pieces::{self, PIECE},
};
use crate::ops::ImageFormat;

/// What a window covers along one axis.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    /// The first place in the image.
    pub(crate) first: usize,
    /// The place behind the last one in the image, larger than `first`.
    pub(crate) end: usize,
    /// How many places count for a mean.
    pub(crate) count: f64,
}

/// Windows of which there is a fast form for maxima have at most this many places.
pub(crate) const MAX_PLACES: usize = 256;

/// The windows of a batch of images, and how it lies in memory.
pub(crate) struct Windows {
    rows: Vec<Window>,
    columns: Vec<Window>,
    images: usize,
    height: usize,
    width: usize,
    channels: usize,
    /// The shape of the output.
    shape: [usize; 4],
}

impl Windows {
    /// All pairs of windows along height and width, for images of this format.
    pub(crate) fn new(
        x: &Tensor,
        format: ImageFormat,
        rows: Vec<Window>,
        columns: Vec<Window>,
    ) -> Result<Self> {
        let (a, b, c, d) = x.dims4()?;
        let (images, [height, width], channels, shape) = match format {
            ImageFormat::ChannelsFirst => (a * b, [c, d], 1, [a, b, rows.len(), columns.len()]),
            ImageFormat::ChannelsLast => (a, [b, c], d, [a, rows.len(), columns.len(), d]),
        };
        Ok(Self {
            rows,
            columns,
            images,
            height,
            width,
            channels,
            shape,
        })
    }

    /// The largest value of each window of the contiguous f32 or f64 tensor that the windows were made
    /// for. They have at most [`MAX_PLACES`] places.
    pub(crate) fn max(self, x: &Tensor) -> Result<Tensor> {
        let op = Max {
            windows: self,
            differentiated: x.track_op(),
            winners: OnceLock::new(),
        };
        graph::apply(op, &[x])
    }

    /// As [`Windows::max`], the means.
    pub(crate) fn mean(self, x: &Tensor) -> Result<Tensor> {
        graph::apply(Mean(self), &[x])
    }

    /// Elements of a row of outputs, and how many rows make a piece. A row counts for what it reads.
    fn output_rows(&self) -> (usize, usize) {
        let size = self.columns.len() * self.channels;
        let read = self.height * self.width * self.channels / self.rows.len();
        (size, (PIECE / size.max(read)).max(1))
    }

    /// Outputs and inputs of an image, and how many images make a piece.
    fn image_sizes(&self) -> (usize, usize, usize) {
        let output = self.rows.len() * self.columns.len() * self.channels;
        let input = self.height * self.width * self.channels;
        (output, input, (PIECE / input).max(1))
    }

    /// The number of outputs.
    fn len(&self) -> usize {
        self.images * self.rows.len() * self.columns.len() * self.channels
    }

    /// dx from dy and, for maxima, the winners.
    fn back<T: Element>(&self, dy: &[T], winners: Option<&[u8]>) -> Vec<T> {
        let (output, input, images) = self.image_sizes();
        pieces::filled(self.images * input, images * input, |i, dx| {
            let start = i * images * output;
            let dy = &dy[start..];
            match winners {
                Some(winners) => {
                    pieces::compiled(BackMax, (dx, dy, &winners[start..], self));
                }
                None => pieces::compiled(BackMean, (dx, dy, self)),
            }
        })
    }

    fn gradient(
        &self,
        input: &Input,
        dy: &Tensor,
        winners: Option<&[u8]>,
    ) -> Result<Vec<Option<Tensor>>> {
        let shape = input.value.shape();
        let dx = match dy.dtype() {
            DType::F64 => access::tensor(self.back(&access::view::<f64>(dy)?, winners), shape),
            _ => access::tensor(self.back(&access::view::<f32>(dy)?, winners), shape),
        };
        Ok(vec![Some(dx?)])
    }
}

struct Max {
    windows: Windows,
    differentiated: bool,
    /// For each output the place in its window, without what lies outside the image.
    winners: OnceLock<Vec<u8>>,
}

impl Max {
    fn values<T: Element>(&self, x: &[T]) -> Vec<T> {
        let windows = &self.windows;
        let (size, rows) = windows.output_rows();
        let piece = rows * size;
        if !self.differentiated {
            return pieces::filled(windows.len(), piece, |i, y| {
                pieces::compiled(Largest, (y, &mut [], x, windows, i * rows));
            });
        }
        let mut winners = vec![0; windows.len()];
        let work = |i: usize, y: &mut [T], winners: &mut [u8]| {
            pieces::compiled(Largest, (y, winners, x, windows, i * rows));
        };
        let y = pieces::filled_beside(windows.len(), piece, &mut winners, piece, work);
        // Set once: an operation runs forward once.
        self.winners.get_or_init(|| winners);
        y
    }
}

impl Operation for Max {
    fn name(&self) -> &'static str {
        "max_pool2d"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let (x, shape) = (inputs[0], &self.windows.shape);
        Ok(match x.dtype() {
            DType::F64 => access::tensor(self.values(&access::view::<f64>(x)?), shape)?,
            _ => access::tensor(self.values(&access::view::<f32>(x)?), shape)?,
        })
    }

    fn backward(&self, inputs: &[Input], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let Some(winners) = self.winners.get() else {
            bail!("max_pool2d: backward before forward");
        };
        self.windows.gradient(&inputs[0], dy, Some(winners))
    }
}

struct Mean(Windows);

impl Mean {
    fn values<T: Element>(&self, x: &[T]) -> Vec<T> {
        let (size, rows) = self.0.output_rows();
        pieces::filled(self.0.len(), rows * size, |i, y| {
            pieces::compiled(Means, (y, x, &self.0, i * rows));
        })
    }
}

impl Operation for Mean {
    fn name(&self) -> &'static str {
        "avg_pool2d"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let (x, shape) = (inputs[0], &self.0.shape);
        Ok(match x.dtype() {
            DType::F64 => access::tensor(self.values(&access::view::<f64>(x)?), shape)?,
            _ => access::tensor(self.values(&access::view::<f32>(x)?), shape)?,
        })
    }

    fn backward(&self, inputs: &[Input], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        self.0.gradient(&inputs[0], dy, None)
    }
}
