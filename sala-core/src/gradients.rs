//! The gradients of one pass, checked before anything is done with them.

use candle_core::{Tensor, backprop::GradStore};

use crate::{
    clip,
    error::{Error, Result},
    kernels::Scalar,
    objective::{Evaluation, Pass},
    params::ParamSet,
    vector,
};

/// One gradient for each trainable parameter, of its shape, all of them finite.
#[derive(Debug)]
pub struct Gradients {
    store: GradStore,
    tensors: Vec<Tensor>,
    squared_norms: Vec<f64>,
}

impl Gradients {
    /// Checks a pass and reads its loss and gradient norms on the host, all in one synchronisation.
    pub(crate) fn check(params: &ParamSet, pass: Pass, outcome: Evaluation) -> Result<(f64, Self)> {
        let Evaluation {
            loss,
            grads: mut store,
        } = outcome;
        if loss.elem_count() != 1 {
            return Err(Error::LossShape {
                pass,
                got: loss.dims().to_vec(),
            });
        }
        params.drop_frozen(&mut store);
        let tensors = collect(params, pass, &store)?;
        let mut scalars = vec![Scalar::Device(loss.detach())];
        scalars.extend(vector::squared_norms(&tensors)?);
        let mut numbers = vector::read_scalars(scalars)?;
        let squared_norms = numbers.split_off(1);
        let loss = numbers[0];
        require_finite(params, pass, loss, &squared_norms)?;
        Ok((
            loss,
            Self {
                store,
                tensors,
                squared_norms,
            },
        ))
    }

    /// The gradients in the order of the parameters' names.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// ‖gᵢ‖₂² of each, on the host already.
    pub fn squared_norms(&self) -> &[f64] {
        &self.squared_norms
    }

    /// ‖g‖₂ over all parameters.
    pub fn norm(&self) -> f64 {
        vector::norm_of(&self.squared_norms)
    }

    /// The store to hand to a base, its gradients clipped to the global norm `max`.
    pub(crate) fn into_clipped(mut self, params: &ParamSet, max: Option<f64>) -> Result<GradStore> {
        let factor = max.map_or(1.0, |max| clip::factor(self.norm(), max));
        if factor < 1.0 {
            for (param, gradient) in params.iter().zip(&self.tensors) {
                self.store.insert(param.var(), (gradient * factor)?);
            }
        }
        Ok(self.store)
    }
}

/// The gradient of each parameter, detached, or an error that names the first one that is amiss.
fn collect(params: &ParamSet, pass: Pass, store: &GradStore) -> Result<Vec<Tensor>> {
    let gradient = |param: &crate::Param| {
        let name = || param.name().to_owned();
        let gradient = store
            .get(param.var())
            .ok_or_else(|| Error::MissingGradient { pass, name: name() })?;
        let (wanted, got) = (param.var().dims(), gradient.dims());
        if wanted != got {
            let (wanted, got) = (wanted.to_vec(), got.to_vec());
            return Err(Error::GradientShape {
                pass,
                name: name(),
                wanted,
                got,
            });
        }
        Ok(gradient.detach())
    };
    params.iter().map(gradient).collect()
}

fn require_finite(params: &ParamSet, pass: Pass, loss: f64, squared_norms: &[f64]) -> Result<()> {
    let loss = std::iter::once(("the loss".to_owned(), loss));
    let named = params
        .names()
        .map(|name| format!("the squared norm of the gradient of `{name}`"));
    match loss
        .chain(named.zip(squared_norms.iter().copied()))
        .find(|(_, x)| !x.is_finite())
    {
        None => Ok(()),
        Some((what, value)) => Err(Error::NonFinite { pass, what, value }),
    }
}
