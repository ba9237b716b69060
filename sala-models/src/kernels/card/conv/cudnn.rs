//! Convolutions by cuDNN, channels last.
//!
//! What cuDNN is asked is kept for each shape: descriptors, and for each direction the algorithm that it expects to be
//! the fastest of those that yield the same bits every time. Working memory comes from the device's pool.
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
            result as cudnn,
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
    let Some((algorithm, bytes)) = plan.forward else {
        return Ok(None);
    };
    let (rows, columns) = (geometry.rows.windows, geometry.columns.windows);
    let y = card.empty((geometry.batch, rows, columns, geometry.outputs), x.dtype())?;
    let workspace = Workspace::new(card, bytes)?;
    let (one, zero) = (1_f32, 0_f32);
    // SAFETY: descriptors say how large the tensors are, which live until the work is queued on their stream; memory is
    // freed in the order of the same stream.
    unsafe {
        cudnn::convolution_forward(
            plan.handle.0,
            factor(&one),
            plan.x.0,
            pointer(card, x)?,
            plan.weight.0,
            pointer(card, weight)?,
            plan.forward_product.0,
            algorithm,
            workspace.pointer(card)?,
            bytes,
            factor(&zero),
            plan.y.0,
            pointer(card, &y)?,
        )
    }
    .map_err(Error::wrap)?;
    Ok(Some(y))
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
    let Some((algorithm, bytes)) = plan.data else {
        return Ok(None);
    };
    let (rows, columns) = (geometry.rows.size, geometry.columns.size);
    let dx = card.empty((geometry.batch, rows, columns, geometry.inputs), dy.dtype())?;
    let workspace = Workspace::new(card, bytes)?;
    let (one, zero) = (1_f32, 0_f32);
    // SAFETY: as in `forward`.
    unsafe {
        cudnn::convolution_backward_data(
            plan.handle.0,
            factor(&one),
            plan.weight.0,
            pointer(card, weight)?,
            plan.y.0,
            pointer(card, dy)?,
            plan.data_product.0,
            algorithm,
            workspace.pointer(card)?,
            bytes,
            factor(&zero),
            plan.x.0,
            pointer(card, &dx)?,
        )
    }
    .map_err(Error::wrap)?;
    Ok(Some(dx))
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
    let Some((algorithm, bytes)) = plan.filter else {
        return Ok(None);
    };
    let dw = card.empty(filter_shape(geometry), x.dtype())?;
    let workspace = Workspace::new(card, bytes)?;
    let (one, zero) = (1_f32, 0_f32);
    // SAFETY: as in `forward`.
    unsafe {
        cudnn::convolution_backward_filter(
            plan.handle.0,
            factor(&one),
            plan.x.0,
            pointer(card, x)?,
            plan.y.0,
            pointer(card, dy)?,
            plan.filter_product.0,
            algorithm,
            workspace.pointer(card)?,
            bytes,
            factor(&zero),
            plan.weight.0,
            pointer(card, &dw)?,
        )
    }
    .map_err(Error::wrap)?;
    Ok(Some(dw))
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
    /// One for each direction, because how products round is chosen with the algorithm.
    forward_product: Product,
    data_product: Product,
    filter_product: Product,
    /// Algorithms, and the bytes of working memory that they want.
    forward: Option<(ForwardAlgorithm, usize)>,
    data: Option<(DataAlgorithm, usize)>,
    filter: Option<(FilterAlgorithm, usize)>,
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
        let product = || Product::new(geometry, math);
        let mut plan = Self {
            handle,
            x: TensorDescriptor::new(dtype, [batch, inputs, rows.size, columns.size])?,
            weight: FilterDescriptor::new(
                dtype,
                [outputs, inputs / groups, rows.kernel, columns.kernel],
            )?,
            y: TensorDescriptor::new(dtype, [batch, outputs, rows.windows, columns.windows])?,
            forward_product: product()?,
            data_product: product()?,
            filter_product: product()?,
            forward: None,
            data: None,
            filter: None,
        };
        plan.forward = plan.find_forward(math)?;
        plan.data = plan.find_data(math)?;
        plan.filter = plan.find_filter(math)?;
        Ok(plan)
    }
}

/// Asks cuDNN for the algorithms of a direction, in the order of the time that it expects, and takes the first one that
/// is fit for use.
macro_rules! find {
    ($name:ident, $algorithm:ty, $ask:path, [$($descriptor:ident),*], $product:ident) => {
        impl Plan {
            fn $name(&self, math: cudnnMathType_t) -> Result<Option<($algorithm, usize)>> {
                let mut found = 0;
                let mut results = Vec::with_capacity(usize::try_from(ASKED).unwrap_or(0));
                // SAFETY: all descriptors exist, and there is room for as many results as are asked for.
                let asked = unsafe {
                    let asked = $ask(
                        self.handle.0,
                        $(self.$descriptor.0,)*
                        ASKED,
                        &raw mut found,
                        results.as_mut_ptr(),
                    );
                    if asked.is_ok() {
                        results.set_len(usize::try_from(found.min(ASKED)).unwrap_or(0));
                    }
                    asked
                };
                if asked.is_err() {
                    return Ok(None);
                }
                let fit = results.iter().find(|r| {
                    r.status == cudnnStatus_t::CUDNN_STATUS_SUCCESS
                        && r.determinism == cudnnDeterminism_t::CUDNN_DETERMINISTIC
                        && r.memory <= WORKSPACE
                        && (math != cudnnMathType_t::CUDNN_FMA_MATH
                            || matches!(
                                r.mathType,
                                cudnnMathType_t::CUDNN_FMA_MATH
                                    | cudnnMathType_t::CUDNN_DEFAULT_MATH
                            ))
                });
                let Some(fit) = fit else { return Ok(None) };
                if math != cudnnMathType_t::CUDNN_FMA_MATH {
                    self.$product.set_math(fit.mathType)?;
                }
                Ok(Some((fit.algo, fit.memory)))
            }
        }
    };
}

find!(
    find_forward,
    ForwardAlgorithm,
    cudnn::get_convolution_forward_algorithm,
    [x, weight, forward_product, y],
    forward_product
);
find!(
    find_data,
    DataAlgorithm,
    cudnn::get_convolution_backward_data_algorithm,
    [weight, y, data_product, x],
    data_product
);
find!(
    find_filter,
    FilterAlgorithm,
    cudnn::get_convolution_backward_filter_algorithm,
    [x, y, filter_product, weight],
    filter_product
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
