//! Rows of channels, cut into tiles for a block each, and sums over rows; `device/tiles.cuh` reads them.

use candle_core::{DType, Result, Tensor};

use super::{Call, Card};

/// Channels that a thread takes, threads of a block, and threads that add up the chunks of a channel: `device/` has the
/// same numbers.
const WIDTH: usize = 4;
const THREADS: usize = 256;
const TEAM: usize = 32;

/// Threads side by side in a tile, at most: two lines of memory.
const MOST_LANES: usize = 32;

/// Tiles that a card needs to be busy, and rows that a thread takes at least.
const BUSY: usize = 1056;
const LEAST_ROWS: usize = 4;

/// How `rows × channels` are cut: by their numbers alone, so that sums have the same bits everywhere.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    pub(super) rows: usize,
    pub(super) channels: usize,
    lanes: usize,
    across: usize,
    height: usize,
}

impl Tiles {
    pub(super) fn of(rows: usize, channels: usize) -> Self {
        let lanes = channels
            .div_ceil(WIDTH)
            .next_power_of_two()
            .clamp(1, MOST_LANES);
        let across = channels.div_ceil(lanes * WIDTH);
        let side_by_side = THREADS / lanes;
        let wanted = rows.div_ceil((BUSY / across).max(1));
        let height = wanted.max(LEAST_ROWS * side_by_side).min(rows.max(1));
        Self {
            rows,
            channels,
            lanes,
            across,
            height,
        }
    }

    /// Parts that the rows are cut into.
    pub(super) fn chunks(self) -> usize {
        self.rows.div_ceil(self.height)
    }

    pub(super) fn blocks(self) -> usize {
        self.chunks() * self.across
    }

    /// What a kernel is told of them.
    pub(super) fn numbers(self) -> [usize; 5] {
        [
            self.rows,
            self.channels,
            self.lanes,
            self.across,
            self.height,
        ]
    }
}

/// Blocks of a kernel that adds up the chunks of each channel.
pub(super) fn blocks_of_teams(channels: usize) -> usize {
    channels.div_ceil(THREADS / TEAM)
}

/// The sum of the rows of `x (…, C)`, `(C)` of its type.
pub(super) fn column_sums(card: &Card, x: &Tensor, channels: usize) -> Result<Tensor> {
    let tiles = Tiles::of(x.elem_count() / channels, channels);
    let partial = card.empty((tiles.chunks(), channels), DType::F64)?;
    let sums = card.empty(channels, x.dtype())?;
    card.launch(Call {
        kernel: "column_sums",
        dtype: x.dtype(),
        blocks: tiles.blocks(),
        tensors: &[Some(x), Some(&partial)],
        numbers: &tiles.numbers(),
        factors: &[],
    })?;
    card.launch(Call {
        kernel: "column_totals",
        dtype: x.dtype(),
        blocks: blocks_of_teams(channels),
        tensors: &[Some(&partial), Some(&sums)],
        numbers: &[channels, tiles.chunks()],
        factors: &[],
    })?;
    Ok(sums)
}

/// Adds a bias `(C)` to the rows of `y (…, C)`, which is changed.
pub(super) fn add_bias(card: &Card, y: &Tensor, bias: &Tensor) -> Result<()> {
    let channels = bias.elem_count();
    let tiles = Tiles::of(y.elem_count() / channels, channels);
    card.launch(Call {
        kernel: "add_bias",
        dtype: y.dtype(),
        blocks: tiles.blocks(),
        tensors: &[Some(y), Some(bias)],
        numbers: &tiles.numbers(),
        factors: &[],
    })
}
