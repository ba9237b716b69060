//! Fused updates: each rule of this crate in one pass over memory.
//!
//! The equations live where they are explained (the rules in [`base`](crate::base), the pull in
//! [`slow::weights`](crate::slow::weights), the ascents in [`perturb`](crate::perturb)); here is how they
//! are carried out. There are two implementations behind one trait:
//!
//! - `composed`: plain candle operations, for every device and dtype. It is the readable reference,
//!   and what the fused forms are tested against. Each operation makes a new tensor.
//! - `cpu`: f32 and f64 on the CPU, in place and in parallel, without a tensor-sized allocation once
//!   the buffers exist.
//! - `batch`, with the feature `cuda`: f32, f64, bf16 and f16 on NVIDIA's graphics cards, in place, one launch for
//!   all tensors of an update.
//!
//! Bytes that each update has to move per f32 weight (reading and writing count once each):
//!
//! | update | reads | writes | bytes |
//! |---|---|---|---|
//! | squared norm | g | | 4 |
//! | SGD without / with momentum | w, g / w, g, b | w / w, b | 12 / 20 |
//! | Adam, AdamW | w, g, m, v | w, m, v | 28 |
//! | perturb | w, ε | w + ε | 12 |
//! | restore | | | 0 |
//! | copy | source | destination | 8 |
//! | a x or a clamped x / a x + b y | x / x, y | a new tensor | 8 / 12 |
//! | a step that starts from φ | the step's | the step's | 0 more |
//! | pull within a step | φ | φ | 8 more |
//! | pull alone, with return | φ, θ | φ / φ, θ | 12 / 16 |
//!
//! A perturbation writes w + ε beside w and exchanges the memory of the two, so that to restore is to
//! exchange again. A step of a built-in base can start from the slow weights, and pull them towards its
//! result, while both are in the processor's cache.
//!
//! The choice is made for each tensor by its device and dtype. The environment variable
//! `SALA_KERNELS`, read once, can overrule it: `auto` (the default) or `composed`, which forces the
//! composed forms everywhere; another value is an error of the first step.
//!
//! Rounding: the fused element-wise forms perform the composed forms' operations in their order, one
//! rounding each and never a fused multiply-add, on every instruction set. Sums are taken in f64, in a
//! fixed order that depends neither on the instruction set nor on the number of threads, so the same
//! run gives the same bits everywhere; the composed forms sum in f64 on the CPU, and elsewhere in f32 along
//! the tree of the device.

mod access;
#[cfg(any(feature = "cuda", sala_emulated))]
mod batch;
mod composed;
mod cpu;
mod loops;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Once, OnceLock};

use candle_core::{DType, Result, Tensor, Var};

use crate::{
    base::{ParamsAdam, ParamsSgd},
    error::check,
    params::is_half,
};

/// Which implementations may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// The fused form where there is one for the tensor's device and dtype, else the composed form.
    #[default]
    Auto,
    /// The composed form everywhere.
    Composed,
    /// On the CPU the kernels for graphics cards, compiled for the processor: for tests.
    #[cfg(sala_emulated)]
    Emulated,
}

/// A number that an update yields: known already, or still a scalar on its device.
#[derive(Debug, Clone)]
pub(crate) enum Scalar {
    Host(f64),
    Device(Tensor),
    /// One of the sums of a launch, which has been made when [`run`] returns.
    #[cfg_attr(
        not(any(feature = "cuda", sala_emulated)),
        allow(dead_code, reason = "only launches make it")
    )]
    Summed(Arc<OnceLock<Tensor>>, usize),
}

/// What happens to the fast weights at a pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fast {
    /// They stay: only φ moves.
    Stay,
    /// They become the new slow weights: θ ← φ.
    Return,
}

/// φ ← φ₀ + α (θ − φ₀), with θ ← φ if so wanted.
#[derive(Debug)]
pub(crate) struct Pull<'a> {
    pub(crate) slow: &'a mut Tensor,
    pub(crate) alpha: f64,
    pub(crate) fast: Fast,
}

/// What a base's step does beside updating, so that nothing is moved through memory twice.
#[derive(Debug, Default)]
pub(crate) struct Beside<'a> {
    /// Step from these weights instead of the current ones: θ ← base(φ, g).
    pub(crate) from: Option<&'a Tensor>,
    /// Pull the slow weights towards the result.
    pub(crate) pull: Option<Pull<'a>>,
}

/// The updates of one tensor. Buffers that are `None` are made by the first call, in f32 for weights of
/// half precision; gradients and slow weights are f32 then, too.
pub(crate) trait Kernels: Sync {
    /// One step of [`sgd`](crate::base::sgd); yields Σ (θ − φ₀)² if it pulls.
    fn sgd(
        &self,
        config: &ParamsSgd,
        weights: &Var,
        gradient: &Tensor,
        buffer: &mut Option<Tensor>,
        beside: Beside,
    ) -> Result<Option<Scalar>>;

    /// Step number t, from 1, of [`adam`](crate::base::adam); yields Σ (θ − φ₀)² if it pulls.
    fn adam(
        &self,
        config_and_t: (&ParamsAdam, u64),
        weights: &Var,
        gradient: &Tensor,
        moments: &mut Option<(Tensor, Tensor)>,
        beside: Beside,
    ) -> Result<Option<Scalar>>;

    /// Σ xᵢ²; NaN or infinite when an element is.
    fn squared_norm(&self, x: &Tensor) -> Result<Scalar>;

    /// Σ xᵢ yᵢ.
    fn dot(&self, x: &Tensor, y: &Tensor) -> Result<Scalar>;

    /// sum ← sum + factor · x, with x of the sum's precision or half of it.
    fn accumulate(&self, sum: &mut Tensor, x: &Tensor, factor: f64) -> Result<()>;

    /// result ← a x + b y, or a x; `result` is [`like`] x.
    fn combine(
        &self,
        result: &mut Tensor,
        ax: (f64, &Tensor),
        by: Option<(f64, &Tensor)>,
    ) -> Result<()>;

    /// result ← min(max(x, −limit), limit); `result` is [`like`] x.
    fn clamp(&self, result: &mut Tensor, x: &Tensor, limit: f64) -> Result<()>;

    /// direction ← T² g and Σ (Tᵢ gᵢ)² with T = |w| + η; `direction` is [`like`] w.
    fn adaptive(
        &self,
        direction: &mut Tensor,
        weights: &Var,
        gradient: &Tensor,
        eta: f64,
    ) -> Result<Scalar>;

    /// saved ← w, then w ← w + scale · direction.
    fn perturb(
        &self,
        weights: &Var,
        saved: &mut Option<Tensor>,
        direction: &Tensor,
        scale: f64,
    ) -> Result<()>;

    /// w ↔ saved, which undoes [`Kernels::perturb`] bit for bit.
    fn exchange(&self, weights: &Var, saved: &mut Tensor) -> Result<()>;

    /// w ← values.
    fn assign(&self, weights: &Var, values: &Tensor) -> Result<()>;

    /// A pull by itself; yields Σ (θ − φ₀)².
    fn pull(&self, weights: &Var, pull: Pull) -> Result<Scalar>;
}

/// Whether the updates of a tensor's device read its gradient as it is, were it of half precision.
pub(crate) fn read_half(gradient: &Tensor) -> crate::Result<bool> {
    Ok(match choice()? {
        Choice::Auto => cfg!(feature = "cuda") && gradient.device().is_cuda(),
        #[cfg(sala_emulated)]
        Choice::Emulated => true,
        Choice::Composed => false,
    })
}

/// `x` in a precision to compute with: f32 for half precision, else as it is.
pub(crate) fn wide(x: &Tensor) -> Result<Tensor> {
    cast(x, wide_dtype(x.dtype()))
}

/// `x` in another type, without its history. candle asks a card for a launch of no block where there is no element, which
/// is an error.
pub(crate) fn cast(x: &Tensor, dtype: DType) -> Result<Tensor> {
    if x.elem_count() == 0 && x.dtype() != dtype {
        return Tensor::zeros(x.shape(), dtype, x.device());
    }
    x.to_dtype(dtype)
}

/// A tensor of the shape of `x`, of the precision that it is computed in, for an update to write, all of it.
///
/// Made before [`run`], which works on a thread of rayon's: an allocator that keeps memory for each thread would not
/// find there what was freed here.
pub(crate) fn like(x: &Tensor) -> Result<Tensor> {
    #[cfg(test)]
    if x.device().is_cpu() {
        // What nobody writes is seen.
        let unwritten = Tensor::full(f64::NAN, x.shape(), x.device())?;
        return unwritten.to_dtype(wide_dtype(x.dtype()));
    }
    // SAFETY: an update writes each element before anything reads it, on a card by a launch that is queued later on the same
    // stream. One that fails leaves its result to nobody.
    unsafe { Tensor::empty(x.shape(), wide_dtype(x.dtype()), x.device()) }
}

/// The precision that tensors of this type are computed in.
fn wide_dtype(dtype: DType) -> DType {
    if is_half(dtype) { DType::F32 } else { dtype }
}

/// λ of coupled decay, and the factor of the weights: 1 − η λ of decoupled decay or 1.
fn decay(lr: f64, weight_decay: f64, decoupled: bool) -> (Option<f64>, f64) {
    let shrink = if decoupled {
        1.0 - lr * weight_decay
    } else {
        1.0
    };
    let coupled = weight_decay > 0.0 && !decoupled;
    (coupled.then_some(weight_decay), shrink)
}

impl Choice {
    /// Reads a value of `SALA_KERNELS`.
    fn parse(value: Option<&str>) -> crate::Result<Self> {
        match value {
            None | Some("" | "auto") => Ok(Self::Auto),
            Some("composed") => Ok(Self::Composed),
            Some(other) => {
                let wanted = "`auto` or `composed`";
                check::holds("environment", "SALA_KERNELS", false, wanted, other)?;
                Ok(Self::Auto)
            }
        }
    }

    /// The implementation for the CPU that handles one tensor after the other, if it may be used.
    fn single(self, tensor: &Tensor) -> Option<&'static dyn Kernels> {
        match (self, tensor.device().is_cpu(), tensor.dtype()) {
            (Self::Auto, true, DType::F32) => Some(&cpu::F32),
            (Self::Auto, true, DType::F64) => Some(&cpu::F64),
            _ => None,
        }
    }
}

/// A condition of updates that their device decides, so that nobody waits between the numbers it depends on
/// and the updates: all numbers are finite.
#[derive(Debug)]
pub(crate) struct Guard {
    #[cfg(any(feature = "cuda", sala_emulated))]
    judged: batch::Judged,
    #[cfg(not(any(feature = "cuda", sala_emulated)))]
    never: std::convert::Infallible,
}

impl Guard {
    /// On a loss and squared norms, f64 in this order, where their device can decide. Gradients of guarded updates
    /// are multiplied by min(1, limit / √Σ squares).
    #[cfg_attr(
        not(any(feature = "cuda", sala_emulated)),
        allow(clippy::unnecessary_wraps, reason = "nothing is asked of a device")
    )]
    pub(crate) fn new(numbers: &Tensor, limit: f64) -> crate::Result<Option<Self>> {
        #[cfg(any(feature = "cuda", sala_emulated))]
        {
            let mut session = Session::new(choice()?);
            session.prepare(numbers, None)?;
            let judge = |batch: &batch::Batch| batch.judge(numbers, limit);
            let judged = session.batches.first().map(judge).transpose()?;
            Ok(judged.map(|judged| Self { judged }))
        }
        #[cfg(not(any(feature = "cuda", sala_emulated)))]
        {
            let _ = (numbers, limit);
            Ok(None)
        }
    }

    /// The numbers on the host. Waits for them, and not for the updates.
    pub(crate) fn numbers(self) -> crate::Result<Vec<f64>> {
        #[cfg(any(feature = "cuda", sala_emulated))]
        {
            #[cfg(any(test, feature = "testing"))]
            crate::testing::count_synchronisation();
            Ok(self.judged.numbers.receive()?)
        }
        #[cfg(not(any(feature = "cuda", sala_emulated)))]
        match self.never {}
    }
}

/// The implementations that the updates of one [`run`] use.
pub(crate) struct Session {
    choice: Choice,
    /// One for each graphics card.
    #[cfg(any(feature = "cuda", sala_emulated))]
    batches: Vec<batch::Batch>,
}

impl Session {
    fn new(choice: Choice) -> Self {
        Self {
            choice,
            #[cfg(any(feature = "cuda", sala_emulated))]
            batches: Vec::new(),
        }
    }

    /// Gets ready for updates on this tensor's device, under a guard of the same device if there is one.
    #[cfg(any(feature = "cuda", sala_emulated))]
    fn prepare(&mut self, tensor: &Tensor, guard: Option<&Guard>) -> Result<()> {
        if self.batches.iter().any(|batch| batch.serves(tensor)) {
            return Ok(());
        }
        let batch = match self.choice {
            #[cfg(feature = "cuda")]
            Choice::Auto => batch::Batch::on_card(tensor.device()),
            #[cfg(sala_emulated)]
            Choice::Emulated => Some(batch::Batch::emulated()),
            _ => None,
        };
        if let Some(mut batch) = batch {
            if let Some(guard) = guard {
                batch.obey(&guard.judged)?;
            }
            self.batches.push(batch);
        }
        Ok(())
    }

    /// The implementation for a tensor.
    pub(crate) fn of(&self, tensor: &Tensor) -> &dyn Kernels {
        if let Some(kernels) = self.choice.single(tensor) {
            return kernels;
        }
        #[cfg(any(feature = "cuda", sala_emulated))]
        if let Some(batch) = self.batches.iter().find(|batch| batch.serves(tensor)) {
            return batch;
        }
        if self.choice != Choice::Composed {
            announce_fallback(tensor, tensor.dtype());
        }
        &composed::Composed
    }

    /// Launches what was recorded.
    #[cfg_attr(
        not(any(feature = "cuda", sala_emulated)),
        allow(
            clippy::unused_self,
            clippy::unnecessary_wraps,
            reason = "nothing is recorded"
        )
    )]
    fn finish(&self) -> Result<()> {
        #[cfg(any(feature = "cuda", sala_emulated))]
        for batch in &self.batches {
            batch.finish()?;
        }
        Ok(())
    }
}

fn announce_fallback(tensor: &Tensor, dtype: DType) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let device = tensor.device().location();
        tracing::info!(
            ?device,
            ?dtype,
            "no fused kernels for this device and dtype: using composed operations"
        );
    });
}

/// The process's choice: that of the environment variable `SALA_KERNELS`.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config) when the variable has an unknown value.
///
/// ```
/// use sala_core::kernels::{self, Choice};
/// let choice = kernels::choice()?;
/// assert!(choice == Choice::Auto || choice == Choice::Composed);
/// # Ok::<(), sala_core::Error>(())
/// ```
pub fn choice() -> crate::Result<Choice> {
    static VALUE: OnceLock<Option<String>> = OnceLock::new();
    #[cfg(any(test, feature = "testing"))]
    if let Some(choice) = forced::get() {
        return Ok(choice);
    }
    let value = VALUE
        .get_or_init(|| std::env::var_os("SALA_KERNELS").map(|v| v.to_string_lossy().into_owned()));
    Choice::parse(value.as_deref())
}

#[cfg(any(test, feature = "testing"))]
pub use forced::with_choice;

/// A choice for tests and benchmarks, which compare both forms within one process.
#[cfg(any(test, feature = "testing"))]
mod forced {
    use std::cell::Cell;

    use super::Choice;

    thread_local! {
        static FORCED: Cell<Option<Choice>> = const { Cell::new(None) };
    }

    pub(super) fn get() -> Option<Choice> {
        FORCED.get()
    }

    /// Runs `work` with this choice, whatever the environment says, for the calling thread.
    pub fn with_choice<R>(choice: Choice, work: impl FnOnce() -> R) -> R {
        struct Reset(Option<Choice>);
        impl Drop for Reset {
            fn drop(&mut self) {
                FORCED.set(self.0);
            }
        }
        let _reset = Reset(FORCED.replace(Some(choice)));
        work()
    }
}

/// Whether rayon has threads to share work with. A pool of one is not entered: runs that train side by
/// side, each on a thread of its own, would wait for each other at its door.
fn parallel() -> bool {
    rayon::current_num_threads() > 1
}

/// Runs the updates of many tensors: on the CPU within rayon's thread pool when the fused kernels have enough to
/// do, which saves waking it for each tensor; on a graphics card in one launch for each kind of update, which
/// has been queued when this returns. An error of `work` leaves undone what it asked of a card.
///
/// Kernels hold the locks of the tensors that they work on while they wait for each other, so code
/// that runs in the same pool must not use the parameters meanwhile; a training loop has no reason to.
pub(crate) fn run<'a, R: Send>(
    tensors: impl IntoIterator<Item = &'a Tensor>,
    work: impl FnOnce(&Session) -> crate::Result<R> + Send,
) -> crate::Result<R> {
    run_under(None, tensors, work)
}

/// As [`run`], of updates that are carried out only if what the guard depends on is finite.
pub(crate) fn run_under<'a, R: Send>(
    guard: Option<&Guard>,
    tensors: impl IntoIterator<Item = &'a Tensor>,
    work: impl FnOnce(&Session) -> crate::Result<R> + Send,
) -> crate::Result<R> {
    #[cfg(not(any(feature = "cuda", sala_emulated)))]
    let _ = guard;
    let choice = choice()?;
    #[cfg_attr(
        not(any(feature = "cuda", sala_emulated)),
        allow(unused_mut, reason = "there is nothing to prepare")
    )]
    let mut session = Session::new(choice);
    let mut elements = 0;
    for tensor in tensors {
        if choice.single(tensor).is_some() {
            elements += tensor.elem_count();
        }
        #[cfg(any(feature = "cuda", sala_emulated))]
        session.prepare(tensor, guard)?;
    }
    let done = if !parallel() || elements <= cpu::CHUNK {
        work(&session)
    } else {
        rayon::scope(|_| work(&session))
    }?;
    session.finish()?;
    Ok(done)
}
