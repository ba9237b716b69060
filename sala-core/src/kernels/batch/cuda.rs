//! A graphics card as what runs the kernels.

use std::sync::{Mutex, PoisonError};

use candle_core::{
    CudaDevice, CudaStorage, Result, Storage, Tensor, bail,
    cuda::{
        CudaStorageSlice as Slice, WrapErr,
        cudarc::driver::{
            CudaEvent, CudaSlice, CudaStream, DevicePtrMut, LaunchConfig, PinnedHostSlice,
            PushKernelArg,
        },
    },
};

use super::{Card, Sent, THREADS};

/// The kernels, which the driver compiles for the card when they are first used.
const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/multi_tensor.ptx"));

impl Card for CudaDevice {
    fn launch(&self, kernel: &str, blocks: u32, arguments: [u64; 4]) -> Result<()> {
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
        // SAFETY: every kernel takes four numbers of 8 bytes. Addresses among them and in the table belong to tensors on
        // this card that live until the work is queued; memory is freed in the order of the same stream.
        unsafe { call.launch(shape) }.w()?;
        Ok(())
    }

    fn send(&self, numbers: &Tensor) -> Result<Box<dyn Sent>> {
        let stream = self.cuda_stream();
        let (storage, layout) = numbers.storage_and_layout();
        let (Storage::Cuda(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets())
        else {
            bail!("numbers to send to the host are in one piece on a card");
        };
        let mut to = Pages::of(&stream, end - start)?;
        let from = storage.as_cuda_slice::<f64>()?.slice(start..end);
        stream.memcpy_dtoh(&from, &mut to.0).w()?;
        let arrived = stream.record_event(None).w()?;
        Ok(Box::new(OnTheWay {
            arrived,
            pages: Some(to),
        }))
    }
}

/// Memory of the host that a card writes by itself: a copy to other memory would keep the host waiting.
#[derive(Debug)]
struct Pages(PinnedHostSlice<f64>);

/// Those that are free. To pin memory takes longer than a step should wait.
static FREE: Mutex<Vec<Pages>> = Mutex::new(Vec::new());

impl Pages {
    /// For so many numbers of the stream's card.
    fn of(stream: &CudaStream, len: usize) -> Result<Self> {
        let context = stream.context();
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |Self(pages): &Self| pages.len() == len && pages.context() == context;
        if let Some(at) = free.iter().position(fits) {
            return Ok(free.swap_remove(at));
        }
        drop(free);
        // SAFETY: the memory is read after the copy that fills it.
        let pages = unsafe { context.alloc_pinned_with_flags(len, 0) }.w()?;
        Ok(Self(pages))
    }

    fn release(self) {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(self);
    }
}

/// A copy that was queued, and when it is done. It is waited for also when nobody wants the numbers any more.
#[derive(Debug)]
struct OnTheWay {
    arrived: CudaEvent,
    pages: Option<Pages>,
}

impl Sent for OnTheWay {
    fn receive(mut self: Box<Self>) -> Result<Vec<f64>> {
        self.arrived.synchronize().w()?;
        let Some(pages) = self.pages.take() else {
            bail!("numbers that were sent once are received once");
        };
        let numbers = pages.0.as_slice().w()?.to_vec();
        pages.release();
        Ok(numbers)
    }
}

impl Drop for OnTheWay {
    fn drop(&mut self) {
        let Some(pages) = self.pages.take() else {
            return;
        };
        match self.arrived.synchronize() {
            Ok(()) => pages.release(),
            // The card may still write there.
            Err(_) => std::mem::forget(pages),
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
