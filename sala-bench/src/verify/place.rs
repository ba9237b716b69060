//! Where an operation is computed, and what is computed there.

use candle_core::{DType, Device, Result, Tensor, Var};
use sala_models::{
    Rng, VarStore,
    kernels::{Choice, with_choice},
};

/// All numbers that are checked are drawn by it.
const SEED: u64 = 2024;

/// A device and a dtype. Values are drawn on the CPU in f64 and uploaded, so they are the same everywhere.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) device: Device,
    pub(super) dtype: DType,
    /// Values are rounded to this dtype first: a reference in f64 computes with the numbers that the checked
    /// side has.
    rounded: DType,
}

impl Place {
    pub(super) const fn new(device: Device, dtype: DType) -> Self {
        Self {
            device,
            dtype,
            rounded: dtype,
        }
    }

    /// Where the reference for this place is computed: on the CPU in f64.
    pub(super) const fn reference(&self) -> Self {
        Self {
            device: Device::Cpu,
            dtype: DType::F64,
            rounded: self.rounded,
        }
    }

    /// Standard normal values, the same for the same name, in f64 on the CPU.
    fn drawn(&self, name: &str, dims: &[usize]) -> Result<Tensor> {
        let stream = Rng::new(SEED).stream(name);
        let count = dims.iter().product::<usize>() as u64;
        let values: Vec<f64> = (0..count).map(|i| stream.normal(i)).collect();
        Tensor::from_vec(values, dims, &Device::Cpu)?.to_dtype(self.rounded)
    }

    /// The same as a tensor of this place.
    pub(super) fn normal(&self, name: &str, dims: &[usize]) -> Result<Tensor> {
        self.bring(&self.drawn(name, dims)?, self.dtype)
    }

    pub(super) fn var(&self, name: &str, dims: &[usize]) -> Result<Var> {
        Var::from_tensor(&self.normal(name, dims)?)
    }

    /// Gives a variable of a store normal values, squared and moved up by a half where they are to be positive.
    pub(super) fn fill(&self, store: &VarStore, name: &str, positive: bool) -> Result<Var> {
        let Some(var) = store.get(name) else {
            candle_core::bail!("the store has no variable `{name}`");
        };
        let mut values = self.drawn(name, var.dims())?;
        if positive {
            values = (values.sqr()? + 0.5)?;
        }
        var.set(&self.bring(&values, var.dtype())?)?;
        Ok(var)
    }

    /// Rounds what a variable holds as the values of this place are.
    pub(super) fn round(&self, var: &Var) -> Result<()> {
        let held = var.as_detached_tensor().to_device(&Device::Cpu)?;
        // Where nothing is converted, this is the variable's own memory.
        let rounded = self.bring(&held.to_dtype(self.rounded)?, var.dtype())?;
        var.set(&rounded.force_contiguous()?)
    }

    fn bring(&self, values: &Tensor, dtype: DType) -> Result<Tensor> {
        values.to_dtype(dtype)?.to_device(&self.device)
    }

    /// The dtype of sums: f32 for half precision.
    fn wide(&self) -> DType {
        match self.dtype {
            DType::F16 | DType::BF16 => DType::F32,
            other => other,
        }
    }

    /// A scalar that weighs every output differently: a plain sum would hide errors.
    pub(super) fn weigh(&self, y: &Tensor) -> Result<Tensor> {
        let wide = self.wide();
        let weights = self.bring(&self.drawn("weights of the sum", y.dims())?, wide)?;
        (y.to_dtype(wide)? * weights)?.sum_all()
    }
}

/// An operation at a place.
pub(super) struct Subject {
    /// What it is differentiated by.
    pub(super) vars: Vec<(String, Var)>,
    /// What it changes.
    pub(super) buffers: Vec<(String, Var)>,
    pub(super) forward: Box<dyn Fn() -> Result<Tensor>>,
}

impl Subject {
    /// The result, all gradients for a sum that weighs every output differently, and what was changed.
    pub(super) fn evaluate(&self, place: &Place, form: Choice) -> Result<Vec<(String, Tensor)>> {
        let y = with_choice(form, || (self.forward)())?;
        let loss = place.weigh(&y)?;
        // The program's own way past candle's store of gradients is checked with the forms it belongs to.
        let gradients = if form == Choice::Composed {
            loss.backward()?
        } else {
            sala_models::backward(&loss)?
        };
        let mut all = vec![("result".to_owned(), y.detach())];
        for (name, var) in &self.vars {
            let Some(gradient) = gradients.get(var) else {
                candle_core::bail!("`{name}` received no gradient");
            };
            all.push((format!("gradient of {name}"), gradient.clone()));
        }
        for (name, var) in &self.buffers {
            all.push((name.clone(), var.force_contiguous()?.detach()));
        }
        Ok(all)
    }
}
