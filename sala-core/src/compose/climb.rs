//! The ascent: a gradient at perturbed weights, with the weights put back whatever happens.

use candle_core::Tensor;
use candle_nn::Optimizer;

use super::Descend;
use crate::{
    error::{Result, check},
    gradients::Gradients,
    kernels,
    minimizer::Minimizer,
    objective::{Objective, Pass},
    params::ParamSet,
    perturb::Perturbation,
    slow::SlowWeights,
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

/// Where the weights go when a climb has succeeded.
pub(crate) enum Landing<'a> {
    /// To where they were.
    Start,
    /// To the slow weights, if those exist; else to where they were.
    Slow(&'a SlowWeights),
}

/// The weights as they were before a climb.
type Saved = Vec<Option<Tensor>>;

/// How to climb: a perturbation, and the share of the batch that points it.
#[derive(Debug)]
pub(crate) struct Climb<P> {
    perturbation: P,
    direction_fraction: f64,
    /// Kept between climbs: to make buffers anew costs more time than to fill them.
    saved: Saved,
}

impl<P: Perturbation> Climb<P> {
    /// With the direction pass on the whole batch.
    pub(crate) fn new(perturbation: P) -> Self {
        Self {
            perturbation,
            direction_fraction: 1.0,
            saved: Saved::new(),
        }
    }

    /// Takes the direction pass on this share of the batch; `owner` names the composition in errors.
    pub(crate) fn on_fraction(mut self, owner: &'static str, fraction: f64) -> Result<Self> {
        check::fraction(owner, "direction_fraction", fraction)?;
        self.direction_fraction = fraction;
        Ok(self)
    }

    /// Radius of the perturbation.
    pub(crate) fn rho(&self) -> f64 {
        self.perturbation.rho()
    }

    /// The passes of a step that climbs: the direction g at θ on a fraction of the batch, then the
    /// gradient at θ + ε(g). When this returns, the parameters are where they should land; when it
    /// fails or unwinds they are θ again, bit for bit.
    pub(crate) fn passes<B: Optimizer>(
        &mut self,
        descent: &Descend<B>,
        objective: &mut dyn Objective,
        landing: Landing,
    ) -> Result<Passes> {
        let fraction = self.direction_fraction;
        // The first gradients are freed before the second pass makes its own.
        let (loss, perturbed) = {
            let (loss, direction) = descent.evaluate(objective, Pass::Direction { fraction })?;
            let steps = self
                .perturbation
                .displacement(descent.params(), &direction)?;
            (
                loss,
                Perturbed::new(descent.params(), &mut self.saved, &steps)?,
            )
        };
        let (_, gradients) = descent.evaluate(objective, Pass::Perturbed)?;
        perturbed.land(landing)?;
        Ok(Passes {
            loss,
            gradients,
            evaluations: fraction + 1.0,
        })
    }
}

/// While it lives, the parameters are perturbed. Restoring copies the saved weights: subtracting ε
/// again would leave rounding errors behind.
struct Perturbed<'a> {
    params: &'a ParamSet,
    saved: &'a [Option<Tensor>],
    /// How many parameters, from the first, are perturbed.
    moved: usize,
}

impl<'a> Perturbed<'a> {
    fn new(params: &'a ParamSet, saved: &'a mut Saved, steps: &[(Tensor, f64)]) -> Result<Self> {
        saved.resize(params.len(), None);
        let mut moved = 0;
        let outcome = kernels::run(params.tensors(), |kernels| {
            for ((param, (step, scale)), saved) in params.iter().zip(steps).zip(&mut *saved) {
                let var = param.var();
                kernels.of(var).perturb(var, saved, step, *scale)?;
                moved += 1;
            }
            Ok(())
        });
        let guard = Self {
            params,
            saved,
            moved,
        };
        outcome.map(|()| guard)
    }

    fn land(mut self, landing: Landing) -> Result<()> {
        match landing {
            // Copying θ back first would be for nothing. If this fails, the guard still does.
            Landing::Slow(slow) if slow.tensors().is_some() => slow.copy_to(self.params)?,
            Landing::Start | Landing::Slow(_) => self.put_back()?,
        }
        self.moved = 0;
        Ok(())
    }

    fn put_back(&self) -> Result<()> {
        let moved = || self.params.iter().zip(self.saved).take(self.moved);
        kernels::run(moved().map(|(p, _)| &**p.var()), |kernels| {
            for (param, saved) in moved() {
                if let Some(saved) = saved {
                    kernels.of(param.var()).assign(param.var(), saved)?;
                }
            }
            Ok(())
        })
    }
}

impl Drop for Perturbed<'_> {
    fn drop(&mut self) {
        if self.moved == 0 {
            return;
        }
        if let Err(error) = self.put_back() {
            tracing::error!(%error, "the unperturbed weights could not be put back");
        }
    }
}
