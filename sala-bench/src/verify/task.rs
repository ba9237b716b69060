//! A check that is still to be made.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};

use anyhow::Result;
use candle_core::DType;
use sala_models::kernels::Choice;

use super::check::{Check, Section, Verdict};

type Work = Box<dyn FnOnce() -> Result<Verdict>>;

pub(super) struct Task {
    pub(super) section: Section,
    pub(super) name: String,
    dtype: DType,
    form: Choice,
    work: Work,
}

impl Task {
    pub(super) fn new(
        section: Section,
        name: impl Into<String>,
        dtype: DType,
        form: Choice,
        work: impl FnOnce() -> Result<Verdict> + 'static,
    ) -> Self {
        Self {
            section,
            name: name.into(),
            dtype,
            form,
            work: Box::new(work),
        }
    }

    /// Makes the check. Whatever goes wrong, an unknown kernel or a panic of a driver's binding, is its verdict.
    pub(super) fn check(self) -> Check {
        let start = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(self.work));
        let verdict = match outcome {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(error)) => Verdict::failed(format!("{error:#}")),
            Err(panic) => Verdict::failed(format!("panicked: {}", words(&*panic))),
        };
        Check {
            section: self.section,
            name: self.name,
            dtype: self.dtype.as_str(),
            kernels: match self.form {
                Choice::Composed => "composed",
                _ => "auto",
            },
            passed: verdict.passed(),
            verdict,
            seconds: start.elapsed().as_secs_f64(),
        }
    }
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a word")
}
