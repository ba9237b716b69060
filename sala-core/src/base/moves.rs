//! Whether the steps of a base move the parameters at all.

use candle_core::{DType, Tensor};

use crate::{
    error::{Error, Result},
    kernels::{self, Scalar},
    params::{Param, ParamSet, is_half},
    vector,
};

/// How many times the spacing of floating-point numbers a step must be to count as one that is seen.
const MARGIN: f64 = 16.0;

/// What is noted before a step of a base from another crate. Such a base keeps its variables to itself; one
/// that was made from others than the set's (the model's where the set has master copies) finds no gradient
/// and steps nothing, without a word.
///
/// Looks at the master copies if there are any, else at all parameters, by ‖w‖² and ⟨w, g⟩ of each: no
/// copy of the weights, and hardly a change that leaves all of these sums as they were, bit for bit.
pub(crate) struct Moves {
    weights: Vec<Tensor>,
    gradients: Vec<Tensor>,
    numbers: Vec<Scalar>,
    masters: bool,
    elements: usize,
    /// Distance of 1 to the next number, for the widest spacing among the weights.
    spacing: f64,
}

impl Moves {
    /// Before a step on gradients in the order of the parameters.
    pub(crate) fn before(params: &ParamSet, gradients: &[Tensor]) -> Result<Self> {
        let is_master = |p: &Param| p.var().id() != p.model_var().id();
        let masters = params.iter().any(is_master);
        let pairs = params.iter().zip(gradients);
        let watched = pairs.filter(|(param, _)| !masters || is_master(param));
        let (weights, gradients): (Vec<_>, Vec<_>) = watched
            .map(|(param, g)| (param.var().as_detached_tensor(), g.detach()))
            .unzip();
        let spacings = weights.iter().map(|w| spacing(w.dtype()));
        let mut moves = Self {
            numbers: vector::squared_norms(&gradients)?,
            spacing: spacings.fold(0.0, f64::max),
            elements: weights.iter().map(Tensor::elem_count).sum(),
            weights,
            gradients,
            masters,
        };
        moves.look()?;
        Ok(moves)
    }

    fn look(&mut self) -> Result<()> {
        let wide = self.weights.iter().map(kernels::wide);
        let wide = wide.collect::<candle_core::Result<Vec<_>>>()?;
        self.numbers.extend(vector::squared_norms(&wide)?);
        self.numbers.extend(vector::dots(&wide, &self.gradients)?);
        Ok(())
    }

    /// After the step: whether it has moved a weight. Costs one synchronisation.
    ///
    /// # Errors
    /// [`Error::OtherVars`] when it has not, although gradient and learning rate are large enough to be
    /// seen in the weights.
    pub(crate) fn after(mut self, lr: f64) -> Result<bool> {
        self.look()?;
        let numbers = vector::read_scalars(self.numbers)?;
        let count = self.weights.len();
        let (gradients, weights) = numbers.split_at(count);
        let (before, after) = weights.split_at(2 * count);
        let bits = |x: &[f64]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        if bits(before) != bits(after) {
            return Ok(true);
        }
        // A rule goes about η g far, or η in each element where it normalises.
        let far = vector::norm_of(gradients).min((self.elements as f64).sqrt());
        let seen = MARGIN * self.spacing * vector::norm_of(&before[..count]);
        if lr * far <= seen {
            return Ok(false);
        }
        let what = if self.masters {
            "f32 master copies"
        } else {
            "parameters"
        };
        let problem = format!("a step has moved none of the {count} {what}");
        Err(Error::OtherVars { problem })
    }
}

fn spacing(dtype: DType) -> f64 {
    match dtype {
        half if is_half(half) => 2f64.powi(-7),
        DType::F64 => f64::EPSILON,
        _ => f64::from(f32::EPSILON),
    }
}
