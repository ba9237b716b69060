//! Displaced weights, which are put back whatever happens.

use candle_core::Tensor;

use crate::{error::Result, kernels, params::ParamSet};

/// The weights as they were before they were displaced.
pub(crate) type Saved = Vec<Option<Tensor>>;

/// While it lives, the parameters are displaced; when it is dropped, they are put back. Putting back
/// exchanges the saved weights in: subtracting ε again would leave rounding errors behind.
#[derive(Debug)]
pub(crate) struct Displaced {
    params: ParamSet,
    saved: Saved,
    /// How many parameters, from the first, are displaced.
    moved: usize,
}

impl Displaced {
    /// θ ← θ + factor · direction. If this fails, the parameters are as they were.
    pub(crate) fn new(
        params: &ParamSet,
        mut saved: Saved,
        directions: &[Tensor],
        factors: &[f64],
    ) -> Result<Self> {
        saved.resize(params.len(), None);
        let mut displaced = Self {
            params: params.clone(),
            saved,
            moved: 0,
        };
        let (saved, moved) = (&mut displaced.saved, &mut displaced.moved);
        kernels::run(directions, |kernels| {
            let steps = directions.iter().zip(factors).zip(saved);
            for (param, ((direction, factor), saved)) in params.iter().zip(steps) {
                let var = param.var();
                kernels.of(var).perturb(var, saved, direction, *factor)?;
                *moved += 1;
            }
            Ok(())
        })?;
        params.publish()?;
        Ok(displaced)
    }

    /// Leaves the parameters to whoever overwrites them next; hands out the weights as they were.
    pub(crate) fn leave(mut self) -> Saved {
        self.moved = 0;
        std::mem::take(&mut self.saved)
    }

    /// θ as it was; hands back the buffers.
    pub(crate) fn put_back(mut self) -> Result<Saved> {
        self.exchange()?;
        Ok(std::mem::take(&mut self.saved))
    }

    fn exchange(&mut self) -> Result<()> {
        let (params, saved, moved) = (&self.params, &mut self.saved, self.moved);
        kernels::run(params.tensors(), |kernels| {
            for (param, saved) in params.iter().zip(saved).take(moved) {
                if let Some(saved) = saved {
                    kernels.of(param.var()).exchange(param.var(), saved)?;
                }
            }
            Ok(())
        })?;
        self.moved = 0;
        params.publish()
    }
}

impl Drop for Displaced {
    fn drop(&mut self) {
        if self.moved == 0 {
            return;
        }
        if let Err(error) = self.exchange() {
            tracing::error!(%error, "the undisplaced weights could not be put back");
        }
    }
}
