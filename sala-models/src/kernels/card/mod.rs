//! Fast forms of the operations for graphics cards: f32, f64, bf16 and f16, each computed in f32 or f64 and rounded
//! once.
//!
//! Matrix products are candle's (cuBLAS), convolutions cuDNN's or products of gathered rows; what stands between
//! them is in `device/`, one launch for what would be many of candle's. The kernels' source is C++ that both nvcc and a
//! C++ compiler accept, so the tests run all of this on the processor, tensors of the CPU in the place of those
//! of a card ([`Choice::Emulated`]).
//!
//! No operation waits for the card: an index that counts nothing makes its loss or its row NaN instead of an
//! error, because the error would need the index on the host.
//!
//! Sums are taken in an order that depends on the sizes alone, so the same run gives the same bits.

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod batch_norm;
pub(crate) mod conv;
pub(crate) mod cross_entropy;
#[cfg(feature = "cuda")]
mod cuda;
pub(crate) mod dropout;
pub(crate) mod embedding;
#[cfg(sala_emulated)]
mod emulated;
pub(crate) mod linear;
mod memory;
pub(crate) mod norm;
pub(crate) mod pool;
mod product;
pub(crate) mod rope;
pub(crate) mod rows;
pub(crate) mod softmax;
pub(crate) mod sum;
mod tiles;

use candle_core::{DType, Device, Result, Shape, Tensor, bail};

use self::memory::address;
use super::Choice;

/// Elements that a block of an element-wise kernel takes; `device/arguments.cuh` has the same number.
pub(crate) const CHUNK: usize = 4096;

/// What a kernel is told; `device/arguments.cuh` has the same.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Arguments {
    /// Addresses of tensors, 0 for one that is not there.
    at: [u64; 10],
    numbers: [i64; 18],
    factors: [f64; 6],
}

/// What runs kernels.
#[derive(Clone)]
pub(crate) struct Card {
    device: Device,
}

/// A kernel by the first part of its name; the second is the type of its elements.
pub(crate) struct Call<'a> {
    pub(crate) kernel: &'static str,
    pub(crate) dtype: DType,
    pub(crate) blocks: usize,
    pub(crate) tensors: &'a [Option<&'a Tensor>],
    pub(crate) numbers: &'a [usize],
    pub(crate) factors: &'a [f64],
}

/// The card that a fast form for `x` runs on: nothing where there is none, or the composed forms are asked for.
pub(crate) fn serving(x: &Tensor) -> Result<Option<Card>> {
    match suffix(x.dtype()) {
        Some(_) => on(x.device()),
        None => Ok(None),
    }
}

/// The card that a device is: nothing where these kernels do not run, or the composed forms are asked for.
pub(crate) fn on(device: &Device) -> Result<Option<Card>> {
    let card = || Card {
        device: device.clone(),
    };
    Ok(serves(device)?.then(card))
}

/// Whether tensors of a device are computed with by these kernels.
pub(crate) fn serves(device: &Device) -> Result<bool> {
    let choice = super::choice()?;
    Ok(match device {
        #[cfg(sala_emulated)]
        Device::Cpu => choice == Choice::Emulated,
        Device::Cuda(_) => cfg!(feature = "cuda") && choice == Choice::Auto,
        _ => false,
    })
}

impl Card {
    /// A tensor whose elements are all going to be written.
    pub(crate) fn empty(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        let shape = shape.into();
        if self.device.is_cpu() {
            // What nobody writes is seen.
            return Tensor::full(f32::NAN, shape, &self.device)?.to_dtype(dtype);
        }
        // SAFETY: as promised, every element is written before it is read, by a kernel that is queued later on the same
        // stream.
        unsafe { Tensor::empty(shape, dtype, &self.device) }
    }

    /// As [`Card::empty`], of another tensor's shape and type.
    pub(crate) fn empty_like(&self, x: &Tensor) -> Result<Tensor> {
        self.empty(x.shape(), x.dtype())
    }

    /// The address of a contiguous tensor's first element.
    ///
    /// # Errors
    /// For a tensor on another device: a kernel would read whatever is at that address here.
    fn address(&self, tensor: &Tensor) -> Result<u64> {
        if !tensor.device().same_device(&self.device) {
            bail!(
                "all tensors of an operation must be on one device, wanted {:?}, got {:?}",
                self.device.location(),
                tensor.device().location()
            );
        }
        address(tensor)
    }

    /// Queues a kernel. Its tensors are contiguous; a block has 256 threads.
    pub(crate) fn launch(&self, call: Call) -> Result<()> {
        let Some(suffix) = suffix(call.dtype) else {
            bail!("no kernels for {:?}", call.dtype);
        };
        let mut arguments = Arguments::default();
        for (to, tensor) in arguments.at.iter_mut().zip(call.tensors) {
            *to = tensor.map_or(Ok(0), |tensor| self.address(tensor))?;
        }
        for (to, &number) in arguments.numbers.iter_mut().zip(call.numbers) {
            *to = i64::try_from(number).map_err(candle_core::Error::wrap)?;
        }
        arguments.factors[..call.factors.len()].copy_from_slice(call.factors);
        let blocks = u32::try_from(call.blocks).map_err(candle_core::Error::wrap)?;
        match &self.device {
            #[cfg(sala_emulated)]
            Device::Cpu => emulated::launch(call.kernel, suffix, blocks, &arguments),
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => cuda::launch(device, (call.kernel, suffix), blocks, &arguments),
            other => bail!(
                "{}_{suffix}: no kernels for {:?} ({blocks} blocks of {} arguments)",
                call.kernel,
                other.location(),
                arguments.at.len()
            ),
        }
    }

    /// Queues an element-wise kernel for tensors of as many elements as the first one has.
    pub(crate) fn each(
        &self,
        kernel: &'static str,
        tensors: &[Option<&Tensor>],
        factors: &[f64],
    ) -> Result<()> {
        let Some(Some(first)) = tensors.first() else {
            bail!("{kernel}: no tensors");
        };
        let count = first.elem_count();
        self.launch(Call {
            kernel,
            dtype: first.dtype(),
            blocks: count.div_ceil(CHUNK),
            tensors,
            numbers: &[count],
            factors,
        })
    }
}

/// The name of a type in the names of kernels.
fn suffix(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::F32 => Some("f32"),
        DType::F64 => Some("f64"),
        DType::BF16 => Some("bf16"),
        DType::F16 => Some("f16"),
        _ => None,
    }
}

/// Parameters of an operation that reads either type: as they are where all have `x`'s, or else in the type that it is
/// computed in, which loses nothing.
fn fitting_parameters<'a>(
    x: &Tensor,
    parameters: impl Iterator<Item = &'a Tensor> + Clone,
) -> Result<Vec<Tensor>> {
    let stored = parameters.clone().all(|p| p.dtype() == x.dtype());
    let dtype = if stored {
        x.dtype()
    } else {
        computed(x.dtype())
    };
    let fitting = |p: &Tensor| p.to_dtype(dtype)?.contiguous();
    parameters.map(fitting).collect()
}

/// Whether parameters are of the type that `x` is computed in, as kernels are told.
fn wide(parameter: &Tensor, x: &Tensor) -> usize {
    usize::from(parameter.dtype() == computed(x.dtype()))
}

/// The type that elements of a tensor are computed in.
pub(crate) fn computed(dtype: DType) -> DType {
    match dtype {
        DType::F64 => DType::F64,
        _ => DType::F32,
    }
}
