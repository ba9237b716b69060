//! What networks on texts work on.

use candle_core::{DType, Result, Tensor};

use crate::{
    Error, Mode,
    kernels::parts::{narrow, token_mean},
    ops::CrossEntropy,
};

/// A batch of texts as token ids, `(B, T)`.
///
/// Shorter texts are filled up to `T`; the mask says where. Nothing looks at such places, so whatever
/// id stands there receives no gradient.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use sala_models::transformer::Tokens;
///
/// let ids = Tensor::new(&[[101u32, 7592, 102], [101, 102, 0]], &Device::Cpu)?;
/// let mask = Tensor::new(&[[1u8, 1, 1], [1, 1, 0]], &Device::Cpu)?;
/// let tokens = Tokens::new(ids).with_mask(mask);
/// assert!(tokens.types.is_none()); // all of segment 0
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Tokens {
    /// Rows of the network's vocabulary, integers.
    pub ids: Tensor,
    /// Not zero where there is a token, zero for padding, of any dtype and of `ids`' shape. Without
    /// one there is no padding.
    pub mask: Option<Tensor>,
    /// The segment of each token, integers of `ids`' shape, for networks that have segments. Without
    /// one all tokens are of segment 0.
    pub types: Option<Tensor>,
}

impl Tokens {
    /// Texts of one length, in one segment.
    pub const fn new(ids: Tensor) -> Self {
        Self {
            ids,
            mask: None,
            types: None,
        }
    }

    /// The same with this mask.
    #[must_use]
    pub fn with_mask(self, mask: Tensor) -> Self {
        let mask = Some(mask);
        Self { mask, ..self }
    }

    /// The same with these segments.
    #[must_use]
    pub fn with_types(self, types: Tensor) -> Self {
        let types = Some(types);
        Self { types, ..self }
    }

    /// Refuses ids that are not `(B, T)` with `T` at most `longest`, and others of another shape.
    pub(super) fn check(&self, op: &'static str, longest: usize) -> Result<()> {
        let refuse = |argument, wanted: String, got: &Tensor| Error::Argument {
            op,
            argument,
            wanted,
            got: format!("shape {:?}", got.dims()),
        };
        let fits = matches!(*self.ids.dims(), [batch, length] if batch > 0 && length > 0 && length <= longest);
        if !fits {
            let wanted = format!("of shape (B, T) with T at most {longest}");
            return Err(refuse("ids", wanted, &self.ids).into());
        }
        for (argument, other) in [("mask", &self.mask), ("types", &self.types)] {
            if let Some(other) = other
                && other.dims() != self.ids.dims()
            {
                let wanted = format!("of the ids' shape {:?}", self.ids.dims());
                return Err(refuse(argument, wanted, other).into());
            }
        }
        Ok(())
    }

    /// The mask as attention takes it, `(B, 1, 1, T)` of u8.
    pub(super) fn key_mask(&self) -> Result<Option<Tensor>> {
        let Some(mask) = &self.mask else {
            return Ok(None);
        };
        let seen = mask.ne(0u32)?.unsqueeze(1)?.unsqueeze(1)?;
        Ok(Some(seen))
    }

    /// The mean of `hidden (B, T, H)` over the tokens of each text, `(B, H)`.
    pub(super) fn mean(&self, hidden: &Tensor) -> Result<Tensor> {
        let Some(mask) = &self.mask else {
            return token_mean(hidden, None);
        };
        let counts = mask.ne(0u32)?.to_dtype(hidden.dtype())?;
        token_mean(hidden, Some(counts))
    }
}

/// A network on [`Tokens`].
///
/// Object-safe, like [`Network`](crate::Network).
pub trait TokenNetwork: Send + Sync {
    /// Maps texts `(B, T)` to logits: `(B, labels)` of a classifier, `(B, T, vocabulary)` of a language
    /// model; or to embeddings `(B, H)`.
    ///
    /// # Errors
    /// When the tensors have other shapes, are longer than the network has positions, hold ids that it
    /// does not have or lie on another device, or when candle fails.
    fn forward_tokens(&self, tokens: &Tokens, mode: Mode) -> Result<Tensor>;
}

/// The mean cross entropy of a language model's `logits (B, T, V)`, each taken for the token that follows:
/// place `t` of `labels (B, T)` is compared with the logits at `t − 1`. Labels are integers; −100 does not
/// count.
///
/// # Errors
/// When the shapes do not fit, there are fewer than two places, no label counts, or candle fails.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use sala_models::transformer::next_token_loss;
///
/// let logits = Tensor::zeros((1, 3, 8), DType::F64, &Device::Cpu)?;
/// let labels = Tensor::new(&[[4i64, 7, -100]], &Device::Cpu)?;
/// let loss = next_token_loss(&logits, &labels)?.to_scalar::<f64>()?;
/// assert!((loss - 8f64.ln()).abs() < 1e-12);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn next_token_loss(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let length = match *logits.dims() {
        [_, length, _] if length > 1 => length,
        _ => {
            return Err(Error::Argument {
                op: "next_token_loss",
                argument: "logits",
                wanted: "of shape (B, T, V) with T at least 2".into(),
                got: format!("shape {:?}", logits.dims()),
            }
            .into());
        }
    };
    if labels.dims() != &logits.dims()[..2] {
        return Err(Error::Argument {
            op: "next_token_loss",
            argument: "labels",
            wanted: format!("of shape {:?}", &logits.dims()[..2]),
            got: format!("shape {:?}", labels.dims()),
        }
        .into());
    }
    let said = narrow(logits, 1, 0, length - 1)?;
    let followed = labels.narrow(1, 1, length - 1)?;
    let loss = CrossEntropy {
        ignore_index: Some(-100),
        ..CrossEntropy::default()
    };
    let followed = match followed.dtype() {
        // So that −100 has a value to be compared with.
        DType::U8 | DType::U32 => followed.to_dtype(DType::I64)?,
        _ => followed,
    };
    loss.forward(&said, &followed)
}
