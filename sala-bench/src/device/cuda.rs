//! NVIDIA's graphics cards.
//!
//! Three settings differ from `candle_core::Device::new_cuda`:
//!
//! - a stream of the device's own instead of one for each thread: batches are made and uploaded by other threads
//!   than the one that trains, and only work of one stream is done in the order in which it was given;
//! - no events for each tensor: they would order several streams, of which there is one, and cost two driver
//!   calls for every tensor that an operation makes;
//! - freed memory stays with the process: by default the driver takes it back whenever the host waits for the
//!   card, which training does once a step.

use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::{
    CudaDevice, DType, Device, Tensor,
    cuda::cudarc::driver::{
        CudaContext, DriverError, result,
        sys::{CUmemPool_attribute as PoolAttribute, CUresult},
    },
};

const GIB: f64 = (1u64 << 30) as f64;

/// How many cards the driver shows to this process.
///
/// # Errors
/// When there is no driver, or it sees no card, with a way out.
pub(super) fn count() -> Result<usize> {
    let cards = CudaContext::device_count().map_err(explain)?;
    ensure!(cards > 0, no_card());
    Ok(usize::try_from(cards)?)
}

fn no_card() -> String {
    let visible = match std::env::var("CUDA_VISIBLE_DEVICES") {
        Ok(cards) => format!("CUDA_VISIBLE_DEVICES is `{cards}`"),
        Err(_) => "`nvidia-smi` shows what it sees".into(),
    };
    format!("NVIDIA's driver is there but offers no graphics card to this process; {visible}")
}

/// What an error of the driver's start means.
fn explain(error: DriverError) -> anyhow::Error {
    match error.0 {
        // What the libraries say that stand in for the driver while a program is linked.
        CUresult::CUDA_ERROR_STUB_LIBRARY => anyhow!(
            "there is no NVIDIA driver: libcuda.so.1 was not found. It comes with the driver of the graphics \
             card; where it is in an unusual folder, scripts/cuda-run-env.sh finds it"
        ),
        CUresult::CUDA_ERROR_NO_DEVICE => anyhow!(no_card()),
        _ => anyhow!("NVIDIA's driver does not start: {error}"),
    }
}

/// Opens the card of this number and tries it out.
///
/// # Errors
/// When there is no such card, or it cannot run what this program was built for.
pub(super) fn open(number: usize) -> Result<Device> {
    let cards = count()?;
    if number >= cards {
        bail!(
            "there is no graphics card of this number: the driver offers {cards}, counted from 0"
        );
    }
    let device = Device::new_cuda_with_stream(number).context(
        "the driver works, but cuBLAS or cuRAND of CUDA 13 does not (libcublas.so.13, libcurand.so.10): \
         `eval \"$(scripts/cuda-run-env.sh)\"` looks for them",
    )?;
    let card = device.as_cuda_device()?;
    // SAFETY: every tensor of the device is made, used and freed on the one stream that the device has; before
    // this call there were none.
    unsafe { card.disable_event_tracking() };
    keep_memory(card).context("the memory of the graphics card cannot be set up")?;
    try_out(&device).with_context(|| {
        let name = capability(card).unwrap_or_else(|_| "unknown".into());
        format!(
            "the graphics card does not run the kernels of this program; its compute capability is {name}: build \
             for that with CUDA_COMPUTE_CAP, or update the driver"
        )
    })?;
    Ok(device)
}

/// Lets the pool of freed memory grow without giving it back. Old cards have no pool.
fn keep_memory(card: &CudaDevice) -> Result<()> {
    let stream = card.cuda_stream();
    let context = stream.context();
    if !context.has_async_alloc() {
        return Ok(());
    }
    let mut threshold = u64::MAX;
    // SAFETY: the device is one that the driver has opened, and the attribute is a 64-bit number that is read
    // during the call.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        let attribute = PoolAttribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, attribute, (&raw mut threshold).cast())?;
    }
    Ok(())
}

/// One kernel of candle's and one product of cuBLAS.
fn try_out(device: &Device) -> Result<()> {
    let two = Tensor::zeros((2, 2), DType::F32, device)?.affine(1.0, 2.0)?;
    let sum: f32 = two.matmul(&two)?.sum_all()?.to_scalar()?;
    ensure!((sum - 32.0).abs() < 1e-3, "2 · 2 · 8 is 32 and not {sum}");
    Ok(())
}

fn capability(card: &CudaDevice) -> Result<String> {
    let (major, minor) = card.cuda_stream().context().compute_capability()?;
    Ok(format!("{major}.{minor}"))
}

/// Name, architecture and memory of a card.
///
/// # Errors
/// Those of the driver.
pub(super) fn describe(card: &CudaDevice) -> Result<String> {
    let stream = card.cuda_stream();
    let context = stream.context();
    let (free, total) = context.mem_get_info()?;
    let cudnn = if cfg!(feature = "cudnn") {
        ", cuDNN"
    } else {
        ""
    };
    Ok(format!(
        "{}, compute capability {}, {:.1} of {:.1} GiB free{cudnn}",
        context.name()?,
        capability(card)?,
        free as f64 / GIB,
        total as f64 / GIB
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    // On a machine without a card it catches a message that does not say what is missing; with one, a device
    // that does not compute.
    #[test]
    fn a_card_computes_or_what_is_missing_is_said() {
        match open(0) {
            Ok(device) => {
                let told = describe(device.as_cuda_device().unwrap()).unwrap();
                assert!(told.contains("compute capability"), "{told}");
                let error = format!("{:#}", open(1000).unwrap_err());
                assert!(error.contains("counted from 0"), "{error}");
            }
            Err(error) => {
                let error = format!("{error:#}");
                let known = [
                    "no NVIDIA driver",
                    "offers no graphics card",
                    "does not start",
                ];
                assert!(known.iter().any(|words| error.contains(words)), "{error}");
                eprintln!("not tested on a graphics card: {error}");
            }
        }
    }

    #[test]
    fn each_cause_has_a_way_out() {
        let told = |code| format!("{:#}", explain(DriverError(code)));
        assert!(told(CUresult::CUDA_ERROR_STUB_LIBRARY).contains("libcuda.so.1"));
        assert!(told(CUresult::CUDA_ERROR_NO_DEVICE).contains("offers no graphics card"));
        assert!(told(CUresult::CUDA_ERROR_NOT_INITIALIZED).contains("does not start"));
    }
}
