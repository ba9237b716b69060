//! The non-linearities that configurations name.

use candle_core::{Result, Tensor};

use crate::{
    Error,
    ops::{gelu, gelu_tanh, relu, silu},
};

/// What stands between the layers of a feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activation {
    /// [`gelu()`].
    #[default]
    Gelu,
    /// [`gelu_tanh`].
    GeluTanh,
    /// [`relu()`].
    Relu,
    /// [`silu()`].
    Silu,
}

impl Activation {
    /// The activation that a published `config.json` calls so.
    ///
    /// # Errors
    /// When none of the four has that name.
    ///
    /// ```
    /// use sala_models::transformer::Activation;
    ///
    /// assert_eq!(Activation::from_name("gelu_new")?, Activation::GeluTanh);
    /// assert!(Activation::from_name("tanhshrink").is_err());
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    pub fn from_name(name: &str) -> crate::Result<Self> {
        match name {
            "gelu" => Ok(Self::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" => Ok(Self::GeluTanh),
            "relu" => Ok(Self::Relu),
            "silu" | "swish" => Ok(Self::Silu),
            other => Err(Error::Config {
                config: "Activation",
                field: "name",
                wanted: "gelu, gelu_new, gelu_pytorch_tanh, relu, silu or swish",
                got: format!("`{other}`"),
            }),
        }
    }

    pub(super) fn apply(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Gelu => gelu(x),
            Self::GeluTanh => gelu_tanh(x),
            Self::Relu => relu(x),
            Self::Silu => silu(x),
        }
    }
}
