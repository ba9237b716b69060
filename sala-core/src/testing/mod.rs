//! For tests of this and other crates: named tolerances, comparisons that say where they fail,
//! gradient checks by central differences, and [`methods`]: every method of the catalogue.
//!
//! Functions that return nothing panic, as assertions do; those that return something do not.

#![allow(clippy::expect_used, clippy::panic, clippy::missing_panics_doc)]

pub mod methods;

use candle_core::{DType, Device, Result, Tensor, Var};

use crate::state::State;

/// |got − wanted| ≤ atol + rtol · |wanted|.
#[derive(Debug, Clone, Copy)]
pub struct Tolerance {
    /// Absolute part.
    pub atol: f64,
    /// Part relative to the wanted value.
    pub rtol: f64,
}

/// Scalars and schedules in f64.
pub const SCALAR: Tolerance = Tolerance {
    atol: 1e-12,
    rtol: 1e-12,
};
/// Trajectories in f64.
pub const TRAJECTORY_F64: Tolerance = Tolerance {
    atol: 1e-12,
    rtol: 1e-10,
};
/// Gradients in f64 against central differences with [`GRADCHECK_STEP`].
pub const GRADCHECK: Tolerance = Tolerance {
    atol: 1e-8,
    rtol: 1e-6,
};
/// Trajectories in f32 of up to 100 steps.
pub const TRAJECTORY_F32: Tolerance = Tolerance {
    atol: 1e-6,
    rtol: 1e-5,
};
/// Fused kernels against composed operations in f32, one step.
pub const FUSED_F32: Tolerance = Tolerance {
    atol: 1e-7,
    rtol: 1e-6,
};

/// Operations and trajectories of up to 100 steps in f32 on an accelerator, whose matrix products do not
/// round their factors (TF32 is off), against the CPU.
pub const DEVICE_F32: Tolerance = Tolerance {
    atol: 1e-5,
    rtol: 1e-4,
};
/// bf16 and f16, whose operations are computed in f32 and rounded once.
pub const HALF: Tolerance = Tolerance {
    atol: 1e-3,
    rtol: 1e-2,
};

/// Half the distance of a central difference.
pub const GRADCHECK_STEP: f64 = 1e-5;

thread_local! {
    static SYNCHRONISATIONS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Counts a read of numbers from a device, which waits for all that was asked of it.
pub(crate) fn count_synchronisation() {
    SYNCHRONISATIONS.set(SYNCHRONISATIONS.get() + 1);
}

/// How often this thread has waited for a device so far. Fused kernels on the CPU have their numbers at
/// hand; the composed form, which is what accelerators run, waits on the CPU too.
pub fn synchronisations() -> u64 {
    SYNCHRONISATIONS.get()
}

/// Two values that were compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Deviation {
    /// Number of the element, in row-major order.
    pub element: usize,
    /// The value of the reference.
    pub wanted: f64,
    /// The value that was checked.
    pub got: f64,
    /// By how much they may differ.
    pub allowed: f64,
}

impl Deviation {
    /// By how much they differ: nothing for equal bits, so that NaN equals itself, and NaN where one is.
    pub fn off(&self) -> f64 {
        if self.got.to_bits() == self.wanted.to_bits() {
            return 0.0;
        }
        (self.got - self.wanted).abs()
    }

    /// Whether that is allowed; NaN is not within anything.
    pub fn within(&self) -> bool {
        self.off() <= self.allowed
    }

    /// The difference as a share of what is allowed, infinite where it is NaN.
    pub fn share(&self) -> f64 {
        let off = self.off();
        if off.is_nan() {
            return f64::INFINITY;
        }
        if off == 0.0 { 0.0 } else { off / self.allowed }
    }
}

impl Tolerance {
    /// The same with the relative part of the largest of these values for all: sums of numbers of both signs
    /// are as exact as their largest terms.
    #[must_use]
    pub fn of_largest(self, wanted: &[f64]) -> Self {
        let finite = wanted.iter().filter(|v| v.is_finite());
        let largest = finite.fold(0_f64, |max, v| max.max(v.abs()));
        Self {
            atol: self.atol + self.rtol * largest,
            rtol: 0.0,
        }
    }

    fn compare(&self, element: usize, got: f64, wanted: f64) -> Deviation {
        // Of something infinite every share is infinite, and would allow anything.
        let size = if wanted.is_finite() {
            wanted.abs()
        } else {
            0.0
        };
        Deviation {
            element,
            wanted,
            got,
            allowed: self.atol + self.rtol * size,
        }
    }

    /// The pair of values that differs most, by its share of what is allowed; nothing where there are none.
    ///
    /// ```
    /// use sala_core::testing::SCALAR;
    /// let worst = SCALAR.worst(&[1.0, 2.5], &[1.0, 2.0]).ok_or("no values")?;
    /// assert!(!worst.within() && worst.element == 1 && worst.off() == 0.5);
    /// # Ok::<(), &str>(())
    /// ```
    pub fn worst(&self, got: &[f64], wanted: &[f64]) -> Option<Deviation> {
        let pairs = got.iter().zip(wanted).enumerate();
        let all = pairs.map(|(element, (&got, &wanted))| self.compare(element, got, wanted));
        all.max_by(|a, b| a.share().total_cmp(&b.share()))
    }

    /// Panics with `what` and both values when they differ by more than the tolerance or one is NaN.
    #[track_caller]
    pub fn assert(&self, what: &str, got: f64, wanted: f64) {
        let compared = self.compare(0, got, wanted);
        assert!(
            compared.within(),
            "{what}: wanted {wanted:e}, got {got:e}; off by {:e}, {:e} allowed",
            compared.off(),
            compared.allowed
        );
    }

    /// As [`Tolerance::assert`] for every element of two tensors of one shape.
    #[track_caller]
    pub fn assert_tensors(&self, what: &str, got: &Tensor, wanted: &Tensor) {
        assert_eq!(got.dims(), wanted.dims(), "{what}: shapes");
        for (i, (got, wanted)) in values(got).into_iter().zip(values(wanted)).enumerate() {
            self.assert(&format!("{what}, element {i}"), got, wanted);
        }
    }
}

/// Every element in row-major order as f64.
#[track_caller]
pub fn values(tensor: &Tensor) -> Vec<f64> {
    read(tensor).expect("a tensor whose elements can be read")
}

/// Every element in row-major order as f64, which is made of them on the CPU: not every device knows it.
///
/// # Errors
/// When candle fails.
pub fn read(tensor: &Tensor) -> Result<Vec<f64>> {
    let host = tensor.flatten_all()?.to_device(&Device::Cpu)?;
    host.to_dtype(DType::F64)?.to_vec1()
}

/// The derivatives of `value` by every element of `var` by central differences with [`GRADCHECK_STEP`].
/// The variable must be f64 and is as it was afterwards, unless there is an error.
///
/// # Errors
/// When candle fails.
pub fn differences(var: &Var, value: impl Fn() -> Result<f64>) -> Result<Vec<f64>> {
    let start = read(var)?;
    let set = |values: &[f64]| var.set(&Tensor::from_slice(values, var.shape(), var.device())?);
    let mut moved = start.clone();
    let mut slopes = Vec::with_capacity(start.len());
    for (i, &here) in start.iter().enumerate() {
        moved[i] = here + GRADCHECK_STEP;
        set(&moved)?;
        let above = value()?;
        moved[i] = here - GRADCHECK_STEP;
        set(&moved)?;
        slopes.push((above - value()?) / (2.0 * GRADCHECK_STEP));
        moved[i] = here;
    }
    set(&start)?;
    Ok(slopes)
}

/// Panics when two tensors differ in a single bit (values are compared after widening to f64, which
/// is exact).
#[track_caller]
pub fn assert_same_bits(what: &str, got: &Tensor, wanted: &Tensor) {
    assert_eq!(got.dims(), wanted.dims(), "{what}: shapes");
    for (i, (got, wanted)) in values(got).into_iter().zip(values(wanted)).enumerate() {
        let same = got.to_bits() == wanted.to_bits();
        assert!(same, "{what}, element {i}: wanted {wanted:e}, got {got:e}");
    }
}

/// Panics when two states differ in a name, in a value, or in a single bit of a tensor. (How a tensor is printed
/// does not tell: candle leaves out the elements of large ones.)
#[track_caller]
pub fn assert_same_state(what: &str, got: &State, wanted: &State) {
    assert_eq!(got.values, wanted.values, "{what}: values");
    let names = |state: &State| state.tensors.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(got), names(wanted), "{what}: names of tensors");
    for (name, wanted) in wanted.tensors() {
        let (what, got) = (format!("{what}: `{name}`"), &got.tensors[name]);
        assert_eq!(got.dtype(), wanted.dtype(), "{what}: dtypes");
        assert_same_bits(&what, got, wanted);
    }
}

/// Compares the gradient of a scalar `loss` by `backward()` with central differences, for every
/// element of every variable. The variables must be f64 and are as they were afterwards.
#[track_caller]
pub fn gradcheck(vars: &[(&str, &Var)], loss: impl Fn() -> Result<Tensor>) {
    let grads = loss()
        .and_then(|l| l.backward())
        .expect("the loss can be differentiated");
    for (name, var) in vars {
        let gradient = grads
            .get(var)
            .unwrap_or_else(|| panic!("`{name}` received no gradient"));
        assert_eq!(
            gradient.dims(),
            var.dims(),
            "shape of the gradient of `{name}`"
        );
        let value = || loss()?.to_scalar::<f64>();
        let wanted = differences(var, value).expect("a loss that can be evaluated");
        for (i, (got, wanted)) in values(gradient).into_iter().zip(wanted).enumerate() {
            GRADCHECK.assert(&format!("gradient of `{name}`, element {i}"), got, wanted);
        }
    }
}
