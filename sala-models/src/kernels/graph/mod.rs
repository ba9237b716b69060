//! The operations of this crate in candle's graph, with gradients that are handed over instead of added
//! up.
//!
//! candle's backward starts the gradient of every tensor with zeros and adds to it what each operation
//! yields, on one thread: memory sees each gradient six times more than it has to. Where the result of one
//! operation here is the input of another, that is avoided by two graphs:
//!
//! ```text
//! values:    x ──► y = f(x) ──► z = g(y)          each value knows its token, and nothing else
//! tokens:    x ──► token of f ──► token of g      what candle differentiates
//! ```
//!
//! A *token* is a scalar that stands in candle's graph for one application of an operation. Its arguments
//! are the tokens of the inputs, or an input itself if it is a parameter or was made by an operation of
//! candle. candle visits the tokens in the order of its backward and adds up their gradients, which are
//! scalars and mean nothing; the true gradients go from operation to operation through the *inbox* of each.
//! Where a value is used by an operation of candle, its gradient arrives from there and goes into the same
//! inbox. So the two kinds mix freely, and the gradients are those of candle's graph.
//!
//! The parameters remain: their gradients have to reach candle's [`GradStore`](candle_core::backprop::GradStore), unless
//! [`backward`] collects them. It also goes from application to application by itself where candle has no operation
//! between them, so that no token is touched.

mod backward;
mod composed;
mod tokens;

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError},
};

use candle_core::{Result, Tensor, TensorId, bail};

use super::sum::sum;
pub use backward::backward;
use backward::collect;
pub(crate) use composed::{composed, reshaped};
use tokens::{Value, nothing, token};

/// An operation. It is made for one application, so it may keep in itself what its backward needs.
pub(crate) trait Operation: Send + Sync + 'static {
    fn name(&self) -> &'static str;

    /// The result of contiguous inputs: a contiguous tensor in memory of its own. All are outside every graph.
    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor>;

    /// The gradients of the inputs, at least of those that are tracked, for a contiguous gradient of the
    /// result.
    fn backward(
        &self,
        inputs: &[Input],
        result: &Tensor,
        gradient: &Tensor,
    ) -> Result<Vec<Option<Tensor>>>;
}

/// An input as the backward finds it.
pub(crate) struct Input {
    /// Its value, outside every graph.
    pub(crate) value: Tensor,
    /// Whether its gradient is needed.
    pub(crate) tracked: bool,
    /// Whether it is a parameter, which keeps its gradient: it must not share memory with another.
    pub(crate) parameter: bool,
}

/// Applies an operation to tensors.
pub(crate) fn apply(op: impl Operation, inputs: &[&Tensor]) -> Result<Tensor> {
    let values: Vec<Tensor> = inputs.iter().map(|input| input.detach()).collect();
    let value = op.forward(&values.iter().collect::<Vec<_>>())?;
    let tracked: Vec<&Tensor> = (inputs.iter().copied())
        .filter(|input| is_tracked(input))
        .collect();
    if tracked.is_empty() {
        return Ok(value);
    }
    let sources: Vec<Source> = tracked.iter().map(|input| Source::of(input)).collect();
    let application = Arc::new(Application {
        op: Box::new(op),
        inputs: inputs.iter().map(|&input| Input::of(input)).collect(),
        recipients: sources.iter().map(|s| s.recipient.clone()).collect(),
        result: OnceLock::new(),
        inbox: Inbox::default(),
    });
    let token = token(&application, sources)?;
    let registration = Registration::default();
    let result = token.apply_op1(Value {
        held: Mutex::new(Some(value)),
        application: Arc::clone(&application),
        registration: registration.clone(),
    })?;
    // Set once: it was made a few lines above.
    let _ = application.result.set(result.detach());
    registration.enter(&result, token, application);
    Ok(result)
}

/// One application of an operation.
struct Application {
    op: Box<dyn Operation>,
    inputs: Vec<Input>,
    /// Where the gradients of the tracked inputs go.
    recipients: Vec<Recipient>,
    /// The value of the result.
    result: OnceLock<Tensor>,
    /// Gradients of the result.
    inbox: Inbox,
}

impl Application {
    /// Turns what is in the inbox into gradients of the inputs, and sends them.
    fn differentiate(&self) -> Result<()> {
        let Some(result) = self.result.get() else {
            bail!("{}: backward before forward", self.op.name());
        };
        let gradient = match self.inbox.take()? {
            Some(gradient) => gradient.contiguous()?,
            None => result.zeros_like()?,
        };
        let gradients = self.op.backward(&self.inputs, result, &gradient)?;
        let tracked = (self.inputs.iter().zip(gradients)).filter(|(input, _)| input.tracked);
        for ((_, gradient), recipient) in tracked.zip(&self.recipients) {
            if let Some(gradient) = gradient {
                recipient.inbox().put(gradient);
            }
        }
        Ok(())
    }
}

impl Input {
    fn of(tensor: &Tensor) -> Self {
        Self {
            value: tensor.detach(),
            tracked: is_tracked(tensor),
            parameter: tensor.is_variable(),
        }
    }

    /// A gradient that others have, too, as the gradient of this input.
    pub(crate) fn share(&self, gradient: &Tensor) -> Result<Tensor> {
        if self.parameter {
            gradient.force_contiguous()
        } else {
            Ok(gradient.clone())
        }
    }
}

/// Whether a gradient can reach the tensor. Integers have none, whatever they were computed from.
fn is_tracked(tensor: &Tensor) -> bool {
    tensor.track_op() && tensor.dtype().is_float()
}

/// Gradients of one tensor, that are to be added.
#[derive(Default)]
struct Inbox(Mutex<Vec<Tensor>>);

impl Inbox {
    fn put(&self, gradient: Tensor) {
        lock(&self.0).push(gradient);
    }

    fn clear(&self) {
        let gradients = mem::take(&mut *lock(&self.0));
        drop(gradients);
    }

    /// The sum, in the order of arrival.
    fn take(&self) -> Result<Option<Tensor>> {
        let gradients = mem::take(&mut *lock(&self.0));
        sum(gradients)
    }
}

/// Who gets the gradient of an input.
#[derive(Clone)]
enum Recipient {
    /// The operation whose result it is.
    Application(Arc<Application>),
    /// candle: the input, which is here, is a parameter, or the result of one of candle's operations.
    Candle(Tensor, Arc<Inbox>),
    /// Several inputs, that share a token.
    Joined,
}

impl Recipient {
    fn inbox(&self) -> &Inbox {
        static NONE: LazyLock<Inbox> = LazyLock::new(Inbox::default);
        match self {
            Self::Application(application) => &application.inbox,
            Self::Candle(_, inbox) => inbox,
            Self::Joined => &NONE,
        }
    }

    /// What candle is told to be the gradient of `argument`, when it comes to `token`.
    fn answer(&self, argument: &Tensor, token: &Tensor) -> Result<Option<Tensor>> {
        let Self::Candle(_, inbox) = self else {
            return nothing(argument.device()).map(Some);
        };
        let gradient = inbox.take()?;
        match gradient {
            Some(gradient) if argument.is_variable() => Ok(collect(token.id(), argument, gradient)),
            other => Ok(other),
        }
    }
}

/// A tracked input: its place in candle's graph, and who gets its gradient.
struct Source {
    argument: Tensor,
    recipient: Recipient,
}

impl Source {
    fn of(input: &Tensor) -> Self {
        match lock(&RESULTS).get(&input.id()) {
            Some((token, application)) => Self {
                argument: token.clone(),
                recipient: Recipient::Application(Arc::clone(application)),
            },
            None => Self {
                argument: input.clone(),
                recipient: Recipient::Candle(input.clone(), Arc::default()),
            },
        }
    }
}

type Results = HashMap<TensorId, (Tensor, Arc<Application>)>;

/// The tokens and applications of the values that are in use.
static RESULTS: LazyLock<Mutex<Results>> = LazyLock::new(Mutex::default);

/// An entry of [`RESULTS`], which ends with the last copy of the value's place in candle's graph.
#[derive(Clone, Default)]
struct Registration(Arc<Entry>);

#[derive(Default)]
struct Entry(OnceLock<TensorId>);

impl Registration {
    fn enter(&self, result: &Tensor, token: Tensor, application: Arc<Application>) {
        let id = *self.0.0.get_or_init(|| result.id());
        lock(&RESULTS).insert(id, (token, application));
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let removed = self.0.get().and_then(|id| lock(&RESULTS).remove(id));
        // After the lock is gone: with it may end other values, which come here, too.
        drop(removed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;
    use crate::ops::{gelu, linear};

    fn registered(id: TensorId) -> bool {
        lock(&RESULTS).contains_key(&id)
    }

    #[test]
    fn a_value_is_known_as_long_as_it_is_in_use() {
        let weight = Var::ones((2, 2), DType::F32, &Device::Cpu).unwrap();
        let x = Tensor::ones((1, 2), DType::F32, &Device::Cpu).unwrap();
        let h = linear(&x, &weight, None).unwrap();
        let id = h.id();
        assert!(registered(id));
        let candles = (&h * 2.0).unwrap();
        let ours = gelu(&h).unwrap();
        drop(h);
        assert!(registered(id), "candle's product is made of it");
        drop(candles);
        assert!(!registered(id), "ours is made of its token alone");
        let of_ours = ours.id();
        drop(ours);
        assert!(!registered(of_ours));
    }

    #[test]
    fn a_value_without_gradient_is_not_known() {
        let x = Tensor::ones((1, 2), DType::F32, &Device::Cpu).unwrap();
        let y = gelu(&x).unwrap();
        assert!(!y.track_op() && !registered(y.id()));
    }
}
