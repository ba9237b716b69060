//! Slices of tensors in CPU memory: how the fused kernels reach a storage, to read it or in place.
//!
//! A storage is behind a lock, and locking one twice would never return. [`separate`] is what makes
//! an operand safe to lock beside the tensors that are written.

use std::{cell::Cell, ops::Range};

use candle_core::{
    CpuStorage, Error, InplaceOp1, Layout, Result, Shape, Storage, Tensor, WithDType,
    backend::BackendStorage, bail,
};

/// An element type that has fused kernels.
pub(super) trait Element: WithDType {
    fn vec_mut(storage: &mut CpuStorage) -> Option<&mut Vec<Self>>;
}

impl Element for f32 {
    fn vec_mut(storage: &mut CpuStorage) -> Option<&mut Vec<Self>> {
        match storage {
            CpuStorage::F32(values) => Some(values),
            _ => None,
        }
    }
}

impl Element for f64 {
    fn vec_mut(storage: &mut CpuStorage) -> Option<&mut Vec<Self>> {
        match storage {
            CpuStorage::F64(values) => Some(values),
            _ => None,
        }
    }
}

/// The range of a contiguous tensor's elements in its storage.
fn range(layout: &Layout) -> Result<Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => bail!("a fused kernel needs a contiguous tensor, got {layout:?}"),
    }
}

/// Hands the elements of a contiguous tensor to `work`.
pub(super) fn read<T: Element, R>(
    tensor: &Tensor,
    work: impl FnOnce(&[T]) -> Result<R>,
) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        bail!("a fused kernel needs a tensor on the CPU");
    };
    work(&storage.as_slice::<T>()?[range(layout)?])
}

/// As [`read`], of a tensor that may not be there.
pub(super) fn read_some<T: Element, R>(
    tensor: Option<&Tensor>,
    work: impl FnOnce(Option<&[T]>) -> Result<R>,
) -> Result<R> {
    match tensor {
        Some(tensor) => read(tensor, |values| work(Some(values))),
        None => work(None),
    }
}

/// Hands the elements of a contiguous tensor to `work`, which may change them in place.
pub(super) fn write<T: Element, R>(
    tensor: &Tensor,
    work: impl FnOnce(&mut [T]) -> Result<R>,
) -> Result<R> {
    with_storage(tensor, |values: &mut Vec<T>, range| {
        work(&mut values[range])
    })
}

/// As [`write`], of a tensor that may not be there.
pub(super) fn write_some<T: Element, R>(
    tensor: Option<&Tensor>,
    work: impl FnOnce(Option<&mut [T]>) -> Result<R>,
) -> Result<R> {
    match tensor {
        Some(tensor) => write(tensor, |values| work(Some(values))),
        None => work(None),
    }
}

/// Exchanges the elements of two contiguous tensors of one shape in storages of their own: by
/// exchanging the storages' memory where both tensors fill theirs, without touching an element.
pub(super) fn exchange<T: Element>(a: &Tensor, b: &Tensor) -> Result<()> {
    same_kind(b, a)?;
    with_storage(a, |a: &mut Vec<T>, in_a| {
        with_storage(b, |b: &mut Vec<T>, in_b| {
            if in_a == (0..a.len()) && in_b == (0..b.len()) {
                std::mem::swap(a, b);
            } else {
                a[in_a].swap_with_slice(&mut b[in_b]);
            }
            Ok(())
        })
    })
}

/// Hands the storage of a contiguous tensor to `work`, with the range of the tensor's elements in it.
///
/// candle gives mutable access to a storage only to in-place operations, so this is one, whose
/// "operation" is the closure. It is called exactly once; the cells move it in and its result out.
fn with_storage<T: Element, R>(
    tensor: &Tensor,
    work: impl FnOnce(&mut Vec<T>, Range<usize>) -> Result<R>,
) -> Result<R> {
    let outcome = Cell::new(None);
    let work = Cell::new(Some(|values: &mut Vec<T>, range| {
        outcome.set(Some(work(values, range)?));
        Ok(())
    }));
    tensor.inplace_op1(&InPlace(&work, std::marker::PhantomData))?;
    let done = outcome.take();
    done.ok_or_else(|| Error::msg("candle did not run an in-place operation"))
}

struct InPlace<'a, T, F>(&'a Cell<Option<F>>, std::marker::PhantomData<T>);

impl<T: Element, F: FnOnce(&mut Vec<T>, Range<usize>) -> Result<()>> InplaceOp1
    for InPlace<'_, T, F>
{
    fn name(&self) -> &'static str {
        "sala-kernel"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let got = storage.dtype();
        let Some(values) = T::vec_mut(storage) else {
            bail!("a fused kernel needs {:?}, got {got:?}", T::DTYPE);
        };
        match self.0.take() {
            Some(work) => work(values, range(layout)?),
            None => bail!("an in-place operation was run twice"),
        }
    }
}

/// `operand` in a form that can be read while the tensors `written` are locked for writing: of their
/// shape and dtype, contiguous, and in a storage of its own. A copy only if it must be.
pub(super) fn separate(operand: &Tensor, written: &[&Tensor]) -> Result<Tensor> {
    for target in written {
        same_kind(operand, target)?;
    }
    let operand = operand.contiguous()?;
    if written.iter().any(|w| share_storage(w, &operand)) {
        return operand.force_contiguous();
    }
    Ok(operand)
}

fn same_kind(operand: &Tensor, target: &Tensor) -> Result<()> {
    let shape = |t: &Tensor| Shape::clone(t.shape());
    if operand.shape() != target.shape() {
        return Err(Error::ShapeMismatchBinaryOp {
            lhs: shape(target),
            rhs: shape(operand),
            op: "fused kernel",
        });
    }
    if operand.dtype() != target.dtype() {
        return Err(Error::DTypeMismatchBinaryOp {
            lhs: target.dtype(),
            rhs: operand.dtype(),
            op: "fused kernel",
        });
    }
    Ok(())
}

/// Whether two tensors are views of one storage. The locks are taken one after the other.
fn share_storage(a: &Tensor, b: &Tensor) -> bool {
    let address = |t: &Tensor| std::ptr::from_ref::<Storage>(&t.storage_and_layout().0).addr();
    address(a) == address(b)
}
