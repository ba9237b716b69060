//! Rows, each for a team of threads of a block; `device/rows.cuh` reads them.

use candle_core::{D, Result, Tensor, bail};

use super::{Call, Card};

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

/// `x (A, B, C, D)`, contiguous and given in any shape, as `(A, C, B, D)`.
pub(crate) fn swap_rows(card: &Card, x: &Tensor, sizes: [usize; 4]) -> Result<Tensor> {
    let [outer, rows, columns, size] = sizes;
    let shape = (outer, columns, rows, size);
    if rows == 1 || columns == 1 {
        return x.reshape(shape);
    }
    let y = card.empty(shape, x.dtype())?;
    let cut = Rows::new(outer * rows * columns, size)?;
    let mut numbers = cut.numbers().to_vec();
    numbers.extend([rows, columns]);
    card.launch(Call {
        kernel: "swap_rows",
        dtype: x.dtype(),
        blocks: cut.blocks(),
        tensors: &[Some(x), Some(&y)],
        numbers: &numbers,
        factors: &[],
    })?;
    Ok(y)
}
