//! Convolutions by cuDNN, channels last.
//!
//! What cuDNN is asked is kept for each shape ([`plan`]): descriptors, and for each direction the algorithms that yield the
//! same bits every time, in the order of the time that it expects. The first one that runs is used ([`direction`]).
//! By default which is the fastest is not measured, so that a run that goes on has the bits of one that was never
//! interrupted; [`search`](super::search) changes that. Working memory comes from the device's pool.
//!
//! Half precision is summed in f32. f32 is strict unless matrix products may round to TF32
//! (`candle_core::cuda::set_gemm_reduced_precision_f32`), which holds here too. f64 is left to products of gathered
//! rows.

mod descriptors;
mod direction;
mod measure;
mod plan;

use std::{ffi::c_void, ptr};

use candle_core::{Error, Result, Shape, Tensor, cuda::cudarc::cudnn::result as cudnn};

use self::plan::plan;
use super::super::Card;
use crate::ops::conv::Geometry;

/// `x (N, H, W, C)`, `weight (O, Kh, Kw, C / groups)` to `(N, Hw, Ww, O)`; nothing where cuDNN has no algorithm.
pub(super) fn forward(
    card: &Card,
    x: &Tensor,
    weight: &Tensor,
    geometry: &Geometry,
) -> Result<Option<Tensor>> {
    let Some(plan) = plan(card, x, geometry)? else {
        return Ok(None);
    };
    let (rows, columns) = (geometry.rows.windows, geometry.columns.windows);
    let shape = (geometry.batch, rows, columns, geometry.outputs);
    let [from, by] = [pointer(card, x)?, pointer(card, weight)?];
    plan.forward.run(card, &shape.into(), x.dtype(), |call| {
        // SAFETY: descriptors say how large the tensors are, which live until the work is queued on their stream; memory is
        // freed in the order of the same stream.
        unsafe {
            cudnn::convolution_forward(
                plan.handle.0,
                factor(&1.0),
                plan.x.0,
                from,
                plan.weight.0,
                by,
                plan.forward.product.0,
                call.algorithm,
                call.workspace,
                call.bytes,
                factor(&0.0),
                plan.y.0,
                call.result,
            )
        }
    })
}

/// The gradient of `x`, from that of the result; nothing where cuDNN has no algorithm.
pub(super) fn input_gradient(
    card: &Card,
    dy: &Tensor,
    weight: &Tensor,
    geometry: &Geometry,
) -> Result<Option<Tensor>> {
    let Some(plan) = plan(card, dy, geometry)? else {
        return Ok(None);
    };
    let (rows, columns) = (geometry.rows.size, geometry.columns.size);
    let shape = (geometry.batch, rows, columns, geometry.inputs);
    let [by, from] = [pointer(card, weight)?, pointer(card, dy)?];
    plan.data.run(card, &shape.into(), dy.dtype(), |call| {
        // SAFETY: as in `forward`.
        unsafe {
            cudnn::convolution_backward_data(
                plan.handle.0,
                factor(&1.0),
                plan.weight.0,
                by,
                plan.y.0,
                from,
                plan.data.product.0,
                call.algorithm,
                call.workspace,
                call.bytes,
                factor(&0.0),
                plan.x.0,
                call.result,
            )
        }
    })
}

/// The gradient of the weight `(O, Kh, Kw, C / groups)`; nothing where cuDNN has no algorithm.
pub(super) fn weight_gradient(
    card: &Card,
    x: &Tensor,
    dy: &Tensor,
    geometry: &Geometry,
) -> Result<Option<Tensor>> {
    let Some(plan) = plan(card, x, geometry)? else {
        return Ok(None);
    };
    let [from, of] = [pointer(card, x)?, pointer(card, dy)?];
    let shape = filter_shape(geometry);
    plan.filter.run(card, &shape, x.dtype(), |call| {
        // SAFETY: as in `forward`.
        unsafe {
            cudnn::convolution_backward_filter(
                plan.handle.0,
                factor(&1.0),
                plan.x.0,
                from,
                plan.y.0,
                of,
                plan.filter.product.0,
                call.algorithm,
                call.workspace,
                call.bytes,
                factor(&0.0),
                plan.weight.0,
                call.result,
            )
        }
    })
}

fn filter_shape(geometry: &Geometry) -> Shape {
    let Geometry {
        inputs,
        outputs,
        groups,
        rows,
        columns,
        ..
    } = *geometry;
    (outputs, rows.kernel, columns.kernel, inputs / groups).into()
}

fn pointer(card: &Card, tensor: &Tensor) -> Result<*mut c_void> {
    let at = usize::try_from(card.address(tensor)?).map_err(Error::wrap)?;
    Ok(ptr::with_exposed_provenance_mut(at))
}

fn factor(value: &f32) -> *const c_void {
    ptr::from_ref(value).cast()
}
