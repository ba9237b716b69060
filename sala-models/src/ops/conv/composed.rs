//! The convolution in plain candle operations: one matrix product for each entry of the kernel.

use candle_core::{Result, Tensor};

use super::{Axis, Geometry};

/// Checked arguments of the computation's dtype.
pub(super) fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    geometry: &Geometry,
) -> Result<Tensor> {
    let Geometry {
        format,
        batch,
        inputs,
        outputs,
        groups,
        rows,
        columns,
    } = *geometry;
    let padded = columns.pad(&rows.pad(&format.to_channels_first(x)?, 2)?, 3)?;
    let mut sum: Option<Tensor> = None;
    for u in 0..rows.kernel {
        let in_rows = rows.seen_by(u, &padded, 2)?;
        for v in 0..columns.kernel {
            // (N, G, C / G, positions), multiplied from the left by (G, O / G, C / G).
            let seen = columns.seen_by(v, &in_rows, 3)?;
            let seen = seen.reshape((batch, groups, inputs / groups, ()))?;
            let entry = weight.narrow(2, u, 1)?.narrow(3, v, 1)?;
            let entry = entry.reshape((1, groups, outputs / groups, inputs / groups))?;
            let part = entry.broadcast_matmul(&seen)?;
            sum = Some(match sum {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
    }
    let Some(sum) = sum else {
        candle_core::bail!("conv2d: a kernel without entries");
    };
    let y = sum.reshape((batch, outputs, rows.windows, columns.windows))?;
    let y = match bias {
        Some(bias) => y.broadcast_add(&bias.reshape((1, outputs, 1, 1))?)?,
        None => y,
    };
    format.from_channels_first(&y)
}

impl Axis {
    fn pad(&self, x: &Tensor, dim: usize) -> Result<Tensor> {
        if self.padding == 0 {
            return Ok(x.clone());
        }
        x.pad_with_zeros(dim, self.padding, self.padding)
    }

    /// What entry `place` of the kernel sees of the padded `x` in each window.
    #[expect(
        clippy::cast_possible_wrap,
        reason = "places in an image, which is in memory"
    )]
    fn seen_by(&self, place: usize, x: &Tensor, dim: usize) -> Result<Tensor> {
        let first = place * self.dilation;
        if self.stride == 1 {
            return x.narrow(dim, first, self.windows)?.contiguous();
        }
        let places = (0..self.windows).map(|i| (first + i * self.stride) as i64);
        let places = Tensor::from_vec(places.collect(), self.windows, x.device())?;
        x.contiguous()?.index_select(&places, dim)
    }
}
