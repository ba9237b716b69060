//! Convolutions by cuDNN, channels last.
//!
//! What cuDNN is asked is kept for each shape: descriptors, and for each direction the algorithms that yield the same bits
//! every time, in the order of the time that it expects. The first one that runs is used: which is the fastest is not
//! measured, so that a run that goes on has the bits of one that was never interrupted. Working memory comes from the
//! device's pool.
//!
//! Half precision is summed in f32. f32 is strict unless matrix products may round to TF32
//! (`candle_core::cuda::set_gemm_reduced_precision_f32`), which holds here too. f64 is left to products of gathered
//! rows.

use std::{cell::RefCell, collections::HashMap, ffi::c_void, ptr, rc::Rc};

use candle_core::{
    CudaDevice, DType, Device, Error, Result, Shape, Tensor, bail,
    cuda::{
        DeviceId,
        cudarc::cudnn::{
            result::{self as cudnn, CudnnError, CudnnResult},
            sys::{
                cudnnConvolutionBwdDataAlgo_t as DataAlgorithm,
                cudnnConvolutionBwdFilterAlgo_t as FilterAlgorithm, cudnnConvolutionDescriptor_t,
                cudnnConvolutionFwdAlgo_t as ForwardAlgorithm, cudnnConvolutionMode_t,
                cudnnDataType_t, cudnnDeterminism_t, cudnnFilterDescriptor_t, cudnnHandle_t,
                cudnnMathType_t, cudnnStatus_t, cudnnTensorDescriptor_t, cudnnTensorFormat_t,
            },
        },
        gemm_reduced_precision_f32,
    },
};

use super::super::Card;
use crate::ops::conv::{Axis, Geometry};

/// Algorithms that cuDNN is asked for at most.
const ASKED: i32 = 10;

/// Bytes of working memory that an algorithm may want.
const WORKSPACE: usize = 4 << 30;

/// `x (N, H, W, C)`, `weight (O, Kh, Kw, C / groups)` to `(N, Hw, Ww, O)`; nothing where cuDNN has no algorithm.
pub(super) fn forward(
    card: &Card,
    x: &Tensor,
    weight: &Tensor,
    geometry: &Geometry,
) -> Result<Option<Tensor>> {
    let Some(plan) = plan(card, x, geometry)? else {
        return Ok(None);
    };
    let (rows, columns) = (geometry.rows.windows, geometry.columns.windows);
    let shape = (geometry.batch, rows, columns, geometry.outputs);
    let [from, by] = [pointer(card, x)?, pointer(card, weight)?];
    plan.forward.run(card, shape.into(), x.dtype(), |call| {
        // SAFETY: descriptors say how large the tensors are, which live until the work is queued on their stream; memory is
        // freed in the order of the same stream.
        unsafe {
            cudnn::convolution_forward(
                plan.handle.0,
                factor(&1.0),
                plan.x.0,
                from,
                plan.weight.0,
                by,
                plan.forward.product.0,
                call.algorithm,
                call.workspace,
                call.bytes,
                factor(&0.0),
                plan.y.0,
                call.result,
            )
        }
    })
}

/// The gradient of `x`, from that of the result; nothing where cuDNN has no algorithm.
pub(super) fn input_gradient(
    card: &Card,
    dy: &Tensor,
    weight: &Tensor,
    geometry: &Geometry,
) -> Result<Option<Tensor>> {
    let Some(plan) = plan(card, dy, geometry)? else {
        return Ok(None);
    };
    let (rows, columns) = (geometry.rows.size, geometry.columns.size);
    let shape = (geometry.batch, rows, columns, geometry.inputs);
    let [by, from] = [pointer(card, weight)?, pointer(card, dy)?];
    plan.data.run(card, shape.into(), dy.dtype(), |call| {
        // SAFETY: as in `forward`.
        unsafe {
            cudnn::convolution_backward_data(
                plan.handle.0,
                factor(&1.0),
                plan.weight.0,
                by,
                plan.y.0,
                from,
                plan.data.product.0,
                call.algorithm,
                call.workspace,
                call.bytes,
                factor(&0.0),
                plan.x.0,
                call.result,
            )
        }
    })
}

/// The gradient of the weight `(O, Kh, Kw, C / groups)`; nothing where cuDNN has no algorithm.
pub(super) fn weight_gradient(
    card: &Card,
    x: &Tensor,
    dy: &Tensor,
    geometry: &Geometry,
) -> Result<Option<Tensor>> {
    let Some(plan) = plan(card, x, geometry)? else {
        return Ok(None);
    };
    let [from, of] = [pointer(card, x)?, pointer(card, dy)?];
    let shape = filter_shape(geometry);
    plan.filter.run(card, shape, x.dtype(), |call| {
        // SAFETY: as in `forward`.
        unsafe {
            cudnn::convolution_backward_filter(
                plan.handle.0,
                factor(&1.0),
                plan.x.0,
                from,
                plan.y.0,
                of,
                plan.filter.product.0,
                call.algorithm,
                call.workspace,
                call.bytes,
                factor(&0.0),
                plan.weight.0,
                call.result,
            )
        }
    })
}

/// One of the three products of a shape, and the ways in which cuDNN can make it.
struct Direction<A> {
    name: &'static str,
    /// Each has its own, because how products round is chosen with the algorithm.
    product: Product,
    /// Those that yield the same bits every time, the one that is expected to be the fastest first.
    fits: Vec<Fit<A>>,
}

/// An algorithm, how its products round, and the bytes of working memory that it wants.
struct Fit<A> {
    algorithm: A,
    math: cudnnMathType_t,
    bytes: usize,
}

/// What a call of cuDNN is told beside its operands.
struct Call<A> {
    algorithm: A,
    workspace: *mut c_void,
    bytes: usize,
    result: *mut c_void,
}

impl<A: Copy> Direction<A> {
    /// Makes a result by the first algorithm that runs; nothing if none does.
    fn run(
        &self,
        card: &Card,
        shape: Shape,
        dtype: DType,
        call: impl Fn(Call<A>) -> CudnnResult<()>,
    ) -> Result<Option<Tensor>> {
        for fit in &self.fits {
            // One that wants less may follow.
            let Ok(workspace) = Workspace::new(card, fit.bytes) else {
                continue;
            };
            let result = card.empty(&shape, dtype)?;
            self.product.set_math(fit.math)?;
            let ran = call(Call {
                algorithm: fit.algorithm,
                workspace: workspace.pointer(card)?,
                bytes: fit.bytes,
                result: pointer(card, &result)?,
            });
            match ran {
                Ok(()) => return Ok(Some(result)),
                Err(error) if is_unsupported(error) => {}
                Err(error) => return Err(Error::wrap(error)),
            }
        }
        Ok(None)
    }
}

/// Whether cuDNN says that it cannot do what it was asked, and not that something went wrong. Its versions differ in how
/// many words they have for that.
fn is_unsupported(error: CudnnError) -> bool {
    says(error, &["NOT_SUPPORTED", "ARCH_MISMATCH"])
}

/// Whether one of these words is in the name of an error.
fn says(CudnnError(status): CudnnError, words: &[&str]) -> bool {
    let name = format!("{status:?}");
    words.iter().any(|word| name.contains(word))
}

fn filter_shape(geometry: &Geometry) -> Shape {
    let Geometry {
        inputs,
        outputs,
        groups,
        rows,
        columns,
        ..
    } = *geometry;
    (outputs, rows.kernel, columns.kernel, inputs / groups).into()
}

fn pointer(card: &Card, tensor: &Tensor) -> Result<*mut c_void> {
    let at = usize::try_from(card.address(tensor)?).map_err(Error::wrap)?;
    Ok(ptr::with_exposed_provenance_mut(at))
}

fn factor(value: &f32) -> *const c_void {
    ptr::from_ref(value).cast()
}

/// Memory of an algorithm, until its work is queued.
struct Workspace(Option<Tensor>);

impl Workspace {
    fn new(card: &Card, bytes: usize) -> Result<Self> {
        let memory = (bytes > 0).then(|| card.empty(bytes, DType::U8));
        Ok(Self(memory.transpose()?))
    }

    fn pointer(&self, card: &Card) -> Result<*mut c_void> {
        match &self.0 {
            Some(memory) => pointer(card, memory),
            None => Ok(ptr::null_mut()),
        }
    }
}

/// What is known of a shape.
struct Plan {
    handle: Rc<Handle>,
    x: TensorDescriptor,
    weight: FilterDescriptor,
    y: TensorDescriptor,
    forward: Direction<ForwardAlgorithm>,
    data: Direction<DataAlgorithm>,
    filter: Direction<FilterAlgorithm>,
}

/// What a plan depends on.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    device: DeviceId,
    dtype: DType,
    tf32: bool,
    sizes: [usize; 4],
    axes: [[usize; 6]; 2],
}

thread_local! {
    /// cuDNN's handles and descriptors are for one thread at a time.
    static PLANS: RefCell<HashMap<Key, Rc<Plan>>> = RefCell::default();
    static HANDLES: RefCell<HashMap<DeviceId, Rc<Handle>>> = RefCell::default();
}

/// The plan for a shape; nothing for types that cuDNN is not asked for.
fn plan(card: &Card, like: &Tensor, geometry: &Geometry) -> Result<Option<Rc<Plan>>> {
    let Device::Cuda(device) = &card.device else {
        return Ok(None);
    };
    if !matches!(like.dtype(), DType::F32 | DType::BF16 | DType::F16) {
        return Ok(None);
    }
    let axis = |a: &Axis| [a.size, a.kernel, a.stride, a.padding, a.dilation, a.windows];
    let key = Key {
        device: device.id(),
        dtype: like.dtype(),
        tf32: gemm_reduced_precision_f32(),
        sizes: [
            geometry.batch,
            geometry.inputs,
            geometry.outputs,
            geometry.groups,
        ],
        axes: [axis(&geometry.rows), axis(&geometry.columns)],
    };
    if let Some(plan) = PLANS.with_borrow(|plans| plans.get(&key).cloned()) {
        return Ok(Some(plan));
    }
    let plan = Rc::new(Plan::new(handle(device)?, &key, geometry)?);
    PLANS.with_borrow_mut(|plans| plans.insert(key, Rc::clone(&plan)));
    Ok(Some(plan))
}

fn handle(device: &CudaDevice) -> Result<Rc<Handle>> {
    HANDLES.with_borrow_mut(|handles| {
        if let Some(handle) = handles.get(&device.id()) {
            return Ok(Rc::clone(handle));
        }
        let handle = Rc::new(Handle::new(device)?);
        handles.insert(device.id(), Rc::clone(&handle));
        Ok(handle)
    })
}

impl Plan {
    fn new(handle: Rc<Handle>, key: &Key, geometry: &Geometry) -> Result<Self> {
        let Geometry {
            batch,
            inputs,
            outputs,
            groups,
            rows,
            columns,
            ..
        } = *geometry;
        let dtype = key.dtype;
        let math = match (dtype, key.tf32) {
            (DType::F32, false) => cudnnMathType_t::CUDNN_FMA_MATH,
            _ => cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
        };
        let mut plan = Self {
            handle,
            x: TensorDescriptor::new(dtype, [batch, inputs, rows.size, columns.size])?,
            weight: FilterDescriptor::new(
                dtype,
                [outputs, inputs / groups, rows.kernel, columns.kernel],
            )?,
            y: TensorDescriptor::new(dtype, [batch, outputs, rows.windows, columns.windows])?,
            forward: Direction::new("values", geometry, math)?,
            data: Direction::new("gradient of the images", geometry, math)?,
            filter: Direction::new("gradient of the weight", geometry, math)?,
        };
        plan.forward.fits = plan.find_forward(math)?;
        plan.data.fits = plan.find_data(math)?;
        plan.filter.fits = plan.find_filter(math)?;
        plan.forward.tell(dtype, geometry);
        plan.data.tell(dtype, geometry);
        plan.filter.tell(dtype, geometry);
        Ok(plan)
    }
}

impl<A> Direction<A> {
    fn new(name: &'static str, geometry: &Geometry, math: cudnnMathType_t) -> Result<Self> {
        Ok(Self {
            name,
            product: Product::new(geometry, math)?,
            fits: Vec::new(),
        })
    }

    /// Warns of a shape that takes the slower way.
    fn tell(&self, dtype: DType, geometry: &Geometry) {
        if self.fits.is_empty() {
            tracing::warn!(
                what = self.name,
                ?dtype,
                ?geometry,
                "cuDNN has no algorithm that yields the same bits every time; products of gathered rows take its place"
            );
        }
    }
}

/// Asks cuDNN for the algorithms of a direction, in the order of the time that it expects, and keeps those that are fit for
/// use.
macro_rules! find {
    ($name:ident, $direction:ident, $algorithm:ty, $ask:path, [$($before:ident),*], [$after:ident]) => {
        impl Plan {
            fn $name(&self, math: cudnnMathType_t) -> Result<Vec<Fit<$algorithm>>> {
                let strict = math == cudnnMathType_t::CUDNN_FMA_MATH;
                let mut found = 0;
                let mut results = Vec::with_capacity(usize::try_from(ASKED).unwrap_or(0));
                // SAFETY: all descriptors exist, and there is room for as many results as are asked for.
                let asked = unsafe {
                    let asked = $ask(
                        self.handle.0,
                        $(self.$before.0,)*
                        self.$direction.product.0,
                        self.$after.0,
                        ASKED,
                        &raw mut found,
                        results.as_mut_ptr(),
                    );
                    if asked.is_ok() {
                        results.set_len(usize::try_from(found.min(ASKED)).unwrap_or(0));
                    }
                    asked
                };
                match asked {
                    // A shape that it does not know may be a bad parameter too.
                    Err(error) if !is_unsupported(error) && !says(error, &["BAD_PARAM"]) => {
                        return Err(Error::wrap(error));
                    }
                    _ => {}
                }
                let fits = results.iter().filter(|r| {
                    r.status == cudnnStatus_t::CUDNN_STATUS_SUCCESS
                        && r.determinism == cudnnDeterminism_t::CUDNN_DETERMINISTIC
                        && r.memory <= WORKSPACE
                        && (!strict
                            || matches!(
                                r.mathType,
                                cudnnMathType_t::CUDNN_FMA_MATH
                                    | cudnnMathType_t::CUDNN_DEFAULT_MATH
                            ))
                });
                let fits = fits.map(|r| Fit {
                    algorithm: r.algo,
                    math: if strict { math } else { r.mathType },
                    bytes: r.memory,
                });
                Ok(fits.collect())
            }
        }
    };
}

find!(
    find_forward,
    forward,
    ForwardAlgorithm,
    cudnn::get_convolution_forward_algorithm,
    [x, weight],
    [y]
);
find!(
    find_data,
    data,
    DataAlgorithm,
    cudnn::get_convolution_backward_data_algorithm,
    [weight, y],
    [x]
);
find!(
    find_filter,
    filter,
    FilterAlgorithm,
    cudnn::get_convolution_backward_filter_algorithm,
    [x, y],
    [weight]
);

struct Handle(cudnnHandle_t);

impl Handle {
    fn new(device: &CudaDevice) -> Result<Self> {
        let handle = Self(cudnn::create_handle().map_err(Error::wrap)?);
        // SAFETY: handle and stream exist; the stream lives as long as the device, whose memory the work is for.
        unsafe { cudnn::set_stream(handle.0, device.cuda_stream().cu_stream().cast()) }
            .map_err(Error::wrap)?;
        Ok(handle)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: it was created and is destroyed once. What fails here leaves memory behind.
        let _ = unsafe { cudnn::destroy_handle(self.0) };
    }
}

fn data_type(dtype: DType) -> Result<cudnnDataType_t> {
    match dtype {
        DType::F32 => Ok(cudnnDataType_t::CUDNN_DATA_FLOAT),
        DType::BF16 => Ok(cudnnDataType_t::CUDNN_DATA_BFLOAT16),
        DType::F16 => Ok(cudnnDataType_t::CUDNN_DATA_HALF),
        other => bail!("no convolutions of {other:?} by cuDNN"),
    }
}

fn numbers<const N: usize>(sizes: [usize; N]) -> Result<[i32; N]> {
    let mut numbers = [0; N];
    for (number, size) in numbers.iter_mut().zip(sizes) {
        *number = i32::try_from(size).map_err(Error::wrap)?;
    }
    Ok(numbers)
}

struct TensorDescriptor(cudnnTensorDescriptor_t);

impl TensorDescriptor {
    /// Of sizes in the order N, C, H, W, which lie in memory with channels last.
    fn new(dtype: DType, sizes: [usize; 4]) -> Result<Self> {
        let this = Self(cudnn::create_tensor_descriptor().map_err(Error::wrap)?);
        // SAFETY: it exists.
        unsafe {
            cudnn::set_tensor4d_descriptor(
                this.0,
                cudnnTensorFormat_t::CUDNN_TENSOR_NHWC,
                data_type(dtype)?,
                numbers(sizes)?,
            )
        }
        .map_err(Error::wrap)?;
        Ok(this)
    }
}

impl Drop for TensorDescriptor {
    fn drop(&mut self) {
        // SAFETY: as for `Handle`.
        let _ = unsafe { cudnn::destroy_tensor_descriptor(self.0) };
    }
}

struct FilterDescriptor(cudnnFilterDescriptor_t);

impl FilterDescriptor {
    /// Of sizes in the order O, C / groups, Kh, Kw, which lie in memory with channels last.
    fn new(dtype: DType, sizes: [usize; 4]) -> Result<Self> {
        let this = Self(cudnn::create_filter_descriptor().map_err(Error::wrap)?);
        // SAFETY: it exists.
        unsafe {
            cudnn::set_filter4d_descriptor(
                this.0,
                data_type(dtype)?,
                cudnnTensorFormat_t::CUDNN_TENSOR_NHWC,
                numbers(sizes)?,
            )
        }
        .map_err(Error::wrap)?;
        Ok(this)
    }
}

impl Drop for FilterDescriptor {
    fn drop(&mut self) {
        // SAFETY: as for `Handle`.
        let _ = unsafe { cudnn::destroy_filter_descriptor(self.0) };
    }
}

/// How the kernel moves, and how products round.
struct Product(cudnnConvolutionDescriptor_t);

impl Product {
    fn new(geometry: &Geometry, math: cudnnMathType_t) -> Result<Self> {
        let this = Self(cudnn::create_convolution_descriptor().map_err(Error::wrap)?);
        let (rows, columns) = (&geometry.rows, &geometry.columns);
        let [
            pad_h,
            pad_w,
            stride_h,
            stride_w,
            dilation_h,
            dilation_w,
            groups,
        ] = numbers([
            rows.padding,
            columns.padding,
            rows.stride,
            columns.stride,
            rows.dilation,
            columns.dilation,
            geometry.groups,
        ])?;
        // SAFETY: it exists.
        unsafe {
            cudnn::set_convolution2d_descriptor(
                this.0,
                pad_h,
                pad_w,
                stride_h,
                stride_w,
                dilation_h,
                dilation_w,
                cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION,
                cudnnDataType_t::CUDNN_DATA_FLOAT,
            )
            .and_then(|()| cudnn::set_convolution_group_count(this.0, groups))
        }
        .map_err(Error::wrap)?;
        this.set_math(math)?;
        Ok(this)
    }

    fn set_math(&self, math: cudnnMathType_t) -> Result<()> {
        // SAFETY: it exists.
        unsafe { cudnn::set_convolution_math_type(self.0, math) }.map_err(Error::wrap)
    }
}

impl Drop for Product {
    fn drop(&mut self) {
        // SAFETY: as for `Handle`.
        let _ = unsafe { cudnn::destroy_convolution_descriptor(self.0) };
    }
}
