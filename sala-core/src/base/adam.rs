//! Adam and AdamW.
//!
//! With the gradient g, the weights w, the moments m and v (zero at first), learning rate η, decay
//! rates β₁ and β₂, weight decay λ and the step number t from 1, one step is
//!
//! ```text
//! coupled decay (Adam):  g ← g + λ w         decoupled decay (AdamW):  w ← (1 − η λ) w
//! m ← β₁ m + (1 − β₁) g        v ← β₂ v + (1 − β₂) g²
//! w ← w − η / (1 − β₁ᵗ) · m / (√(v / (1 − β₂ᵗ)) + ε)
//! ```
//!
//! Adam: Kingma and Ba 2015, arXiv:1412.6980. AdamW: Loshchilov and Hutter 2019, arXiv:1711.05101.
//! The order of operations is that of `torch.optim`. Cost: one gradient a step; two buffers.

use candle_core::{Result, Tensor, Var, backprop::GradStore};
use candle_nn::Optimizer;

use super::{Around, Notes, Rule, Slot, adopt, for_each, forget, gradients, remembered, slots};
use crate::{
    error::check,
    kernels::Scalar,
    params::{Param, ParamSet},
    state::{State, StateReader, Stateful},
};

/// Configuration of [`Adam`], with coupled or decoupled weight decay.
#[derive(Debug, Clone, PartialEq)]
pub struct ParamsAdam {
    /// Learning rate η.
    pub lr: f64,
    /// Decay rate β₁ of the first moment, in [0, 1).
    pub beta1: f64,
    /// Decay rate β₂ of the second moment, in [0, 1).
    pub beta2: f64,
    /// ε, added to the root of the second moment; greater than 0.
    pub eps: f64,
    /// Weight decay λ.
    pub weight_decay: f64,
    /// Apply the decay to the weights (decoupled, AdamW) instead of adding it to the gradient.
    pub decoupled: bool,
}

impl Default for ParamsAdam {
    /// Adam as in the paper and in `torch.optim.Adam`: η 0.001, β (0.9, 0.999), ε 1e-8, no decay.
    fn default() -> Self {
        Self {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            decoupled: false,
        }
    }
}

impl ParamsAdam {
    /// AdamW as in `torch.optim.AdamW`: decoupled decay 0.01, the rest as [`Default`].
    ///
    /// ```
    /// # use sala_core::ParamsAdam;
    /// let config = ParamsAdam { lr: 2e-5, ..ParamsAdam::adamw() };
    /// assert!(config.decoupled);
    /// ```
    pub fn adamw() -> Self {
        Self {
            weight_decay: 0.01,
            decoupled: true,
            ..Self::default()
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) that names the field.
    pub fn validate(&self) -> crate::Result<()> {
        const OWNER: &str = "ParamsAdam";
        check::non_negative(OWNER, "lr", self.lr)?;
        check::below_one(OWNER, "beta1", self.beta1)?;
        check::below_one(OWNER, "beta2", self.beta2)?;
        check::positive(OWNER, "eps", self.eps)?;
        check::non_negative(OWNER, "weight_decay", self.weight_decay)
    }
}

/// One update as in the equations of this module: step number t from 1, weights, gradient and
/// moments (`None` before the first step) of one shape and dtype to new weights and moments.
///
/// # Errors
/// Those of candle's operations, for instance on different shapes.
pub fn rule(
    config: &ParamsAdam,
    t: u64,
    weights: &Tensor,
    gradient: &Tensor,
    moments: Option<&(Tensor, Tensor)>,
) -> Result<(Tensor, (Tensor, Tensor))> {
    let ParamsAdam {
        lr,
        beta1,
        beta2,
        eps,
        weight_decay,
        decoupled,
    } = *config;
    let mut weights = weights.clone();
    let mut g = gradient.clone();
    if weight_decay > 0.0 && decoupled {
        weights = (weights * (1.0 - lr * weight_decay))?;
    } else if weight_decay > 0.0 {
        g = (g + (&weights * weight_decay)?)?;
    }
    let m = (&g * (1.0 - beta1))?;
    let v = (g.sqr()? * (1.0 - beta2))?;
    let (m, v) = match moments {
        None => (m, v),
        Some((m0, v0)) => (((m0 * beta1)? + m)?, ((v0 * beta2)? + v)?),
    };
    let t = t as f64;
    let (correction1, correction2) = (1.0 - beta1.powf(t), 1.0 - beta2.powf(t));
    let root = ((v.sqrt()? / correction2.sqrt())? + eps)?;
    let weights = (weights - ((&m / root)? * (lr / correction1))?)?;
    Ok((weights, (m, v)))
}

/// Adam, and AdamW with [`ParamsAdam::adamw`]; see the [module](self) for the equations.
///
/// ```
/// # use candle_core::{Device, Var};
/// # use candle_nn::Optimizer;
/// # use sala_core::{Adam, ParamSet, ParamsAdam};
/// let w = Var::new(&[1f64, -3.0], &Device::Cpu)?;
/// let params = ParamSet::new([("w", w.clone())])?;
/// let mut adam = Adam::new(&params, ParamsAdam { lr: 0.1, ..Default::default() })?;
/// adam.backward_step(&w.sqr()?.sum_all()?)?; // the first step has the size of the learning rate
/// assert!((w.to_vec1::<f64>()?[1] + 2.9).abs() < 1e-8);
/// # Ok::<(), sala_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Adam {
    config: ParamsAdam,
    t: u64,
    slots: Vec<Slot<(Tensor, Tensor)>>,
}

impl Adam {
    /// An optimizer of the set's trainable parameters.
    ///
    /// # Errors
    /// Those of [`ParamsAdam::validate`].
    pub fn new(params: &ParamSet, config: ParamsAdam) -> crate::Result<Self> {
        config.validate()?;
        Ok(Self {
            config,
            t: 0,
            slots: slots(params),
        })
    }

    /// The configuration, with the current learning rate.
    pub fn config(&self) -> &ParamsAdam {
        &self.config
    }
}

impl Optimizer for Adam {
    type Config = ParamsAdam;

    fn new(vars: Vec<Var>, config: ParamsAdam) -> Result<Self> {
        Ok(Self::new(&ParamSet::from_vars(vars)?, config)?)
    }

    fn step(&mut self, grads: &GradStore) -> Result<()> {
        let gradients = gradients(&self.slots, grads)?;
        self.step_around(&gradients, Around::default())?;
        Ok(())
    }

    fn learning_rate(&self) -> f64 {
        self.config.lr
    }

    fn set_learning_rate(&mut self, lr: f64) {
        self.config.lr = lr;
    }
}

impl Rule for Adam {
    fn trained(&self) -> Vec<&Param> {
        self.slots.iter().map(|slot| &slot.param).collect()
    }

    fn adopt(&mut self, params: &ParamSet) {
        adopt(&mut self.slots, params);
    }

    fn step_around(&mut self, gradients: &[Tensor], around: Around) -> crate::Result<Vec<Scalar>> {
        self.t += 1;
        let (config, t) = (&self.config, self.t);
        for_each(
            &mut self.slots,
            gradients,
            around,
            |kernels, Slot { param, memory }, gradient, beside| {
                let config = ParamsAdam {
                    lr: config.lr * param.lr_scale(),
                    weight_decay: param.weight_decay().unwrap_or(config.weight_decay),
                    ..config.clone()
                };
                kernels.adam((&config, t), param.var(), gradient, memory, beside)
            },
        )
    }

    fn notes(&self) -> Notes {
        Notes {
            steps: self.t,
            remembered: remembered(&self.slots),
        }
    }

    fn take_back(&mut self, notes: &Notes) {
        self.t = notes.steps;
        forget(&mut self.slots, &notes.remembered);
    }

    fn momentum(&mut self) -> Vec<Option<&mut Tensor>> {
        let moments = self.slots.iter_mut();
        moments
            .map(|slot| slot.memory.as_mut().map(|(m, _)| m))
            .collect()
    }

    fn weight_decay(&self) -> f64 {
        self.config.weight_decay
    }

    fn set_weight_decay(&mut self, decay: f64) {
        self.config.weight_decay = decay;
    }
}

impl Stateful for Adam {
    fn state(&self) -> crate::Result<State> {
        let mut state = State::new("Adam");
        state.set("lr", self.config.lr);
        state.set("weight_decay", self.config.weight_decay);
        state.set("t", self.t);
        for Slot { param, memory } in &self.slots {
            if let Some((m, v)) = memory {
                state.set_tensor(format!("m.{}", param.name()), m)?;
                state.set_tensor(format!("v.{}", param.name()), v)?;
            }
        }
        Ok(state)
    }

    fn load_state(&mut self, state: &State) -> crate::Result<()> {
        let mut reader = StateReader::new("Adam", state)?;
        let (lr, weight_decay) = (reader.get("lr")?, reader.get("weight_decay")?);
        let t = reader.get::<u64>("t")?;
        let moments = self
            .slots
            .iter()
            .map(|Slot { param, .. }| {
                if t == 0 {
                    return Ok(None);
                }
                let m = reader.wide(&format!("m.{}", param.name()), param.var())?;
                let v = reader.wide(&format!("v.{}", param.name()), param.var())?;
                Ok(Some((m, v)))
            })
            .collect::<crate::Result<Vec<_>>>()?;
        reader.finish()?;
        (self.config.lr, self.config.weight_decay) = (lr, weight_decay);
        self.t = t;
        for (slot, moments) in self.slots.iter_mut().zip(moments) {
            slot.memory = moments;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn two_steps_by_hand() {
        // β₁ = β₂ = 0.5, ε = 1, η = 1, g = 2 then 4, w = 10, no decay.
        let config = ParamsAdam {
            lr: 1.0,
            beta1: 0.5,
            beta2: 0.5,
            eps: 1.0,
            ..Default::default()
        };
        let scalar = |x: f64| Tensor::new(x, &Device::Cpu).unwrap();
        let (w, moments) = rule(&config, 1, &scalar(10.0), &scalar(2.0), None).unwrap();
        // m = 1, m̂ = 2; v = 2, v̂ = 4; step 2 / (2 + 1)
        let w1 = 10.0 - 2.0 / 3.0;
        assert!((w.to_scalar::<f64>().unwrap() - w1).abs() < 1e-14);
        let (w, _) = rule(&config, 2, &w, &scalar(4.0), Some(&moments)).unwrap();
        // m = 2.5, m̂ = 2.5 / 0.75; v = 9, v̂ = 12
        let w2 = w1 - (2.5 / 0.75) / (12f64.sqrt() + 1.0);
        assert!((w.to_scalar::<f64>().unwrap() - w2).abs() < 1e-14);
    }

    #[test]
    fn decay_enters_the_gradient_or_the_weights() {
        let scalar = |x: f64| Tensor::new(x, &Device::Cpu).unwrap();
        let config = ParamsAdam {
            lr: 0.1,
            eps: 1.0,
            weight_decay: 0.5,
            ..Default::default()
        };
        let step = |config: &ParamsAdam| -> f64 {
            rule(config, 1, &scalar(2.0), &scalar(3.0), None)
                .unwrap()
                .0
                .to_scalar()
                .unwrap()
        };
        // g = 3 + 0.5 · 2 = 4: w = 2 − 0.1 · 4 / 5
        assert!((step(&config) - 1.92).abs() < 1e-14);
        // w = 2 · 0.95 − 0.1 · 3 / 4
        assert!(
            (step(&ParamsAdam {
                decoupled: true,
                ..config
            }) - 1.825)
                .abs()
                < 1e-14
        );
    }

    #[test]
    fn every_field_is_checked() {
        let good = ParamsAdam::default;
        let bad = [
            (
                ParamsAdam {
                    lr: f64::NAN,
                    ..good()
                },
                "lr",
            ),
            (
                ParamsAdam {
                    beta1: 1.0,
                    ..good()
                },
                "beta1",
            ),
            (
                ParamsAdam {
                    beta2: -0.1,
                    ..good()
                },
                "beta2",
            ),
            (ParamsAdam { eps: 0.0, ..good() }, "eps"),
            (
                ParamsAdam {
                    weight_decay: -1e-3,
                    ..good()
                },
                "weight_decay",
            ),
        ];
        for (config, field) in bad {
            let message = config.validate().unwrap_err().to_string();
            assert!(
                message.starts_with(&format!("ParamsAdam.{field} must be")),
                "{message}"
            );
        }
    }
}
