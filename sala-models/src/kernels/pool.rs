//! Maxima and means of windows of images.
//!
//! ```text
//! y = max x over the window      dx[winner] += dy        the winner: first of the largest, row by row
//! y = Σ x / n                    dx += dy / n            for all places of the window
//! ```
//!
//! Pixels of `(N, H, W, C)` are vectors of channels, and all loops run over those: a window's largest values
//! and their places stay in registers. Images of `(N, C, H, W)` are taken for N·C images of one channel,
//! which is slower and reads no more. The forward of a maximum keeps the winner's place in its window, one
//! byte per output; it reads the input once where windows do not overlap, and writes the output. The
//! backward fills one image after the other, which stays in cache, window by window: so sums of several
//! windows have one order, whatever the number of threads. A NaN is larger than everything.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the chosen instruction set"
)]

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};

use super::{
    access,
    element::Element,
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
        x.apply_op1(Max {
            windows: self,
            differentiated: x.track_op(),
            winners: OnceLock::new(),
        })
    }

    /// As [`Windows::max`], the means.
    pub(crate) fn mean(self, x: &Tensor) -> Result<Tensor> {
        x.apply_op1(Mean(self))
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

    /// The windows of one image in the order of their outputs, and how many places count.
    #[inline(always)]
    fn patches(&self) -> impl Iterator<Item = (Patch, f64)> {
        self.rows.iter().flat_map(move |&row| {
            let of = move |&column: &Window| {
                (Patch::new(self, 0, row, column), row.count * column.count)
            };
            self.columns.iter().map(of)
        })
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

    fn gradient(&self, x: &Tensor, dy: &Tensor, winners: Option<&[u8]>) -> Result<Tensor> {
        let dy = dy.contiguous()?;
        match dy.dtype() {
            DType::F64 => access::tensor(
                access::read(&dy, |dy: &[f64]| Ok(self.back(dy, winners)))?,
                x.shape(),
            ),
            _ => access::tensor(
                access::read(&dy, |dy: &[f32]| Ok(self.back(dy, winners)))?,
                x.shape(),
            ),
        }
    }
}

struct Max {
    windows: Windows,
    differentiated: bool,
    /// For each output the place in its window, without what lies outside the image.
    winners: OnceLock<Vec<u8>>,
}

impl Max {
    fn forward<T: Element>(&self, x: &[T]) -> Vec<T> {
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

impl CustomOp1 for Max {
    fn name(&self) -> &'static str {
        "max_pool2d"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let shape = &self.windows.shape;
        Ok(match x {
            CpuStorage::F64(_) => {
                access::result(self.forward::<f64>(access::slice(x, layout)?), shape)
            }
            _ => access::result(self.forward::<f32>(access::slice(x, layout)?), shape),
        })
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        if !x.track_op() {
            return Ok(None);
        }
        let Some(winners) = self.winners.get() else {
            bail!("max_pool2d: backward before forward");
        };
        self.windows.gradient(x, dy, Some(winners)).map(Some)
    }
}

struct Mean(Windows);

impl Mean {
    fn forward<T: Element>(&self, x: &[T]) -> Vec<T> {
        let (size, rows) = self.0.output_rows();
        pieces::filled(self.0.len(), rows * size, |i, y| {
            pieces::compiled(Means, (y, x, &self.0, i * rows));
        })
    }
}

impl CustomOp1 for Mean {
    fn name(&self) -> &'static str {
        "avg_pool2d"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let shape = &self.0.shape;
        Ok(match x {
            CpuStorage::F64(_) => {
                access::result(self.forward::<f64>(access::slice(x, layout)?), shape)
            }
            _ => access::result(self.forward::<f32>(access::slice(x, layout)?), shape),
        })
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        if !x.track_op() {
            return Ok(None);
        }
        self.0.gradient(x, dy, None).map(Some)
    }
}

/// Channels that are worked on together.
const LANES: usize = 16;

/// One window of one image.
#[derive(Clone, Copy)]
struct Patch {
    /// Where the image's row 0 and the window's first column begin.
    start: usize,
    /// The window's rows.
    rows: (usize, usize),
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
            rows: (row.first, row.end),
            pitch: width * channels,
            span: (column.end - column.first) * channels,
            channels,
        }
    }

    /// Where this channel of each pixel of the window lies, row by row.
    #[inline(always)]
    fn places(self, channel: usize) -> impl Iterator<Item = usize> {
        (self.rows.0..self.rows.1).flat_map(move |row| {
            let start = self.start + row * self.pitch + channel;
            (start..start + self.span).step_by(self.channels)
        })
    }
}

/// The N elements from `place` on. The default is never seen: windows lie within their images.
#[inline(always)]
fn chunk<T: Element, const N: usize>(x: &[T], place: usize) -> [T; N] {
    match x[place..].first_chunk() {
        Some(chunk) => *chunk,
        None => [T::default(); N],
    }
}

/// y, the winners or nothing, x, the windows, and the number of the first row of outputs.
type Outputs<'a, T> = (&'a mut [T], &'a mut [u8], &'a [T], &'a Windows, usize);

/// The largest values of a piece of rows of outputs.
struct Largest;

impl<T: Element> Kernel<Outputs<'_, T>> for Largest {
    #[inline(always)]
    fn run(self, (y, winners, x, windows, first): Outputs<T>) {
        let channels = windows.channels;
        let size = windows.columns.len() * channels;
        for (i, y) in y.chunks_exact_mut(size).enumerate() {
            let (image, row) = (
                (first + i) / windows.rows.len(),
                (first + i) % windows.rows.len(),
            );
            for (j, y) in y.chunks_exact_mut(channels).enumerate() {
                let patch = Patch::new(windows, image, windows.rows[row], windows.columns[j]);
                let start = i * size + j * channels;
                // No winners, no places for them.
                let end = (start + channels).min(winners.len());
                let winners = &mut winners[start.min(end)..end];
                let (y, y_rest) = y.as_chunks_mut::<LANES>();
                let (winners, winners_rest) =
                    winners.split_at_mut((y.len() * LANES).min(winners.len()));
                let mut winners = winners.as_chunks_mut::<LANES>().0.iter_mut();
                for (k, y) in y.iter_mut().enumerate() {
                    let (values, places) = patch.largest(x, k * LANES);
                    *y = values;
                    if let Some(winner) = winners.next() {
                        *winner = places;
                    }
                }
                let mut winners = winners_rest.iter_mut();
                for (k, y) in y_rest.iter_mut().enumerate() {
                    let ([value], [place]) = patch.largest(x, channels / LANES * LANES + k);
                    *y = value;
                    if let Some(winner) = winners.next() {
                        *winner = place;
                    }
                }
            }
        }
    }
}

impl Patch {
    /// The largest values of N channels, and their places.
    #[inline(always)]
    fn largest<T: Element, const N: usize>(self, x: &[T], channel: usize) -> ([T; N], [u8; N]) {
        let mut best = [T::of(f64::NEG_INFINITY); N];
        // As wide as f32, for one comparison to choose both.
        let mut winners = [0_u32; N];
        for (place, at) in (0_u32..).zip(self.places(channel)) {
            let values: [T; N] = chunk(x, at);
            for i in 0..N {
                #[expect(clippy::eq_op, reason = "true for NaN only")]
                let larger = values[i] > best[i] || values[i] != values[i];
                best[i] = if larger { values[i] } else { best[i] };
                winners[i] = if larger { place } else { winners[i] };
            }
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "windows have at most 256 places"
        )]
        let winners = winners.map(|place| place as u8);
        (best, winners)
    }

    #[inline(always)]
    fn sums<T: Element, const N: usize>(self, x: &[T], channel: usize) -> [T; N] {
        let mut sums = [T::default(); N];
        for at in self.places(channel) {
            let values: [T; N] = chunk(x, at);
            for i in 0..N {
                sums[i] += values[i];
            }
        }
        sums
    }

    /// dx += share at each place of the window.
    #[inline(always)]
    fn add<T: Element, const N: usize>(self, dx: &mut [T], channel: usize, share: [T; N]) {
        for at in self.places(channel) {
            if let Some(dx) = dx[at..].first_chunk_mut::<N>() {
                for i in 0..N {
                    dx[i] += share[i];
                }
            }
        }
    }

    /// dx += dy at the place of each channel's winner. All places are gone through, for whole registers
    /// at once.
    #[inline(always)]
    fn add_to_winners<T: Element>(
        self,
        dx: &mut [T],
        channel: usize,
        dy: [T; LANES],
        winners: [u8; LANES],
    ) {
        let winners = winners.map(u32::from);
        for (place, at) in (0_u32..).zip(self.places(channel)) {
            if let Some(dx) = dx[at..].first_chunk_mut::<LANES>() {
                for i in 0..LANES {
                    dx[i] += if winners[i] == place {
                        dy[i]
                    } else {
                        T::default()
                    };
                }
            }
        }
    }

    /// Where the winner of a channel lies.
    #[inline(always)]
    fn place_of(self, winner: u8, channel: usize) -> usize {
        let (winner, width) = (usize::from(winner), self.span / self.channels);
        let (row, column) = (winner / width, winner % width);
        self.start + (self.rows.0 + row) * self.pitch + column * self.channels + channel
    }
}

/// The means of a piece of rows of outputs.
struct Means;

impl<T: Element> Kernel<(&mut [T], &[T], &Windows, usize)> for Means {
    #[inline(always)]
    fn run(self, (y, x, windows, first): (&mut [T], &[T], &Windows, usize)) {
        let channels = windows.channels;
        let size = windows.columns.len() * channels;
        for (i, y) in y.chunks_exact_mut(size).enumerate() {
            let (image, row) = (
                (first + i) / windows.rows.len(),
                (first + i) % windows.rows.len(),
            );
            for (j, y) in y.chunks_exact_mut(channels).enumerate() {
                let (row, column) = (windows.rows[row], windows.columns[j]);
                let patch = Patch::new(windows, image, row, column);
                let count = T::of(row.count * column.count);
                let (y, y_rest) = y.as_chunks_mut::<LANES>();
                for (k, y) in y.iter_mut().enumerate() {
                    *y = patch.sums(x, k * LANES).map(|sum| sum / count);
                }
                for (k, y) in y_rest.iter_mut().enumerate() {
                    *y = patch.sums::<T, 1>(x, channels / LANES * LANES + k)[0] / count;
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
            let outputs = dy
                .chunks_exact(channels)
                .zip(winners.chunks_exact(channels));
            for ((patch, _), (dy, winners)) in windows.patches().zip(outputs) {
                let (dy, dy_rest) = dy.as_chunks::<LANES>();
                let (winners, winners_rest) = winners.as_chunks::<LANES>();
                for (k, (dy, winners)) in dy.iter().zip(winners).enumerate() {
                    patch.add_to_winners(dx, k * LANES, *dy, *winners);
                }
                for (k, (&dy, &winner)) in dy_rest.iter().zip(winners_rest).enumerate() {
                    dx[patch.place_of(winner, channels / LANES * LANES + k)] += dy;
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
        let channels = windows.channels;
        for (dx, dy) in dx.chunks_exact_mut(input).zip(dy.chunks_exact(output)) {
            for ((patch, count), dy) in windows.patches().zip(dy.chunks_exact(channels)) {
                let count = T::of(count);
                let (dy, dy_rest) = dy.as_chunks::<LANES>();
                for (k, dy) in dy.iter().enumerate() {
                    patch.add(dx, k * LANES, dy.map(|dy| dy / count));
                }
                for (k, &dy) in dy_rest.iter().enumerate() {
                    patch.add(dx, channels / LANES * LANES + k, [dy / count]);
                }
            }
        }
    }
}
