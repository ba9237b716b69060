//! How exact a convolution has to be.

use std::{cell::Cell, sync::OnceLock};

use candle_core::DType;

use crate::{Error, kernels::variable};

/// What fast convolutions may give up for speed. It concerns 3 × 3 kernels with a stride of 1 on the CPU,
/// in f32; f64 is always exact.
///
/// Largest errors in f32 against f64, relative to the largest entry, for 64, 128 and 256 channels
/// (`cargo test -p sala-models --test it winograd::errors -- --nocapture` prints and bounds them):
///
/// | | result | input gradient | weight gradient |
/// |---|---|---|---|
/// | exact | 2.4e-6 | 1.9e-6 | 1.4e-6 |
/// | balanced | 4.7e-7 | 6.2e-7 | 3.9e-7 |
/// | fast | 1.0e-5 | 1.4e-5 | 6.0e-6 |
///
/// F(2×2, 3×3) multiplies with ±1 and ½ only, and its sums are nine times shorter than those of nine
/// entries and all channels: so its errors are smaller than those of plain sums. F(4×4, 3×3)
/// multiplies with up to 8, and its errors are several times larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConvPrecision {
    /// Sums of products.
    Exact,
    /// Winograd's F(2×2, 3×3) where it is faster.
    Balanced,
    /// Winograd's F(4×4, 3×3) where it is faster.
    Fast,
}

/// What holds where nothing else was chosen.
const DEFAULT: ConvPrecision = ConvPrecision::Balanced;

impl Default for ConvPrecision {
    fn default() -> Self {
        DEFAULT
    }
}

impl ConvPrecision {
    /// Reads a value of `SALA_CONV`.
    fn parse(value: Option<&str>) -> crate::Result<Self> {
        match value {
            None | Some("") => Ok(DEFAULT),
            Some("exact") => Ok(Self::Exact),
            Some("balanced") => Ok(Self::Balanced),
            Some("fast") => Ok(Self::Fast),
            Some(other) => Err(Error::Argument {
                op: "environment",
                argument: "SALA_CONV",
                wanted: "`exact`, `balanced` or `fast`".into(),
                got: format!("`{other}`"),
            }),
        }
    }
}

thread_local! {
    static FORCED: Cell<Option<ConvPrecision>> = const { Cell::new(None) };
}

/// The precision of the calling thread's convolutions in f32: that of [`with_conv_precision`], else that of
/// the environment variable `SALA_CONV` (`exact`, `balanced` or `fast`), which is read once, else the
/// default.
///
/// # Errors
/// When the variable has an unknown value.
///
/// ```
/// use sala_models::kernels::{self, ConvPrecision};
/// let inside = kernels::with_conv_precision(ConvPrecision::Fast, kernels::conv_precision)?;
/// assert_eq!(inside, ConvPrecision::Fast);
/// # Ok::<(), sala_models::Error>(())
/// ```
pub fn conv_precision() -> crate::Result<ConvPrecision> {
    static VALUE: OnceLock<Option<String>> = OnceLock::new();
    if let Some(precision) = FORCED.get() {
        return Ok(precision);
    }
    ConvPrecision::parse(variable("SALA_CONV", &VALUE))
}

/// Runs `work` with this precision, whatever the environment says, on the calling thread: for tests and
/// comparisons. Here it holds for f64, too, and for all sizes that can be computed so, also where
/// that is slower.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use sala_models::{kernels::{ConvPrecision, with_conv_precision}, ops::{Conv2dConfig, conv2d}};
///
/// let x = Tensor::ones((1, 1, 3, 3), DType::F64, &Device::Cpu)?;
/// let weight = Tensor::ones((1, 1, 3, 3), DType::F64, &Device::Cpu)?;
/// let y = with_conv_precision(ConvPrecision::Fast, || {
///     conv2d(&x, &weight, None, Conv2dConfig::default())
/// })?;
/// assert!((y.sum_all()?.to_scalar::<f64>()? - 9.0).abs() < 1e-12);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn with_conv_precision<R>(precision: ConvPrecision, work: impl FnOnce() -> R) -> R {
    struct Reset(Option<ConvPrecision>);
    impl Drop for Reset {
        fn drop(&mut self) {
            FORCED.set(self.0);
        }
    }
    let _reset = Reset(FORCED.replace(Some(precision)));
    work()
}

/// The precision for a dtype, and whether it was forced.
pub(super) fn precision_of(dtype: DType) -> crate::Result<(ConvPrecision, bool)> {
    // Read in any case: a wrong value is an error whatever is computed first.
    let precision = conv_precision()?;
    let forced = FORCED.get().is_some();
    if dtype == DType::F64 && !forced {
        return Ok((ConvPrecision::Exact, false));
    }
    Ok((precision, forced))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_is_read_strictly() {
        for (value, wanted) in [
            (None, DEFAULT),
            (Some(""), DEFAULT),
            (Some("exact"), ConvPrecision::Exact),
            (Some("balanced"), ConvPrecision::Balanced),
            (Some("fast"), ConvPrecision::Fast),
        ] {
            assert_eq!(ConvPrecision::parse(value).unwrap(), wanted);
        }
        for wrong in ["Fast", "winograd", " exact"] {
            let error = ConvPrecision::parse(Some(wrong)).unwrap_err().to_string();
            for part in ["SALA_CONV", "`balanced`", wrong] {
                assert!(error.contains(part), "{error}");
            }
        }
    }

    #[test]
    fn double_precision_is_exact_unless_forced() {
        let of = |dtype| precision_of(dtype).unwrap();
        assert_eq!(of(DType::F64), (ConvPrecision::Exact, false));
        with_conv_precision(ConvPrecision::Balanced, || {
            assert_eq!(of(DType::F64), (ConvPrecision::Balanced, true));
            assert_eq!(of(DType::F32), (ConvPrecision::Balanced, true));
        });
    }
}
