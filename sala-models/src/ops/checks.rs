//! Checks of arguments that several operations share, and the dtype they compute in.

use candle_core::{DType, Result, Tensor};

use crate::Error;

/// The error for an argument that does not fit.
pub(super) fn refuse(
    op: &'static str,
    argument: &'static str,
    wanted: impl Into<String>,
    got: impl Into<String>,
) -> candle_core::Error {
    Error::Argument {
        op,
        argument,
        wanted: wanted.into(),
        got: got.into(),
    }
    .into()
}

/// As [`refuse`], for an argument of the wrong shape.
pub(super) fn refuse_shape(
    op: &'static str,
    argument: &'static str,
    wanted: impl Into<String>,
    got: &Tensor,
) -> candle_core::Error {
    refuse(op, argument, wanted, format!("shape {:?}", got.dims()))
}

/// The dtype that sums are kept in: f32 for the half-precision types, otherwise the same one.
pub(super) const fn accumulator(dtype: DType) -> DType {
    match dtype {
        DType::F16 | DType::BF16 => DType::F32,
        other => other,
    }
}

/// Refuses all but the float dtypes that are computed with.
pub(super) fn check_float(op: &'static str, argument: &'static str, dtype: DType) -> Result<()> {
    match dtype {
        DType::F16 | DType::BF16 | DType::F32 | DType::F64 => Ok(()),
        other => Err(refuse(
            op,
            argument,
            "of dtype f16, bf16, f32 or f64",
            format!("{other:?}"),
        )),
    }
}

/// Refuses other dtypes than floats, and tensors without elements.
pub(super) fn check_values(op: &'static str, argument: &'static str, t: &Tensor) -> Result<()> {
    check_float(op, argument, t.dtype())?;
    if t.elem_count() == 0 {
        return Err(refuse_shape(op, argument, "a tensor with elements", t));
    }
    Ok(())
}

/// Refuses a tensor that is neither of `x`'s dtype nor of the one that `x` is computed in: to round
/// an f64 tensor for an f32 input would lose digits without a word.
pub(super) fn check_companion(
    op: &'static str,
    argument: &'static str,
    t: &Tensor,
    x: &Tensor,
) -> Result<()> {
    let (dtype, computed) = (x.dtype(), accumulator(x.dtype()));
    if t.dtype() == dtype || t.dtype() == computed {
        return Ok(());
    }
    let wanted = if dtype == computed {
        format!("of dtype {dtype:?}")
    } else {
        format!("of dtype {dtype:?} or {computed:?}")
    };
    Err(refuse(op, argument, wanted, format!("{:?}", t.dtype())))
}

/// Refuses a parameter that does not have one value for each entry of `x`'s last dimension, or another dtype than
/// [`check_companion`] allows.
pub(super) fn check_per_feature(
    op: &'static str,
    argument: &'static str,
    t: &Tensor,
    x: &Tensor,
) -> Result<()> {
    let size = last_dim(op, "x", x)?;
    if t.dims() != [size] {
        return Err(refuse_shape(op, argument, format!("of shape ({size})"), t));
    }
    check_companion(op, argument, t, x)
}

/// The size of the last dimension.
pub(super) fn last_dim(op: &'static str, argument: &'static str, x: &Tensor) -> Result<usize> {
    let last = x.dims().last().copied();
    last.ok_or_else(|| refuse_shape(op, argument, "of rank 1 or more", x))
}

/// Refuses a number that is not positive and finite.
pub(super) fn check_positive(op: &'static str, argument: &'static str, value: f64) -> Result<()> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(refuse(
        op,
        argument,
        "positive and finite",
        value.to_string(),
    ))
}

/// Refuses sizes of zero.
pub(super) fn check_size(op: &'static str, argument: &'static str, size: usize) -> Result<()> {
    if size > 0 {
        return Ok(());
    }
    Err(refuse(op, argument, "at least 1", "0"))
}

/// Refuses other dtypes than integers.
pub(super) fn check_integers(op: &'static str, argument: &'static str, t: &Tensor) -> Result<()> {
    if t.dtype().is_int() {
        return Ok(());
    }
    let got = format!("{:?}", t.dtype());
    Err(refuse(op, argument, "of an integer dtype", got))
}

/// All indices of an integer tensor in row-major order. Reading them waits for an accelerator.
pub(super) fn read_indices(
    op: &'static str,
    argument: &'static str,
    t: &Tensor,
) -> Result<Vec<i64>> {
    check_integers(op, argument, t)?;
    t.flatten_all()?.to_dtype(DType::I64)?.to_vec1()
}

/// The index as candle takes it, when it counts one of `size` entries.
pub(super) fn index_below(
    op: &'static str,
    argument: &'static str,
    index: i64,
    size: usize,
) -> Result<u32> {
    let inside = usize::try_from(index).is_ok_and(|i| i < size);
    let narrow = u32::try_from(index).ok().filter(|_| inside);
    narrow.ok_or_else(|| {
        refuse(
            op,
            argument,
            format!("indices in 0..{size}"),
            index.to_string(),
        )
    })
}
