//! Where tensors are in the memory of their device.

use std::cell::Cell;

use candle_core::{CpuStorage, CudaStorage, Error, InplaceOp1, Layout, Result, Tensor, bail};

/// The address of a contiguous tensor's first element.
///
/// # Errors
/// For a tensor that is not contiguous, or of a type that has no kernels.
pub(super) fn address(tensor: &Tensor) -> Result<u64> {
    let Some((first, _)) = tensor.layout().contiguous_offsets() else {
        bail!(
            "a kernel needs a contiguous tensor, got {:?}",
            tensor.layout()
        );
    };
    let found = Cell::new(None);
    tensor.inplace_op1(&Locate(&found))?;
    let storage = found.take();
    let storage = storage.ok_or_else(|| Error::msg("candle did not run an in-place operation"))?;
    Ok(storage + (first * tensor.dtype().size_in_bytes()) as u64)
}

/// Finds the address of a storage: candle lets only operations that write at a storage that may be written.
struct Locate<'a>(&'a Cell<Option<u64>>);

impl InplaceOp1 for Locate<'_> {
    fn name(&self) -> &'static str {
        "locate"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        fn of<T>(values: &mut [T]) -> u64 {
            values.as_mut_ptr().expose_provenance() as u64
        }
        self.0.set(Some(match storage {
            CpuStorage::F32(values) => of(values),
            CpuStorage::F64(values) => of(values),
            CpuStorage::BF16(values) => of(values),
            CpuStorage::F16(values) => of(values),
            CpuStorage::U8(values) => of(values),
            CpuStorage::U32(values) => of(values),
            CpuStorage::I64(values) => of(values),
            _ => bail!("no kernels for this type"),
        }));
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut CudaStorage, _: &Layout) -> Result<()> {
        self.0.set(Some(super::cuda::address(storage)?));
        Ok(())
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda_fwd(&self, _: &mut CudaStorage, _: &Layout) -> Result<()> {
        bail!("built without the feature `cuda`")
    }
}
