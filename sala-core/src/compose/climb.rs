//! The ascent: a gradient at perturbed weights, with the weights put back whatever happens.

use candle_core::Tensor;
use candle_nn::Optimizer;

use super::Descend;
use crate::{
    error::Result,
    gradients::Gradients,
    minimizer::Minimizer,
    objective::{Objective, Pass},
    params::ParamSet,
    perturb::Perturbation,
};

/// What the passes of one step gave.
pub(crate) struct Passes {
    /// Loss of the first pass.
    pub(crate) loss: f64,
    /// Gradients for the update.
    pub(crate) gradients: Gradients,
    /// Cost in gradient evaluations of a whole batch.
    pub(crate) evaluations: f64,
}

/// The passes of a step that does not climb: a clean one.
pub(crate) fn clean<B: Optimizer>(
    descent: &Descend<B>,
    objective: &mut dyn Objective,
) -> Result<Passes> {
    let (loss, gradients) = descent.evaluate(objective, Pass::Clean)?;
    Ok(Passes {
        loss,
        gradients,
        evaluations: 1.0,
    })
}

/// The passes of a step that climbs: the direction g at θ on a fraction of the batch, then the
/// gradient at θ + ε(g). The parameters are θ again, bit for bit, when this returns, fails or unwinds.
pub(crate) fn climb<B: Optimizer>(
    descent: &Descend<B>,
    perturbation: &impl Perturbation,
    fraction: f64,
    objective: &mut dyn Objective,
) -> Result<Passes> {
    let (loss, direction) = descent.evaluate(objective, Pass::Direction { fraction })?;
    let displacement = perturbation.displacement(descent.params(), &direction)?;
    let perturbed = Perturbed::new(descent.params(), &displacement)?;
    let (_, gradients) = descent.evaluate(objective, Pass::Perturbed)?;
    perturbed.restore()?;
    Ok(Passes {
        loss,
        gradients,
        evaluations: fraction + 1.0,
    })
}

/// While it lives, the parameters are perturbed. Restoring copies the saved weights: subtracting ε
/// again would leave rounding errors behind.
struct Perturbed<'a> {
    params: &'a ParamSet,
    saved: Option<Vec<Tensor>>,
}

impl<'a> Perturbed<'a> {
    fn new(params: &'a ParamSet, displacement: &[Tensor]) -> Result<Self> {
        let guard = Self {
            params,
            saved: Some(params.snapshot()?),
        };
        for (param, step) in params.iter().zip(displacement) {
            param
                .var()
                .set(&(param.var().as_detached_tensor() + step)?)?;
        }
        Ok(guard)
    }

    fn restore(mut self) -> Result<()> {
        self.put_back()
    }

    fn put_back(&mut self) -> Result<()> {
        match self.saved.take() {
            Some(saved) => self.params.assign(&saved),
            None => Ok(()),
        }
    }
}

impl Drop for Perturbed<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.put_back() {
            tracing::error!(%error, "the unperturbed weights could not be put back");
        }
    }
}
