//! What cuDNN is asked for each shape, once.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use candle_core::{
    CudaDevice, DType, Device, Error, Result, Tensor,
    cuda::{
        DeviceId,
        cudarc::cudnn::{
            result as cudnn,
            sys::{
                cudnnConvolutionBwdDataAlgo_t as DataAlgorithm,
                cudnnConvolutionBwdFilterAlgo_t as FilterAlgorithm,
                cudnnConvolutionFwdAlgo_t as ForwardAlgorithm, cudnnDeterminism_t, cudnnMathType_t,
                cudnnStatus_t,
            },
        },
        gemm_reduced_precision_f32,
    },
};

use super::{
    super::super::Card,
    descriptors::{FilterDescriptor, Handle, TensorDescriptor},
    direction::{Direction, Fit, is_unsupported, says},
};
use crate::ops::conv::{Axis, Geometry};

/// Algorithms that cuDNN is asked for at most.
const ASKED: i32 = 10;

/// Bytes of working memory that an algorithm may want.
const WORKSPACE: usize = 4 << 30;

/// What is known of a shape.
pub(super) struct Plan {
    pub(super) handle: Rc<Handle>,
    pub(super) x: TensorDescriptor,
    pub(super) weight: FilterDescriptor,
    pub(super) y: TensorDescriptor,
    pub(super) forward: Direction<ForwardAlgorithm>,
    pub(super) data: Direction<DataAlgorithm>,
    pub(super) filter: Direction<FilterAlgorithm>,
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
pub(super) fn plan(card: &Card, like: &Tensor, geometry: &Geometry) -> Result<Option<Rc<Plan>>> {
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
        let plan = Self {
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
        plan.forward.set(plan.find_forward(math)?, dtype, geometry);
        plan.data.set(plan.find_data(math)?, dtype, geometry);
        plan.filter.set(plan.find_filter(math)?, dtype, geometry);
        Ok(plan)
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
