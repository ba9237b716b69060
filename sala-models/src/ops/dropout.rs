//! Dropout with masks that can be drawn again.
//!
//! Inverted dropout (Srivastava et al. 2014, JMLR 15:1929): with probability `p` an entry becomes
//! zero, otherwise it is divided by `1 − p`, so that the expectation stays and evaluation needs no
//! correction.
//!
//! candle's own dropout draws from a generator that cannot be seeded on the CPU, so no run can be
//! repeated, and both passes of a sharpness-aware step see different masks.

use candle_core::{Result, Tensor};

use super::checks::check_values;
use crate::{
    Mode,
    error::check_probability,
    kernels::{self, card, dropout as fast},
    rng::Stream,
};

/// A dropout layer. Entry `i` of the input, counted in row-major order, is kept or dropped by a
/// pure function of the layer's stream, [`Mode::draw`] and `i`:
///
/// - all passes with one `draw` see one mask, on every device;
/// - the first rows of a batch are treated alike whether or not more rows follow, so a gradient on
///   part of the batch belongs to the same sub-network.
///
/// A layer that is called twice in one forward pass drops the same places in both calls; give each
/// call its own layer if that is not wanted.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use sala_models::{Mode, Rng, ops::Dropout};
///
/// let dropout = Dropout::new(0.5, Rng::new(0).stream("hidden"))?;
/// let x = Tensor::ones((4, 8), DType::F32, &Device::Cpu)?;
/// let first = dropout.forward(&x, Mode::train(3))?.to_vec2::<f32>()?;
/// let second = dropout.forward(&x, Mode::train(3).without_stats())?.to_vec2::<f32>()?;
/// assert_eq!(first, second);
/// # Ok::<(), sala_models::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Dropout {
    p: f64,
    stream: Stream,
}

impl Dropout {
    /// A layer that drops with probability `p` in `[0, 1)`, by the masks of `stream`.
    ///
    /// `p` is realised with a resolution of 2⁻³².
    ///
    /// # Errors
    /// When `p` lies outside `[0, 1)` or is not a number.
    ///
    /// ```
    /// use sala_models::{Rng, ops::Dropout};
    ///
    /// assert!(Dropout::new(0.1, Rng::new(0).stream("a")).is_ok());
    /// assert!(Dropout::new(1.0, Rng::new(0).stream("a")).is_err());
    /// ```
    pub fn new(p: f64, stream: Stream) -> crate::Result<Self> {
        check_probability("Dropout", "p", p)?;
        Ok(Self { p, stream })
    }

    /// The probability of dropping an entry.
    pub const fn p(&self) -> f64 {
        self.p
    }

    /// Drops entries of `x` (any shape, any float dtype); the identity in evaluation and for
    /// `p = 0`.
    ///
    /// # Errors
    /// When `x` is empty or not of floats, or candle fails.
    pub fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        check_values("dropout", "x", x)?;
        match self.mask(mode) {
            Some(mask) => mask.apply(x),
            None => Ok(x.clone()),
        }
    }

    /// The mask of a pass; nothing in evaluation and for `p = 0`. For operations that drop what they do not
    /// show, as [`Attention`](super::Attention) does.
    ///
    /// ```
    /// use sala_models::{Mode, Rng, ops::Dropout};
    ///
    /// let dropout = Dropout::new(0.5, Rng::new(0).stream("shares"))?;
    /// assert!(dropout.mask(Mode::train(0)).is_some());
    /// assert!(dropout.mask(Mode::eval()).is_none());
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    pub fn mask(&self, mode: Mode) -> Option<DropoutMask> {
        (mode.train && self.p > 0.0).then(|| DropoutMask {
            p: self.p,
            stream: self.stream.at(mode.draw),
        })
    }
}

/// What [`Dropout`] drops in one pass: entry `i` of a tensor, in row-major order, by word `i` of a stream.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DropoutMask {
    pub(crate) p: f64,
    pub(crate) stream: Stream,
}

impl DropoutMask {
    pub(super) fn apply(self, x: &Tensor) -> Result<Tensor> {
        if let Some(card) = card::serving(x)? {
            return card::dropout::dropout(card, &x.contiguous()?, self);
        }
        if kernels::fast(x)? {
            return fast::dropout(&x.contiguous()?, self);
        }
        let words = self.stream.words(x.elem_count());
        let keep: Vec<u8> = words
            .into_iter()
            .map(|word| u8::from(f64::from(word) >= self.p * WORDS))
            .collect();
        // Bytes are uploaded and cast there: a quarter of the traffic of f32.
        let mask = Tensor::from_vec(keep, x.shape(), x.device())?.to_dtype(x.dtype())?;
        x * mask.affine(1.0 / (1.0 - self.p), 0.0)?
    }
}

/// The number of different 32-bit words.
const WORDS: f64 = 4_294_967_296.0;
