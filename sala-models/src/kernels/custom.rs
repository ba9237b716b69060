//! Operations of two tensors and, for some of their uses, a third: what candle has two traits for.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

use super::{access, element::Element};

/// The inputs of an operation; the third may not be there.
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a> {
    pub(crate) first: &'a Tensor,
    pub(crate) second: &'a Tensor,
    pub(crate) third: Option<&'a Tensor>,
}

/// The gradients of the inputs, of those that need one.
pub(crate) type Gradients = (Option<Tensor>, Option<Tensor>, Option<Tensor>);

/// An operation, such as a layer with or without a bias. It is made for one application, so it may keep
/// in itself what its backward needs.
pub(crate) trait Operation: Send + Sync + Sized + 'static {
    type Element: Element;

    fn name(&self) -> &'static str;

    /// The result and its shape, for contiguous inputs; `shape` is that of the first.
    fn forward(
        &self,
        first: &[Self::Element],
        shape: &Shape,
        second: &[Self::Element],
        third: Option<&[Self::Element]>,
    ) -> (Vec<Self::Element>, Shape);

    /// The gradients, for a contiguous gradient of the result. An input needs one if its `track_op()` says
    /// so.
    fn backward(&self, inputs: Inputs, result: &Tensor, gradient: &Tensor) -> Result<Gradients>;

    /// Applies the operation to contiguous tensors of its element type.
    fn apply(self, first: &Tensor, second: &Tensor, third: Option<&Tensor>) -> Result<Tensor> {
        match third {
            Some(third) => first.apply_op3(second, third, Custom(self)),
            None => first.apply_op2(second, Custom(self)),
        }
    }
}

struct Custom<O>(O);

impl<O: Operation> CustomOp2 for Custom<O> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn cpu_fwd(
        &self,
        first: &CpuStorage,
        first_layout: &Layout,
        second: &CpuStorage,
        second_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let first = access::slice(first, first_layout)?;
        let second = access::slice(second, second_layout)?;
        let (y, shape) = (self.0).forward(first, first_layout.shape(), second, None);
        Ok(access::result(y, shape))
    }

    fn bwd(
        &self,
        first: &Tensor,
        second: &Tensor,
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let third = None;
        let inputs = Inputs {
            first,
            second,
            third,
        };
        let (first, second, _) = (self.0).backward(inputs, result, &gradient.contiguous()?)?;
        Ok((first, second))
    }
}

impl<O: Operation> CustomOp3 for Custom<O> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn cpu_fwd(
        &self,
        first: &CpuStorage,
        first_layout: &Layout,
        second: &CpuStorage,
        second_layout: &Layout,
        third: &CpuStorage,
        third_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let first = access::slice(first, first_layout)?;
        let second = access::slice(second, second_layout)?;
        let third = access::slice(third, third_layout)?;
        let (y, shape) = (self.0).forward(first, first_layout.shape(), second, Some(third));
        Ok(access::result(y, shape))
    }

    fn bwd(
        &self,
        first: &Tensor,
        second: &Tensor,
        third: &Tensor,
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<Gradients> {
        let third = Some(third);
        let inputs = Inputs {
            first,
            second,
            third,
        };
        (self.0).backward(inputs, result, &gradient.contiguous()?)
    }
}
