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

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the chosen instruction set"
)]

use std::sync::OnceLock;

use candle_core::{CpuStorage, DType, Result, Shape, Tensor, bail};

use super::{
    access,
    element::Element,
    graph::{self, Input, Operation},
    pieces::{self, Kernel, PIECE},
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

    fn forward(&self, inputs: &[&Tensor]) -> Result<(CpuStorage, Shape)> {
        let (x, shape) = (inputs[0], &self.windows.shape);
        Ok(match x.dtype() {
            DType::F64 => access::result(self.values(&access::view::<f64>(x)?), shape),
            _ => access::result(self.values(&access::view::<f32>(x)?), shape),
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

    fn forward(&self, inputs: &[&Tensor]) -> Result<(CpuStorage, Shape)> {
        let (x, shape) = (inputs[0], &self.0.shape);
        Ok(match x.dtype() {
            DType::F64 => access::result(self.values(&access::view::<f64>(x)?), shape),
            _ => access::result(self.values(&access::view::<f32>(x)?), shape),
        })
    }

    fn backward(&self, inputs: &[Input], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        self.0.gradient(&inputs[0], dy, None)
    }
}

/// One window of one image.
#[derive(Clone, Copy)]
struct Patch {
    /// Where its column begins in the image's row 0.
    start: usize,
    /// Its rows.
    first: usize,
    end: usize,
    /// Elements of a row of the image, of a row of the window, and of a pixel.
    pitch: usize,
    span: usize,
    channels: usize,
}

impl Patch {
    #[inline(always)]
    fn new(windows: &Windows, image: usize, row: Window, column: Window) -> Self {
        let (width, channels) = (windows.width, windows.channels);
        Self {
            start: (image * windows.height * width + column.first) * channels,
            first: row.first,
            end: row.end,
            pitch: width * channels,
            span: (column.end - column.first) * channels,
            channels,
        }
    }

    /// Where the pixels of one of its rows begin and end.
    #[inline(always)]
    fn row(self, row: usize) -> (usize, usize) {
        let start = self.start + row * self.pitch;
        (start, start + self.span)
    }

    /// The largest values, and their places unless there is no room for them.
    #[inline(always)]
    fn largest<T: Element>(self, x: &[T], y: &mut [T], winners: &mut [u8]) {
        y.fill(T::of(f64::NEG_INFINITY));
        let mut place = 0_u8;
        for row in self.first..self.end {
            let (mut at, end) = self.row(row);
            while at < end {
                let x = &x[at..at + self.channels];
                if winners.is_empty() {
                    for (y, &x) in y.iter_mut().zip(x) {
                        *y = if above(x, *y) { x } else { *y };
                    }
                } else {
                    for ((y, winner), &x) in y.iter_mut().zip(&mut *winners).zip(x) {
                        let above = above(x, *y);
                        *y = if above { x } else { *y };
                        *winner = if above { place } else { *winner };
                    }
                }
                place = place.wrapping_add(1);
                at += self.channels;
            }
        }
    }

    /// As `largest`, for an image of one channel.
    #[inline(always)]
    fn largest_of_one<T: Element>(self, x: &[T]) -> (T, u8) {
        let (mut largest, mut winner, mut place) = (T::of(f64::NEG_INFINITY), 0, 0_u8);
        for row in self.first..self.end {
            let (start, end) = self.row(row);
            for &x in &x[start..end] {
                if above(x, largest) {
                    (largest, winner) = (x, place);
                }
                place = place.wrapping_add(1);
            }
        }
        (largest, winner)
    }

    /// y ← Σ x / count.
    #[inline(always)]
    fn mean<T: Element>(self, x: &[T], y: &mut [T], count: T) {
        for row in self.first..self.end {
            let (mut at, end) = self.row(row);
            while at < end {
                for (y, &x) in y.iter_mut().zip(&x[at..at + self.channels]) {
                    *y += x;
                }
                at += self.channels;
            }
        }
        for y in y {
            *y /= count;
        }
    }

    /// Σ x for an image of one channel.
    #[inline(always)]
    fn sum_of_one<T: Element>(self, x: &[T]) -> T {
        let mut sum = T::default();
        for row in self.first..self.end {
            let (start, end) = self.row(row);
            for &x in &x[start..end] {
                sum += x;
            }
        }
        sum
    }

    /// dx += dy in the places of the winners. All places are gone through, for whole registers at once.
    #[inline(always)]
    fn add_to_winners<T: Element>(self, dx: &mut [T], dy: &[T], winners: &[u8]) {
        let mut place = 0_u8;
        for row in self.first..self.end {
            let (mut at, end) = self.row(row);
            while at < end {
                let dx = &mut dx[at..at + self.channels];
                for ((dx, &dy), &winner) in dx.iter_mut().zip(dy).zip(winners) {
                    *dx += if winner == place { dy } else { T::default() };
                }
                place = place.wrapping_add(1);
                at += self.channels;
            }
        }
    }

    /// As `add_to_winners`, for an image of one channel.
    #[inline(always)]
    fn add_to_winner<T: Element>(self, dx: &mut [T], dy: T, winner: u8) {
        let winner = usize::from(winner);
        let (start, _) = self.row(self.first + winner / self.span);
        dx[start + winner % self.span] += dy;
    }

    /// As `add`, for an image of one channel.
    #[inline(always)]
    fn add_to_one<T: Element>(self, dx: &mut [T], share: T) {
        for row in self.first..self.end {
            let (start, end) = self.row(row);
            for dx in &mut dx[start..end] {
                *dx += share;
            }
        }
    }

    /// dx += dy · share in all places.
    #[inline(always)]
    fn add<T: Element>(self, dx: &mut [T], dy: &[T], share: T) {
        for row in self.first..self.end {
            let (mut at, end) = self.row(row);
            while at < end {
                for (dx, &dy) in dx[at..at + self.channels].iter_mut().zip(dy) {
                    *dx += dy * share;
                }
                at += self.channels;
            }
        }
    }
}

/// Whether `x` takes the place of the largest value so far: a NaN does, and keeps it.
#[inline(always)]
fn above<T: Element>(x: T, largest: T) -> bool {
    #[expect(clippy::eq_op, reason = "true for NaN only")]
    let nan = x != x;
    // Both sides are computed: a lazy `||` is a branch, and ends the vector loop.
    (x > largest) | nan
}

/// y, the winners or nothing, x, the windows, and the number of the first row of outputs.
type Outputs<'a, T> = (&'a mut [T], &'a mut [u8], &'a [T], &'a Windows, usize);

/// The largest values of a piece of rows of outputs.
struct Largest;

impl<T: Element> Kernel<Outputs<'_, T>> for Largest {
    #[inline(always)]
    fn run(self, (y, winners, x, windows, first): Outputs<T>) {
        let (channels, rows) = (windows.channels, windows.rows.len());
        let size = windows.columns.len() * channels;
        for (i, y) in y.chunks_exact_mut(size).enumerate() {
            let (image, row) = ((first + i) / rows, (first + i) % rows);
            let places = i * size..if winners.is_empty() {
                i * size
            } else {
                (i + 1) * size
            };
            let mut winners = winners.get_mut(places).unwrap_or_default();
            let outputs = y.chunks_exact_mut(channels);
            for (y, &column) in outputs.zip(&windows.columns) {
                let patch = Patch::new(windows, image, windows.rows[row], column);
                let (own, others) = winners.split_at_mut(channels.min(winners.len()));
                if let [y] = y {
                    let (largest, winner) = patch.largest_of_one(x);
                    *y = largest;
                    own.fill(winner);
                } else {
                    patch.largest(x, y, own);
                }
                winners = others;
            }
        }
    }
}

/// The means of a piece of rows of outputs.
struct Means;

impl<T: Element> Kernel<(&mut [T], &[T], &Windows, usize)> for Means {
    #[inline(always)]
    fn run(self, (y, x, windows, first): (&mut [T], &[T], &Windows, usize)) {
        let (channels, rows) = (windows.channels, windows.rows.len());
        let size = windows.columns.len() * channels;
        for (i, y) in y.chunks_exact_mut(size).enumerate() {
            let (image, row) = ((first + i) / rows, (first + i) % rows);
            let row = windows.rows[row];
            for (y, &column) in y.chunks_exact_mut(channels).zip(&windows.columns) {
                let count = T::of(row.count * column.count);
                let patch = Patch::new(windows, image, row, column);
                if let [y] = y {
                    *y = patch.sum_of_one(x) / count;
                } else {
                    patch.mean(x, y, count);
                }
            }
        }
    }
}

/// dx of a piece of images.
struct BackMax;

impl<T: Element> Kernel<(&mut [T], &[T], &[u8], &Windows)> for BackMax {
    #[inline(always)]
    fn run(self, (dx, dy, winners, windows): (&mut [T], &[T], &[u8], &Windows)) {
        let (output, input, _) = windows.image_sizes();
        let channels = windows.channels;
        let images = dy.chunks_exact(output).zip(winners.chunks_exact(output));
        for (dx, (dy, winners)) in dx.chunks_exact_mut(input).zip(images) {
            let mut outputs = dy
                .chunks_exact(channels)
                .zip(winners.chunks_exact(channels));
            for &row in &windows.rows {
                for (&column, (dy, winners)) in windows.columns.iter().zip(&mut outputs) {
                    let patch = Patch::new(windows, 0, row, column);
                    if let ([dy], [winner]) = (dy, winners) {
                        patch.add_to_winner(dx, *dy, *winner);
                    } else {
                        patch.add_to_winners(dx, dy, winners);
                    }
                }
            }
        }
    }
}

/// As [`BackMax`].
struct BackMean;

impl<T: Element> Kernel<(&mut [T], &[T], &Windows)> for BackMean {
    #[inline(always)]
    fn run(self, (dx, dy, windows): (&mut [T], &[T], &Windows)) {
        let (output, input, _) = windows.image_sizes();
        for (dx, dy) in dx.chunks_exact_mut(input).zip(dy.chunks_exact(output)) {
            let mut outputs = dy.chunks_exact(windows.channels);
            for &row in &windows.rows {
                for (&column, dy) in windows.columns.iter().zip(&mut outputs) {
                    let share = T::of(1.0 / (row.count * column.count));
                    let patch = Patch::new(windows, 0, row, column);
                    if let [dy] = dy {
                        patch.add_to_one(dx, *dy * share);
                    } else {
                        patch.add(dx, dy, share);
                    }
                }
            }
        }
    }
}
