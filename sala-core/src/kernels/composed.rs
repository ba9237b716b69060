//! The updates in plain candle operations: every device, every dtype, a new tensor for each operation.
//!
//! Half precision is computed in f32 and rounded once, as the weights are written.

use candle_core::{DType, Result, Tensor, Var};

use super::{Beside, Fast, Kernels, Pull, Scalar, wide};
use crate::base::{ParamsAdam, ParamsSgd, adam, sgd};

/// The readable reference.
pub(super) struct Composed;

/// w ← new, in the dtype of w. candle's operations hand back an empty tensor itself, which a variable
/// refuses to take.
fn set(weights: &Var, new: &Tensor) -> Result<()> {
    if weights.elem_count() == 0 {
        return Ok(());
    }
    weights.set(&new.to_dtype(weights.dtype())?)
}

/// Where a step starts.
fn start(weights: &Var, from: Option<&Tensor>) -> Result<Tensor> {
    match from {
        Some(from) => wide(from),
        None => wide(&weights.as_detached_tensor()),
    }
}

/// In f64 on the CPU, where candle adds one element after the other and f32 would lose the last digits
/// of a long sum; accelerators add along a tree, and Metal has no f64.
fn summable(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() {
        x.to_dtype(DType::F64)
    } else {
        wide(x)
    }
}

impl Kernels for Composed {
    fn sgd(
        &self,
        config: &ParamsSgd,
        weights: &Var,
        gradient: &Tensor,
        buffer: &mut Option<Tensor>,
        beside: Beside,
    ) -> Result<Option<Scalar>> {
        let w = start(weights, beside.from)?;
        let g = wide(&gradient.detach())?;
        let (new, new_buffer) = sgd::rule(config, &w, &g, buffer.as_ref())?;
        set(weights, &new)?;
        *buffer = new_buffer;
        beside.pull.map(|pull| self.pull(weights, pull)).transpose()
    }

    fn adam(
        &self,
        (config, t): (&ParamsAdam, u64),
        weights: &Var,
        gradient: &Tensor,
        moments: &mut Option<(Tensor, Tensor)>,
        beside: Beside,
    ) -> Result<Option<Scalar>> {
        let w = start(weights, beside.from)?;
        let g = wide(&gradient.detach())?;
        let (new, new_moments) = adam::rule(config, t, &w, &g, moments.as_ref())?;
        set(weights, &new)?;
        *moments = Some(new_moments);
        beside.pull.map(|pull| self.pull(weights, pull)).transpose()
    }

    fn squared_norm(&self, x: &Tensor) -> Result<Scalar> {
        Ok(Scalar::Device(summable(x)?.sqr()?.sum_all()?))
    }

    fn dot(&self, x: &Tensor, y: &Tensor) -> Result<Scalar> {
        let product = (summable(x)? * summable(y)?)?;
        Ok(Scalar::Device(product.sum_all()?))
    }

    fn accumulate(&self, sum: &mut Tensor, x: &Tensor, factor: f64) -> Result<()> {
        *sum = (&*sum + (x.to_dtype(sum.dtype())? * factor)?)?;
        Ok(())
    }

    fn combine(
        &self,
        result: &mut Tensor,
        (a, x): (f64, &Tensor),
        by: Option<(f64, &Tensor)>,
    ) -> Result<()> {
        let ax = (wide(x)? * a)?;
        *result = match by {
            Some((b, y)) => (ax + (wide(y)? * b)?)?,
            None => ax,
        };
        Ok(())
    }

    fn clamp(&self, result: &mut Tensor, x: &Tensor, limit: f64) -> Result<()> {
        *result = wide(x)?.clamp(-limit, limit)?;
        Ok(())
    }

    fn adaptive(
        &self,
        direction: &mut Tensor,
        weights: &Var,
        gradient: &Tensor,
        eta: f64,
    ) -> Result<Scalar> {
        let magnitude = (wide(&weights.as_detached_tensor())?.abs()? + eta)?;
        let scaled = (&magnitude * gradient)?;
        let square = self.squared_norm(&scaled)?;
        *direction = (magnitude * scaled)?;
        Ok(square)
    }

    fn perturb(
        &self,
        weights: &Var,
        saved: &mut Option<Tensor>,
        direction: &Tensor,
        scale: f64,
    ) -> Result<()> {
        let start = weights.force_contiguous()?.detach();
        set(weights, &(wide(&start)? + (direction * scale)?)?)?;
        *saved = Some(start);
        Ok(())
    }

    fn exchange(&self, weights: &Var, saved: &mut Tensor) -> Result<()> {
        let now = weights.force_contiguous()?.detach();
        set(weights, saved)?;
        *saved = now;
        Ok(())
    }

    fn assign(&self, weights: &Var, values: &Tensor) -> Result<()> {
        set(weights, values)
    }

    fn pull(&self, weights: &Var, pull: Pull) -> Result<Scalar> {
        let Pull { slow, alpha, fast } = pull;
        let difference = (wide(&weights.as_detached_tensor())? - &*slow)?;
        let square = self.squared_norm(&difference)?;
        let moved = (&*slow + (difference * alpha)?)?;
        if fast == Fast::Return {
            set(weights, &moved)?;
        }
        *slow = moved;
        Ok(square)
    }
}
