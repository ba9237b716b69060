//! The elements of tensors in CPU memory, and tensors of what a kernel computed.

use std::{
    marker::PhantomData,
    ops::{Deref, Range},
};

use candle_core::{Device, Result, Shape, Storage, Tensor, WithDType, bail};

use super::element::Element;

/// Elements of a tensor, which nobody changes meanwhile.
struct View<G, T> {
    storage: G,
    range: Range<usize>,
    element: PhantomData<T>,
}

/// Reads a contiguous tensor of element type `T` on the CPU.
pub(crate) fn view<T: WithDType>(tensor: &Tensor) -> Result<impl Deref<Target = [T]>> {
    match tensor.layout().contiguous_offsets() {
        Some((start, end)) => view_of(tensor, start, Some(end)),
        None => bail!(
            "a fast kernel needs a contiguous tensor, got {:?}",
            tensor.layout()
        ),
    }
}

/// Reads a tensor of any layout: all from its first element to the end of its storage.
pub(crate) fn view_strided<T: WithDType>(tensor: &Tensor) -> Result<impl Deref<Target = [T]>> {
    view_of(tensor, tensor.layout().start_offset(), None)
}

fn view_of<T: WithDType>(
    tensor: &Tensor,
    start: usize,
    end: Option<usize>,
) -> Result<impl Deref<Target = [T]>> {
    let (storage, _) = tensor.storage_and_layout();
    let Storage::Cpu(values) = &*storage else {
        bail!("a fast kernel needs a tensor on the CPU");
    };
    let range = start..end.unwrap_or(values.as_slice::<T>()?.len());
    Ok(View {
        storage,
        range,
        element: PhantomData,
    })
}

impl<G: Deref<Target = Storage>, T: WithDType> Deref for View<G, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &*self.storage {
            Storage::Cpu(values) => match values.as_slice::<T>() {
                Ok(values) => &values[self.range.clone()],
                Err(_) => &[],
            },
            _ => &[],
        }
    }
}

/// A tensor of values that a kernel computed, without copying them.
pub(crate) fn tensor<T: Element>(values: Vec<T>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape.into(), &Device::Cpu)
}
