//! Rotary position embedding.
//!
//! The `D` features of a position `t` form `D/2` pairs, and pair `i` is turned by an angle that
//! grows with the position (Su et al. 2021, arXiv:2104.09864):
//!
//! ```text
//! θ = t · base^(−2i/D)        (a, b) ← (a cos θ − b sin θ, b cos θ + a sin θ)
//! ```
//!
//! Models differ in which features form a pair: see [`RopePairs`]. Angles are computed in f64 and
//! rounded once; in f32, a position of 100 000 would leave two digits of an angle. Tables can also
//! be given directly, for models that stretch the angles. All features are turned; a model that
//! turns some of them narrows `x` first.
//!
//! `candle_nn`'s `rope`, `rope_i` and `rope_thd` have no backward: the gradient ends there.

use candle_core::{D, DType, Device, Result, Tensor};

use super::checks::{
    accumulator, check_companion, check_float, check_positive, check_size, check_values, refuse,
    refuse_shape,
};
use crate::kernels::{self, card, rope as fast};

const OP: &str = "rope";

/// Which features are turned together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairs {
    /// `i` with `i + D/2`: Llama as published with transformers, GPT-NeoX.
    Halves,
    /// `2i` with `2i + 1`: the paper, GPT-J, Llama as published by its authors.
    Interleaved,
}

/// Turns the features of `x (…, T, D)` by the tables `cos` and `sin`, both `(T, D/2)`.
///
/// The result has `x`'s shape and dtype; half precision is computed in f32. The tables have `x`'s
/// dtype or the one it is computed in. Position `t` of `x` takes row `t` of the tables: narrow them
/// for an offset, or use [`Rope`].
///
/// # Errors
/// When `x` is empty, not of floats, of rank below 2 or with an odd number of features, a table has
/// another shape or dtype, or candle fails.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use sala_models::ops::{RopePairs, rope};
///
/// let x = Tensor::new(&[[1f64, 2., 3., 4.]], &Device::Cpu)?;
/// // A quarter turn of each pair: (a, b) becomes (−b, a).
/// let (cos, sin) = (Tensor::new(&[[0f64, 0.]], &Device::Cpu)?, Tensor::new(&[[1f64, 1.]], &Device::Cpu)?);
/// let halves = rope(&x, &cos, &sin, RopePairs::Halves)?;
/// assert_eq!(halves.to_vec2::<f64>()?, [[-3., -4., 1., 2.]]);
/// let interleaved = rope(&x, &cos, &sin, RopePairs::Interleaved)?;
/// assert_eq!(interleaved.to_vec2::<f64>()?, [[-2., 1., -4., 3.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, pairs: RopePairs) -> Result<Tensor> {
    let (positions, features) = check(x)?;
    let half = features / 2;
    let dtype = accumulator(x.dtype());
    for (argument, table) in [("cos", cos), ("sin", sin)] {
        if table.dims() != [positions, half] {
            let wanted = format!("of shape ({positions}, {half})");
            return Err(refuse_shape(OP, argument, wanted, table));
        }
        check_companion(OP, argument, table, x)?;
    }
    let (cos, sin) = (cos.to_dtype(dtype)?, sin.to_dtype(dtype)?);
    let constant = !cos.track_op() && !sin.track_op();
    if let Some(card) = card::serving(x)?.filter(|_| constant) {
        let (cos, sin) = (cos.contiguous()?, sin.contiguous()?);
        return card::rope::rope(card, &x.contiguous()?, &cos, &sin, pairs);
    }
    let values = x.to_dtype(dtype)?;
    let y = if constant && kernels::fast(&values)? {
        let tables = (cos.contiguous()?, sin.contiguous()?);
        fast::rope(&values.contiguous()?, &tables.0, &tables.1, pairs)?
    } else {
        composed(&values, &cos, &sin, pairs)?
    };
    y.to_dtype(x.dtype())
}

fn composed(x: &Tensor, cos: &Tensor, sin: &Tensor, pairs: RopePairs) -> Result<Tensor> {
    let (a, b) = split(x, cos.dim(1)?, pairs)?;
    let turned_a = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
    let turned_b = (b.broadcast_mul(cos)? + a.broadcast_mul(sin)?)?;
    let joined = match pairs {
        RopePairs::Halves => Tensor::cat(&[turned_a, turned_b], D::Minus1)?,
        RopePairs::Interleaved => Tensor::stack(&[turned_a, turned_b], x.rank())?,
    };
    joined.reshape(x.shape())
}

/// The first and the second features of all pairs, each `(…, T, D/2)`.
fn split(x: &Tensor, half: usize, pairs: RopePairs) -> Result<(Tensor, Tensor)> {
    match pairs {
        RopePairs::Halves => Ok((
            x.narrow(D::Minus1, 0, half)?,
            x.narrow(D::Minus1, half, half)?,
        )),
        RopePairs::Interleaved => {
            let mut dims = x.dims().to_vec();
            dims.pop();
            dims.extend([half, 2]);
            let paired = x.reshape(dims)?;
            let of = |i| paired.narrow(D::Minus1, i, 1)?.squeeze(D::Minus1);
            Ok((of(0)?, of(1)?))
        }
    }
}

/// The number of positions and of features.
fn check(x: &Tensor) -> Result<(usize, usize)> {
    check_values(OP, "x", x)?;
    match *x.dims() {
        [.., positions, features] if features.is_multiple_of(2) => Ok((positions, features)),
        _ => {
            let wanted = "of shape (…, T, D) with an even D";
            Err(refuse_shape(OP, "x", wanted, x))
        }
    }
}

/// [`rope()`] with its tables for all positions that a model can have. They are no parameters.
#[derive(Debug, Clone)]
pub struct Rope {
    cos: Tensor,
    sin: Tensor,
    pairs: RopePairs,
}

impl Rope {
    /// Tables for `features` per head and positions below `positions`. Most models have a `base` of
    /// 10 000. `dtype` is that of the tensors to be turned; for half precision the tables are f32.
    ///
    /// # Errors
    /// When `features` is zero or odd, `positions` is zero, `base` is not positive and finite,
    /// `dtype` is not a float one, or candle fails.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use sala_models::ops::{Rope, RopePairs};
    ///
    /// let rope = Rope::new(8, 16, 10_000.0, RopePairs::Halves, DType::F32, &Device::Cpu)?;
    /// let whole = Tensor::ones((2, 3, 5, 8), DType::F32, &Device::Cpu)?;
    /// let last = rope.forward(&whole.narrow(2, 4, 1)?, 4)?; // as when keys are cached
    /// let wanted = rope.forward(&whole, 0)?.narrow(2, 4, 1)?;
    /// assert_eq!(last.flatten_all()?.to_vec1::<f32>()?, wanted.flatten_all()?.to_vec1::<f32>()?);
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    pub fn new(
        features: usize,
        positions: usize,
        base: f64,
        pairs: RopePairs,
        dtype: DType,
        device: &Device,
    ) -> crate::Result<Self> {
        check_size(OP, "features", features)?;
        check_positive(OP, "base", base)?;
        if !features.is_multiple_of(2) {
            return Err(refuse(OP, "features", "even", features.to_string()).into());
        }
        let speed = |i| base.powf(-2.0 * i as f64 / features as f64);
        let speeds: Vec<f64> = (0..features / 2).map(speed).collect();
        Self::with_speeds(&speeds, 1.0, positions, pairs, dtype, device)
    }

    /// Tables for models that stretch the angles: pair `i` turns by `speeds[i]` a position, in radians, and
    /// cosine and sine are multiplied by `scale`. The rest is as for [`new`](Self::new).
    ///
    /// # Errors
    /// When there is no speed, `positions` is zero, a number is not finite, `dtype` is not a float one, or
    /// candle fails.
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use sala_models::ops::{Rope, RopePairs};
    ///
    /// let half_speed = [0.5, 0.005];
    /// Rope::with_speeds(&half_speed, 1.0, 16, RopePairs::Halves, DType::F32, &Device::Cpu)?;
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    pub fn with_speeds(
        speeds: &[f64],
        scale: f64,
        positions: usize,
        pairs: RopePairs,
        dtype: DType,
        device: &Device,
    ) -> crate::Result<Self> {
        check_size(OP, "speeds", speeds.len())?;
        check_size(OP, "positions", positions)?;
        check_float(OP, "dtype", dtype)?;
        if let Some(bad) = speeds.iter().chain([&scale]).find(|s| !s.is_finite()) {
            return Err(refuse(OP, "speeds and scale", "finite", bad.to_string()).into());
        }
        let angles = (0..positions).flat_map(|t| speeds.iter().map(move |speed| t as f64 * speed));
        let (cos, sin): (Vec<f64>, Vec<f64>) =
            angles.map(|a| (scale * a.cos(), scale * a.sin())).unzip();
        // Rounded on the CPU: not every device knows f64.
        let table = |values| -> Result<Tensor> {
            let table = Tensor::from_vec(values, (positions, speeds.len()), &Device::Cpu)?;
            table.to_dtype(accumulator(dtype))?.to_device(device)
        };
        Ok(Self {
            cos: table(cos)?,
            sin: table(sin)?,
            pairs,
        })
    }

    /// Turns `x (…, T, D)`, whose first position is number `offset`.
    ///
    /// # Errors
    /// When the positions `offset..offset + T` are not all in the tables, or as for [`rope()`].
    pub fn forward(&self, x: &Tensor, offset: usize) -> Result<Tensor> {
        let (positions, _) = check(x)?;
        let known = self.cos.dim(0)?;
        if offset.saturating_add(positions) > known {
            return Err(refuse(
                OP,
                "offset",
                format!("at most {known} positions minus the {positions} of x"),
                offset.to_string(),
            ));
        }
        let of = |table: &Tensor| table.narrow(0, offset, positions);
        rope(x, &of(&self.cos)?, &of(&self.sin)?, self.pairs)
    }
}
