//! Tokens and values as candle's operations: what its backward comes to.

use std::{
    cell::RefCell,
    mem,
    sync::{Arc, Mutex},
};

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, DType, Device, InplaceOp1, Layout,
    Result, Shape, Storage, Tensor,
    backend::{BackendDevice, BackendStorage},
    bail,
};

use super::{Application, Recipient, Registration, Source, lock};

/// The token of an application with these tracked inputs.
pub(super) fn token(application: &Arc<Application>, mut sources: Vec<Source>) -> Result<Tensor> {
    // candle's operations have three arguments at most.
    while sources.len() > 3 {
        let rest = sources.split_off(3);
        let joined = Source {
            argument: visit(None, sources)?,
            recipient: Recipient::Joined,
        };
        sources = rest;
        sources.push(joined);
    }
    visit(Some(Arc::clone(application)), sources)
}

/// A scalar that depends on the arguments.
fn visit(application: Option<Arc<Application>>, sources: Vec<Source>) -> Result<Tensor> {
    let (arguments, recipients): (Vec<_>, Vec<_>) = (sources.into_iter())
        .map(|source| (source.argument, source.recipient))
        .unzip();
    let visit = Visit {
        application,
        recipients,
    };
    match &arguments[..] {
        [a] => a.apply_op1(visit),
        [a, b] => a.apply_op2(b, visit),
        [a, b, c] => a.apply_op3(b, c, visit),
        other => bail!("a token of {} arguments", other.len()),
    }
}

/// What a token does when candle comes to it.
struct Visit {
    /// Nothing for a token that only joins others.
    application: Option<Arc<Application>>,
    recipients: Vec<Recipient>,
}

impl Visit {
    const NAME: &'static str = "token";

    fn answers<const N: usize>(
        &self,
        arguments: [&Tensor; N],
        token: &Tensor,
    ) -> Result<[Option<Tensor>; N]> {
        if let Some(application) = &self.application {
            application.differentiate()?;
        }
        let mut answers = [const { None }; N];
        for ((answer, recipient), argument) in
            answers.iter_mut().zip(&self.recipients).zip(arguments)
        {
            *answer = recipient.answer(argument, token)?;
        }
        Ok(answers)
    }
}

fn token_value() -> (CpuStorage, Shape) {
    (CpuStorage::F32(vec![0.0]), ().into())
}

/// A token on a graphics card, whose value nobody reads.
fn token_on_card(beside: &CudaStorage) -> Result<(CudaStorage, Shape)> {
    let shape = Shape::from(());
    // SAFETY: what is added to a token's gradient or computed from it means nothing, whatever it holds.
    let storage = unsafe { beside.device().alloc_uninit(&shape, DType::F32) }?;
    Ok((storage, shape))
}

/// The gradient of a token, which means nothing. Graphics cards have one each: to make it is a launch.
pub(super) fn nothing(device: &Device) -> Result<Tensor> {
    thread_local! {
        static NOTHING: RefCell<Vec<Tensor>> = const { RefCell::new(Vec::new()) };
    }
    if device.is_cpu() {
        return Tensor::zeros((), DType::F32, device);
    }
    NOTHING.with_borrow_mut(|known| {
        if let Some(found) = known.iter().find(|t| t.device().same_device(device)) {
            return Ok(found.clone());
        }
        let made = Tensor::zeros((), DType::F32, device)?;
        known.push(made.clone());
        Ok(made)
    })
}

impl CustomOp1 for Visit {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(token_value())
    }

    fn cuda_fwd(&self, a: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        token_on_card(a)
    }

    fn bwd(&self, a: &Tensor, token: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        let [a] = self.answers([a], token)?;
        Ok(a)
    }
}

impl CustomOp2 for Visit {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok(token_value())
    }

    fn cuda_fwd(
        &self,
        a: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        token_on_card(a)
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        token: &Tensor,
        _: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok(self.answers([a, b], token)?.into())
    }
}

impl CustomOp3 for Visit {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok(token_value())
    }

    fn cuda_fwd(
        &self,
        a: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        token_on_card(a)
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        token: &Tensor,
        _: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        Ok(self.answers([a, b, c], token)?.into())
    }
}

/// A scalar whose gradient, whatever it is, makes this the gradient of the argument.
pub(super) struct Seed(pub(super) Tensor);

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "seed"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(token_value())
    }

    fn cuda_fwd(&self, a: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        token_on_card(a)
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}

/// From a token to the value: where operations of candle take it up.
pub(super) struct Value {
    pub(super) held: Mutex<Option<Tensor>>,
    pub(super) application: Arc<Application>,
    #[expect(dead_code, reason = "its end is the end of the entry")]
    pub(super) registration: Registration,
}

impl Value {
    fn take(&self) -> Result<Tensor> {
        match lock(&self.held).take() {
            Some(value) => Ok(value),
            None => bail!("{}: a second forward", self.application.op.name()),
        }
    }
}

impl CustomOp1 for Value {
    fn name(&self) -> &'static str {
        self.application.op.name()
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let value = self.take()?;
        let taken = Taken::default();
        value.inplace_op1(&taken)?;
        match taken.0.into_inner() {
            Some(Storage::Cpu(storage)) => Ok((storage, value.shape().clone())),
            _ => bail!("{}: a result that is not on the CPU", self.name()),
        }
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        let value = self.take()?;
        let taken = Taken::default();
        value.inplace_op1(&taken)?;
        match taken.0.into_inner() {
            Some(Storage::Cuda(storage)) => Ok((storage, value.shape().clone())),
            _ => bail!("{}: a result that is not on a CUDA device", self.name()),
        }
    }

    fn bwd(&self, token: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        self.application.inbox.put(gradient.clone());
        nothing(token.device()).map(Some)
    }
}

/// The memory of a tensor, which has none then: nobody else has the tensor.
#[derive(Default)]
struct Taken(RefCell<Option<Storage>>);

impl InplaceOp1 for Taken {
    fn name(&self) -> &'static str {
        "take"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        let taken = mem::replace(storage, CpuStorage::F32(vec![]));
        self.0.replace(Some(Storage::Cpu(taken)));
        Ok(())
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, _: &Layout) -> Result<()> {
        let (empty, _) = token_on_card(storage)?;
        let taken = mem::replace(storage, empty);
        self.0.replace(Some(Storage::Cuda(taken)));
        Ok(())
    }
}
