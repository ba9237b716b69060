//! Named variables that come out the same for the same seed.
//!
//! candle's `VarMap` lists its variables in the order of a hash map, which differs from run to run,
//! counts running statistics among them, and draws initial values from a generator that cannot be
//! seeded on the CPU and whose values depend on the order of creation and on the device. Each of
//! these makes two runs differ that should be the same. [`VarStore`] takes its place behind the
//! same [`VarBuilder`], so every candle layer can be built on it.

mod file;
mod init;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use candle_core::{DType, Device, Shape, Tensor, Var};
use candle_nn::{
    Init, VarBuilder,
    var_builder::{SimpleBackend, VarBuilderArgs},
};

use crate::{Error, Result, Rng};

/// Last components of the names of buffers: state that is not trained.
const BUFFERS: [&str; 3] = ["running_mean", "running_var", "num_batches_tracked"];

/// A seeded, ordered store of named variables.
///
/// The initial value of a variable is a function of the seed, its full name, its shape and its
/// initialisation alone. It is drawn on the CPU in f64, cast (rounding to nearest) and uploaded, so
/// neither the order of creation nor the device changes a bit of it.
///
/// A clone is another handle on the same variables.
///
/// ```
/// use candle_core::{DType, Device};
/// use sala_models::{VarStore, ops::Linear};
///
/// let store = VarStore::new(42, DType::F32, &Device::Cpu);
/// Linear::new(4, 2, store.builder().pp("head"))?;
/// let names: Vec<String> = store.trainable().into_iter().map(|(name, _)| name).collect();
/// assert_eq!(names, ["head.bias", "head.weight"]);
/// assert_eq!(store.num_parameters(), 10);
/// # Ok::<(), sala_models::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct VarStore {
    rng: Rng,
    dtype: DType,
    device: Device,
    vars: Arc<Mutex<BTreeMap<String, Var>>>,
}

impl VarStore {
    /// An empty store, whose variables will be of `dtype` on `device` unless a layer asks for
    /// another dtype.
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use sala_models::VarStore;
    ///
    /// let store = VarStore::new(0, DType::F64, &Device::Cpu);
    /// assert!(store.all().is_empty());
    /// ```
    pub fn new(seed: u64, dtype: DType, device: &Device) -> Self {
        Self {
            rng: Rng::new(seed),
            dtype,
            device: device.clone(),
            vars: Arc::default(),
        }
    }

    /// A builder at the root of this store, for constructors of layers and networks.
    ///
    /// Asking it for a new name creates a variable. Asking again with the same shape and dtype
    /// returns the same variable, which ties weights; with another shape or dtype it is an error.
    pub fn builder(&self) -> VarBuilder<'static> {
        let backend: Box<dyn SimpleBackend> = Box::new(self.clone());
        VarBuilderArgs::new_with_args(backend, self.dtype, &self.device)
    }

    /// The seed of the initial values.
    pub const fn seed(&self) -> u64 {
        self.rng.seed()
    }

    /// The dtype of variables for which a layer asks no other.
    pub const fn dtype(&self) -> DType {
        self.dtype
    }

    /// The device that holds the variables.
    pub const fn device(&self) -> &Device {
        &self.device
    }

    /// The variables to train, sorted by name: floating-point ones that are not
    /// [buffers](Self::buffers). A tied variable is stored, and listed, once.
    pub fn trainable(&self) -> Vec<(String, Var)> {
        self.select(is_trainable)
    }

    /// The variables not to train, sorted by name: those whose last name component is
    /// `running_mean`, `running_var` or `num_batches_tracked`, and integer ones.
    pub fn buffers(&self) -> Vec<(String, Var)> {
        self.select(|name, var| !is_trainable(name, var))
    }

    /// Every variable, sorted by name.
    pub fn all(&self) -> Vec<(String, Var)> {
        self.select(|_, _| true)
    }

    /// The number of trainable scalars.
    pub fn num_parameters(&self) -> usize {
        self.trainable()
            .iter()
            .map(|(_, var)| var.elem_count())
            .sum()
    }

    /// The variable called `name`, if there is one.
    pub fn get(&self, name: &str) -> Option<Var> {
        self.lock().get(name).cloned()
    }

    /// Writes every variable, buffers included, to a safetensors file.
    ///
    /// The file is written beside `path`, flushed to the disk and renamed, so `path` holds either
    /// what it held before or the whole new content, even when the machine stops in between.
    ///
    /// # Errors
    /// When the directory does not exist or cannot be written, or the device cannot be read.
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use sala_models::{VarStore, ops::Linear};
    ///
    /// let folder = tempfile::tempdir()?;
    /// let path = folder.path().join("weights.safetensors");
    /// let store = VarStore::new(1, DType::F32, &Device::Cpu);
    /// Linear::new(4, 2, store.builder())?;
    /// store.save(&path)?;
    ///
    /// let other = VarStore::new(2, DType::F32, &Device::Cpu);
    /// Linear::new(4, 2, other.builder())?;
    /// other.load(&path)?; // the values of the first store
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn save<P: AsRef<Path>>(&self, path: P) -> Result<()> {
        file::save(&self.lock(), path.as_ref())
    }

    /// Sets every variable, buffers included, to the values of a safetensors file.
    ///
    /// The file must hold exactly the store's names, with their shapes and dtypes. It is read,
    /// checked and brought to the device in full before the first variable is set, so a file that
    /// does not fit changes nothing.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with every missing, surplus and misshapen tensor; [`Error::Io`] and
    /// [`Error::Format`] when the file cannot be read.
    pub fn load<P: AsRef<Path>>(&self, path: P) -> Result<()> {
        file::load(&self.lock(), path.as_ref(), &self.device)
    }

    fn select(&self, wanted: impl Fn(&str, &Var) -> bool) -> Vec<(String, Var)> {
        self.lock()
            .iter()
            .filter(|(name, var)| wanted(name, var))
            .map(|(name, var)| (name.clone(), var.clone()))
            .collect()
    }

    /// The map. A thread that panicked while holding the lock leaves it whole: insertion is its
    /// only change.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Var>> {
        self.vars.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_device(&self, name: &str, device: &Device) -> Result<()> {
        if device.same_device(&self.device) {
            return Ok(());
        }
        Err(Error::Variable {
            name: name.into(),
            wanted: format!("a variable on {:?}", device.location()),
            got: format!("its variables on {:?}", self.device.location()),
        })
    }
}

/// What a [`VarBuilder`] calls; use [`VarStore::builder`] instead.
impl SimpleBackend for VarStore {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        init: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        self.check_device(name, device)?;
        let var = if let Some(var) = Self::get(self, name) {
            var
        } else {
            // Without the lock, since threads share the work: one that waits for the others may be given work that asks
            // this store for a variable. Two that draw the same one draw the same values.
            let new = init::variable(init, (&shape, dtype), name, self.rng, &self.device)?;
            self.lock().entry(name.to_owned()).or_insert(new).clone()
        };
        check_same(name, &var, &shape, dtype)?;
        Ok(var.as_tensor().clone())
    }

    fn get_unchecked(
        &self,
        name: &str,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        self.check_device(name, device)?;
        let Some(var) = Self::get(self, name) else {
            let path = name.to_owned();
            return Err(candle_core::Error::CannotFindTensor { path }.bt());
        };
        check_same(name, &var, var.shape(), dtype)?;
        Ok(var.as_tensor().clone())
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.lock().contains_key(name)
    }
}

fn check_same(name: &str, var: &Var, shape: &Shape, dtype: DType) -> Result<()> {
    if var.shape() == shape && var.dtype() == dtype {
        return Ok(());
    }
    Err(Error::Variable {
        name: name.into(),
        wanted: describe(shape.dims(), dtype),
        got: describe(var.dims(), var.dtype()),
    })
}

fn describe(dims: &[usize], dtype: DType) -> String {
    format!("{dims:?} {}", dtype.as_str())
}

fn is_trainable(name: &str, var: &Var) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    var.dtype().is_float() && !BUFFERS.contains(&last)
}
