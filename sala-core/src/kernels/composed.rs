//! The updates in plain candle operations: every device, every dtype, a new tensor for each operation.

use candle_core::{DType, Result, Tensor, Var};

use super::{Fast, Kernels, Scalar};
use crate::base::{ParamsAdam, ParamsSgd, adam, sgd};

/// The readable reference.
pub(super) struct Composed;

/// w ← new. candle's operations hand back an empty tensor itself, which a variable refuses to take.
fn set(weights: &Var, new: &Tensor) -> Result<()> {
    if weights.elem_count() == 0 {
        return Ok(());
    }
    weights.set(new)
}

impl Kernels for Composed {
    fn sgd(
        &self,
        config: &ParamsSgd,
        weights: &Var,
        gradient: &Tensor,
        buffer: &mut Option<Tensor>,
    ) -> Result<()> {
        let (new, new_buffer) = sgd::rule(
            config,
            &weights.as_detached_tensor(),
            &gradient.detach(),
            buffer.as_ref(),
        )?;
        set(weights, &new)?;
        *buffer = new_buffer;
        Ok(())
    }

    fn adam(
        &self,
        config: &ParamsAdam,
        t: u64,
        weights: &Var,
        gradient: &Tensor,
        moments: &mut Option<(Tensor, Tensor)>,
    ) -> Result<()> {
        let (new, new_moments) = adam::rule(
            config,
            t,
            &weights.as_detached_tensor(),
            &gradient.detach(),
            moments.as_ref(),
        )?;
        set(weights, &new)?;
        *moments = Some(new_moments);
        Ok(())
    }

    fn squared_norm(&self, x: &Tensor) -> Result<Scalar> {
        // f64 for f64, f32 for everything narrower: half precision would overflow.
        let wide = match x.dtype() {
            DType::F64 => DType::F64,
            _ => DType::F32,
        };
        Ok(Scalar::Device(x.to_dtype(wide)?.sqr()?.sum_all()?))
    }

    fn perturb(
        &self,
        weights: &Var,
        saved: &mut Option<Tensor>,
        direction: &Tensor,
        scale: f64,
    ) -> Result<()> {
        let start = weights.copy()?.detach();
        set(weights, &(&start + (direction * scale)?)?)?;
        *saved = Some(start);
        Ok(())
    }

    fn assign(&self, weights: &Var, values: &Tensor) -> Result<()> {
        set(weights, values)
    }

    fn pull(&self, slow: &mut Tensor, weights: &Var, alpha: f64, fast: Fast) -> Result<Scalar> {
        let difference = (weights.as_detached_tensor() - &*slow)?;
        let square = self.squared_norm(&difference)?;
        let moved = (&*slow + (difference * alpha)?)?;
        if fast == Fast::Return {
            set(weights, &moved)?;
        }
        *slow = moved;
        Ok(square)
    }
}
