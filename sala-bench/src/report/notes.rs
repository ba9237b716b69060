//! What a reader has to know of a comparison's numbers before they are believed.

use anyhow::{Result, ensure};

use super::{
    load::{Place, Source},
    tables::Show,
    workload::{Settings, Values},
};
use crate::sharpness::Saved;

/// The largest margin of a share that is taken for one. Ten points hide any difference between optimizers; above
/// that a number is most likely meant in points.
const LARGEST_SHARE: f64 = 0.1;

/// In sentences, none where nothing is the matter.
///
/// # Errors
/// When a margin that was typed is none for shares.
pub(super) fn of(source: &Source, settings: &Settings, values: Values) -> Result<Vec<String>> {
    let mut notes: Vec<String> = programs(source).into_iter().collect();
    notes.extend(chosen(values));
    notes.extend(margin(source, settings, values)?);
    notes.extend(references(source, settings));
    let foreign = |place: &&Place| (place.sharpness.as_ref()).is_some_and(|s| !is_of(source, s));
    notes.extend(source.places.iter().filter(foreign).map(sharpness));
    Ok(notes)
}

/// The versions that made the runs, where there are several.
fn programs(source: &Source) -> Option<String> {
    let mut all: Vec<(&str, usize)> = Vec::new();
    for program in (source.runs.iter()).filter_map(|r| r.record.program.as_deref()) {
        match all.iter_mut().find(|(known, _)| *known == program) {
            Some((_, runs)) => *runs += 1,
            None => all.push((program, 1)),
        }
    }
    let said = all
        .iter()
        .map(|(program, runs)| format!("{program} made {runs}"));
    let said: Vec<String> = said.collect();
    (all.len() > 1).then(|| {
        format!(
            "The runs were made by different versions of the program ({}): what differs between versions looks like a \
             difference between runs.",
            said.join(", ")
        )
    })
}

fn chosen(values: Values) -> Option<String> {
    values.are_chosen().then(|| {
        "Each run's weights are those of the epoch that this very part scored best, so its scores are maxima, which \
         favour whoever swings most: no interval, no p and no verdict is given. A test part (--test) compares them."
            .into()
    })
}

fn margin(source: &Source, settings: &Settings, values: Values) -> Result<Option<String>> {
    let show = Show(values.metric());
    let (planned, typed) = (source.plan.report.margin, settings.margin);
    let words = |m: f64| format!("±{}{}", show.number(m), show.unit_of_differences());
    let is_share = values.metric().is_share();
    if let Some(margin) = typed {
        ensure!(
            !is_share || margin <= LARGEST_SHARE,
            "--margin {margin} is {}; {} is a share, so half a point is 0.005, and more than {LARGEST_SHARE} is no \
             margin",
            words(margin),
            values.metric().name()
        );
    }
    Ok(match (planned, typed) {
        (Some(planned), Some(typed)) if planned.to_bits() != typed.to_bits() => Some(format!(
            "The margin of {} is not the plan's, which is {}.",
            words(typed),
            words(planned)
        )),
        (None, Some(typed)) => Some(format!(
            "The margin of {} is not the plan's, which has none: it was named after the runs.",
            words(typed)
        )),
        (Some(planned), None) if is_share && planned > LARGEST_SHARE => Some(format!(
            "The plan's margin is {}: nearly everything is equivalent within that.",
            words(planned)
        )),
        _ => None,
    })
}

/// References, and a base, that the plan does not have.
fn references(source: &Source, settings: &Settings) -> Option<String> {
    let plan = &source.plan;
    let first = plan.names().first().copied().unwrap_or_default();
    let planned = |name: &str| name == first || plan.report.references.iter().any(|r| r == name);
    let typed = settings.base.iter().chain(&settings.references);
    let others: Vec<&str> = typed.map(String::as_str).filter(|n| !planned(n)).collect();
    (!others.is_empty()).then(|| {
        format!(
            "Differences to {} are not the plan's: they were asked for after the runs.",
            others.join(" and ")
        )
    })
}

fn sharpness(place: &Place) -> String {
    format!(
        "The sharpness in {0} is of other solutions than these runs' and is left out; `sala-bench sharpness {0}` measures \
         these.",
        place.path.display()
    )
}

/// Whether what was measured are the solutions of these runs, to the bit.
pub(super) fn is_of(source: &Source, saved: &Saved) -> bool {
    saved.table.solutions.iter().all(|solution| {
        let mut runs = source.of(&solution.optimizer);
        runs.any(|r| r.record.seed == solution.seed && r.record.parameters == solution.parameters)
    })
}
