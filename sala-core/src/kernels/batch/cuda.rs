//! A graphics card as what runs the kernels.

use candle_core::{
    CudaDevice, CudaStorage, Result, bail,
    cuda::{
        CudaStorageSlice as Slice, WrapErr,
        cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut, LaunchConfig, PushKernelArg},
    },
};

use super::{Card, THREADS};

/// The kernels, which the driver compiles for the card when they are first used.
const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/multi_tensor.ptx"));

impl Card for CudaDevice {
    fn launch(&self, kernel: &str, blocks: u32, arguments: [u64; 3]) -> Result<()> {
        let function = self.get_or_load_custom_func(kernel, "sala_multi_tensor", PTX)?;
        let mut call = function.builder();
        for argument in &arguments {
            call.arg(argument);
        }
        let shape = LaunchConfig {
            grid_dim: (blocks, 1, 1),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: every kernel takes three addresses. They and the addresses in the table belong to tensors on this
        // card that live until the work is queued; memory is freed in the order of the same stream.
        unsafe { call.launch(shape) }.w()?;
        Ok(())
    }
}

/// Address of a storage's first element, and how many there are.
pub(super) fn extent(storage: &mut CudaStorage) -> Result<(u64, usize)> {
    fn of<T>(slice: &mut CudaSlice<T>, stream: &CudaStream) -> (u64, usize) {
        let len = slice.len();
        (slice.device_ptr_mut(stream).0, len)
    }
    let stream = storage.device.cuda_stream();
    Ok(match &mut storage.slice {
        Slice::F32(slice) => of(slice, &stream),
        Slice::F64(slice) => of(slice, &stream),
        Slice::BF16(slice) => of(slice, &stream),
        Slice::F16(slice) => of(slice, &stream),
        Slice::I64(slice) => of(slice, &stream),
        _ => bail!("no fused kernels for this type"),
    })
}
