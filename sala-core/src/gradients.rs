//! The gradients of one pass, checked before anything is done with them.

use candle_core::{DType, Device, Tensor, backprop::GradStore};

use crate::{
    clip::{self, Clip},
    error::{Error, Result},
    kernels::{self, Guard, Scalar},
    objective::{Evaluation, Pass},
    params::{Param, ParamSet, is_half},
    vector::{self, Gathered},
};

/// What an objective returned, its numbers not yet read from the device.
pub(crate) struct Unread {
    pass: Pass,
    gradients: Gradients,
    loss: Tensor,
    squares: Vec<Scalar>,
}

impl Unread {
    /// Checks presence, shapes, dtypes and devices, and takes a factor of the loss off again.
    pub(crate) fn collect(params: &ParamSet, pass: Pass, outcome: Evaluation) -> Result<Self> {
        let Evaluation {
            loss,
            grads: store,
            scale,
        } = outcome;
        if loss.elem_count() != 1 {
            return Err(Error::LossShape {
                pass,
                got: loss.dims().to_vec(),
            });
        }
        let mut gradients = Gradients::collect(params, pass, store)?;
        if (scale - 1.0).abs() > 0.0 {
            gradients.multiply(1.0 / scale)?;
        }
        let squares = vector::squared_norms(&gradients.tensors)?;
        Ok(Self {
            pass,
            gradients,
            loss: loss.detach(),
            squares,
        })
    }

    /// The gradients in the order of the parameters, from now on in a precision to compute with.
    pub(crate) fn widen(&mut self) -> Result<&[Tensor]> {
        self.gradients.widen()?;
        Ok(&self.gradients.tensors)
    }

    /// Reads the loss, the norms and `others` in one synchronisation, and checks that loss and
    /// gradients are finite.
    pub(crate) fn read(self, params: &ParamSet, others: Vec<Scalar>) -> Result<Read> {
        let Self {
            pass,
            gradients,
            loss,
            squares,
        } = self;
        let mut scalars = numbers(loss, squares);
        scalars.extend(others);
        let mut numbers = vector::read_scalars(scalars)?;
        let others = numbers.split_off(1 + params.len());
        let checked = Checked::new(params, pass, gradients, numbers)?;
        Ok(Read { checked, others })
    }

    /// Leaves it to the device whether loss and gradients are finite, where it can decide that and the factor
    /// of a clip by norm.
    pub(crate) fn guarded(
        mut self,
        clip: Option<Clip>,
    ) -> Result<std::result::Result<Guarded, Self>> {
        let scalars = numbers(self.loss.clone(), self.squares.clone());
        let gathered = Gathered::new(scalars)?;
        let numbers = gathered.in_order().filter(|t| t.dtype() == DType::F64);
        let limit = match clip {
            Some(Clip::Norm(max)) => max,
            Some(Clip::Value(_)) | None => f64::INFINITY,
        };
        let Some(guard) = numbers.map_or(Ok(None), |numbers| Guard::new(numbers, limit))? else {
            return Ok(Err(self));
        };
        if let Some(clip @ Clip::Value(_)) = clip {
            self.gradients.clip(clip)?;
        }
        Ok(Ok(Guarded {
            pass: self.pass,
            gradients: self.gradients,
            guard,
        }))
    }
}

/// What decides whether an update is made.
fn numbers(loss: Tensor, squares: Vec<Scalar>) -> Vec<Scalar> {
    let mut numbers = vec![Scalar::Device(loss)];
    numbers.extend(squares);
    numbers
}

/// What an update waits for: nothing has been read yet, or all has.
pub(crate) enum Taken {
    Unread(Unread),
    Checked(Checked),
}

impl Taken {
    /// Reads what has not been read, and checks it.
    pub(crate) fn check(self, params: &ParamSet) -> Result<Checked> {
        match self {
            Self::Unread(unread) => Ok(unread.read(params, Vec::new())?.checked),
            Self::Checked(checked) => Ok(checked),
        }
    }
}

/// Gradients whose update the device makes only if they and the loss are finite.
pub(crate) struct Guarded {
    pass: Pass,
    gradients: Gradients,
    guard: Guard,
}

impl Guarded {
    /// The gradients in the order of the parameters, before a clip by norm, and the guard.
    pub(crate) fn parts(&self) -> (&[Tensor], &Guard) {
        (&self.gradients.tensors, &self.guard)
    }

    /// Reads what the device has decided by, while it updates. After an error it has not.
    pub(crate) fn check(self, params: &ParamSet) -> Result<Checked> {
        let numbers = self.guard.numbers()?;
        Checked::new(params, self.pass, self.gradients, numbers)
    }
}

/// Loss and gradients of a pass, all finite.
pub(crate) struct Checked {
    pub(crate) loss: f64,
    pub(crate) gradients: Gradients,
    /// ‖gᵢ‖² of each parameter.
    pub(crate) squares: Vec<f64>,
}

impl Checked {
    /// From the loss and the squared norms.
    fn new(
        params: &ParamSet,
        pass: Pass,
        mut gradients: Gradients,
        mut numbers: Vec<f64>,
    ) -> Result<Self> {
        let squares = numbers.split_off(1);
        let loss = numbers[0];
        require_finite(params, pass, loss, &squares)?;
        gradients.norm = vector::norm_of(&squares);
        Ok(Self {
            loss,
            gradients,
            squares,
        })
    }
}

/// What was read from the device in one synchronisation.
pub(crate) struct Read {
    pub(crate) checked: Checked,
    pub(crate) others: Vec<f64>,
}

/// One gradient for each trainable parameter, of its shape, all of them finite; f32 or f64.
#[derive(Debug)]
pub struct Gradients {
    /// On a card they may be of half precision until [`Gradients::widen`]: updates and perturbations
    /// read them as they are.
    tensors: Vec<Tensor>,
    /// As the objective returned them, for the model's variables.
    store: GradStore,
    /// Whether `tensors` are no longer what is in `store`.
    changed: bool,
    norm: f64,
}

impl Gradients {
    /// Takes the gradients of the model's variables out of a store and drops those of frozen ones. Checks
    /// presence, shapes, dtypes and devices; their norm is not known yet.
    fn collect(params: &ParamSet, pass: Pass, mut store: GradStore) -> Result<Self> {
        params.drop_frozen(&mut store);
        let mut gradients = Self {
            tensors: Vec::with_capacity(params.len()),
            store,
            changed: false,
            norm: 0.0,
        };
        for param in params {
            let gradient = checked(param, pass, &gradients.store)?;
            gradients.changed |= gradient.dtype() != param.model_var().dtype();
            gradients.tensors.push(gradient);
        }
        if !gradients.can_stay_half()? {
            gradients.widen()?;
        }
        Ok(gradients)
    }

    /// As in a clean pass, from a store that stays with its owner.
    pub(crate) fn of_store(params: &ParamSet, store: &GradStore) -> Result<Self> {
        let mut store = copied(store)?;
        for param in params {
            // An optimizer around this one hands gradients on under the master copies.
            let of_master = store.get(param.var()).cloned();
            if let Some(gradient) = of_master {
                store.insert(param.model_var(), gradient);
            }
        }
        Self::collect(params, Pass::Clean, store)
    }

    /// The gradients in the order of the parameters' names.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// ‖g‖₂ over all parameters.
    pub fn norm(&self) -> f64 {
        self.norm
    }

    /// g ← factor · g.
    ///
    /// # Errors
    /// Those of candle's operations.
    pub fn scale(&mut self, factor: f64) -> Result<()> {
        self.multiply(factor)?;
        self.norm *= factor.abs();
        Ok(())
    }

    /// Whether updates read them as they are, all in one launch.
    fn can_stay_half(&self) -> Result<bool> {
        let Some(first) = self.tensors.first() else {
            return Ok(false);
        };
        let same = self.tensors.iter().all(|t| t.dtype() == first.dtype());
        Ok(same && kernels::read_half(first)?)
    }

    /// Brings them to a precision to compute with, before others than this crate's kernels see them.
    pub(crate) fn widen(&mut self) -> Result<()> {
        self.tensors = vector::widened(std::mem::take(&mut self.tensors))?;
        Ok(())
    }

    fn multiply(&mut self, factor: f64) -> Result<()> {
        self.tensors = vector::scaled(&self.tensors, factor)?;
        self.changed = true;
        Ok(())
    }

    /// g ← a g + b h, with h one tensor for each parameter; `dot` is ⟨g, h⟩ and `other_norm` ‖h‖₂, from
    /// which the new norm follows without another pass over memory.
    ///
    /// # Errors
    /// [`Error::Direction`] when `other` is not of the gradients' number and shapes, and those of candle's
    /// operations.
    pub fn combine(
        &mut self,
        a: f64,
        (b, other, other_norm): (f64, &[Tensor], f64),
        dot: f64,
    ) -> Result<()> {
        self.tensors = vector::combined((a, &self.tensors), (b, other))?;
        let square = (a * self.norm).powi(2) + (b * other_norm).powi(2) + 2.0 * a * b * dot;
        // The three terms can cancel to a rounding error below zero.
        self.norm = square.max(0.0).sqrt();
        self.changed = true;
        Ok(())
    }

    /// Replaces the gradients, as a mean over micro-batches does.
    pub(crate) fn replace(&mut self, tensors: Vec<Tensor>, norm: f64) {
        (self.tensors, self.norm, self.changed) = (tensors, norm, true);
    }

    /// Hands out the gradients alone.
    pub(crate) fn into_tensors(self) -> Vec<Tensor> {
        self.tensors
    }

    pub(crate) fn clip(&mut self, clip: Clip) -> Result<()> {
        match clip {
            Clip::Norm(max) => match clip::factor(self.norm, max) {
                factor if factor < 1.0 => self.scale(factor),
                _ => Ok(()),
            },
            Clip::Value(max) => {
                self.tensors = vector::clamped(&self.tensors, max)?;
                self.changed = true;
                Ok(())
            }
        }
    }

    /// A store for a base that knows candle's trait only: each gradient under the variable that the
    /// base trains, in that variable's dtype.
    pub(crate) fn into_store(mut self, params: &ParamSet) -> Result<GradStore> {
        for (param, gradient) in params.iter().zip(self.tensors) {
            let (var, model_var) = (param.var(), param.model_var());
            let is_master = var.id() != model_var.id();
            if is_master {
                // A base that has the model's variable would step what its master overwrites.
                self.store.remove(model_var);
            }
            if self.changed || is_master {
                self.store.insert(var, gradient.to_dtype(var.dtype())?);
            }
        }
        Ok(self.store)
    }
}

/// A store with the same gradients.
fn copied(store: &GradStore) -> Result<GradStore> {
    // candle makes stores by a backward pass only; that of a constant holds the constant alone.
    let constant = Tensor::zeros((), DType::F32, &Device::Cpu)?;
    let mut copy = constant.backward()?;
    copy.remove(&constant);
    for id in store.get_ids() {
        if let Some(gradient) = store.get_id(*id) {
            copy.insert_id(*id, gradient.clone());
        }
    }
    Ok(copy)
}

/// The gradient of a parameter, detached, or an error that says what is amiss with it.
fn checked(param: &Param, pass: Pass, store: &GradStore) -> Result<Tensor> {
    let name = || param.name().to_owned();
    let var = param.model_var();
    let gradient = store
        .get(var)
        .ok_or_else(|| Error::MissingGradient { pass, name: name() })?;
    if var.dims() != gradient.dims() {
        return Err(Error::GradientShape {
            pass,
            name: name(),
            wanted: var.dims().to_vec(),
            got: gradient.dims().to_vec(),
        });
    }
    // What accumulates gradients of half precision may do so in f32.
    let widened = is_half(var.dtype()) && gradient.dtype() == DType::F32;
    let fits = gradient.dtype() == var.dtype() || widened;
    if !fits || !gradient.device().same_device(var.device()) {
        let kind = |t: &Tensor| format!("{:?} on {:?}", t.dtype(), t.device().location());
        return Err(Error::GradientKind {
            pass,
            name: name(),
            wanted: kind(var),
            got: kind(gradient),
        });
    }
    Ok(gradient.detach())
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
