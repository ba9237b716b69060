//! Rows, each for a team of threads of a block; `device/rows.cuh` reads them.

use candle_core::{D, Result, Tensor, bail};

/// Elements that a thread takes at once, and threads of a block: `device/block.cuh` has the same numbers.
const WIDTH: usize = 4;
const THREADS: usize = 256;

/// Threads of a warp, and packs of a row that each takes before more of them share it: their sum costs the more, the
/// more they are.
const WARP: usize = 32;
const PACKS: usize = 8;

/// How rows are shared among threads: by their size alone, so that sums have the same bits everywhere.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    count: usize,
    size: usize,
    team: usize,
}

impl Rows {
    pub(super) fn new(rows: usize, size: usize) -> Result<Self> {
        if u32::try_from(rows).is_err() {
            bail!("kernels count rows in 32 bits, got {rows}");
        }
        let packs = size.div_ceil(WIDTH);
        let team = if packs <= WARP {
            packs.next_power_of_two()
        } else {
            let warps = packs.div_ceil(WARP * PACKS).next_power_of_two();
            (WARP * warps).min(THREADS)
        };
        Ok(Self {
            count: rows,
            size,
            team,
        })
    }

    /// The rows of the last dimension.
    pub(super) fn of(x: &Tensor) -> Result<Self> {
        let size = x.dim(D::Minus1)?;
        Self::new(x.elem_count() / size, size)
    }

    pub(super) fn blocks(self) -> usize {
        self.count.div_ceil(THREADS / self.team)
    }

    /// What a kernel is told of them: its first numbers.
    pub(super) fn numbers(self) -> [usize; 3] {
        [self.count, self.size, self.team]
    }
}
