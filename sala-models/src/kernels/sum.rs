//! Sums of tensors, and the sum of two as an operation.
//!
//! ```text
//! y = a + b        da = dy        db = dy
//! ```

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the chosen instruction set"
)]

use std::mem::MaybeUninit;

use candle_core::{DType, Result, Tensor};

use super::{
    access,
    element::Element,
    graph::{self, Input, Operation},
    pieces::{self, Kernel, PIECE},
};

/// The sum of two contiguous f32 or f64 tensors of one shape.
pub(crate) fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    graph::apply(Add, &[a, b])
}

/// The sum of tensors of one shape, in their order; nothing of none.
pub(super) fn sum(tensors: Vec<Tensor>) -> Result<Option<Tensor>> {
    let mut tensors = tensors.into_iter();
    let Some(first) = tensors.next() else {
        return Ok(None);
    };
    tensors.try_fold(first, |sum, x| pair(&sum, &x)).map(Some)
}

fn pair(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let fast = a.device().is_cpu() && a.dtype() == b.dtype() && a.shape() == b.shape();
    match a.dtype() {
        DType::F32 if fast => access::tensor(values::<f32>(a, b)?, a.shape()),
        DType::F64 if fast => access::tensor(values::<f64>(a, b)?, a.shape()),
        _ => a + b,
    }
}

fn values<T: Element>(a: &Tensor, b: &Tensor) -> Result<Vec<T>> {
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    let (a, b) = (access::view::<T>(&a)?, access::view::<T>(&b)?);
    Ok(pieces::made(a.len(), PIECE, |i, sum| {
        let (start, len) = (i * PIECE, sum.len());
        let (a, b) = (&a[start..][..len], &b[start..][..len]);
        pieces::compiled(Sum, (&mut *sum, a, b));
        // SAFETY: the loop writes an element for each of `a` and `b`.
        unsafe { pieces::assume_written(sum) }
    }))
}

struct Add;

impl Operation for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let (a, b) = (inputs[0], inputs[1]);
        Ok(match a.dtype() {
            DType::F64 => access::tensor(values::<f64>(a, b)?, a.shape())?,
            _ => access::tensor(values::<f32>(a, b)?, a.shape())?,
        })
    }

    fn backward(&self, inputs: &[Input], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        inputs
            .iter()
            .map(|input| input.share(dy).map(Some))
            .collect()
    }
}

/// y ← a + b.
struct Sum;

impl<T: Element> Kernel<(&mut [MaybeUninit<T>], &[T], &[T])> for Sum {
    #[inline(always)]
    fn run(self, (sum, a, b): (&mut [MaybeUninit<T>], &[T], &[T])) {
        for ((sum, &a), &b) in sum.iter_mut().zip(a).zip(b) {
            sum.write(a + b);
        }
    }
}
