//! Cross entropy of logits and targets, as a mean.
//!
//! With `p = softmax(logits)`, `C` classes, label smoothing `ε` (Szegedy et al. 2016,
//! arXiv:1512.00567) and rows `i`:
//!
//! ```text
//! classes y:          lossᵢ = −(1 − ε) log p_y − (ε / C) Σ_c log p_c      mean over rows that count
//! distributions t:    lossᵢ = −Σ_c ((1 − ε) t_c + ε / C) log p_c          mean over all rows
//! ```
//!
//! This is `torch.nn.functional.cross_entropy` with `reduction="mean"` and without class weights,
//! but for three things. Classes are the last dimension, `(…, C)`, where `PyTorch` has them second.
//! When `ignore_index` leaves no row there is an error on the CPU, where `PyTorch` returns NaN. And the loss of
//! half-precision logits is f32, as under autocast: three digits are few for a loss, and a scaled
//! one would overflow f16.

use candle_core::{D, Result, Tensor};

use super::{
    checks::{
        accumulator, check_companion, check_integers, check_values, index_below, last_dim,
        read_indices, refuse, refuse_shape,
    },
    softmax::log_softmax,
};
use crate::kernels::{self, card, cross_entropy as fast};

const OP: &str = "cross_entropy";

/// Settings of the cross entropy; the default is neither smoothed nor ignores a class.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CrossEntropy {
    /// The share ε in `[0, 1]` of a target that is spread over all classes.
    pub label_smoothing: f64,
    /// Rows with this target do not count; whatever their logits hold, they receive no gradient.
    /// Only for targets that are classes. `PyTorch`'s is −100 unless set.
    pub ignore_index: Option<i64>,
}

/// The mean cross entropy of `logits (…, C)` and `targets`, by the default [`CrossEntropy`].
///
/// # Errors
/// As for [`CrossEntropy::forward`].
///
/// ```
/// use candle_core::{Device, Tensor};
/// use sala_models::ops::cross_entropy;
///
/// let logits = Tensor::new(&[[0f64, 0.], [0., 0.]], &Device::Cpu)?;
/// let classes = Tensor::new(&[0u32, 1], &Device::Cpu)?;
/// let loss = cross_entropy(&logits, &classes)?.to_scalar::<f64>()?;
/// assert!((loss - 2f64.ln()).abs() < 1e-12);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    CrossEntropy::default().forward(logits, targets)
}

impl CrossEntropy {
    /// The mean cross entropy, a scalar of `logits`' dtype, or f32 for half precision.
    ///
    /// `targets` of an integer dtype are classes, of the shape of `logits (…, C)` without its last
    /// dimension. They are read to be checked, which would wait for a graphics card: there, a target
    /// that is not a class makes the loss NaN, as does that none of them counts. Targets of floats are distributions, of `logits`' shape, and receive a gradient; that they sum to one is not
    /// checked.
    ///
    /// # Errors
    /// When `logits` is empty, a scalar or not of floats, the targets have another shape or dtype,
    /// (on the CPU) one of them is not a class or none of them counts, a setting is out of its range, or candle
    /// fails.
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use sala_models::ops::CrossEntropy;
    ///
    /// let logits = Tensor::new(&[[0f64, 0.], [3., 5.]], &Device::Cpu)?;
    /// let classes = Tensor::new(&[1i64, -100], &Device::Cpu)?;
    /// let loss = CrossEntropy { ignore_index: Some(-100), ..Default::default() };
    /// let loss = loss.forward(&logits, &classes)?.to_scalar::<f64>()?;
    /// assert!((loss - 2f64.ln()).abs() < 1e-12);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn forward(&self, logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
        check_values(OP, "logits", logits)?;
        let classes = last_dim(OP, "logits", logits)?;
        if !(0.0..=1.0).contains(&self.label_smoothing) {
            let got = self.label_smoothing.to_string();
            return Err(refuse(OP, "label_smoothing", "in [0, 1]", got));
        }
        let epsilon = self.label_smoothing;
        let card = card::serving(logits)?;
        let wide = || logits.to_dtype(accumulator(logits.dtype()));
        if targets.dtype().is_float() {
            self.check_distributions(logits, targets)?;
            if let Some(card) = card {
                let (rows, targets) = (logits.contiguous()?, targets.contiguous()?);
                return card::cross_entropy::of_distributions(card, &rows, &targets, epsilon);
            }
            return self.of_distributions(&wide()?, targets, classes);
        }
        let leading = &logits.dims()[..logits.rank() - 1];
        if targets.dims() != leading {
            let wanted = format!("of shape {leading:?}");
            return Err(refuse_shape(OP, "targets", wanted, targets));
        }
        if let Some(card) = card {
            check_integers(OP, "targets", targets)?;
            let (rows, ignored) = (logits.contiguous()?, self.ignore_index);
            return card::cross_entropy::of_classes(card, &rows, targets, ignored, epsilon);
        }
        self.of_classes(&wide()?, targets, classes)
    }

    fn check_distributions(&self, logits: &Tensor, targets: &Tensor) -> Result<()> {
        check_companion(OP, "targets", targets, logits)?;
        if targets.dims() != logits.dims() {
            let wanted = format!("of shape {:?}", logits.dims());
            return Err(refuse_shape(OP, "targets", wanted, targets));
        }
        match self.ignore_index {
            None => Ok(()),
            Some(index) => {
                let wanted = "None for targets that are distributions";
                Err(refuse(OP, "ignore_index", wanted, index.to_string()))
            }
        }
    }

    /// `logits` and `targets (…, classes)`, as below.
    fn of_distributions(
        &self,
        logits: &Tensor,
        targets: &Tensor,
        classes: usize,
    ) -> Result<Tensor> {
        let epsilon = self.label_smoothing;
        let targets = targets.to_dtype(logits.dtype())?;
        if kernels::fast(logits)? {
            return fast::of_distributions(&logits.contiguous()?, &targets.contiguous()?, epsilon);
        }
        let rows = &logits.reshape(((), classes))?;
        let (count, targets) = (rows.dim(0)?, targets.reshape(((), classes))?);
        let smoothed = targets.affine(1.0 - epsilon, epsilon / classes as f64)?;
        let total = (smoothed * log_softmax(rows, D::Minus1)?)?.sum_all()?;
        total.affine(-1.0 / count as f64, 0.0)
    }

    fn of_classes(&self, logits: &Tensor, targets: &Tensor, classes: usize) -> Result<Tensor> {
        let class = |index| -> Result<Option<u32>> {
            if Some(index) == self.ignore_index {
                return Ok(None);
            }
            index_below(OP, "targets", index, classes).map(Some)
        };
        let indices = read_indices(OP, "targets", targets)?.into_iter();
        let targets = indices.map(class).collect::<Result<Vec<_>>>()?;
        if targets.iter().all(Option::is_none) {
            let wanted = "at least one that is not ignore_index";
            return Err(refuse(OP, "targets", wanted, "none"));
        }
        if kernels::fast(logits)? {
            return fast::of_classes(&logits.contiguous()?, targets, self.label_smoothing);
        }
        let rows = logits.reshape(((), classes))?;
        self.composed_of_classes(&rows, &targets, classes)
    }

    /// `targets` are the classes of the rows that count.
    fn composed_of_classes(
        &self,
        rows: &Tensor,
        targets: &[Option<u32>],
        classes: usize,
    ) -> Result<Tensor> {
        let indexed = (0_u32..).zip(targets);
        let (counted, wanted): (Vec<u32>, Vec<u32>) = indexed
            .filter_map(|(row, class)| Some((row, (*class)?)))
            .unzip();
        let count = wanted.len();
        // Rows that do not count are left out before anything is computed: multiplied by zero, an
        // infinite one would still make the loss NaN.
        let rows = if counted.len() < rows.dim(0)? {
            let counted = Tensor::from_vec(counted, count, rows.device())?;
            rows.contiguous()?.index_select(&counted, 0)?
        } else {
            rows.clone()
        };
        let wanted = Tensor::from_vec(wanted, (count, 1), rows.device())?;
        let logs = log_softmax(&rows, D::Minus1)?;
        let of_targets = logs.gather(&wanted, D::Minus1)?.sum_all()?;
        let epsilon = self.label_smoothing;
        if epsilon == 0.0 {
            return of_targets.affine(-1.0 / count as f64, 0.0);
        }
        let of_all = logs.sum_all()?.affine(epsilon / classes as f64, 0.0)?;
        (of_targets.affine(1.0 - epsilon, 0.0)? + of_all)?.affine(-1.0 / count as f64, 0.0)
    }
}
