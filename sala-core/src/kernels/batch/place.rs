//! Where tensors are in the memory of their device, and how two of them exchange it.

use std::cell::Cell;

use candle_core::{CpuStorage, CudaStorage, Error, InplaceOp1, Layout, Result, Tensor, bail};

/// A contiguous tensor's place in memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Address of the storage, which tells storages apart.
    pub(super) storage: u64,
    /// Address of the first element.
    pub(super) start: u64,
    /// Whether the tensor fills its storage.
    pub(super) whole: bool,
}

/// Address of a storage's first element, and how many there are.
type Extent = (u64, usize);

/// The place of a contiguous tensor. On a card it also makes the device's stream wait for work of other streams
/// on the tensor.
///
/// # Errors
/// For a tensor that is not contiguous, or of a type that has no kernels.
pub(super) fn place(tensor: &Tensor) -> Result<Place> {
    let (storage, len) = extent(tensor)?;
    let Some((first, end)) = tensor.layout().contiguous_offsets() else {
        bail!(
            "a fused kernel needs a contiguous tensor, got {:?}",
            tensor.layout()
        );
    };
    Ok(Place {
        storage,
        start: storage + (first * tensor.dtype().size_in_bytes()) as u64,
        whole: (first, end) == (0, len),
    })
}

/// Address of a tensor's storage.
///
/// # Errors
/// For a type that has no kernels.
pub(super) fn storage_of(tensor: &Tensor) -> Result<u64> {
    Ok(extent(tensor)?.0)
}

fn extent(tensor: &Tensor) -> Result<Extent> {
    let found = Cell::new(None);
    tensor.inplace_op1(&Locate(&found))?;
    let found = found.take();
    found.ok_or_else(|| Error::msg("candle did not run an in-place operation"))
}

struct Locate<'a>(&'a Cell<Option<Extent>>);

impl InplaceOp1 for Locate<'_> {
    fn name(&self) -> &'static str {
        "sala-locate"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        fn extent<T>(values: &mut [T]) -> Extent {
            (values.as_mut_ptr().expose_provenance() as u64, values.len())
        }
        self.0.set(Some(match storage {
            CpuStorage::F32(values) => extent(values),
            CpuStorage::F64(values) => extent(values),
            CpuStorage::BF16(values) => extent(values),
            CpuStorage::F16(values) => extent(values),
            CpuStorage::I64(values) => extent(values),
            _ => bail!("no fused kernels for this type"),
        }));
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut CudaStorage, _: &Layout) -> Result<()> {
        self.0.set(Some(super::cuda::extent(storage)?));
        Ok(())
    }
}

/// Exchanges the memory of two tensors that fill their storages, without touching an element.
///
/// # Errors
/// For tensors of different types.
pub(super) fn exchange(a: &Tensor, b: &Tensor) -> Result<()> {
    if a.dtype() != b.dtype() {
        return Err(Error::DTypeMismatchBinaryOp {
            lhs: a.dtype(),
            rhs: b.dtype(),
            op: "fused kernel",
        });
    }
    let done = Cell::new(false);
    a.inplace_op1(&Outer {
        other: b,
        done: &done,
    })?;
    if !done.get() {
        bail!("candle did not run an in-place operation");
    }
    Ok(())
}

/// Has one storage, and asks for the other.
struct Outer<'a> {
    other: &'a Tensor,
    done: &'a Cell<bool>,
}

impl InplaceOp1 for Outer<'_> {
    fn name(&self) -> &'static str {
        "sala-exchange"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        let storage = Held::Cpu(storage);
        self.other
            .inplace_op1(&Inner(&Cell::new(Some(storage)), self.done))
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, _: &Layout) -> Result<()> {
        let storage = Held::Cuda(storage);
        self.other
            .inplace_op1(&Inner(&Cell::new(Some(storage)), self.done))
    }
}

/// The storage that is held while the other one is asked for.
enum Held<'a> {
    Cpu(&'a mut CpuStorage),
    Cuda(&'a mut CudaStorage),
}

struct Inner<'a, 'b>(&'a Cell<Option<Held<'b>>>, &'a Cell<bool>);

impl InplaceOp1 for Inner<'_, '_> {
    fn name(&self) -> &'static str {
        "sala-exchange"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        if let Some(Held::Cpu(other)) = self.0.take() {
            std::mem::swap(storage, other);
            self.1.set(true);
        }
        Ok(())
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, _: &Layout) -> Result<()> {
        if let Some(Held::Cuda(other)) = self.0.take() {
            std::mem::swap(storage, other);
            self.1.set(true);
        }
        Ok(())
    }
}
