//! A graphics card as what runs the kernels.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{
    CudaDevice, CudaStorage, Result, bail,
    cuda::{
        CudaStorageSlice as Slice, WrapErr,
        cudarc::driver::{
            CudaEvent, CudaSlice, CudaStream, DevicePtrMut, LaunchConfig, PinnedHostSlice,
            PushKernelArg,
        },
    },
};

use super::{Card, Pages, Sent, THREADS};

/// The kernels, which the driver compiles for the card when they are first used.
const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/multi_tensor.ptx"));

/// Threads that find the kernels missing would each load them, and one of them unload those that another one runs.
static LOADING: Mutex<()> = Mutex::new(());

/// The state behind a lock, which is whole wherever a thread that had it panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Card for CudaDevice {
    fn launch(&self, kernel: &str, blocks: u32, arguments: &[u64]) -> Result<()> {
        let loading = lock(&LOADING);
        let function = self.get_or_load_custom_func(kernel, "sala_multi_tensor", PTX)?;
        drop(loading);
        let mut call = function.builder();
        for argument in arguments {
            call.arg(argument);
        }
        let shape = LaunchConfig {
            grid_dim: (blocks, 1, 1),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: a kernel's arguments are as many as it takes, of 8 bytes each. Addresses among them and in the table belong to
        // tensors on this card that live until the work is queued, since memory is freed in the order of the same
        // stream, or to memory of the host that lives until the work is done.
        unsafe { call.launch(shape) }.w()?;
        Ok(())
    }

    fn pages(&self, len: usize) -> Result<Box<dyn Pages>> {
        let stream = self.cuda_stream();
        let context = stream.context();
        let mut free = lock(&FREE);
        let fits = |pages: &Pinned| pages.len() == len && pages.context() == context;
        let known = free.iter().position(fits).map(|at| free.swap_remove(at));
        drop(free);
        let pinned = match known {
            Some(pinned) => pinned,
            // SAFETY: the memory is read after the kernel that fills it.
            None => unsafe { context.alloc_pinned_with_flags(len, 0) }.w()?,
        };
        Ok(Box::new(Empty { pinned, stream }))
    }
}

/// Memory of the host that a card writes by itself: a copy to other memory would keep the host waiting.
type Pinned = PinnedHostSlice<f64>;

/// What is free of it. To pin memory takes longer than a step should wait.
static FREE: Mutex<Vec<Pinned>> = Mutex::new(Vec::new());

/// Memory that no kernel was told of yet.
struct Empty {
    pinned: Pinned,
    stream: Arc<CudaStream>,
}

impl Pages for Empty {
    /// That of the host: with one address space for both, which every 64-bit system has, a card knows it too.
    fn address(&mut self) -> Result<u64> {
        Ok(self.pinned.as_mut_ptr().w()?.expose_provenance() as u64)
    }

    fn sent(self: Box<Self>) -> Result<Box<dyn Sent>> {
        let Self { pinned, stream } = *self;
        match stream.record_event(None).w() {
            Ok(arrived) => Ok(Box::new(OnTheWay {
                arrived,
                pinned: Some(pinned),
            })),
            Err(error) => {
                // The card may still write there.
                std::mem::forget(pinned);
                Err(error)
            }
        }
    }
}

/// Numbers that a kernel was queued for, and when they are there. They are waited for also when nobody wants them
/// any more.
#[derive(Debug)]
struct OnTheWay {
    arrived: CudaEvent,
    pinned: Option<Pinned>,
}

impl Sent for OnTheWay {
    fn receive(mut self: Box<Self>) -> Result<Vec<f64>> {
        self.arrived.synchronize().w()?;
        let Some(pinned) = self.pinned.take() else {
            bail!("numbers that were sent once are received once");
        };
        let numbers = pinned.as_slice().w()?.to_vec();
        lock(&FREE).push(pinned);
        Ok(numbers)
    }
}

impl Drop for OnTheWay {
    fn drop(&mut self) {
        let Some(pinned) = self.pinned.take() else {
            return;
        };
        match self.arrived.synchronize() {
            Ok(()) => lock(&FREE).push(pinned),
            // The card may still write there.
            Err(_) => std::mem::forget(pinned),
        }
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
