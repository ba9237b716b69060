//! Which pixels meet which entries of the kernel.
//!
//! Forward, output `i` sees the inputs `i s + u d − p` for the entries `u` of the kernel. Backward, input
//! `i` receives from the outputs `o = (i + p − u d) / s` for those `u` that leave no remainder. Which do
//! depends on `i mod s` alone, so the input gradient falls into `s` *phases* along each axis. In each, pixel
//! `i = r + s t` receives from the outputs `t + q` where `q = (r + p − u d) / s`: a convolution with a
//! part of the kernel and a stride of one.

use std::ops::Range;

use crate::{
    kernels::matmul::{Place, Run},
    ops::conv::{Axis, Geometry},
};

/// An entry of the kernel, and how far it looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tap {
    entry: usize,
    /// Pixels from a row's base.
    offset: usize,
}

/// One phase along one axis: targets `first, first + step, …` take their sums from sources that begin at
/// `0, stride, …`.
#[derive(Debug, Clone)]
struct Line {
    taps: Vec<Tap>,
    first: usize,
    step: usize,
    stride: usize,
}

/// How the sources must be padded along one axis so that all lines stay inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Padding {
    /// Zeros before the first.
    pub(super) before: usize,
    /// Sources there are.
    pub(super) size: usize,
    /// Length with all zeros; sources beyond it are seen by nobody.
    pub(super) total: usize,
}

impl Padding {
    /// Whether the sources can be used as they are.
    pub(super) const fn is_needless(self) -> bool {
        self.before == 0 && self.total <= self.size
    }

    /// The length of what is used.
    pub(super) const fn len(self) -> usize {
        if self.is_needless() {
            self.size
        } else {
            self.total
        }
    }
}

fn forward(axis: &Axis) -> (Vec<Line>, Padding) {
    let taps = (0..axis.kernel).map(|entry| Tap {
        entry,
        offset: entry * axis.dilation,
    });
    let line = Line {
        taps: taps.collect(),
        first: 0,
        step: 1,
        stride: axis.stride,
    };
    let padding = Padding {
        before: axis.padding,
        size: axis.size,
        total: (axis.windows - 1) * axis.stride + axis.dilation * (axis.kernel - 1) + 1,
    };
    (vec![line], padding)
}

fn backward(axis: &Axis) -> (Vec<Line>, Padding) {
    let stride = axis.stride;
    // (i + p − u d) / s where it is whole; s more than p + i at most, so that all stays positive.
    let shift = axis.dilation * (axis.kernel - 1) / stride + 1;
    let meets = |first: usize, entry: usize| {
        let place = first + axis.padding + shift * stride - entry * axis.dilation;
        place.is_multiple_of(stride).then_some(place / stride)
    };
    let phases = 0..stride.min(axis.size);
    let lowest = phases
        .clone()
        .flat_map(|r| (0..axis.kernel).filter_map(move |u| meets(r, u)));
    let before = shift.saturating_sub(lowest.min().unwrap_or(shift));
    let origin = shift - before;
    let mut total = 1;
    let lines = phases.map(|first| {
        let taps = (0..axis.kernel).rev().filter_map(|entry| {
            let offset = meets(first, entry)? - origin;
            Some(Tap { entry, offset })
        });
        let taps: Vec<Tap> = taps.collect();
        let last = (axis.size - 1 - first) / stride;
        let reach = taps.iter().map(|tap| tap.offset + last + 1).max();
        total = total.max(reach.unwrap_or(1));
        Line {
            taps,
            first,
            step: stride,
            stride: 1,
        }
    });
    let lines = lines.collect();
    let padding = Padding {
        before,
        size: axis.windows,
        total,
    };
    (lines, padding)
}

/// One matrix product of a convolution: its rows are the pixels of one phase.
#[derive(Debug, Clone)]
pub(super) struct Phase {
    rows: Line,
    columns: Line,
}

impl Phase {
    /// The entries `(u, v)` of the kernel that the phase uses, in the order of its runs.
    pub(super) fn entries(&self) -> Vec<(usize, usize)> {
        let of_row = |u: &Tap| {
            let u = u.entry;
            self.columns.taps.iter().map(move |v| (u, v.entry))
        };
        self.rows.taps.iter().flat_map(of_row).collect()
    }
}

/// All matrix products of one direction, with what they read and write.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) phases: Vec<Phase>,
    pub(super) rows: Padding,
    pub(super) columns: Padding,
    /// Height and width of what is written.
    pub(super) targets: (usize, usize),
    /// Channels of what is read, and of what is written.
    pub(super) channels: (usize, usize),
    pub(super) groups: usize,
    kernel_columns: usize,
}

impl Plan {
    /// From images to the convolution's result.
    pub(super) fn forward(geometry: &Geometry) -> Self {
        let targets = (geometry.rows.windows, geometry.columns.windows);
        let channels = (geometry.inputs, geometry.outputs);
        Self::new(geometry, forward, targets, channels)
    }

    /// From the gradient of the result to that of the images.
    pub(super) fn backward(geometry: &Geometry) -> Self {
        let targets = (geometry.rows.size, geometry.columns.size);
        let channels = (geometry.outputs, geometry.inputs);
        Self::new(geometry, backward, targets, channels)
    }

    fn new(
        geometry: &Geometry,
        direction: fn(&Axis) -> (Vec<Line>, Padding),
        targets: (usize, usize),
        channels: (usize, usize),
    ) -> Self {
        let (row_lines, rows) = direction(&geometry.rows);
        let (column_lines, columns) = direction(&geometry.columns);
        let pairs = row_lines.iter().flat_map(|rows| {
            let with = |columns: &Line| Phase {
                rows: rows.clone(),
                columns: columns.clone(),
            };
            column_lines.iter().map(with)
        });
        Self {
            phases: pairs.collect(),
            rows,
            columns,
            targets,
            channels,
            groups: geometry.groups,
            kernel_columns: geometry.columns.kernel,
        }
    }

    /// Channels that one group reads.
    pub(super) const fn in_group(&self) -> usize {
        self.channels.0 / self.groups
    }

    /// Entries in a row of the kernel.
    pub(super) const fn kernel_columns(&self) -> usize {
        self.kernel_columns
    }

    /// Where each entry of a phase finds its pixel, with all its channels.
    pub(super) fn pixel_runs(&self, phase: &Phase) -> Vec<Run> {
        let (width, len) = (self.columns.len(), self.channels.0);
        let of_row = |u: &Tap| {
            let row = u.offset * width;
            let run = move |v: &Tap| Run {
                offset: (row + v.offset) * len,
                len,
            };
            phase.columns.taps.iter().map(run)
        };
        phase.rows.taps.iter().flat_map(of_row).collect()
    }

    /// The runs of a phase's rows, for the first group. Neighbouring pixels make one run, if there is but
    /// one group.
    pub(super) fn runs(&self, phase: &Phase) -> Vec<Run> {
        let (width, channels) = (self.columns.len(), self.channels.0);
        let len = self.in_group();
        let mut runs: Vec<Run> = vec![];
        for u in &phase.rows.taps {
            for v in &phase.columns.taps {
                let offset = (u.offset * width + v.offset) * channels;
                match runs.last_mut() {
                    Some(run) if run.offset + run.len == offset => run.len += len,
                    _ => runs.push(Run { offset, len }),
                }
            }
        }
        runs
    }

    /// Where the sources of a range of target pixels begin, when there is but one phase.
    pub(super) fn bases(&self, phase: &Phase, pixels: Range<usize>) -> Vec<usize> {
        let (height, width) = self.targets;
        let base = |pixel: usize| {
            let (row, column) = (pixel / width, pixel % width);
            let source = row / height * self.rows.len() + row % height * phase.rows.stride;
            (source * self.columns.len() + column * phase.columns.stride) * self.channels.0
        };
        pixels.map(base).collect()
    }

    /// The places of a phase's pixels in a stretch of target rows, which are counted through all images.
    /// `out` counts from the beginning of the stretch.
    pub(super) fn places(&self, phase: &Phase, stretch: Range<usize>) -> Vec<Place> {
        let (height, width) = self.targets;
        let (rows, columns) = (&phase.rows, &phase.columns);
        let mut places = Vec::with_capacity(stretch.len() * width.div_ceil(columns.step));
        for (i, row) in stretch.enumerate() {
            let (image, row) = (row / height, row % height);
            let Some(below) = row.checked_sub(rows.first) else {
                continue;
            };
            if !below.is_multiple_of(rows.step) {
                continue;
            }
            let source = image * self.rows.len() + below / rows.step * rows.stride;
            for (t, column) in (columns.first..width).step_by(columns.step).enumerate() {
                places.push(Place {
                    base: (source * self.columns.len() + t * columns.stride) * self.channels.0,
                    out: (i * width + column) * self.channels.1,
                });
            }
        }
        places
    }
}
