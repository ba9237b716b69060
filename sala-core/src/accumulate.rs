//! Gradient accumulation: a batch in parts that fit into memory one by one.
//!
//! ```text
//! L = Σᵢ Lᵢ / n          g = Σᵢ gᵢ / n
//! ```
//!
//! With [`MicroBatches`] as its objective every optimizer sees the whole batch: SAM takes one ascent
//! along the accumulated gradient, and both of its passes run over all parts. An optimizer that was
//! told to perturb each micro-batch on its own
//! ([`Ascend::per_micro_batch`](crate::Ascend::per_micro_batch), m-SAM) asks for the parts one by one. For
//! half precision the sums of losses and gradients are kept in f32.

use std::fmt;

use candle_core::{Error, Result, Tensor};

use crate::{
    kernels,
    objective::{Backward, Evaluation, Objective, Pass},
    params::{Param, ParamSet},
    vector,
};

/// The mean of the losses of n equally weighted micro-batches.
///
/// ```
/// # use candle_core::{DType, Device, Tensor, Var};
/// # use sala_core::{MicroBatches, Minimizer, ParamSet, ParamsSam, ParamsSgd, Pass, Sam, Sgd};
/// # let w = Var::new(&[3f64, 4.0], &Device::Cpu)?;
/// # let batch = Tensor::ones((8, 2), DType::F64, &Device::Cpu)?;
/// let params = ParamSet::new([("w", w.clone())])?;
/// let base = Sgd::new(&params, ParamsSgd::default())?;
/// let mut sam = Sam::new(params.clone(), base, ParamsSam::default())?;
/// let mut loss = |part: usize, _pass: Pass| {
///     let rows = batch.narrow(0, 2 * part, 2)?;
///     rows.broadcast_mul(&w)?.sqr()?.mean_all()
/// };
/// let report = sam.step(&mut MicroBatches::new(&params, 4, &mut loss))?;
/// assert_eq!(report.evaluations, 2.0);
/// # Ok::<(), sala_core::Error>(())
/// ```
pub struct MicroBatches<'a, F> {
    params: ParamSet,
    count: usize,
    loss: &'a mut F,
    scale: f64,
    backward: Backward,
}

impl<F> fmt::Debug for MicroBatches<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("MicroBatches");
        out.field("params", &self.params)
            .field("count", &self.count);
        out.field("scale", &self.scale).finish_non_exhaustive()
    }
}

impl<'a, F> MicroBatches<'a, F>
where
    F: FnMut(usize, Pass) -> Result<Tensor>,
{
    /// From the loss of each micro-batch (its number from 0, and the pass), a mean over its rows.
    pub fn new(params: &ParamSet, count: usize, loss: &'a mut F) -> Self {
        Self {
            params: params.clone(),
            count,
            loss,
            scale: 1.0,
            backward: Tensor::backward,
        }
    }

    /// Differentiates each loss by another function than [`Tensor::backward`], as
    /// [`Differentiated`](crate::Differentiated) does.
    #[must_use]
    pub fn differentiated_by(mut self, backward: Backward) -> Self {
        self.backward = backward;
        self
    }

    /// Multiplies each loss before its backward pass, as [`LossScaler`](crate::LossScaler) asks for.
    #[must_use]
    pub fn scaled(mut self, scale: f64) -> Self {
        self.scale = scale;
        self
    }

    /// Gives the first part's gradients storage of their own, in f32 for half precision: the sum grows there.
    fn own(&self, total: &mut Evaluation) -> crate::Result<()> {
        let vars = self.params.iter().map(Param::model_var);
        let (vars, gradients): (Vec<_>, Vec<_>) = vars
            .filter_map(|var| Some((var, total.grads.get(var)?.detach())))
            .unzip();
        for (var, own) in vars.into_iter().zip(vector::scaled(&gradients, 1.0)?) {
            total.grads.insert(var, own);
        }
        Ok(())
    }

    /// Adds a part's gradients into those of the first, which become the sum.
    fn add(&self, total: &mut Evaluation, part: &Evaluation) -> crate::Result<()> {
        let mut sums = Vec::with_capacity(self.params.len());
        let mut parts = Vec::with_capacity(self.params.len());
        for param in &self.params {
            // A part without a gradient is left to the check of the whole, which names the parameter.
            let Some((sum, part)) = both(param, total, part) else {
                total.grads.remove(param.model_var());
                continue;
            };
            sums.push((param.model_var(), sum));
            parts.push(part);
        }
        let (vars, mut sums): (Vec<_>, Vec<_>) = sums.into_iter().unzip();
        vector::accumulate(&mut sums, &parts, 1.0)?;
        for (var, sum) in vars.into_iter().zip(sums) {
            total.grads.insert(var, sum);
        }
        total.loss = (&total.loss + wide_loss(&part.loss)?)?;
        Ok(())
    }
}

/// A loss in a precision to add in: a sum of bf16 stands still once a part is less than half the spacing there.
fn wide_loss(loss: &Tensor) -> Result<Tensor> {
    kernels::wide(&loss.detach())
}

fn both(param: &Param, total: &Evaluation, part: &Evaluation) -> Option<(Tensor, Tensor)> {
    let var = param.model_var();
    Some((total.grads.get(var)?.clone(), part.grads.get(var)?.clone()))
}

impl<F> Objective for MicroBatches<'_, F>
where
    F: FnMut(usize, Pass) -> Result<Tensor>,
{
    fn evaluate(&mut self, pass: Pass) -> Result<Evaluation> {
        if self.count == 0 {
            candle_core::bail!("an objective of 0 micro-batches has no loss");
        }
        let mut total = self.evaluate_micro_batch(0, pass)?;
        self.own(&mut total).map_err(Error::wrap)?;
        total.loss = wide_loss(&total.loss)?;
        for index in 1..self.count {
            let part = self.evaluate_micro_batch(index, pass)?;
            self.add(&mut total, &part)?;
        }
        total.loss = (total.loss / self.count as f64)?;
        total.scale *= self.count as f64;
        Ok(total)
    }

    fn micro_batches(&self) -> usize {
        self.count
    }

    fn evaluate_micro_batch(&mut self, index: usize, pass: Pass) -> Result<Evaluation> {
        let loss = (self.loss)(index, pass)?;
        if (self.scale - 1.0).abs() > 0.0 {
            // The scaled loss may overflow: only its gradients are used.
            let grads = (self.backward)(&(&loss * self.scale)?)?;
            let scale = self.scale;
            return Ok(Evaluation { loss, grads, scale });
        }
        let grads = (self.backward)(&loss)?;
        Ok(Evaluation::new(loss, grads))
    }

    fn loss(&mut self, pass: Pass) -> Result<Tensor> {
        let mut total = wide_loss(&self.loss_of_micro_batch(0, pass)?)?;
        for index in 1..self.count {
            let part = self.loss_of_micro_batch(index, pass)?;
            total = (total + wide_loss(&part)?)?;
        }
        total / self.count as f64
    }

    fn loss_of_micro_batch(&mut self, index: usize, pass: Pass) -> Result<Tensor> {
        if index >= self.count {
            candle_core::bail!(
                "an objective of {} micro-batches has none of number {index}",
                self.count
            );
        }
        Ok((self.loss)(index, pass)?.detach())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var, backprop::GradStore};

    use super::*;
    use crate::testing::values;

    /// Every gradient of two elements is the same tensor, as where a sum hands its own on to its terms.
    fn sharing(loss: &Tensor) -> Result<GradStore> {
        let mut store = loss.backward()?;
        let ids: Vec<_> = store.get_ids().copied().collect();
        let pairs = ids.into_iter().filter_map(|id| {
            let gradient = store.get_id(id).filter(|g| g.dims() == [2])?;
            Some((id, gradient.clone()))
        });
        let pairs: Vec<_> = pairs.collect();
        for (id, _) in &pairs {
            store.insert_id(*id, pairs[0].1.clone());
        }
        Ok(store)
    }

    // Catches sums that grow in memory which another gradient has, too.
    #[test]
    fn gradients_that_share_memory_are_added_up_apart() {
        let var = || Var::zeros(2, DType::F64, &Device::Cpu).unwrap();
        let (a, b) = (var(), var());
        let params = ParamSet::new([("a", a.clone()), ("b", b.clone())]).unwrap();
        let mut loss = |_: usize, _: Pass| (a.as_tensor() + b.as_tensor())?.sum_all();
        let parts = MicroBatches::new(&params, 3, &mut loss);
        let total = parts.differentiated_by(sharing).evaluate(Pass::Clean);
        let total = total.unwrap();
        for var in [&a, &b] {
            // The sum over the parts; the mean is taken where the factor of the loss is.
            assert_eq!(values(total.grads.get(var).unwrap()), [3.0, 3.0]);
        }
    }
}
