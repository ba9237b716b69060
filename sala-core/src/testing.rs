//! For tests of this and other crates: named tolerances, comparisons that say where they fail, and
//! gradient checks by central differences.
//!
//! The functions panic, as assertions do.

#![allow(clippy::expect_used, clippy::panic, clippy::missing_panics_doc)]

use candle_core::{DType, Result, Tensor, Var};

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

impl Tolerance {
    /// Panics with `what` and both values when they differ by more than the tolerance or one is NaN.
    #[track_caller]
    pub fn assert(&self, what: &str, got: f64, wanted: f64) {
        let allowed = self.atol + self.rtol * wanted.abs();
        let off = (got - wanted).abs();
        // A NaN on either side makes `off` NaN, which is not within anything.
        let near = off <= allowed || got.to_bits() == wanted.to_bits();
        assert!(
            near,
            "{what}: wanted {wanted:e}, got {got:e}; off by {off:e}, {allowed:e} allowed"
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
    let flat = tensor
        .flatten_all()
        .and_then(|t| t.to_dtype(DType::F64)?.to_vec1());
    flat.expect("a tensor whose elements can be read")
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

/// Compares the gradient of a scalar `loss` by `backward()` with central differences, for every
/// element of every variable. The variables must be f64 and are as they were afterwards.
#[track_caller]
pub fn gradcheck(vars: &[(&str, &Var)], loss: impl Fn() -> Result<Tensor>) {
    let value = || {
        loss()
            .and_then(|l| l.to_scalar::<f64>())
            .expect("the loss can be evaluated")
    };
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
        let start = values(var);
        let set = |values: &[f64]| {
            let tensor = Tensor::from_slice(values, var.shape(), var.device());
            tensor
                .and_then(|t| var.set(&t))
                .expect("a variable that can be set");
        };
        for (i, got) in values(gradient).into_iter().enumerate() {
            let mut moved = start.clone();
            moved[i] = start[i] + GRADCHECK_STEP;
            set(&moved);
            let above = value();
            moved[i] = start[i] - GRADCHECK_STEP;
            set(&moved);
            let below = value();
            let wanted = (above - below) / (2.0 * GRADCHECK_STEP);
            GRADCHECK.assert(&format!("gradient of `{name}`, element {i}"), got, wanted);
        }
        set(&start);
    }
}
