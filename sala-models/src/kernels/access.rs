//! Slices of tensors in CPU memory, and tensors of what a kernel computed.

use std::ops::Range;

use candle_core::{CpuStorage, Device, Layout, Result, Shape, Storage, Tensor, bail};

use super::element::Element;

/// The elements of a contiguous argument of a forward pass.
pub(crate) fn slice<'a, T: Element>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    Ok(&storage.as_slice::<T>()?[range(layout)?])
}

/// Hands the elements of a contiguous tensor to `work`. For backward passes, which get tensors.
pub(crate) fn read<T: Element, R>(
    tensor: &Tensor,
    work: impl FnOnce(&[T]) -> Result<R>,
) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        bail!("a fast kernel needs a tensor on the CPU");
    };
    work(slice(storage, layout)?)
}

/// A tensor of values that a kernel computed, without copying them.
pub(crate) fn tensor<T: Element>(values: Vec<T>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape.into(), &Device::Cpu)
}

/// The result of a forward pass.
pub(crate) fn result<T: Element>(values: Vec<T>, shape: impl Into<Shape>) -> (CpuStorage, Shape) {
    (T::to_cpu_storage_owned(values), shape.into())
}

/// The range of a contiguous tensor's elements in its storage.
fn range(layout: &Layout) -> Result<Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => bail!("a fast kernel needs a contiguous tensor, got {layout:?}"),
    }
}
