//! The spans that a step opens and the fields they carry.
//!
//! A binary of its own: tracing remembers for the whole process whether anybody listens to a span, and
//! the other tests run on threads where nobody does.

#![allow(clippy::unwrap_used, unreachable_pub)]

#[allow(
    dead_code,
    unused_imports,
    reason = "shared with the other integration tests"
)]
#[path = "it/methods.rs"]
mod methods;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use candle_core::DType;
use sala_core::{Minimizer, ParamsSala, ParamsSgd, Pass, Sala, Sgd};
use tracing_subscriber::{Layer, layer::SubscriberExt};

use methods::Problem;

type Fields = BTreeMap<String, String>;

/// Name and fields of every span, in the order of their opening.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<Vec<(u64, String, Fields)>>>);

struct Visit<'a>(&'a mut Fields);

impl tracing::field::Visit for Visit<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        self.0.insert(field.name().into(), format!("{value:?}"));
    }
}

impl<S: tracing::Subscriber> Layer<S> for Spans {
    fn on_new_span(
        &self,
        attributes: &tracing::span::Attributes<'_>,
        id: &tracing::Id,
        _: tracing_subscriber::layer::Context<'_, S>,
    ) {
        let mut fields = Fields::new();
        attributes.record(&mut Visit(&mut fields));
        let name = attributes.metadata().name().to_owned();
        self.0.lock().unwrap().push((id.into_u64(), name, fields));
    }

    fn on_record(
        &self,
        id: &tracing::Id,
        values: &tracing::span::Record<'_>,
        _: tracing_subscriber::layer::Context<'_, S>,
    ) {
        let mut spans = self.0.lock().unwrap();
        let span = spans
            .iter_mut()
            .rev()
            .find(|(open, ..)| *open == id.into_u64())
            .unwrap();
        values.record(&mut Visit(&mut span.2));
    }
}

fn two_steps() {
    let problem = Problem::new(DType::F64);
    let base = Sgd::new(
        &problem.params(),
        ParamsSgd {
            lr: 0.25,
            ..Default::default()
        },
    )
    .unwrap();
    let config = ParamsSala {
        rho: 8.0,
        ..Default::default()
    };
    let mut sala = Sala::new(problem.params(), base, config).unwrap();
    for _ in 0..2 {
        sala.step(&mut |pass: Pass| problem.loss(pass)).unwrap();
    }
}

#[test]
fn a_step_opens_a_span_with_its_numbers_and_one_for_each_pass() {
    let spans = Spans::default();
    let subscriber = tracing_subscriber::registry().with(spans.clone());
    tracing::subscriber::with_default(subscriber, two_steps);
    let spans = spans.0.lock().unwrap();
    let names: Vec<_> = spans.iter().map(|(_, name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "sala.step",
            "sala.pass",
            "sala.step",
            "sala.pass",
            "sala.pass"
        ]
    );
    let fields = |i: usize, name: &str| spans[i].2.get(name).cloned().unwrap_or_default();
    assert_eq!(
        (fields(0, "step"), fields(0, "ascent")),
        ("1".into(), "false".into())
    );
    assert_eq!(
        (fields(2, "step"), fields(2, "ascent")),
        ("2".into(), "true".into())
    );
    assert_eq!(
        (fields(2, "lr"), fields(2, "rho")),
        ("0.25".into(), "8.0".into())
    );
    assert!(!fields(2, "loss").is_empty() && !fields(2, "gap").is_empty());
    assert_eq!(
        (fields(3, "pass"), fields(4, "pass")),
        ("direction".into(), "perturbed".into())
    );
}
