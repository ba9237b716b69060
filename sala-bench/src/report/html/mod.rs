//! One page that needs nothing but itself: no scripts, no fonts, no pictures from elsewhere.

mod figures;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{
    Report,
    compare::{Difference, Verdict},
    grid::Grid,
    plot::Style,
    tables::{self, Show},
    workload::Workload,
};
use crate::sharpness::Saved;
use figures::Figure;

const STYLE: &str = include_str!("style.css");

/// The page of a report.
pub(super) fn page(report: &Report) -> String {
    let title = title(report);
    let several = report.workloads.len() > 1;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="generator" content=(format!("sala-bench {}", env!("CARGO_PKG_VERSION")));
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                a.skip href="#main" { "To the results" }
                header {
                    p.kicker { "Comparison of optimizers" }
                    h1 { (title) }
                    @if !several {
                        @for workload in &report.workloads { (introduction(workload)) }
                    } @else { (contents(report)) }
                }
                main id="main" {
                    @for (number, workload) in report.workloads.iter().enumerate() {
                        (section(workload, number, several))
                    }
                    (profiles(report))
                }
                (footer())
            }
        }
    };
    page.into_string()
}

fn title(report: &Report) -> String {
    match report.workloads.as_slice() {
        [one] => one.experiment.clone(),
        several => format!("{} comparisons", several.len()),
    }
}

fn contents(report: &Report) -> Markup {
    html! {
        nav aria-label="Comparisons" {
            ul.contents {
                @for (number, workload) in report.workloads.iter().enumerate() {
                    li { a href=(format!("#w{number}")) { (workload.experiment) } }
                }
                @if !report.profiles.is_empty() { li { a href="#profiles" { "Over all comparisons" } } }
            }
        }
    }
}

/// What was compared, and where.
fn introduction(workload: &Workload) -> Markup {
    let runs: usize = workload.rows.iter().map(|r| r.runs).sum();
    let failed: usize = workload.rows.iter().map(|r| r.failed).sum();
    let seeds = workload.seeds.len();
    html! {
        p.lede { (workload.description) }
        dl.facts {
            (fact("Compared by", &format!("{} on the {} part", workload.metric.name(), workload.part.name())))
            @if !workload.is_search() { (fact("Base", &workload.base)) }
            (fact("Seeds", &seeds.to_string()))
            (fact("Runs", &format!("{runs}{}", if failed > 0 { format!(", {failed} diverged") } else { String::new() })))
            @if !workload.complete { (fact("State", "not all runs are complete")) }
            (fact("Plan", &workload.fingerprint))
            @for environment in &workload.environments {
                (fact("Made by", &format!("sala-bench {} ({}) with candle {} on {} {}, {}, {} threads", environment.version,
                    environment.commit, environment.candle, environment.os, environment.arch, environment.device, environment.threads)))
            }
        }
    }
}

fn fact(name: &str, value: &str) -> Markup {
    html! { div { dt { (name) } dd { (value) } } }
}

/// Everything of one comparison.
fn section(workload: &Workload, number: usize, several: bool) -> Markup {
    let id = format!("w{number}");
    html! {
        section id=(id) aria-label=(workload.experiment) {
            @if several {
                h2 { (workload.experiment) }
                (introduction(workload))
            }
            @if workload.is_search() {
                (search(workload, &id))
            } @else {
                (comparison(workload, &id))
            }
            details {
                summary { "The plan" }
                pre tabindex="0" { (workload.plan) }
            }
        }
    }
}

fn comparison(workload: &Workload, id: &str) -> Markup {
    html! {
        (verdicts(workload))
        (table(&tables::overview(workload), Some(workload)))
        (legend(workload))
        (group("What it gains and what it costs", figures::gains(workload, id)))
        @for compared in workload.comparisons.iter().filter(|c| !c.differences.is_empty()) {
            h3 { "Differences to " (compared.reference) }
            (table(&tables::differences(workload, compared), Some(workload)))
        }
        (group("The course of training", figures::course(workload, id)))
        (group("Stages of SALA", figures::stages(workload, id)))
        @for saved in &workload.sharpness { (sharpness(saved, workload)) }
        @if let Some(target) = &workload.target {
            h3 { "Cost to the target" }
            (table(&tables::target(workload, target), Some(workload)))
        }
        @if !workload.views.is_empty() {
            h3 { "At equal cost" }
            @for view in &workload.views {
                details open[view.measure == super::Measure::Evaluations] {
                    summary { "At equal " (view.measure.words()) }
                    (table(&tables::view(workload, view), Some(workload)))
                }
            }
        }
        details {
            summary { "Scores seed by seed" }
            (table(&scores(workload), Some(workload)))
        }
    }
}

/// The figures are pictures of their own, which the page's colours leave alone: they are light on any page.
fn sharpness(saved: &Saved, workload: &Workload) -> Markup {
    let grid = tables::sharpness(saved);
    html! {
        h3 { (grid.title) }
        (table(&grid, Some(workload)))
        div.figures {
            @for (figure, drawing) in saved.table.figures.iter().zip(&saved.drawings) {
                figure { img src=(inlined(drawing)) alt=(figure.title); }
            }
        }
    }
}

/// The address of an SVG picture that is in the address itself (RFC 2397). Of what SVG is written with, only
/// these two characters have a meaning there.
fn inlined(svg: &str) -> String {
    let escaped = svg.replace('%', "%25").replace('#', "%23");
    format!("data:image/svg+xml;charset=utf-8,{escaped}")
}

fn search(workload: &Workload, id: &str) -> Markup {
    html! {
        h3 { "Sensitivity to hyper-parameters" }
        (table(&tables::sensitivity(workload), None))
        (group("Scores by hyper-parameter", figures::sensitivity(workload, id)))
        details {
            summary { "All trials" }
            (table(&tables::overview(workload), None))
        }
    }
}

/// What the intervals say, in a few words.
fn verdicts(workload: &Workload) -> Markup {
    let show = Show(workload.metric);
    let diverged = diverged(workload);
    let found = (workload.to_base()).filter(|c| !c.differences.is_empty() || !diverged.is_empty());
    let Some(comparison) = found else {
        return html! {};
    };
    let of = |wanted: &[Verdict]| {
        let found = comparison
            .differences
            .iter()
            .filter(|d| wanted.contains(&d.verdict));
        found
            .map(|d| format!("{} ({}{})", d.optimizer, show.difference(d), unadjusted(d)))
            .collect::<Vec<_>>()
    };
    let base = &comparison.reference;
    let within = comparison
        .margin
        .map(|m| format!("±{}{}", show.number(m), show.unit_of_differences()))
        .unwrap_or_default();
    let kinds = [
        (format!("Better than {base}"), of(&[Verdict::Better])),
        (
            format!("Better than {base}, within the margin of {within}"),
            of(&[Verdict::BetterWithinMargin]),
        ),
        (
            format!("Equivalent to {base} within {within}"),
            of(&[Verdict::Equivalent]),
        ),
        (
            format!("Worse than {base}, within the margin of {within}"),
            of(&[Verdict::WorseWithinMargin]),
        ),
        (format!("Worse than {base}"), of(&[Verdict::Worse])),
        (
            format!(
                "Neither different from {base} nor equivalent to it, as far as these seeds show"
            ),
            of(&[Verdict::Undecided]),
        ),
        (
            "Not judged, because the part that is compared chose what it scores".into(),
            of(&[Verdict::NotGiven]),
        ),
        ("Without a mean, because a run diverged".into(), diverged),
    ];
    let n = comparison
        .differences
        .iter()
        .map(|d| d.paired.n)
        .max()
        .unwrap_or(0);
    html! {
        div.verdicts {
            p { strong { "What " (n) " seeds say" } ", at the 5 % level with Holm's correction; differences"
                @if !show.unit_of_differences().is_empty() { " in" (show.unit_of_differences()) }
                " with 95 % intervals, which are of one difference each and not adjusted:" }
            ul {
                @for (words, names) in kinds.iter().filter(|(_, names)| !names.is_empty()) {
                    li { (words) ": " (names.join(", ")) }
                }
            }
        }
    }
}

/// Why an interval that leaves zero out is no verdict: it is of one difference, and the verdict is of all.
fn unadjusted(difference: &Difference) -> String {
    let excludes_zero = |(low, high): (f64, f64)| low > 0.0 || high < 0.0;
    let apart = difference.paired.ci95.is_some_and(excludes_zero);
    match (difference.paired.p, difference.p_holm) {
        (Some(p), Some(holm)) if apart && difference.verdict == Verdict::Undecided => format!(
            "; p {} alone, {} with Holm's correction",
            tables::p_value(p),
            tables::p_value(holm)
        ),
        _ => String::new(),
    }
}

/// The optimizers of which a run diverged, and how many.
fn diverged(workload: &Workload) -> Vec<String> {
    let rows = workload.rows.iter().filter(|r| r.failed > 0);
    rows.map(|r| format!("{} ({} of {} runs)", r.optimizer, r.failed, r.runs))
        .collect()
}

fn legend(workload: &Workload) -> Markup {
    html! {
        ul.legend aria-label="Lines and markers" {
            @for (number, row) in workload.rows.iter().enumerate() {
                li { (Style(number).sample()) (row.optimizer) }
            }
        }
    }
}

/// Figures under a heading; nothing without one.
fn group(title: &str, figures: Vec<Figure>) -> Markup {
    if figures.is_empty() {
        return html! {};
    }
    html! {
        h3 { (title) }
        div.figures {
            @for figure in figures {
                figure {
                    figcaption { (figure.title) span { (figure.note) } }
                    (figure.drawing)
                    details {
                        summary { "Data" }
                        div.scroll.tall tabindex="0" role="region" aria-label=(format!("Data: {}", figure.title)) {
                            (plain_table(&figure.data, None))
                        }
                    }
                }
            }
        }
    }
}

/// A table with its legend; rows of optimizers have the sample of their line.
fn table(grid: &Grid, of: Option<&Workload>) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label=(grid.title) { (plain_table(grid, of)) }
        @if !grid.legend.is_empty() { p.note { (grid.legend) } }
    }
}

fn plain_table(grid: &Grid, of: Option<&Workload>) -> Markup {
    let style = |name: &str| {
        let rows = of.map(|w| w.rows.as_slice()).unwrap_or_default();
        rows.iter().position(|r| r.optimizer == name).map(Style)
    };
    html! {
        table {
            thead { tr { @for cell in &grid.header { th scope="col" { (cell) } } } }
            tbody {
                @for row in &grid.rows {
                    tr {
                        @for (number, cell) in row.iter().enumerate() {
                            @if number == 0 {
                                th scope="row" {
                                    @if let Some(style) = style(cell) { (style.sample()) }
                                    (cell)
                                }
                            } @else {
                                td { (cell) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The compared score of every run.
fn scores(workload: &Workload) -> Grid {
    let show = Show(workload.metric);
    let mut header = vec!["optimizer".to_owned()];
    header.extend(workload.seeds.iter().map(|seed| format!("seed {seed}")));
    let row = |row: &super::workload::Row| {
        let score = |seed: &u64| {
            let found = row.scores.iter().find(|(s, _)| s == seed);
            found.map_or_else(
                || super::grid::NONE.into(),
                |(_, score)| show.number(*score),
            )
        };
        let name = [row.optimizer.clone()].into_iter();
        name.chain(workload.seeds.iter().map(score)).collect()
    };
    Grid {
        title: "Scores seed by seed".into(),
        header,
        rows: workload.rows.iter().map(row).collect(),
        legend: format!(
            "{} on the {} part.",
            tables::capitalised(workload.metric.name()),
            workload.part.name()
        ),
    }
}

fn profiles(report: &Report) -> Markup {
    if report.profiles.is_empty() {
        return html! {};
    }
    html! {
        section id="profiles" aria-label="Over all comparisons" {
            h2 { "Over all comparisons" }
            (group("Performance profiles", figures::profiles(report)))
            @for profiles in &report.profiles {
                (table(&tables::profiles(profiles.measure, &profiles.workloads, &profiles.lines), None))
            }
        }
    }
}

fn footer() -> Markup {
    html! {
        footer {
            p { "Runs of one seed share initial weights, data, order and masks; differences are paired by seed. Choices are made on
                the validation part; the test part is read once a run, after its last step. Gradient evaluations count whole batches,
                and times are of training, changes to slow weights and back included. A diverged run is shown and not averaged away." }
            p { "Methods: paired t test (Student 1908), BCa bootstrap (Efron 1987), two one-sided tests (Schuirmann 1987), step-down
                correction (Holm 1979), performance profiles (Dolan and Moré 2002), cost to target (after AlgoPerf, Dahl et al. 2023)." }
        }
    }
}

#[cfg(test)]
mod tests;
