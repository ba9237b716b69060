//! The complete state of an optimizer as named tensors and values.
//!
//! Every part that remembers something between steps implements [`Stateful`]; a composition nests the
//! states of its parts. Loading is strict: a missing, surplus or misshapen entry is an error, and
//! an object whose loading failed is as it was.

use std::{collections::BTreeMap, fmt::Display, str::FromStr};

use candle_core::{DType, Tensor};

use crate::{
    error::{Error, Result},
    params::is_half,
};

/// Named tensors and values, each kind in the order of the names.
///
/// Values are kept as text; Rust prints an f64 with as many digits as it takes to read back the same
/// bits, NaN and infinities included.
#[derive(Debug, Clone, Default)]
pub struct State {
    pub(crate) tensors: BTreeMap<String, Tensor>,
    pub(crate) values: BTreeMap<String, String>,
}

/// Name of the value that says which type a state belongs to.
const KIND: &str = "kind";

impl State {
    /// An empty state of the named type, which [`StateReader::new`] asks for again.
    ///
    /// ```
    /// # use sala_core::state::{State, StateReader};
    /// let mut state = State::new("Counter");
    /// state.set("count", 3);
    /// let mut reader = StateReader::new("Counter", &state)?;
    /// assert_eq!(reader.get::<u64>("count")?, 3);
    /// reader.finish()?;
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn new(kind: &str) -> Self {
        let mut state = Self::default();
        state.set(KIND, kind);
        state
    }

    /// Records a value.
    pub fn set(&mut self, name: &str, value: impl ToString) {
        self.values.insert(name.into(), value.to_string());
    }

    /// Records a copy of a tensor, so that later in-place updates do not reach it.
    ///
    /// # Errors
    /// Those of the copy.
    pub fn set_tensor(&mut self, name: impl Into<String>, tensor: &Tensor) -> Result<()> {
        self.tensors
            .insert(name.into(), tensor.force_contiguous()?.detach());
        Ok(())
    }

    /// The tensors, in the order of their names.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Takes in the state of a part; its names get the prefix `part/`.
    pub fn nest(&mut self, part: &str, state: State) {
        let name = |inner: String| format!("{part}/{inner}");
        self.tensors
            .extend(state.tensors.into_iter().map(|(n, t)| (name(n), t)));
        self.values
            .extend(state.values.into_iter().map(|(n, v)| (name(n), v)));
    }
}

/// Reads a [`State`] strictly: what is not asked for is an error at the end.
#[derive(Debug)]
pub struct StateReader {
    owner: &'static str,
    rest: State,
}

impl StateReader {
    /// Starts to read the state of the type `owner`.
    ///
    /// # Errors
    /// [`Error::State`] when the state belongs to another type.
    pub fn new(owner: &'static str, state: &State) -> Result<Self> {
        let mut reader = Self {
            owner,
            rest: state.clone(),
        };
        let kind: String = reader.get(KIND)?;
        if kind == owner {
            Ok(reader)
        } else {
            Err(reader.error(format!("it belongs to {kind}")))
        }
    }

    fn error(&self, problem: impl Display) -> Error {
        Error::State {
            owner: self.owner.into(),
            problem: problem.to_string(),
        }
    }

    /// The value of that name.
    ///
    /// # Errors
    /// [`Error::State`] when it is missing or cannot be read as a `T`.
    pub fn get<T: FromStr>(&mut self, name: &str) -> Result<T> {
        let text = self.rest.values.remove(name);
        let text = text.ok_or_else(|| self.error(format!("value `{name}` is missing")))?;
        let kind = std::any::type_name::<T>();
        text.parse()
            .map_err(|_| self.error(format!("value `{name}` must be a {kind}, got `{text}`")))
    }

    /// Compares the value of that name with what this object was configured with: a run whose configuration
    /// has changed is another run.
    ///
    /// # Errors
    /// [`Error::State`] when it is missing or another.
    ///
    /// ```
    /// # use sala_core::state::{State, StateReader};
    /// let mut state = State::new("Cycle");
    /// state.set("k", 5);
    /// assert!(StateReader::new("Cycle", &state)?.same("k", 5).is_ok());
    /// assert!(StateReader::new("Cycle", &state)?.same("k", 2).is_err());
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn same(&mut self, name: &str, configured: impl ToString) -> Result<()> {
        let (wanted, got) = (configured.to_string(), self.get::<String>(name)?);
        if got == wanted {
            return Ok(());
        }
        Err(self.error(format!(
            "value `{name}` must be `{wanted}`, as configured, got `{got}`"
        )))
    }

    /// The tensor of that name, with the shape of `like`, converted to its dtype and moved to its device:
    /// a run may be continued in another precision, exactly as far as the values survive the rounding.
    ///
    /// # Errors
    /// [`Error::State`] when it is missing or of another shape.
    pub fn tensor(&mut self, name: &str, like: &Tensor) -> Result<Tensor> {
        let tensor = self.optional_tensor(name, like)?;
        tensor.ok_or_else(|| self.error(format!("tensor `{name}` is missing")))
    }

    /// As [`StateReader::tensor`], or `None` when there is none of that name.
    ///
    /// # Errors
    /// [`Error::State`] when it has another shape.
    pub fn optional_tensor(&mut self, name: &str, like: &Tensor) -> Result<Option<Tensor>> {
        self.optional_as(name, like, like.dtype())
    }

    /// As [`StateReader::tensor`], in f32 where `like` is half precision: for what is kept in a
    /// precision to compute with, moments and slow weights.
    ///
    /// # Errors
    /// [`Error::State`] when it is missing or of another shape.
    pub fn wide(&mut self, name: &str, like: &Tensor) -> Result<Tensor> {
        let tensor = self.optional_wide(name, like)?;
        tensor.ok_or_else(|| self.error(format!("tensor `{name}` is missing")))
    }

    /// As [`StateReader::wide`], or `None` when there is none of that name.
    ///
    /// # Errors
    /// [`Error::State`] when it has another shape.
    pub fn optional_wide(&mut self, name: &str, like: &Tensor) -> Result<Option<Tensor>> {
        let dtype = match like.dtype() {
            half if is_half(half) => DType::F32,
            dtype => dtype,
        };
        self.optional_as(name, like, dtype)
    }

    fn optional_as(&mut self, name: &str, like: &Tensor, dtype: DType) -> Result<Option<Tensor>> {
        let Some(tensor) = self.rest.tensors.remove(name) else {
            return Ok(None);
        };
        if tensor.dims() != like.dims() {
            let (wanted, got) = (like.dims(), tensor.dims());
            return Err(self.error(format!(
                "tensor `{name}` must have shape {wanted:?}, got {got:?}"
            )));
        }
        let tensor = tensor.to_dtype(dtype)?.to_device(like.device())?;
        Ok(Some(tensor.force_contiguous()?.detach()))
    }

    /// The nested state of a part.
    pub fn part(&mut self, part: &str) -> State {
        let prefix = format!("{part}/");
        State {
            tensors: take_prefixed(&mut self.rest.tensors, &prefix),
            values: take_prefixed(&mut self.rest.values, &prefix),
        }
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// [`Error::State`] that lists every entry which nothing asked for.
    pub fn finish(self) -> Result<()> {
        let surplus: Vec<_> = self
            .rest
            .tensors
            .keys()
            .chain(self.rest.values.keys())
            .collect();
        if surplus.is_empty() {
            return Ok(());
        }
        Err(self.error(format!("unknown entries {surplus:?}")))
    }
}

/// The name of a type without its path and arguments.
pub(crate) fn type_name<T: ?Sized>() -> String {
    let path = std::any::type_name::<T>();
    let plain = path.split('<').next().unwrap_or(path);
    plain.rsplit("::").next().unwrap_or(plain).to_owned()
}

/// Removes the entries whose name begins with `prefix` and returns them without it.
fn take_prefixed<V>(map: &mut BTreeMap<String, V>, prefix: &str) -> BTreeMap<String, V> {
    let (taken, kept) = std::mem::take(map)
        .into_iter()
        .partition(|(n, _)| n.starts_with(prefix));
    *map = kept;
    let taken: BTreeMap<String, V> = taken;
    taken
        .into_iter()
        .map(|(n, v)| (n[prefix.len()..].to_owned(), v))
        .collect()
}

/// Something whose state can be saved, and loaded into a fresh object of the same configuration.
///
/// A composition has this trait when its base has; bases from other crates that keep their buffers
/// private do not.
pub trait Stateful {
    /// A copy of the complete state.
    ///
    /// # Errors
    /// Those of copying tensors.
    fn state(&self) -> Result<State>;

    /// Replaces the state.
    ///
    /// # Errors
    /// [`Error::State`] with the first thing that is missing or does not fit, or else with everything that is
    /// there too many; `self` is then unchanged.
    fn load_state(&mut self, state: &State) -> Result<()>;
}

impl<S: Stateful + ?Sized> Stateful for Box<S> {
    fn state(&self) -> Result<State> {
        (**self).state()
    }

    fn load_state(&mut self, state: &State) -> Result<()> {
        (**self).load_state(state)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    fn example() -> State {
        let mut inner = State::new("Inner");
        inner
            .set_tensor("w", &Tensor::ones(2, DType::F32, &Device::Cpu).unwrap())
            .unwrap();
        let mut state = State::new("Outer");
        state.set("x", 0.1f64 + 0.2);
        state.set("nothing", f64::NAN);
        state.nest("inner", inner);
        state
    }

    #[test]
    fn values_and_parts_come_back_as_they_were() {
        let mut reader = StateReader::new("Outer", &example()).unwrap();
        assert_eq!(
            reader.get::<f64>("x").unwrap().to_bits(),
            (0.1f64 + 0.2).to_bits()
        );
        assert!(reader.get::<f64>("nothing").unwrap().is_nan());
        let inner = reader.part("inner");
        reader.finish().unwrap();
        let mut reader = StateReader::new("Inner", &inner).unwrap();
        let like = Tensor::zeros(2, DType::F64, &Device::Cpu).unwrap();
        assert_eq!(
            reader.tensor("w", &like).unwrap().to_vec1::<f64>().unwrap(),
            [1.0, 1.0]
        );
        reader.finish().unwrap();
    }

    #[test]
    fn a_recorded_tensor_does_not_follow_its_variable() {
        let var = candle_core::Var::zeros(2, DType::F32, &Device::Cpu).unwrap();
        let mut state = State::new("X");
        state.set_tensor("v", &var).unwrap();
        var.set(&Tensor::ones(2, DType::F32, &Device::Cpu).unwrap())
            .unwrap();
        assert_eq!(state.tensors["v"].to_vec1::<f32>().unwrap(), [0.0, 0.0]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let says = |error: Error, words: &[&str]| {
            let message = error.to_string();
            assert!(words.iter().all(|w| message.contains(w)), "{message}");
        };
        says(
            StateReader::new("Adam", &example()).unwrap_err(),
            &["Adam", "belongs to Outer"],
        );
        let mut reader = StateReader::new("Outer", &example()).unwrap();
        says(
            reader.get::<u64>("x").unwrap_err(),
            &["`x`", "u64", "0.30000000000000004"],
        );
        says(reader.get::<u64>("y").unwrap_err(), &["`y` is missing"]);
        let wrong = Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap();
        says(
            reader.tensor("inner/w", &wrong).unwrap_err(),
            &["`inner/w`", "[3]", "[2]"],
        );
        says(
            reader.finish().unwrap_err(),
            &["unknown entries", "nothing", "inner/kind"],
        );
    }
}
