//! The loss as a function of the parameters, seen from where they are.

use std::{fmt, ops::Sub};

use candle_core::{DType, Tensor, Var};

use super::{
    directions,
    product::{self, ChosenStep, Products},
};
use crate::{
    displaced::{Displaced, Saved},
    error::{Error, Result},
    gradients::{Checked, Taken, Unread},
    kernels::{self, Scalar},
    objective::{Evaluation, Objective, Pass},
    params::ParamSet,
    vector,
};

/// What a measurement took. A micro-batch of n counts as 1/n.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Gradient evaluations of the whole objective: a forward and a backward pass each.
    pub gradients: f64,
    /// Evaluations of its loss alone: a forward pass each.
    pub losses: f64,
}

impl Sub for Cost {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            gradients: self.gradients - earlier.gradients,
            losses: self.losses - earlier.losses,
        }
    }
}

/// How far a measurement is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advance {
    /// What is measured, in words.
    pub measure: &'static str,
    /// Parts that are done: directions, points of a grid, …
    pub done: usize,
    /// At most so many parts; an iteration may converge before.
    pub total: usize,
}

/// What watches a measurement.
type Observer<'a> = Box<dyn FnMut(Advance) + 'a>;

/// The loss of an [`Objective`] around the current values of a [`ParamSet`].
///
/// Every measurement of [`sharpness`](crate::sharpness) takes one. Between measurements the parameters are
/// what they were, bit for bit, also when the objective fails or panics.
///
/// The objective is evaluated with [`Pass::Probe`], and must be the same function each time: the same
/// rows, the same masks. What it is evaluated on is what is measured: one batch, or a whole data set in
/// parts through [`MicroBatches`](crate::MicroBatches).
///
/// # Batch norm
///
/// [`Pass::tracks_statistics`] is false for [`Pass::Probe`], so layers that ask for it leave their running statistics
/// alone. In training mode the loss is that of batch statistics, taken anew at every displaced point, which is the
/// function that was minimised, and what is usually measured. In evaluation mode the statistics of the
/// weights where training ended apply everywhere; that is the function that is deployed, but away from
/// those weights, as along the line to another solution, its statistics belong to another network.
/// Layers that track whatever they are told (`candle_nn::BatchNorm`) need [`Surface::keeping`].
///
/// ```
/// use candle_core::{Device, Var};
/// use sala_core::{ParamSet, Pass, sharpness::Surface};
///
/// let w = Var::new(&[3f64, 4.0], &Device::Cpu)?;
/// let params = ParamSet::new([("w", w.clone())])?;
/// let mut loss = |_pass: Pass| w.sqr()?.sum_all();
/// let mut surface = Surface::new(&params, &mut loss);
/// assert_eq!(surface.loss()?, 25.0);
/// assert_eq!(surface.gradient_norm()?, 10.0);
/// assert_eq!((surface.cost().losses, surface.cost().gradients), (1.0, 1.0));
/// # Ok::<(), sala_core::Error>(())
/// ```
pub struct Surface<'a> {
    params: ParamSet,
    objective: &'a mut dyn Objective,
    products: Products,
    /// What [`Products`] found out about the loss here.
    pub(super) step: Option<ChosenStep>,
    buffers: Vec<(Var, Tensor)>,
    saved: Saved,
    cost: Cost,
    observer: Option<Observer<'a>>,
}

impl fmt::Debug for Surface<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Surface")
            .field("params", &self.params.len())
            .field("products", &self.products)
            .field("step", &self.step)
            .field("cost", &self.cost)
            .finish_non_exhaustive()
    }
}

impl<'a> Surface<'a> {
    /// The loss around the parameters as they are. They must not be changed while the surface lives.
    pub fn new(params: &ParamSet, objective: &'a mut dyn Objective) -> Self {
        Self {
            params: params.clone(),
            objective,
            products: Products::default(),
            step: None,
            buffers: Vec::new(),
            saved: Saved::new(),
            cost: Cost::default(),
            observer: None,
        }
    }

    /// Puts these variables (running statistics) back to their present values when the surface is
    /// dropped, for layers that update them in every training pass.
    ///
    /// # Errors
    /// Those of copying tensors.
    ///
    /// ```
    /// # use candle_core::{DType, Device, Tensor};
    /// # use candle_nn::{Module, ModuleT, VarBuilder, VarMap};
    /// # use sala_core::{ParamSet, Pass, sharpness::Surface};
    /// # let varmap = VarMap::new();
    /// # let vb = VarBuilder::from_varmap(&varmap, DType::F64, &Device::Cpu);
    /// # let x = Tensor::arange(0f64, 8.0, &Device::Cpu)?.reshape((4, 2))?;
    /// let bn = candle_nn::batch_norm(2, 1e-5, vb)?;
    /// let params = ParamSet::from_varmap(&varmap)?;
    /// let statistics: Vec<_> = varmap.all_vars().into_iter().filter(|v| params.vars().iter().all(|p| p.id() != v.id())).collect();
    /// let mut loss = |_pass: Pass| bn.forward_t(&x, true)?.sqr()?.mean_all();
    /// let mut surface = Surface::new(&params, &mut loss).keeping(statistics)?;
    /// surface.gradient_norm()?;
    /// drop(surface);
    /// assert_eq!(bn.running_mean().to_vec1::<f64>()?, [0.0, 0.0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn keeping(mut self, buffers: impl IntoIterator<Item = Var>) -> Result<Self> {
        for buffer in buffers {
            let copy = buffer.force_contiguous()?.detach();
            self.buffers.push((buffer, copy));
        }
        Ok(self)
    }

    /// Takes Hessian-vector products in another way than the default.
    #[must_use]
    pub fn with_products(mut self, products: Products) -> Self {
        self.products = products;
        self.step = None;
        self
    }

    /// Tells `observer` how far each measurement is. Tracing events `sala.sharpness` tell the same.
    #[must_use]
    pub fn observed_by(mut self, observer: impl FnMut(Advance) + 'a) -> Self {
        self.observer = Some(Box::new(observer));
        self
    }

    /// The parameters.
    pub fn params(&self) -> &ParamSet {
        &self.params
    }

    /// All evaluations since the surface was made.
    pub fn cost(&self) -> Cost {
        self.cost
    }

    pub(super) fn products(&self) -> Products {
        self.products
    }

    /// The loss at the parameters. Cost: 1 loss.
    ///
    /// # Errors
    /// Those of the objective, and [`Error::NonFinite`].
    pub fn loss(&mut self) -> Result<f64> {
        let loss = self.loss_here(None)?;
        require_finite(loss)
    }

    /// ‖g‖₂ at the parameters, which tells how near they are to a stationary point: far from one,
    /// curvature alone says little about how the loss rises. Cost: 1 gradient.
    ///
    /// # Errors
    /// Those of the objective, and of an amiss gradient.
    pub fn gradient_norm(&mut self) -> Result<f64> {
        Ok(self.gradient_here(None)?.gradients.norm())
    }

    /// The loss at θ + t d, for t in the given order; infinite or NaN where it overflows. `direction`
    /// has one tensor for each parameter, in the order of their names. Cost: 1 loss for each t.
    ///
    /// # Errors
    /// Those of the objective, and [`Error::Direction`].
    pub fn losses_along(&mut self, direction: &[Tensor], ts: &[f64]) -> Result<Vec<f64>> {
        let direction = directions::fitting(&self.params, direction)?;
        let mut losses = Vec::with_capacity(ts.len());
        for (done, &t) in ts.iter().enumerate() {
            losses.push(self.at(&direction, t, |surface| surface.loss_here(None))?);
            self.advance("loss along a line", done + 1, ts.len());
        }
        Ok(losses)
    }

    /// The Hessian-vector product H v, as [`Products`] says. `v` has one tensor for each parameter, in the
    /// order of their names; the result is f32, or f64 for parameters of that dtype.
    ///
    /// Cost: 2 gradients by differences and about 2 by a second backward pass; with the first product
    /// of a surface, what it takes to choose a step (18, in f64 32) or to check the second backward pass.
    ///
    /// # Errors
    /// Those of the objective, [`Error::Direction`], [`Error::ExactProduct`].
    pub fn hessian_product(&mut self, v: &[Tensor]) -> Result<Vec<Tensor>> {
        let v = directions::fitting(&self.params, v)?;
        product::product(self, &v)
    }

    /// The step of central differences here and how much a product changes with it, choosing it if that
    /// has not been done.
    ///
    /// # Errors
    /// As for [`Surface::hessian_product`].
    pub fn difference_step(&mut self) -> Result<ChosenStep> {
        product::step(self)
    }

    /// Runs `work` at θ + factor · direction, and puts the parameters back.
    pub(super) fn at<T>(
        &mut self,
        direction: &[Tensor],
        factor: f64,
        work: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let factors = vec![factor; self.params.len()];
        let saved = std::mem::take(&mut self.saved);
        let displaced = Displaced::new(&self.params, saved, direction, &factors)?;
        // An error or a panic drops `displaced`, which puts the parameters back.
        let outcome = work(self)?;
        self.saved = displaced.put_back()?;
        Ok(outcome)
    }

    /// Loss and gradient where the parameters are; of one micro-batch, or of all.
    pub(super) fn gradient_here(&mut self, part: Option<usize>) -> Result<Checked> {
        let evaluation = self.evaluate(part)?;
        let unread = Unread::collect(&self.params, Pass::Probe, evaluation)?;
        let mut checked = Taken::Unread(unread).check(&self.params)?;
        checked.gradients.widen()?;
        Ok(checked)
    }

    /// What the objective returns where the parameters are.
    pub(super) fn evaluate(&mut self, part: Option<usize>) -> Result<Evaluation> {
        self.cost.gradients += self.share(part);
        Ok(match part {
            None => self.objective.evaluate(Pass::Probe)?,
            Some(part) => self.objective.evaluate_micro_batch(part, Pass::Probe)?,
        })
    }

    /// The loss where the parameters are, whatever its value; of one micro-batch, or of all.
    pub(super) fn loss_here(&mut self, part: Option<usize>) -> Result<f64> {
        self.cost.losses += self.share(part);
        let loss = match part {
            None => self.objective.loss(Pass::Probe)?,
            Some(part) => self.objective.loss_of_micro_batch(part, Pass::Probe)?,
        };
        if loss.elem_count() != 1 {
            let (pass, got) = (Pass::Probe, loss.dims().to_vec());
            return Err(Error::LossShape { pass, got });
        }
        Ok(vector::read_scalars(vec![Scalar::Device(loss)])?[0])
    }

    pub(super) fn micro_batches(&self) -> usize {
        self.objective.micro_batches().max(1)
    }

    fn share(&self, part: Option<usize>) -> f64 {
        part.map_or(1.0, |_| 1.0 / self.micro_batches() as f64)
    }

    /// Counts a backward pass that the surface has run itself.
    pub(super) fn count_gradients(&mut self, number: f64) {
        self.cost.gradients += number;
    }

    /// θ in f32 or f64, sharing memory with the parameters unless it had to be converted.
    pub(super) fn weights(&self) -> Result<Vec<Tensor>> {
        let weights = self
            .params
            .tensors()
            .map(|w| Ok(kernels::wide(&w.detach())?));
        weights.collect()
    }

    /// The unit roundoff, doubled, of the coarsest dtype among the parameters of the model.
    pub(super) fn epsilon(&self) -> f64 {
        let of = |dtype| match dtype {
            DType::F64 => f64::EPSILON,
            DType::BF16 => 2f64.powi(-7),
            DType::F16 => 2f64.powi(-10),
            _ => f64::from(f32::EPSILON),
        };
        let all = self.params.iter().map(|p| of(p.model_var().dtype()));
        all.fold(f64::EPSILON, f64::max)
    }

    pub(super) fn advance(&mut self, measure: &'static str, done: usize, total: usize) {
        let gradients = self.cost.gradients;
        tracing::debug!(name: "sala.sharpness", measure, done, total, gradients);
        if let Some(observer) = &mut self.observer {
            observer(Advance {
                measure,
                done,
                total,
            });
        }
    }
}

impl Drop for Surface<'_> {
    fn drop(&mut self) {
        for (buffer, value) in &self.buffers {
            if let Err(error) = buffer.set(value) {
                tracing::error!(%error, "running statistics could not be put back");
            }
        }
    }
}

/// The loss, or an error where it is infinite or NaN.
pub(super) fn require_finite(loss: f64) -> Result<f64> {
    if loss.is_finite() {
        return Ok(loss);
    }
    Err(Error::NonFinite {
        pass: Pass::Probe,
        what: "the loss".into(),
        value: loss,
    })
}
