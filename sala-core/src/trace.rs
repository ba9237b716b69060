//! The tracing spans of a step, in one place so that names and fields stay the same everywhere:
//! `sala.step` {step, lr, rho, loss, ascent, gap} and within it one `sala.pass` {pass} a pass. Where the
//! caller takes the passes there are no spans; both forms emit an event `sala.done` at a step's end.

use tracing::{Span, debug_span, field::Empty};

use crate::{minimizer::StepReport, objective::Pass};

/// The span of a step; its outcome is added by [`record`].
pub(crate) fn step(step: u64, lr: f64, rho: Option<f64>) -> Span {
    debug_span!(
        "sala.step",
        step,
        lr,
        rho,
        loss = Empty,
        ascent = Empty,
        gap = Empty
    )
}

/// Adds what a step did to its span.
pub(crate) fn record(span: &Span, report: &StepReport) {
    span.record("loss", report.loss);
    span.record("ascent", report.ascent);
    if let Some(gap) = report.gap {
        span.record("gap", gap);
    }
}

/// The event of a completed step, in both forms of a step.
pub(crate) fn done(report: &StepReport) {
    tracing::debug!(
        name: "sala.done",
        step = report.step,
        loss = report.loss,
        ascent = report.ascent,
        evaluations = report.evaluations,
        gap = report.gap,
        grad_norm = report.grad_norm,
    );
}

/// The span of a pass.
pub(crate) fn pass(pass: Pass) -> Span {
    debug_span!("sala.pass", %pass)
}
