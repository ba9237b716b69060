//! The loops over windows.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the chosen instruction set"
)]

use super::{Window, Windows};
use crate::kernels::{element::Element, pieces::Kernel};

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
pub(super) struct Largest;

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
pub(super) struct Means;

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
pub(super) struct BackMax;

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
pub(super) struct BackMean;

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
