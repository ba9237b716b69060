//! A multi-layer perceptron.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use crate::{
    Error, Mode, Network, Rng,
    error::{check_probability, check_sizes},
    network::check_dtype,
    ops::{Dropout, Linear, relu},
};

/// The sizes of an [`Mlp`].
///
/// The default is one hidden layer of 128 units for 28 × 28 grey images in ten classes.
#[derive(Debug, Clone, PartialEq)]
pub struct MlpConfig {
    /// Number of values of one input, whatever its shape.
    pub inputs: usize,
    /// Widths of the hidden layers; with none, the network is a linear classifier.
    pub hidden: Vec<usize>,
    /// Number of outputs.
    pub classes: usize,
    /// Probability of dropping a hidden unit, in `[0, 1)`.
    pub dropout: f64,
}

impl Default for MlpConfig {
    fn default() -> Self {
        Self {
            inputs: 28 * 28,
            hidden: vec![128],
            classes: 10,
            dropout: 0.0,
        }
    }
}

impl MlpConfig {
    /// Checks that all sizes are at least one and the probability lies in `[0, 1)`.
    ///
    /// # Errors
    /// [`Error::Config`], naming the field.
    ///
    /// ```
    /// use sala_models::MlpConfig;
    ///
    /// let bad = MlpConfig { dropout: 1.5, ..Default::default() };
    /// let message = bad.validate().unwrap_err().to_string();
    /// assert_eq!(message, "MlpConfig.dropout must be in [0, 1), got 1.5");
    /// ```
    pub fn validate(&self) -> crate::Result<()> {
        let ends = [("inputs", self.inputs), ("classes", self.classes)];
        let hidden = self.hidden.iter().map(|&width| ("hidden", width));
        check_sizes("MlpConfig", ends.into_iter().chain(hidden))?;
        check_probability("MlpConfig", "dropout", self.dropout)
    }
}

/// Fully connected layers with relu and dropout between them.
///
/// The input, `(N, …)`, is flattened to `(N, inputs)`; the output is `(N, classes)`. Layer `i` has
/// the parameters `layers.{i}.weight` and `layers.{i}.bias`.
#[derive(Debug, Clone)]
pub struct Mlp {
    hidden: Vec<(Linear, Dropout)>,
    last: Linear,
    inputs: usize,
}

impl Mlp {
    /// A network with parameters under the builder's prefix. `rng` seeds the dropout masks only;
    /// the initial values come from the store behind `vb`.
    ///
    /// # Errors
    /// When the configuration is not valid, or the store holds one of the names with another shape.
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use sala_models::{Mlp, MlpConfig, Rng, VarStore};
    ///
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// Mlp::new(&MlpConfig::default(), store.builder(), Rng::new(0))?;
    /// assert_eq!(store.num_parameters(), 784 * 128 + 128 + 128 * 10 + 10);
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    #[expect(
        clippy::needless_pass_by_value,
        reason = "candle's layers take the builder by value"
    )]
    pub fn new(config: &MlpConfig, vb: VarBuilder, rng: Rng) -> crate::Result<Self> {
        config.validate()?;
        let mut inputs = config.inputs;
        let mut hidden = Vec::with_capacity(config.hidden.len());
        for (i, &width) in config.hidden.iter().enumerate() {
            let vb = vb.pp("layers").pp(i);
            // Named after the layer, so that each layer has masks of its own.
            let masks = rng.stream(&format!("dropout/{}", vb.prefix()));
            let layer = Linear::new(inputs, width, vb)?;
            hidden.push((layer, Dropout::new(config.dropout, masks)?));
            inputs = width;
        }
        let last = Linear::new(inputs, config.classes, vb.pp("layers").pp(hidden.len()))?;
        Ok(Self {
            hidden,
            last,
            inputs: config.inputs,
        })
    }
}

impl Network for Mlp {
    /// `x` is `(N, …)` with `inputs` values per example.
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let wanted = self.inputs;
        if x.rank() < 2 || x.dims().iter().skip(1).product::<usize>() != wanted {
            return Err(Error::Argument {
                op: "Mlp",
                argument: "x",
                wanted: format!("a batch with {wanted} values per example"),
                got: format!("shape {:?}", x.dims()),
            }
            .into());
        }
        let first = self.hidden.first().map_or(&self.last, |(layer, _)| layer);
        check_dtype("Mlp", x, first.weight())?;
        let mut x = x.flatten_from(1)?;
        for (layer, dropout) in &self.hidden {
            x = dropout.forward(&relu(&layer.forward(&x)?)?, mode)?;
        }
        self.last.forward(&x)
    }
}
