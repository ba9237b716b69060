//! What a part of a method remembers of the parameters between steps: one tensor for each, or nothing
//! yet.

use candle_core::Tensor;

use crate::{
    error::{Error, Result},
    params::ParamSet,
    state::{State, StateReader},
    vector,
};

/// One tensor for each parameter, f32 or f64, in the order of the parameters; none at first.
#[derive(Debug, Default)]
pub struct Memory {
    tensors: Option<Vec<Tensor>>,
}

impl Memory {
    /// Nothing remembered.
    pub fn new() -> Self {
        Self::default()
    }

    /// The tensors.
    pub fn tensors(&self) -> Option<&[Tensor]> {
        self.tensors.as_deref()
    }

    /// Replaces what is remembered.
    pub fn set(&mut self, tensors: Vec<Tensor>) {
        self.tensors = Some(tensors);
    }

    /// m ← a m + b x, from m = 0.
    ///
    /// # Errors
    /// [`Error::Direction`] when x is not of the number and shapes of m, and those of candle's operations.
    pub fn blend(&mut self, a: f64, b: f64, x: &[Tensor]) -> Result<()> {
        self.tensors = Some(match &self.tensors {
            None => vector::scaled(x, b)?,
            Some(m) => vector::combined((a, m), (b, x))?,
        });
        Ok(())
    }

    pub(crate) fn save(&self, params: &ParamSet, state: &mut State) -> Result<()> {
        for (param, tensor) in params.iter().zip(self.tensors.iter().flatten()) {
            state.set_tensor(param.name(), tensor)?;
        }
        Ok(())
    }

    /// Reads what [`Memory::save`] wrote: the tensors of all parameters or of none.
    pub(crate) fn read(params: &ParamSet, reader: &mut StateReader) -> Result<Self> {
        let tensors = read_all(params, reader, "")?;
        Ok(Self { tensors })
    }
}

/// One wide tensor for each parameter under `prefix` and its name, or none at all.
pub(crate) fn read_all(
    params: &ParamSet,
    reader: &mut StateReader,
    prefix: &str,
) -> Result<Option<Vec<Tensor>>> {
    let read = |name: &str, var: &Tensor, reader: &mut StateReader| {
        reader.optional_wide(&format!("{prefix}{name}"), var)
    };
    let tensors = params
        .iter()
        .map(|p| read(p.name(), p.var(), reader))
        .collect::<Result<Vec<_>>>()?;
    let found = tensors.iter().flatten().count();
    if found != 0 && found != params.len() {
        let problem = format!(
            "`{prefix}…` tensors of {found} of {} parameters",
            params.len()
        );
        return Err(Error::State {
            owner: "Memory".into(),
            problem,
        });
    }
    Ok(tensors.into_iter().collect())
}
