//! What can go wrong, in words that name the place, what was wanted and what was found.

use std::path::PathBuf;

use crate::objective::Pass;

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Every error of this crate. No operation of the crate panics on bad input.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of a `Params*` configuration is outside its range.
    #[error("{owner}.{field} must be {wanted}, got {got}")]
    Config {
        /// The configuration's type name.
        owner: &'static str,
        /// The field.
        field: &'static str,
        /// The range that is allowed, in words.
        wanted: &'static str,
        /// The value that was given.
        got: String,
    },

    /// Two entries of a [`ParamSet`](crate::ParamSet) have the same name.
    #[error("ParamSet: the name `{name}` is given twice, for two different variables")]
    DuplicateName {
        /// The name.
        name: String,
    },

    /// An entry of a [`ParamSet`](crate::ParamSet) has an empty name.
    #[error("ParamSet: variable number {index} (from 0) has an empty name")]
    EmptyName {
        /// Its place in the list that was given.
        index: usize,
    },

    /// The variables of a [`ParamSet`](crate::ParamSet) are on different devices.
    #[error("ParamSet: `{name}` is on {got:?}, but the variables before it are on {wanted:?}")]
    MixedDevices {
        /// The variable's name.
        name: String,
        /// The device of the others.
        wanted: candle_core::DeviceLocation,
        /// Its own.
        got: candle_core::DeviceLocation,
    },

    /// A variable cannot be trained because of its dtype.
    #[error("ParamSet: `{name}` must have a float dtype to be trained, got {dtype:?}")]
    NotFloat {
        /// The variable's name.
        name: String,
        /// Its dtype.
        dtype: candle_core::DType,
    },

    /// A variable cannot be the f32 master copy of a parameter in half precision.
    #[error("ParamSet: the master of `{name}` must be {wanted}, got {got}")]
    Master {
        /// The parameter's name.
        name: String,
        /// dtype, shape and device that are wanted.
        wanted: String,
        /// Those of the variable, or `none`.
        got: String,
    },

    /// There is nothing to train.
    #[error(
        "ParamSet: no trainable parameter left ({given} variables given, {frozen} of them frozen)"
    )]
    NoParameters {
        /// Number of variables given.
        given: usize,
        /// Number of those that were frozen.
        frozen: usize,
    },

    /// A group or a freeze rule matches no parameter.
    #[error("ParamSet: the rule for `{rule}` matches none of the {len} trainable parameters")]
    NoMatch {
        /// The group's name, or `frozen`.
        rule: String,
        /// Number of parameters that were looked at.
        len: usize,
    },

    /// `backward()` left a trainable parameter without a gradient.
    #[error(
        "{pass} pass: parameter `{name}` received no gradient; freeze it in the ParamSet if that is \
         meant, else look for an operation without backward between it and the loss"
    )]
    MissingGradient {
        /// The pass.
        pass: Pass,
        /// The parameter's name.
        name: String,
    },

    /// A gradient does not have its parameter's shape.
    #[error("{pass} pass: the gradient of `{name}` must have shape {wanted:?}, got {got:?}")]
    GradientShape {
        /// The pass.
        pass: Pass,
        /// The parameter's name.
        name: String,
        /// The parameter's shape.
        wanted: Vec<usize>,
        /// The gradient's shape.
        got: Vec<usize>,
    },

    /// A gradient has another dtype than its parameter, or is on another device.
    #[error("{pass} pass: the gradient of `{name}` must be {wanted}, got {got}")]
    GradientKind {
        /// The pass.
        pass: Pass,
        /// The parameter's name.
        name: String,
        /// The parameter's dtype and device.
        wanted: String,
        /// The gradient's.
        got: String,
    },

    /// The loss or a gradient is NaN or infinite. Weights and state are those of before the step.
    #[error("{pass} pass: {what} is not finite ({value}); weights and state are unchanged")]
    NonFinite {
        /// The pass.
        pass: Pass,
        /// `the loss`, or the gradient of which parameter.
        what: String,
        /// The loss, or the squared norm of the gradient.
        value: f64,
    },

    /// The loss is not a scalar.
    #[error("{pass} pass: the loss must be a scalar, got shape {got:?}; take its mean or sum")]
    LossShape {
        /// The pass.
        pass: Pass,
        /// The shape of the tensor that was returned.
        got: Vec<usize>,
    },

    /// The methods of a step were called in an order that makes no sense.
    #[error("{problem}")]
    Order {
        /// What was called when, and what should have been.
        problem: &'static str,
    },

    /// The base was made from another [`ParamSet`](crate::ParamSet) than the optimizer around it.
    #[error(
        "the base was made before `{name}` got its learning rate or weight decay: make the base from \
         the ParamSet that the optimizer gets"
    )]
    StaleBase {
        /// The first parameter whose settings differ.
        name: String,
    },

    /// The base trains other variables than those of the optimizer's [`ParamSet`](crate::ParamSet).
    #[error(
        "the base must train the variables of the optimizer's ParamSet, but {problem}: make it from the \
         finished set (`Sgd::new(&params, …)`), or from `params.vars()` where it takes variables"
    )]
    OtherVars {
        /// What differs.
        problem: String,
    },

    /// A base cannot do what is asked of it.
    #[error("{what} needs Sgd or Adam as its base: other bases keep it to themselves")]
    ForeignBase {
        /// What was asked for.
        what: &'static str,
    },

    /// The optimizer perturbs each of so many micro-batches, and the objective has another number.
    #[error("the optimizer wants an objective of {wanted} micro-batches, got one of {got}")]
    MicroBatches {
        /// The optimizer's number.
        wanted: usize,
        /// The objective's.
        got: usize,
    },

    /// A direction in the space of the parameters does not fit them.
    #[error("direction: {what} must be {wanted}, got {got}")]
    Direction {
        /// Which part of it.
        what: String,
        /// What was wanted.
        wanted: String,
        /// What was given.
        got: String,
    },

    /// Hessian-vector products by a second backward pass disagree with differences of gradients.
    #[error(
        "exact Hessian-vector products differ from central differences of gradients by {difference:.1e}, \
         relative to them, more than {tolerance:.1e}: set CANDLE_GRAD_DO_NOT_DETACH=1 before the program \
         starts; if it is set, an operation of the model cannot be differentiated twice, or the loss is \
         not smooth"
    )]
    ExactProduct {
        /// ‖exact − differences‖ / ‖differences‖.
        difference: f64,
        /// What was allowed.
        tolerance: f64,
    },

    /// A measurement compares micro-batches, and the objective has too few.
    #[error("{what} needs an objective of at least {wanted} micro-batches, got one of {got}")]
    TooFewMicroBatches {
        /// What was to be measured.
        what: &'static str,
        /// The least number.
        wanted: usize,
        /// The objective's.
        got: usize,
    },

    /// A saved state lacks entries, has entries too many, or entries of the wrong kind.
    #[error("state of {owner}: {problem}")]
    State {
        /// Whose state it is.
        owner: String,
        /// What does not fit, with names.
        problem: String,
    },

    /// A checkpoint file cannot be read or written.
    #[error("checkpoint {}: {problem}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },

    /// An error of candle, the caller's objective included.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl From<Error> for candle_core::Error {
    /// So that this crate's calls can be used with `?` in functions that return candle's `Result`.
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(inner) => inner,
            other => Self::wrap(other),
        }
    }
}

/// Checks of configuration fields, each one line at the place of use.
pub(crate) mod check {
    use super::{Error, Result};

    fn ensure(
        ok: bool,
        place: (&'static str, &'static str),
        wanted: &'static str,
        got: impl ToString,
    ) -> Result<()> {
        if ok {
            return Ok(());
        }
        let (owner, field) = place;
        Err(Error::Config {
            owner,
            field,
            wanted,
            got: got.to_string(),
        })
    }

    /// `0 <= value < ∞`; NaN is rejected.
    pub(crate) fn non_negative(owner: &'static str, field: &'static str, value: f64) -> Result<()> {
        ensure(
            value.is_finite() && value >= 0.0,
            (owner, field),
            "finite and >= 0",
            value,
        )
    }

    /// `0 < value < ∞`; NaN is rejected.
    pub(crate) fn positive(owner: &'static str, field: &'static str, value: f64) -> Result<()> {
        ensure(
            value.is_finite() && value > 0.0,
            (owner, field),
            "finite and > 0",
            value,
        )
    }

    /// `0 <= value <= 1`; NaN is rejected.
    pub(crate) fn unit(owner: &'static str, field: &'static str, value: f64) -> Result<()> {
        ensure(
            (0.0..=1.0).contains(&value),
            (owner, field),
            "in [0, 1]",
            value,
        )
    }

    /// `0 <= value < 1`; NaN is rejected.
    pub(crate) fn below_one(owner: &'static str, field: &'static str, value: f64) -> Result<()> {
        ensure(
            (0.0..1.0).contains(&value),
            (owner, field),
            "in [0, 1)",
            value,
        )
    }

    /// `0 < value <= 1`; NaN is rejected.
    pub(crate) fn fraction(owner: &'static str, field: &'static str, value: f64) -> Result<()> {
        ensure(
            value > 0.0 && value <= 1.0,
            (owner, field),
            "in (0, 1]",
            value,
        )
    }

    /// `value >= 1`.
    pub(crate) fn at_least_one(owner: &'static str, field: &'static str, value: u64) -> Result<()> {
        ensure(value >= 1, (owner, field), ">= 1", value)
    }

    /// A condition between fields.
    pub(crate) fn holds(
        owner: &'static str,
        field: &'static str,
        ok: bool,
        wanted: &'static str,
        got: impl ToString,
    ) -> Result<()> {
        ensure(ok, (owner, field), wanted, got)
    }
}
