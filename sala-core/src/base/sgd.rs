//! Stochastic gradient descent with momentum.
//!
//! With the gradient g, the weights w, the momentum buffer b, learning rate η, momentum μ, dampening
//! τ and weight decay λ, one step is
//!
//! ```text
//! coupled decay:    d = g + λ w              decoupled decay:  w ← (1 − η λ) w,  d = g
//! μ > 0:            b ← d  on the first step, else  b ← μ b + (1 − τ) d
//!                   d ← d + μ b  (Nesterov),  else  d ← b
//! update:           w ← w − η d
//! ```
//!
//! These are the equations of `torch.optim.SGD` (Sutskever et al. 2013, "On the importance of
//! initialization and momentum in deep learning"); decoupled decay as in Loshchilov and Hutter 2019,
//! arXiv:1711.05101. Cost: one gradient a step; one buffer the size of the weights when μ > 0.

use candle_core::{Result, Tensor, Var, backprop::GradStore};
use candle_nn::Optimizer;

use super::{Around, Notes, Rule, Slot, adopt, for_each, forget, gradients, remembered, slots};
use crate::{
    error::check,
    kernels::Scalar,
    params::{Param, ParamSet},
    state::{State, StateReader, Stateful},
};

/// Configuration of [`Sgd`].
#[derive(Debug, Clone, PartialEq)]
pub struct ParamsSgd {
    /// Learning rate η.
    pub lr: f64,
    /// Momentum μ in [0, 1); 0 keeps no buffer.
    pub momentum: f64,
    /// Dampening τ of the gradient as it enters the buffer, in [0, 1].
    pub dampening: f64,
    /// Nesterov's look-ahead; wants momentum and no dampening.
    pub nesterov: bool,
    /// Weight decay λ.
    pub weight_decay: f64,
    /// Apply the decay to the weights (decoupled) instead of adding it to the gradient (coupled).
    pub decoupled: bool,
}

impl Default for ParamsSgd {
    /// Those of `torch.optim.SGD` but for the learning rate, which has no default there before
    /// version 2.3 and 0.001 since; here 0.01.
    fn default() -> Self {
        Self {
            lr: 0.01,
            momentum: 0.0,
            dampening: 0.0,
            nesterov: false,
            weight_decay: 0.0,
            decoupled: false,
        }
    }
}

impl ParamsSgd {
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) that names the field.
    pub fn validate(&self) -> crate::Result<()> {
        const OWNER: &str = "ParamsSgd";
        check::non_negative(OWNER, "lr", self.lr)?;
        check::below_one(OWNER, "momentum", self.momentum)?;
        check::unit(OWNER, "dampening", self.dampening)?;
        check::non_negative(OWNER, "weight_decay", self.weight_decay)?;
        let sound = !self.nesterov || (self.momentum > 0.0 && self.dampening == 0.0);
        let got = format!("momentum {}, dampening {}", self.momentum, self.dampening);
        check::holds(
            OWNER,
            "nesterov",
            sound,
            "false unless momentum > 0 and dampening = 0",
            got,
        )
    }
}

/// One update as in the equations of this module.
///
/// Takes weights, gradient and momentum buffer (`None` before the first step) of one shape and dtype;
/// returns the new weights and the new buffer (`None` without momentum).
///
/// # Errors
/// Those of candle's operations, for instance on different shapes.
pub fn rule(
    config: &ParamsSgd,
    weights: &Tensor,
    gradient: &Tensor,
    buffer: Option<&Tensor>,
) -> Result<(Tensor, Option<Tensor>)> {
    let ParamsSgd {
        lr,
        momentum,
        dampening,
        nesterov,
        weight_decay,
        decoupled,
    } = *config;
    let mut weights = weights.clone();
    let mut direction = gradient.clone();
    if weight_decay > 0.0 && decoupled {
        weights = (weights * (1.0 - lr * weight_decay))?;
    } else if weight_decay > 0.0 {
        direction = (direction + (&weights * weight_decay)?)?;
    }
    let mut new_buffer = None;
    if momentum > 0.0 {
        let b = match buffer {
            None => direction.clone(),
            Some(b) => ((b * momentum)? + (&direction * (1.0 - dampening))?)?,
        };
        direction = if nesterov {
            (direction + (&b * momentum)?)?
        } else {
            b.clone()
        };
        new_buffer = Some(b);
    }
    Ok(((weights - (direction * lr)?)?, new_buffer))
}

/// Stochastic gradient descent with momentum; see the [module](self) for the equations.
///
/// ```
/// # use candle_core::{DType, Device, Var};
/// # use candle_nn::Optimizer;
/// # use sala_core::{ParamSet, ParamsSgd, Sgd};
/// let w = Var::new(&[1f64, 2.0], &Device::Cpu)?;
/// let params = ParamSet::new([("w", w.clone())])?;
/// let mut sgd = Sgd::new(&params, ParamsSgd { lr: 0.5, ..Default::default() })?;
/// sgd.backward_step(&w.sqr()?.sum_all()?)?; // gradient 2w, so w ← w − 0.5 · 2w = 0
/// assert_eq!(w.to_vec1::<f64>()?, [0.0, 0.0]);
/// # Ok::<(), sala_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Sgd {
    config: ParamsSgd,
    slots: Vec<Slot<Tensor>>,
}

impl Sgd {
    /// An optimizer of the set's trainable parameters.
    ///
    /// # Errors
    /// Those of [`ParamsSgd::validate`].
    pub fn new(params: &ParamSet, config: ParamsSgd) -> crate::Result<Self> {
        config.validate()?;
        Ok(Self {
            config,
            slots: slots(params),
        })
    }

    /// The configuration, with the current learning rate.
    pub fn config(&self) -> &ParamsSgd {
        &self.config
    }
}

impl Optimizer for Sgd {
    type Config = ParamsSgd;

    fn new(vars: Vec<Var>, config: ParamsSgd) -> Result<Self> {
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

impl Rule for Sgd {
    fn trained(&self) -> Vec<&Param> {
        self.slots.iter().map(|slot| &slot.param).collect()
    }

    fn adopt(&mut self, params: &ParamSet) {
        adopt(&mut self.slots, params);
    }

    fn step_around(&mut self, gradients: &[Tensor], around: Around) -> crate::Result<Vec<Scalar>> {
        let config = &self.config;
        for_each(
            &mut self.slots,
            gradients,
            around,
            |kernels, Slot { param, memory }, gradient, beside| {
                let config = ParamsSgd {
                    lr: config.lr * param.lr_scale(),
                    weight_decay: param.weight_decay().unwrap_or(config.weight_decay),
                    ..config.clone()
                };
                kernels.sgd(&config, param.var(), gradient, memory, beside)
            },
        )
    }

    fn notes(&self) -> Notes {
        Notes {
            steps: 0,
            remembered: remembered(&self.slots),
        }
    }

    fn take_back(&mut self, notes: &Notes) {
        forget(&mut self.slots, &notes.remembered);
    }

    fn momentum(&mut self) -> Vec<Option<&mut Tensor>> {
        let buffers = self.slots.iter_mut();
        buffers.map(|slot| slot.memory.as_mut()).collect()
    }

    fn weight_decay(&self) -> f64 {
        self.config.weight_decay
    }

    fn set_weight_decay(&mut self, decay: f64) {
        self.config.weight_decay = decay;
    }
}

impl Stateful for Sgd {
    fn state(&self) -> crate::Result<State> {
        let mut state = State::new("Sgd");
        state.set("lr", self.config.lr);
        state.set("weight_decay", self.config.weight_decay);
        for Slot { param, memory } in &self.slots {
            if let Some(buffer) = memory {
                state.set_tensor(format!("momentum.{}", param.name()), buffer)?;
            }
        }
        Ok(state)
    }

    fn load_state(&mut self, state: &State) -> crate::Result<()> {
        let mut reader = StateReader::new("Sgd", state)?;
        let (lr, weight_decay) = (reader.get("lr")?, reader.get("weight_decay")?);
        let buffers = self
            .slots
            .iter()
            .map(|Slot { param, .. }| {
                reader.optional_wide(&format!("momentum.{}", param.name()), param.var())
            })
            .collect::<crate::Result<Vec<_>>>()?;
        reader.finish()?;
        let (found, wanted) = (buffers.iter().flatten().count(), buffers.len());
        if found != 0 && found != wanted {
            return Err(crate::Error::State {
                owner: "Sgd".into(),
                problem: format!("momentum of {found} of {wanted} parameters"),
            });
        }
        (self.config.lr, self.config.weight_decay) = (lr, weight_decay);
        for (slot, buffer) in self.slots.iter_mut().zip(buffers) {
            slot.memory = buffer;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Two steps from w = 1 with gradient 1, by hand, η = 0.1.
    fn two_steps(config: &ParamsSgd) -> (f64, f64) {
        let (w, g) = (
            Tensor::new(1f64, &Device::Cpu).unwrap(),
            Tensor::new(1f64, &Device::Cpu).unwrap(),
        );
        let (w1, b) = rule(config, &w, &g, None).unwrap();
        let (w2, _) = rule(config, &w1, &g, b.as_ref()).unwrap();
        (w1.to_scalar().unwrap(), w2.to_scalar().unwrap())
    }

    fn assert_steps(config: ParamsSgd, wanted: (f64, f64)) {
        config.validate().unwrap();
        let got = two_steps(&config);
        let near = (got.0 - wanted.0).abs() < 1e-14 && (got.1 - wanted.1).abs() < 1e-14;
        assert!(near, "{config:?}: wanted {wanted:?}, got {got:?}");
    }

    #[test]
    fn two_steps_by_hand() {
        let plain = ParamsSgd {
            lr: 0.1,
            ..Default::default()
        };
        assert_steps(plain.clone(), (0.9, 0.8));
        // b = 1 then 0.9 + 1 = 1.9
        let momentum = ParamsSgd {
            momentum: 0.9,
            ..plain.clone()
        };
        assert_steps(momentum.clone(), (0.9, 0.71));
        // the first gradient enters the buffer whole, later ones by half: b = 1 then 0.9 + 0.5
        assert_steps(
            ParamsSgd {
                dampening: 0.5,
                ..momentum.clone()
            },
            (0.9, 0.76),
        );
        // d = 1 + 0.9 · 1 = 1.9 then 1 + 0.9 · 1.9 = 2.71
        assert_steps(
            ParamsSgd {
                nesterov: true,
                ..momentum
            },
            (0.81, 0.539),
        );
        // d = 1 + 0.5 w: 1.5, then 1 + 0.5 · 0.85 = 1.425
        let coupled = ParamsSgd {
            weight_decay: 0.5,
            ..plain
        };
        assert_steps(coupled.clone(), (0.85, 0.7075));
        // w · 0.95 − 0.1
        assert_steps(
            ParamsSgd {
                decoupled: true,
                ..coupled
            },
            (0.85, 0.7075),
        );
    }

    #[test]
    fn coupled_decay_enters_the_momentum_and_decoupled_does_not() {
        let coupled = ParamsSgd {
            lr: 0.1,
            momentum: 0.9,
            weight_decay: 0.5,
            ..Default::default()
        };
        // d = 1.5, b = 1.5, w = 0.85; d = 1.425, b = 1.35 + 1.425 = 2.775, w = 0.5725
        assert_steps(coupled.clone(), (0.85, 0.5725));
        // w = 0.95 − 0.1; b = 1.9, w = 0.85 · 0.95 − 0.19 = 0.6175
        assert_steps(
            ParamsSgd {
                decoupled: true,
                ..coupled
            },
            (0.85, 0.6175),
        );
    }

    #[test]
    fn a_missing_gradient_is_an_error_that_names_the_parameter() {
        let w = Var::new(1f64, &Device::Cpu).unwrap();
        let other = Var::new(1f64, &Device::Cpu).unwrap();
        let params = ParamSet::new([("w", w), ("z", other.clone())]).unwrap();
        let mut sgd = Sgd::new(&params, ParamsSgd::default()).unwrap();
        let message = sgd
            .backward_step(&other.sqr().unwrap())
            .unwrap_err()
            .to_string();
        assert!(message.contains("`w`"), "{message}");
    }

    #[test]
    fn every_field_is_checked() {
        let good = ParamsSgd::default;
        let bad = [
            (
                ParamsSgd { lr: -1.0, ..good() },
                "ParamsSgd.lr must be finite and >= 0, got -1",
            ),
            (
                ParamsSgd {
                    lr: f64::NAN,
                    ..good()
                },
                "ParamsSgd.lr must be finite and >= 0, got NaN",
            ),
            (
                ParamsSgd {
                    momentum: 1.0,
                    ..good()
                },
                "ParamsSgd.momentum must be in [0, 1), got 1",
            ),
            (
                ParamsSgd {
                    dampening: 2.0,
                    ..good()
                },
                "ParamsSgd.dampening must be in [0, 1], got 2",
            ),
            (
                ParamsSgd {
                    weight_decay: f64::INFINITY,
                    ..good()
                },
                "ParamsSgd.weight_decay must be finite and >= 0, got inf",
            ),
            (
                ParamsSgd {
                    nesterov: true,
                    ..good()
                },
                "ParamsSgd.nesterov must be false unless momentum > 0 and dampening = 0, got momentum 0, dampening 0",
            ),
        ];
        for (config, wanted) in bad {
            assert_eq!(config.validate().unwrap_err().to_string(), wanted);
        }
    }
}
