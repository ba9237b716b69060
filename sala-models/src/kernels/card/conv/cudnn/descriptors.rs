//! What cuDNN is told of a convolution, each freed when it is dropped.

use candle_core::{
    CudaDevice, DType, Error, Result, bail,
    cuda::cudarc::cudnn::{
        result as cudnn,
        sys::{
            cudnnConvolutionDescriptor_t, cudnnConvolutionMode_t, cudnnDataType_t,
            cudnnFilterDescriptor_t, cudnnHandle_t, cudnnMathType_t, cudnnTensorDescriptor_t,
            cudnnTensorFormat_t,
        },
    },
};

use crate::ops::conv::Geometry;

/// cuDNN on the stream of a device.
pub(super) struct Handle(pub(super) cudnnHandle_t);

impl Handle {
    pub(super) fn new(device: &CudaDevice) -> Result<Self> {
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

pub(super) struct TensorDescriptor(pub(super) cudnnTensorDescriptor_t);

impl TensorDescriptor {
    /// Of sizes in the order N, C, H, W, which lie in memory with channels last.
    pub(super) fn new(dtype: DType, sizes: [usize; 4]) -> Result<Self> {
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

pub(super) struct FilterDescriptor(pub(super) cudnnFilterDescriptor_t);

impl FilterDescriptor {
    /// Of sizes in the order O, C / groups, Kh, Kw, which lie in memory with channels last.
    pub(super) fn new(dtype: DType, sizes: [usize; 4]) -> Result<Self> {
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
pub(super) struct Product(pub(super) cudnnConvolutionDescriptor_t);

impl Product {
    pub(super) fn new(geometry: &Geometry, math: cudnnMathType_t) -> Result<Self> {
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

    pub(super) fn set_math(&self, math: cudnnMathType_t) -> Result<()> {
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
