//! Launches on a CUDA device.

use std::{
    cell::RefCell,
    collections::{HashMap, hash_map::Entry},
    sync::{Mutex, PoisonError},
};

use candle_core::{
    CudaDevice, CudaStorage, Result, bail,
    cuda::{
        CudaStorageSlice as Slice, DeviceId, WrapErr,
        cudarc::driver::{
            CudaFunction, CudaSlice, CudaStream, DevicePtrMut, DeviceRepr, LaunchConfig,
            PushKernelArg,
        },
    },
};

use super::Arguments;

/// The kernels, which the driver compiles for the card when they are first used.
const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/operations.ptx"));

/// Threads of a block; `device/block.cuh` has the same number.
const THREADS: u32 = 256;

// SAFETY: `#[repr(C)]`, of integers and floats.
unsafe impl DeviceRepr for Arguments {}

type Kernel = (&'static str, &'static str);

/// Threads that find the kernels missing would each have them compiled for the card, which takes seconds.
static LOADING: Mutex<()> = Mutex::new(());

thread_local! {
    /// Kernels that were found before: to look for one by its name takes as long as to launch it.
    static KERNELS: RefCell<HashMap<(DeviceId, Kernel), CudaFunction>> = RefCell::default();
}

pub(super) fn launch(
    device: &CudaDevice,
    kernel: Kernel,
    blocks: u32,
    arguments: &Arguments,
) -> Result<()> {
    if blocks == 0 {
        return Ok(());
    }
    let shape = LaunchConfig {
        grid_dim: (blocks, 1, 1),
        block_dim: (THREADS, 1, 1),
        shared_mem_bytes: 0,
    };
    KERNELS.with_borrow_mut(|known| {
        let function = match known.entry((device.id(), kernel)) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(place) => {
                let name = format!("{}_{}", kernel.0, kernel.1);
                let _loading = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
                let function = device.get_or_load_custom_func(&name, "sala_operations", PTX)?;
                place.insert(function.into_cuda_function())
            }
        };
        let stream = device.cuda_stream();
        let mut call = stream.launch_builder(function);
        call.arg(arguments);
        // SAFETY: every kernel takes one `Arguments`. Its addresses belong to tensors on this card that live until the work
        // is queued; memory is freed in the order of the same stream.
        unsafe { call.launch(shape) }.w()?;
        Ok(())
    })
}

/// Address of a storage's first element.
pub(super) fn address(storage: &mut CudaStorage) -> Result<u64> {
    fn of<T>(slice: &mut CudaSlice<T>, stream: &CudaStream) -> u64 {
        slice.device_ptr_mut(stream).0
    }
    let stream = storage.device.cuda_stream();
    Ok(match &mut storage.slice {
        Slice::F32(slice) => of(slice, &stream),
        Slice::F64(slice) => of(slice, &stream),
        Slice::BF16(slice) => of(slice, &stream),
        Slice::F16(slice) => of(slice, &stream),
        Slice::U8(slice) => of(slice, &stream),
        Slice::U32(slice) => of(slice, &stream),
        Slice::I64(slice) => of(slice, &stream),
        _ => bail!("no kernels for this type"),
    })
}
