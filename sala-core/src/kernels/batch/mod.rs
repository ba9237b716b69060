//! The updates of many tensors in one launch, for graphics cards.
//!
//! A launch costs some microseconds, more than most tensors' share of an update, and networks have hundreds of
//! tensors. So an update of a tensor is recorded here, and [`Batch::finish`] makes one launch for all that were
//! recorded of a kernel: a block for each chunk of 16 Ki elements, which finds its work in a table of addresses and
//! constants ([`table`]). A job that needs what a recorded one writes has that run first, so what is computed
//! is what it would be in order ([`record`]).
//!
//! Sums are f64: a block adds up its chunk along a tree, a second launch adds up the blocks of each tensor. Nothing
//! depends on which block runs first, so the same run gives the same bits. They stay on the card until
//! [`vector`](crate::vector) reads them, with the others that a decision needs, in one synchronisation.
//!
//! Launches can obey a verdict of the card ([`Batch::judge`]), so that an update need not wait until the host has read
//! whether the gradients are finite: blocks return at once if they are not.
//!
//! The element-wise updates round as `cpu` does: each operation once, no fused multiply-add. Weights of half precision
//! are computed in f32 and rounded as they are stored.
//!
//! The kernels are in `device/`. `cuda` launches them; for tests, `emulated` runs the same source on the
//! processor.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(sala_emulated)]
pub(super) mod emulated;
mod place;
pub(super) mod record;
mod table;

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use candle_core::{DType, Device, Error, Result, Tensor, Var, bail};

use super::{Beside, Fast, Kernels, Pull, Scalar, cast, decay, wide_dtype};
use crate::base::{ParamsAdam, ParamsSgd};
use place::{Place, exchange, place, storage_of};
use record::{Kernel, Launch, Recorder};
use table::{Job, Table, flag};

/// Threads of a block; `device/block.cuh` has the same number.
#[cfg(feature = "cuda")]
const THREADS: u32 = 256;

/// What runs kernels.
trait Card: Send + Sync {
    /// Queues a kernel on its arguments, addresses or numbers.
    fn launch(&self, kernel: &str, blocks: u32, arguments: &[u64]) -> Result<()>;

    /// Memory of the host for so many f64 numbers, which kernels can write.
    fn pages(&self, len: usize) -> Result<Box<dyn Pages>>;
}

/// Memory of the host that a kernel writes numbers to.
trait Pages {
    fn address(&mut self) -> Result<u64>;

    /// To be called when the kernel that fills it was queued.
    fn sent(self: Box<Self>) -> Result<Box<dyn Sent>>;
}

/// Numbers on their way to the host.
pub(super) trait Sent: Send + Sync + fmt::Debug {
    /// Waits for them, and not for what was queued since.
    fn receive(self: Box<Self>) -> Result<Vec<f64>>;
}

/// A condition of updates that the card decides, and the numbers that it decides by.
#[derive(Debug)]
pub(super) struct Judged {
    /// As `device/multi_tensor.cu` writes it.
    verdict: Tensor,
    pub(super) numbers: Box<dyn Sent>,
}

/// The updates recorded for one device.
pub(super) struct Batch {
    device: Device,
    card: Box<dyn Card>,
    recorder: Mutex<Recorder>,
    /// Launch each job as it comes.
    eager: bool,
    /// Address of the verdict that launches obey; 0 for none.
    verdict: u64,
}

impl Batch {
    /// For a CUDA device; `None` for another one.
    #[cfg(feature = "cuda")]
    pub(super) fn on_card(device: &Device) -> Option<Self> {
        let card = device.as_cuda_device().ok()?.clone();
        Some(Self::new(device.clone(), Box::new(card)))
    }

    /// For tensors on the CPU.
    #[cfg(sala_emulated)]
    pub(super) fn emulated() -> Self {
        Self::new(Device::Cpu, Box::new(emulated::Emulated))
    }

    fn new(device: Device, card: Box<dyn Card>) -> Self {
        Self {
            device,
            card,
            recorder: Mutex::default(),
            eager: false,
            verdict: 0,
        }
    }

    /// Has all launches depend on what the card decides, which must live until the last of them is queued.
    pub(super) fn obey(&mut self, judged: &Judged) -> Result<()> {
        self.verdict = place(&judged.verdict)?.start;
        Ok(())
    }

    /// Has the card decide whether all numbers are finite and, taking those after the first one as squared norms, by
    /// which factor the norm of all comes down to `limit`.
    pub(super) fn judge(&self, numbers: &Tensor, limit: f64) -> Result<Judged> {
        let verdict = self.empty(2)?;
        let count = numbers.elem_count();
        let mut pages = self.card.pages(count)?;
        let arguments = [
            place(numbers)?.start,
            count as u64,
            limit.to_bits(),
            place(&verdict)?.start,
            // The kernel sends them itself: a copy would stand between it and what depends on the verdict.
            pages.address()?,
        ];
        self.card.launch("judge", 1, &arguments)?;
        Ok(Judged {
            verdict,
            numbers: pages.sent()?,
        })
    }

    /// Launches each job as it comes, for tests that look at what one does.
    #[cfg(test)]
    pub(super) fn eager(mut self) -> Self {
        self.eager = true;
        self
    }

    pub(super) fn serves(&self, tensor: &Tensor) -> bool {
        suffix(tensor.dtype()).is_some() && self.device.same_device(tensor.device())
    }

    fn recorder(&self) -> MutexGuard<'_, Recorder> {
        // A panic while jobs were added leaves complete jobs.
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Launches what is recorded.
    ///
    /// # Errors
    /// Those of the device; what was not launched is forgotten.
    pub(super) fn finish(&self) -> Result<()> {
        let (launches, kept) = self.recorder().take();
        for launch in &launches {
            self.launch(launch)?;
        }
        // Only now may the memory be freed.
        drop(kept);
        Ok(())
    }

    fn launch(&self, Launch { kernel, jobs, sums }: &Launch) -> Result<()> {
        let Table { words, blocks } = Table::new(jobs)?;
        let words = Tensor::from_slice(&words, words.len(), &self.device)?;
        let table_at = place(&words)?.start;
        let firsts_at = Table::first_blocks(table_at, jobs.len());
        let partial = (kernel.sums)
            .then(|| self.partial_sums(blocks as usize))
            .transpose()?;
        let partial_at = match &partial {
            Some(partial) => place(partial)?.start,
            None => 0,
        };
        if blocks > 0 {
            let name = format!("{}_{}", kernel.rule, kernel.dtype);
            let count = jobs.len() as u64;
            let arguments = [table_at, firsts_at, count, partial_at, self.verdict];
            self.card.launch(&name, blocks, &arguments)?;
        }
        if kernel.sums {
            let totals = self.empty(jobs.len())?;
            let count = u32::try_from(jobs.len()).map_err(Error::wrap)?;
            let arguments = [partial_at, firsts_at, place(&totals)?.start];
            self.card.launch("total", count, &arguments)?;
            // Nobody else sets it: the launch was taken from the recorder.
            let _ = sums.set(totals);
        }
        Ok(())
    }

    /// A sum for each block. Blocks that obey a verdict may leave theirs as it is.
    fn partial_sums(&self, blocks: usize) -> Result<Tensor> {
        if self.verdict == 0 {
            return self.empty(blocks);
        }
        Tensor::zeros(blocks, DType::F64, &self.device)
    }

    /// f64 numbers that a kernel is going to write, all of them.
    fn empty(&self, len: usize) -> Result<Tensor> {
        if self.device.is_cpu() {
            // What nobody writes is seen.
            return Tensor::full(f64::NAN, len, &self.device);
        }
        // SAFETY: as promised, each is written before it is read, by a kernel that is queued later on the same stream.
        unsafe { Tensor::empty(len, DType::F64, &self.device) }
    }

    /// Runs what is recorded if work on these storages must wait for it.
    fn settle(&self, reads: &[u64], writes: &[u64]) -> Result<()> {
        let conflicts = self.recorder().conflicts(reads, writes);
        if conflicts { self.finish() } else { Ok(()) }
    }

    /// `x` as a kernel can read it: of the shape of `like`, of the type `dtype`, contiguous. A copy only if it must be.
    fn operand(&self, x: &Tensor, dtype: DType, like: &Tensor) -> Result<Tensor> {
        fits(x, dtype, like)?;
        // The usual case first: what follows looks at layouts and storages, for each tensor of each update.
        if x.dtype() == dtype && x.is_contiguous() {
            return Ok(x.clone());
        }
        // Nobody is let at the storage of a view that repeats elements, so all that is recorded runs first.
        if x.layout().has_internal_overlap() {
            self.finish()?;
        } else {
            self.settle(&[storage_of(x)?], &[])?;
        }
        cast(x, dtype)?.contiguous()
    }

    /// A gradient as rules read it: of the type that they compute in, or of half precision, of which the job is told.
    fn gradient(&self, gradient: &Tensor, weights: &Tensor, job: &mut Job) -> Result<Tensor> {
        let dtype = match gradient.dtype() {
            half @ (DType::BF16 | DType::F16) => half,
            _ => wide_dtype(weights.dtype()),
        };
        job.flags |= match dtype {
            DType::BF16 => flag::BF16_GRADIENT,
            DType::F16 => flag::F16_GRADIENT,
            _ => 0,
        };
        if wide_dtype(dtype) != wide_dtype(weights.dtype()) {
            fits(gradient, wide_dtype(weights.dtype()), weights)?;
        }
        self.operand(gradient, dtype, weights)
    }

    /// Records a job of the kernel for the first operand's type, on these operands, whose addresses it gets in
    /// order; those of the numbers `writes` are written. What is read in the storage of one that is written is
    /// copied before.
    fn record(
        &self,
        (rule, sums): (&'static str, bool),
        operands: &[Option<&Tensor>],
        writes: &[usize],
        mut job: Job,
    ) -> Result<Scalar> {
        let Some(Some(first)) = operands.first() else {
            bail!("a kernel without operands");
        };
        let Some(dtype) = suffix(first.dtype()) else {
            bail!("no fused kernels for {:?}", first.dtype());
        };
        job.len = first.elem_count();
        let given = operands.iter().enumerate();
        let (written, read): (Vec<_>, Vec<_>) = given
            .filter_map(|(i, operand)| Some((i, (*operand)?)))
            .partition(|(i, _)| writes.contains(i));
        let (mut kept, mut stored, mut loaded) = (Vec::new(), Vec::new(), Vec::new());
        for (i, operand) in written {
            let Place { storage, start, .. } = place(operand)?;
            job.at[i] = start;
            stored.push(storage);
            kept.push(operand.clone());
        }
        for (i, operand) in read {
            let mut operand = operand.clone();
            let mut at = place(&operand)?;
            if stored.contains(&at.storage) {
                self.settle(&[at.storage], &[])?;
                operand = operand.force_contiguous()?;
                at = place(&operand)?;
            }
            job.at[i] = at.start;
            loaded.push(at.storage);
            kept.push(operand);
        }
        let kernel = Kernel { rule, dtype, sums };
        self.settle(&loaded, &stored)?;
        let mut recorder = self.recorder();
        recorder.keep(kept);
        let scalar = recorder.push(kernel, job, (&loaded, &stored));
        drop(recorder);
        if self.eager {
            self.finish()?;
        }
        Ok(scalar)
    }

    /// A base's update, from `from` if so asked, with a pull beside it. The rule's constants are in the job.
    fn step(
        &self,
        rule: &'static str,
        (weights, gradient): (&Var, &Tensor),
        (first, second): (Option<&Tensor>, Option<&Tensor>),
        beside: Beside,
        mut job: Job,
    ) -> Result<Option<Scalar>> {
        let Beside { from, pull } = beside;
        let wide = wide_dtype(weights.dtype());
        let separate = |x: &Tensor| self.operand(x, wide, weights);
        let from = from.map(separate).transpose()?;
        let slow = match pull {
            Some(Pull { slow, alpha, fast }) => {
                fits(slow, wide, weights)?;
                job.by[9] = alpha;
                job.flags |= after(fast);
                Some(&*slow)
            }
            None => None,
        };
        job.by[10] = 1.0;
        let operands = [
            Some(weights.as_tensor()),
            Some(gradient),
            first,
            second,
            from.as_ref(),
            slow,
        ];
        let sum = self.record((rule, slow.is_some()), &operands, &[0, 2, 3, 5], job)?;
        Ok(slow.map(|_| sum))
    }
}

/// The flag of what becomes of the fast weights.
fn after(fast: Fast) -> u64 {
    match fast {
        Fast::Stay => 0,
        Fast::Return => flag::RETURN,
    }
}

/// Whether an operand has the shape that is wanted, and the type or one that is computed in it.
fn fits(operand: &Tensor, dtype: DType, like: &Tensor) -> Result<()> {
    if operand.shape() != like.shape() {
        return Err(Error::ShapeMismatchBinaryOp {
            lhs: like.shape().clone(),
            rhs: operand.shape().clone(),
            op: "fused kernel",
        });
    }
    if wide_dtype(operand.dtype()) != wide_dtype(dtype) {
        return Err(Error::DTypeMismatchBinaryOp {
            lhs: dtype,
            rhs: operand.dtype(),
            op: "fused kernel",
        });
    }
    Ok(())
}

/// The name of a type in the names of kernels.
fn suffix(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::F32 => Some("f32"),
        DType::F64 => Some("f64"),
        DType::BF16 => Some("bf16"),
        DType::F16 => Some("f16"),
        _ => None,
    }
}

impl Kernels for Batch {
    fn sgd(
        &self,
        config: &ParamsSgd,
        weights: &Var,
        gradient: &Tensor,
        buffer: &mut Option<Tensor>,
        beside: Beside,
    ) -> Result<Option<Scalar>> {
        let mut job = Job::default();
        let gradient = self.gradient(gradient, weights, &mut job)?;
        let (decay, shrink) = decay(config.lr, config.weight_decay, config.decoupled);
        job.flags |= decay.map_or(0, |_| flag::COUPLED);
        job.flags |= if config.nesterov { flag::NESTEROV } else { 0 };
        job.flags |= if buffer.is_none() { flag::FIRST } else { 0 };
        job.by[..5].copy_from_slice(&[
            config.lr,
            decay.unwrap_or(0.0),
            shrink,
            config.momentum,
            1.0 - config.dampening,
        ]);
        if config.momentum > 0.0 {
            if buffer.is_none() {
                *buffer = Some(zeros_like(weights)?);
            }
        } else {
            *buffer = None;
        }
        self.step(
            "sgd",
            (weights, &gradient),
            (buffer.as_ref(), None),
            beside,
            job,
        )
    }

    fn adam(
        &self,
        (config, t): (&ParamsAdam, u64),
        weights: &Var,
        gradient: &Tensor,
        moments: &mut Option<(Tensor, Tensor)>,
        beside: Beside,
    ) -> Result<Option<Scalar>> {
        let ParamsAdam {
            lr, beta1, beta2, ..
        } = *config;
        let mut job = Job::default();
        let gradient = self.gradient(gradient, weights, &mut job)?;
        let (decay, shrink) = decay(lr, config.weight_decay, config.decoupled);
        let t = t as f64;
        job.flags |= decay.map_or(0, |_| flag::COUPLED);
        job.by[..9].copy_from_slice(&[
            lr / (1.0 - beta1.powf(t)),
            decay.unwrap_or(0.0),
            shrink,
            beta1,
            1.0 - beta1,
            beta2,
            1.0 - beta2,
            1.0 / (1.0 - beta2.powf(t)).sqrt(),
            config.eps,
        ]);
        let (m, v) = match moments {
            Some(moments) => moments,
            None => moments.insert((zeros_like(weights)?, zeros_like(weights)?)),
        };
        self.step(
            "adam",
            (weights, &gradient),
            (Some(m), Some(v)),
            beside,
            job,
        )
    }

    fn squared_norm(&self, x: &Tensor) -> Result<Scalar> {
        let x = self.operand(x, x.dtype(), x)?;
        self.record(("squared_norm", true), &[Some(&x)], &[], Job::default())
    }

    fn dot(&self, x: &Tensor, y: &Tensor) -> Result<Scalar> {
        let x = self.operand(x, x.dtype(), x)?;
        let y = self.operand(y, x.dtype(), &x)?;
        self.record(("dot", true), &[Some(&x), Some(&y)], &[], Job::default())
    }

    fn accumulate(&self, sum: &mut Tensor, x: &Tensor, factor: f64) -> Result<()> {
        let mut job = Job::default();
        let x = self.gradient(x, sum, &mut job)?;
        job.by[0] = factor;
        self.record(("accumulate", false), &[Some(sum), Some(&x)], &[0], job)?;
        Ok(())
    }

    fn combine(
        &self,
        result: &mut Tensor,
        (a, x): (f64, &Tensor),
        by: Option<(f64, &Tensor)>,
    ) -> Result<()> {
        let mut job = Job::default();
        let x = self.gradient(x, result, &mut job)?;
        job.by[..2].copy_from_slice(&[a, by.map_or(0.0, |(b, _)| b)]);
        let y = by.map(|(_, y)| self.operand(y, result.dtype(), result));
        let y = y.transpose()?;
        let operands = [Some(&*result), Some(&x), y.as_ref()];
        self.record(("combine", false), &operands, &[0], job)?;
        Ok(())
    }

    fn clamp(&self, result: &mut Tensor, x: &Tensor, limit: f64) -> Result<()> {
        let mut job = Job::default();
        let x = self.gradient(x, result, &mut job)?;
        job.by[0] = limit;
        self.record(("clamp", false), &[Some(&*result), Some(&x)], &[0], job)?;
        Ok(())
    }

    fn adaptive(
        &self,
        direction: &mut Tensor,
        weights: &Var,
        gradient: &Tensor,
        eta: f64,
    ) -> Result<Scalar> {
        let mut job = Job::default();
        let gradient = self.gradient(gradient, weights, &mut job)?;
        job.by[0] = eta;
        let operands = [
            Some(weights.as_tensor()),
            Some(&gradient),
            Some(&*direction),
        ];
        self.record(("adaptive", true), &operands, &[2], job)
    }

    /// Exchanges the memory at once; what is recorded has the addresses of before.
    fn perturb(
        &self,
        weights: &Var,
        saved: &mut Option<Tensor>,
        direction: &Tensor,
        scale: f64,
    ) -> Result<()> {
        let mut job = Job::default();
        let direction = self.gradient(direction, weights, &mut job)?;
        let beside = match saved {
            Some(saved) => saved,
            None => saved.insert(weights.zeros_like()?.detach()),
        };
        job.by[0] = scale;
        let operands = [Some(&*beside), Some(&direction), Some(weights.as_tensor())];
        self.record(("offset", false), &operands, &[0], job)?;
        self.exchange(weights, beside)
    }

    fn exchange(&self, weights: &Var, saved: &mut Tensor) -> Result<()> {
        if place(weights)?.whole && place(saved)?.whole {
            // Recorded jobs may point into either memory, which is alive as long as both tensors are.
            let both = [weights.as_tensor().clone(), saved.clone()];
            self.recorder().keep(both);
            return exchange(weights, saved);
        }
        let operands = [Some(weights.as_tensor()), Some(&*saved)];
        self.record(("swap", false), &operands, &[0, 1], Job::default())?;
        Ok(())
    }

    fn assign(&self, weights: &Var, values: &Tensor) -> Result<()> {
        let (to, wide) = (weights.dtype(), wide_dtype(weights.dtype()));
        let rounds = to != wide && values.dtype() == wide;
        let dtype = if rounds { wide } else { to };
        let values = self.operand(values, dtype, weights)?;
        let rule = if rounds { "round" } else { "assign" };
        let operands = [Some(weights.as_tensor()), Some(&values)];
        self.record((rule, false), &operands, &[0], Job::default())?;
        Ok(())
    }

    fn pull(&self, weights: &Var, pull: Pull) -> Result<Scalar> {
        let Pull { slow, alpha, fast } = pull;
        fits(slow, wide_dtype(weights.dtype()), weights)?;
        let mut job = Job::default();
        job.by[9] = alpha;
        job.flags |= after(fast);
        let operands = [Some(weights.as_tensor()), Some(&*slow)];
        let writes: &[usize] = if fast == Fast::Return { &[0, 1] } else { &[1] };
        self.record(("pull", true), &operands, writes, job)
    }
}

/// A buffer for weights of half precision is f32.
fn zeros_like(weights: &Tensor) -> Result<Tensor> {
    Tensor::zeros(
        weights.shape(),
        wide_dtype(weights.dtype()),
        weights.device(),
    )
}
