//! The slow copy φ of the fast weights θ.
//!
//! ```text
//! pull:  φ ← φ₀ + α (θ − φ₀)          gap:  d = (1 − α) ‖θ − φ₀‖₂ = ‖θ − φ‖₂
//! ```
//!
//! with φ₀ the slow weights before the pull. The gap is taken from the same difference as the pull,
//! over all trainable parameters, and read on the host once. Cost of a pull: one pass over both copies
//! of the weights where it is fused ([`kernels`]), else three; memory: one copy.

use candle_core::Tensor;

use crate::{
    error::Result,
    kernels::{self, Fast, Pull, Scalar},
    memory,
    params::{Param, ParamSet},
    state::{State, StateReader},
    vector,
};

/// When the slow weights begin to exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SlowInit {
    /// They are the parameters as they are when the optimizer is made (Zhang et al. 2019).
    #[default]
    Construction,
    /// They are the fast weights of the first synchronisation, whose pull and gap are thus nil: what
    /// the PyTorch code released by SALA's authors, and several Lookahead implementations, do.
    FirstSync,
}

/// The slow copy of a [`ParamSet`]'s trainable parameters.
#[derive(Debug)]
pub struct SlowWeights(Held);

/// Where the slow weights are, in the order of the parameters; f32 where those are half precision.
#[derive(Debug)]
enum Held {
    /// They do not exist until the first synchronisation of [`SlowInit::FirstSync`].
    Nothing,
    Apart(Vec<Tensor>),
    /// The fast weights are discarded and the parameters hold the slow ones. `views` look at them;
    /// `spare` is the memory that is free meanwhile.
    InParams {
        views: Vec<Tensor>,
        spare: Vec<Option<Tensor>>,
    },
}

impl SlowWeights {
    pub(crate) fn new(params: &ParamSet, init: SlowInit) -> Result<Self> {
        Ok(Self(match init {
            SlowInit::Construction => Held::Apart(params.wide_snapshot()?),
            SlowInit::FirstSync => Held::Nothing,
        }))
    }

    /// The slow tensors in the order of the parameters' names; `None` before they exist. Later steps
    /// may update them in place: copy them to keep their values.
    pub fn tensors(&self) -> Option<&[Tensor]> {
        match &self.0 {
            Held::Nothing => None,
            Held::Apart(tensors) | Held::InParams { views: tensors, .. } => Some(tensors),
        }
    }

    /// The tensors to be pulled within a base's step, if they are apart from the parameters.
    pub(crate) fn tensors_mut(&mut self) -> Option<&mut [Tensor]> {
        match &mut self.0 {
            Held::Apart(tensors) => Some(tensors),
            Held::Nothing | Held::InParams { .. } => None,
        }
    }

    pub(crate) fn is_in_params(&self) -> bool {
        matches!(self.0, Held::InParams { .. })
    }

    /// θ ← φ, after which θ is lost: by exchanging their memory where their dtype is the same.
    pub(crate) fn move_into(&mut self, params: &ParamSet) -> Result<()> {
        let Held::Apart(slow) = &mut self.0 else {
            return self.copy_to(params);
        };
        let same = |(s, p): (&Tensor, &Param)| s.dtype() == p.var().dtype();
        if !slow.iter().zip(params).all(same) {
            return self.copy_to(params);
        }
        kernels::run(params.tensors(), |kernels| {
            for (slow, p) in slow.iter_mut().zip(params) {
                kernels.of(p.var()).exchange(p.var(), slow)?;
            }
            Ok(())
        })?;
        let spare = std::mem::take(slow).into_iter().map(Some).collect();
        let views = params.iter().map(|p| p.var().as_detached_tensor());
        let views = views.collect();
        self.0 = Held::InParams { views, spare };
        params.publish()
    }

    /// The memory that is free while the parameters hold the slow weights, the first time it is asked
    /// for.
    pub(crate) fn take_spare(&mut self) -> Option<Vec<Option<Tensor>>> {
        match &mut self.0 {
            Held::InParams { spare, .. } if !spare.is_empty() => Some(std::mem::take(spare)),
            Held::Nothing | Held::Apart(_) | Held::InParams { .. } => None,
        }
    }

    /// The slow weights were saved here while the parameters that held them were displaced.
    pub(crate) fn reclaim(&mut self, saved: Vec<Option<Tensor>>) {
        if let Some(tensors) = saved.into_iter().collect() {
            self.0 = Held::Apart(tensors);
        }
    }

    /// A copy apart from the parameters, if these hold the slow weights.
    pub(crate) fn settle(&mut self, params: &ParamSet) -> Result<()> {
        if self.is_in_params() {
            self.0 = Held::Apart(params.wide_snapshot()?);
        }
        Ok(())
    }

    /// φ ← φ₀ + α (θ − φ₀), and θ ← φ if `fast` says so; yields the parts of ‖θ − φ₀‖₂², from which
    /// [`gap`] computes.
    pub(crate) fn pull(
        &mut self,
        params: &ParamSet,
        alpha: f64,
        fast: Fast,
    ) -> Result<Vec<Scalar>> {
        if !matches!(self.0, Held::Apart(_)) {
            self.0 = Held::Apart(params.wide_snapshot()?);
        }
        let slow = self.tensors_mut().unwrap_or_default();
        let squares = kernels::run(params.tensors(), |kernels| {
            let pull = |(slow, p): (&mut Tensor, &Param)| {
                Ok(kernels
                    .of(p.var())
                    .pull(p.var(), Pull { slow, alpha, fast })?)
            };
            slow.iter_mut().zip(params).map(pull).collect()
        })?;
        if fast == Fast::Return {
            params.publish()?;
        }
        Ok(squares)
    }

    /// θ ← φ; nothing before φ exists, or where θ holds it.
    pub(crate) fn copy_to(&self, params: &ParamSet) -> Result<()> {
        match &self.0 {
            Held::Apart(slow) => params.assign(slow),
            Held::Nothing | Held::InParams { .. } => Ok(()),
        }
    }

    /// Puts the slow weights into the parameters until the view is dropped.
    ///
    /// # Errors
    /// Those of copying; the parameters are then as they were.
    pub fn view<'a>(&self, params: &'a ParamSet) -> Result<SlowView<'a>> {
        let view = SlowView {
            params,
            fast: Some(params.snapshot()?),
        };
        self.copy_to(params)?;
        Ok(view)
    }

    pub(crate) fn save(&self, params: &ParamSet, state: &mut State) -> Result<()> {
        for (param, slow) in params.iter().zip(self.tensors().unwrap_or_default()) {
            state.set_tensor(format!("slow.{}", param.name()), slow)?;
        }
        Ok(())
    }

    /// Reads what [`SlowWeights::save`] wrote: all the weights or none.
    pub(crate) fn read(params: &ParamSet, reader: &mut StateReader) -> Result<Self> {
        let tensors = memory::read_all(params, reader, "slow.")?;
        Ok(Self(tensors.map_or(Held::Nothing, Held::Apart)))
    }
}

/// (1 − α) ‖θ − φ₀‖₂ from the parts of the square.
pub(crate) fn gap(alpha: f64, squares: &[f64]) -> f64 {
    (1.0 - alpha) * vector::norm_of(squares)
}

/// While it lives, the parameters hold the slow weights; dropping it puts the fast ones back, also
/// when the code in between fails or panics.
#[derive(Debug)]
pub struct SlowView<'a> {
    params: &'a ParamSet,
    fast: Option<Vec<Tensor>>,
}

impl SlowView<'_> {
    /// Puts the fast weights back and reports a failure, which dropping cannot.
    ///
    /// # Errors
    /// Those of copying.
    pub fn restore(mut self) -> Result<()> {
        self.put_back()
    }

    fn put_back(&mut self) -> Result<()> {
        match self.fast.take() {
            Some(fast) => self.params.assign(&fast),
            None => Ok(()),
        }
    }
}

impl Drop for SlowView<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.put_back() {
            tracing::error!(%error, "the fast weights could not be put back after a view of the slow ones");
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    fn params(values: &[f64]) -> (Var, ParamSet) {
        let w = Var::new(values, &Device::Cpu).unwrap();
        (w.clone(), ParamSet::new([("w", w)]).unwrap())
    }

    fn set(w: &Var, values: &[f64]) {
        w.set(&Tensor::new(values, &Device::Cpu).unwrap()).unwrap();
    }

    fn pull(weights: &mut SlowWeights, params: &ParamSet, alpha: f64) -> f64 {
        let squares = weights.pull(params, alpha, Fast::Stay).unwrap();
        gap(alpha, &vector::read_scalars(squares).unwrap())
    }

    fn slow(weights: &SlowWeights) -> Vec<f64> {
        weights.tensors().unwrap()[0].to_vec1().unwrap()
    }

    #[test]
    fn a_pull_goes_the_share_alpha_and_the_gap_is_what_remains() {
        let (w, params) = params(&[0.0, 0.0]);
        let mut weights = SlowWeights::new(&params, SlowInit::Construction).unwrap();
        set(&w, &[3.0, 4.0]);
        let gap = pull(&mut weights, &params, 0.8);
        assert!((gap - 1.0).abs() < 1e-14, "(1 − 0.8) · 5, got {gap}");
        assert!((slow(&weights)[0] - 2.4).abs() < 1e-14 && (slow(&weights)[1] - 3.2).abs() < 1e-14);
    }

    #[test]
    fn the_slow_copy_does_not_follow_the_variable_in_place() {
        let (w, params) = params(&[1.0]);
        let weights = SlowWeights::new(&params, SlowInit::Construction).unwrap();
        set(&w, &[5.0]);
        assert_eq!(slow(&weights), [1.0]);
    }

    #[test]
    fn a_first_sync_starts_at_the_fast_weights() {
        let (w, params) = params(&[1.0]);
        let mut weights = SlowWeights::new(&params, SlowInit::FirstSync).unwrap();
        set(&w, &[5.0]);
        assert_eq!(pull(&mut weights, &params, 0.5).to_bits(), 0f64.to_bits());
        assert_eq!(slow(&weights), [5.0]);
    }

    #[test]
    fn a_view_shows_the_slow_weights_and_puts_the_fast_ones_back_even_on_a_panic() {
        let (w, params) = params(&[1.0]);
        let weights = SlowWeights::new(&params, SlowInit::Construction).unwrap();
        set(&w, &[5.0]);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _view = weights.view(&params).unwrap();
            assert_eq!(w.to_vec1::<f64>().unwrap(), [1.0]);
            panic!("the evaluation fails");
        }));
        assert!(outcome.is_err());
        assert_eq!(w.to_vec1::<f64>().unwrap(), [5.0]);
    }
}
