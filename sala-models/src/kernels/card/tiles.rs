//! Rows of channels, cut into tiles for a block each, and sums over rows; `device/tiles.cuh` reads them.

use candle_core::{DType, Result, Tensor};

use super::{Call, Card};

/// Channels that a thread takes, threads of a block, and threads that add up the chunks of a channel: `device/` has the
/// same numbers.
const WIDTH: usize = 4;
const THREADS: usize = 256;
const TEAM: usize = 128;

/// Threads side by side in a tile, at most: two lines of memory; and where tiles stand side by side, at least.
const MOST_LANES: usize = 32;
const LEAST_LANES: usize = 8;

/// Tiles that a card runs at a time: six on each of 132 multiprocessors, as many as the registers of the kernels that add
/// rows up allow. Rows that a thread takes at least.
const BUSY: usize = 792;
const LEAST_ROWS: usize = 4;

/// Tiles for each of these where nothing is added up, so that the last ones leave nobody idle.
const FINE: usize = 4;

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
    /// For sums over rows, whose parts are few.
    pub(super) fn of(rows: usize, channels: usize) -> Self {
        Self::cut(rows, channels, BUSY)
    }

    /// The same rows, for what is done to each by itself.
    pub(super) fn finer(self) -> Self {
        Self::cut(self.rows, self.channels, FINE * BUSY)
    }

    fn cut(rows: usize, channels: usize, busy: usize) -> Self {
        let lanes = lanes(channels.div_ceil(WIDTH));
        let across = channels.div_ceil(lanes * WIDTH);
        let side_by_side = THREADS / lanes;
        let wanted = rows.div_ceil((busy / across).max(1));
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

/// Threads side by side for so many packs of channels: all of them, or a number that divides them, so that the last tile
/// of a row has work for all of its threads.
fn lanes(packs: usize) -> usize {
    if packs <= MOST_LANES {
        return packs.next_power_of_two();
    }
    let divides = 1 << packs.trailing_zeros();
    if divides < LEAST_LANES {
        return MOST_LANES;
    }
    MOST_LANES.min(divides)
}

/// Blocks of a kernel that adds up the chunks of each channel.
pub(super) fn blocks_of_teams(channels: usize) -> usize {
    channels.div_ceil(THREADS / TEAM)
}

/// The sum of the rows of `x (…, C)`, `(C)` of its type.
pub(super) fn column_sums(card: &Card, x: &Tensor, channels: usize) -> Result<Tensor> {
    let tiles = Tiles::of(x.elem_count() / channels, channels);
    let partial = card.empty((channels, tiles.chunks()), DType::F64)?;
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
    let tiles = Tiles::of(y.elem_count() / channels, channels).finer();
    card.launch(Call {
        kernel: "add_bias",
        dtype: y.dtype(),
        blocks: tiles.blocks(),
        tensors: &[Some(y), Some(bias)],
        numbers: &tiles.numbers(),
        factors: &[],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // Catches tiles whose threads have no channels: those of a network of width 10 would be idle for a third of them.
    #[test]
    fn threads_side_by_side_divide_the_channels_where_they_can() {
        let of_packs = [
            (1, 1),
            (3, 4),
            (16, 16),
            (32, 32),
            (40, 8),
            (80, 16),
            (96, 32),
            (160, 32),
            (50, 32),
        ];
        for (packs, wanted) in of_packs {
            assert_eq!(lanes(packs), wanted, "{packs} packs");
        }
    }

    // Catches rows that no tile has, or two.
    #[test]
    fn tiles_cover_all_rows() {
        for rows in [1, 7, 2048, 131_072] {
            for channels in [3, 64, 160, 1000] {
                let tiles = Tiles::of(rows, channels);
                for tiles in [tiles, tiles.finer()] {
                    let [_, _, lanes, across, height] = tiles.numbers();
                    assert!(
                        (tiles.chunks() - 1) * height < rows && rows <= tiles.chunks() * height
                    );
                    assert!(
                        lanes * across * WIDTH >= channels
                            && lanes * (across - 1) * WIDTH < channels
                    );
                }
            }
        }
    }
}
