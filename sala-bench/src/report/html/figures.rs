//! The figures of a comparison: numbers to drawings, each with its data in words.

use maud::Markup;

use super::super::{
    Report,
    compare::{Comparison, Difference},
    curves::{MeanCurve, MeanPoint, Measure},
    grid::{Grid, NONE},
    plot::{Caption, Dot, Forest, Interval, Line, LineChart, Reference, Scale, Scatter, Style},
    tables::{self, Show, capitalised},
    workload::{Row, Workload},
};
use crate::stats::{AtValue, Sensitivity, TAU_MAX, Trial};

/// A drawing with what it is called and its data.
pub(super) struct Figure {
    pub(super) title: String,
    pub(super) note: String,
    pub(super) drawing: Markup,
    pub(super) data: Grid,
}

fn figure(
    caption: &Caption,
    note: &str,
    drawing: Markup,
    header: &[&str],
    rows: Vec<Vec<String>>,
) -> Figure {
    Figure {
        title: caption.title.clone(),
        note: note.into(),
        drawing,
        data: Grid {
            title: caption.title.clone(),
            header: header.iter().map(|h| (*h).to_owned()).collect(),
            rows,
            legend: String::new(),
        },
    }
}

fn style(workload: &Workload, optimizer: &str) -> Style {
    let place = workload.rows.iter().position(|r| r.optimizer == optimizer);
    Style(place.unwrap_or(0))
}

/// The metric with its unit.
fn metric_label(workload: &Workload) -> String {
    format!("{}{}", workload.metric.name(), workload.metric.unit().1)
}

/// Differences to every reference, and final scores against their cost.
pub(super) fn gains(workload: &Workload, id: &str) -> Vec<Figure> {
    let mut figures: Vec<Figure> = (workload.comparisons.iter())
        .filter(|c| !c.differences.is_empty())
        .map(|c| differences(workload, c, id))
        .collect();
    let evaluations = |row: &Row| row.evaluations_ratio;
    let time = |row: &Row| row.time_ratio;
    figures.extend(against_cost(
        workload,
        id,
        "gradient evaluations",
        evaluations,
    ));
    figures.extend(against_cost(workload, id, "training time", time));
    figures
}

fn differences(workload: &Workload, comparison: &Comparison, id: &str) -> Figure {
    let (show, reference) = (Show(workload.metric), &comparison.reference);
    let factor = workload.metric.unit().0;
    let both = |(low, high): (f64, f64)| (factor * low, factor * high);
    let row = |d: &Difference| Interval {
        name: d.optimizer.clone(),
        style: style(workload, &d.optimizer),
        mean: factor * d.paired.mean,
        first: d.paired.ci95.map(both),
        second: d.paired.bootstrap95.map(both),
        single: single(workload, &d.optimizer, reference)
            .iter()
            .map(|x| factor * x)
            .collect(),
        words: show.difference(d),
    };
    let described: Vec<String> = (comparison.differences.iter())
        .map(|d| {
            format!(
                "{}: {}, {}",
                d.optimizer,
                show.difference(d),
                d.verdict.words()
            )
        })
        .collect();
    let part = capitalised(workload.part.name());
    let caption = Caption {
        id: format!("{id}-minus-{}", number_of(workload, reference)),
        title: format!("{part} {} minus {reference}'s", workload.metric.name()),
        description: format!(
            "Mean differences with 95 % intervals. {}.",
            described.join("; ")
        ),
    };
    let forest = Forest {
        caption: caption.clone(),
        x_label: format!(
            "{part} {} − {reference}'s{}",
            workload.metric.name(),
            points(show)
        ),
        rows: comparison.differences.iter().map(row).collect(),
        margin: comparison
            .margin
            .map(|m| (factor * m, format!("±{}", show.number(m)))),
    };
    let note = "Thick: 95 % t interval. Dashed below: bootstrap. Strokes above: single seeds.";
    let shaded = match comparison.margin {
        Some(_) => " Shaded: differences that do not matter.",
        None => "",
    };
    let table = tables::differences(workload, comparison);
    Figure {
        title: caption.title,
        note: format!("{note}{shaded}"),
        drawing: forest.draw(),
        data: table,
    }
}

fn points(show: Show) -> String {
    let unit = show.unit_of_differences();
    if unit.is_empty() {
        String::new()
    } else {
        format!(",{unit}")
    }
}

fn number_of(workload: &Workload, optimizer: &str) -> usize {
    style(workload, optimizer).0
}

/// The differences of single seeds.
fn single(workload: &Workload, optimizer: &str, reference: &str) -> Vec<f64> {
    let scores = |name: &str| {
        let row = workload.rows.iter().find(|r| r.optimizer == name);
        row.map(|r| r.scores.as_slice()).unwrap_or_default()
    };
    let other = scores(reference);
    let pair = |(seed, own): &(u64, f64)| {
        let (_, score) = other.iter().find(|(s, _)| s == seed)?;
        Some(own - score)
    };
    scores(optimizer).iter().filter_map(pair).collect()
}

/// Final scores against cost relative to the base's.
fn against_cost(
    workload: &Workload,
    id: &str,
    measure: &str,
    cost: impl Fn(&Row) -> Option<f64>,
) -> Option<Figure> {
    let (show, factor) = (Show(workload.metric), workload.metric.unit().0);
    let part = workload.part;
    let known: Vec<(&Row, f64, crate::stats::Summary)> = (workload.rows.iter())
        .filter_map(|row| Some((row, cost(row)?, row.compared(part)?)))
        .collect();
    if known.len() < 2 {
        return None;
    }
    let dot = |(row, cost, score): &(&Row, f64, crate::stats::Summary)| Dot {
        name: row.optimizer.clone(),
        style: style(workload, &row.optimizer),
        x: *cost,
        y: factor * score.mean,
        spread: score
            .sd
            .map(|sd| (factor * (score.mean - sd), factor * (score.mean + sd))),
    };
    let words = |(row, cost, score): &(&Row, f64, crate::stats::Summary)| {
        vec![
            row.optimizer.clone(),
            format!("{cost:.3}"),
            show.spread(score),
        ]
    };
    let rows: Vec<Vec<String>> = known.iter().map(words).collect();
    let base = &workload.base;
    let described: Vec<String> = rows
        .iter()
        .map(|r| format!("{}: {} at {} times", r[0], r[2], r[1]))
        .collect();
    let score = metric_label(workload);
    let caption = Caption {
        id: format!(
            "{id}-cost-{}",
            measure.split(' ').next().unwrap_or_default()
        ),
        title: format!(
            "{} {} against {measure}",
            capitalised(part.name()),
            workload.metric.name()
        ),
        description: format!(
            "Mean final score against {measure} relative to {base}. {}.",
            described.join("; ")
        ),
    };
    let scatter = Scatter {
        caption: caption.clone(),
        x_label: format!("{measure} of a run, relative to {base}'s"),
        y_label: format!("{} {score}", part.name()),
        dots: known.iter().map(dot).collect(),
    };
    let note = "Final scores, mean and one standard deviation over seeds.";
    let header = ["optimizer", "cost ×", score.as_str()];
    Some(figure(&caption, note, scatter.draw(), &header, rows))
}

/// Share of a run that is left out of the range of the vertical axis: the first steep part.
const STEEP: f64 = 0.3;

/// Learning curves along epochs, gradient evaluations and seconds, and the loss of training.
pub(super) fn course(workload: &Workload, id: &str) -> Vec<Figure> {
    let mut figures: Vec<Figure> = (Measure::ALL.iter())
        .filter(|m| **m != Measure::Seconds || workload.views.iter().any(|v| v.measure == **m))
        .filter_map(|m| learning(workload, id, *m))
        .collect();
    figures.extend(loss(workload, id));
    figures
}

fn learning(workload: &Workload, id: &str, measure: Measure) -> Option<Figure> {
    let (show, factor) = (Show(workload.metric), workload.metric.unit().0);
    let line = |curve: &MeanCurve| {
        let scored = curve
            .points
            .iter()
            .filter_map(|p| Some((p.cost(measure), p.validation?)));
        let (points, band) = scored
            .map(|(x, s)| {
                let sd = s.sd.unwrap_or(0.0);
                (
                    (x, factor * s.mean),
                    (factor * (s.mean - sd), factor * (s.mean + sd)),
                )
            })
            .unzip();
        Line {
            name: curve.optimizer.clone(),
            style: style(workload, &curve.optimizer),
            points,
            band,
            steps: false,
        }
    };
    let lines: Vec<Line> = workload
        .curves
        .iter()
        .map(line)
        .filter(|l| !l.points.is_empty())
        .collect();
    let x = Scale::over(lines.iter().flat_map(|l| l.points.iter().map(|p| p.0)), 0.0)?.with(0.0);
    let y = Scale::over(lines.iter().flat_map(settled), 0.06)?;
    let target = workload.target.as_ref().map(|t| Reference {
        value: factor * t.score,
        name: format!("target {}", workload.metric.show(t.score)),
    });
    let caption = Caption {
        id: format!(
            "{id}-by-{}",
            measure.words().split(' ').next().unwrap_or_default()
        ),
        title: format!(
            "Validation {} by {}",
            workload.metric.name(),
            measure.words()
        ),
        description: ends(&lines, &metric_label(workload)),
    };
    let chart = LineChart {
        caption: caption.clone(),
        x,
        y,
        x_label: measure.words().into(),
        y_label: format!("validation {}", metric_label(workload)),
        lines,
        dots: Vec::new(),
        reference: target.filter(|t| t.value > y.low() && t.value < y.high()),
    };
    let cost = |p: &MeanPoint| match measure {
        Measure::Seconds => format!("{:.2}", p.seconds),
        _ => format!("{:.0}", p.cost(measure)),
    };
    let rows = data(workload, |p| {
        vec![
            cost(p),
            p.validation
                .map_or_else(|| NONE.into(), |s| show.spread(&s)),
        ]
    });
    let score = metric_label(workload);
    let note = "Mean over seeds, band of one standard deviation. The axis leaves out the first steep part.";
    Some(figure(
        &caption,
        note,
        chart.draw(),
        &["optimizer", measure.words(), &score],
        rows,
    ))
}

/// The values of a line after its steep beginning, with their bands.
fn settled(line: &Line) -> Vec<f64> {
    let end = line.points.last().map_or(0.0, |p| p.0);
    let both = line.points.iter().zip(&line.band);
    let late = both.filter(|((x, _), _)| *x >= STEEP * end);
    late.flat_map(|((_, y), (low, high))| [*y, *low, *high])
        .collect()
}

/// Where lines end, in words.
fn ends(lines: &[Line], unit: &str) -> String {
    let end = |line: &Line| {
        let (x, y) = line.points.last()?;
        Some(format!("{} ends at {y:.2} after {x:.0}", line.name))
    };
    let ends: Vec<String> = lines.iter().filter_map(end).collect();
    format!("Lines of {unit}. {}.", ends.join("; "))
}

/// One row of data a point of every curve.
fn data(workload: &Workload, cells: impl Fn(&MeanPoint) -> Vec<String>) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for curve in &workload.curves {
        for point in &curve.points {
            let name = [curve.optimizer.clone()].into_iter();
            rows.push(name.chain(cells(point)).collect());
        }
    }
    rows
}

/// A line of one number by epoch, for the optimizers that have it.
struct ByEpoch<'a> {
    id: &'a str,
    title: &'a str,
    label: &'a str,
    note: &'a str,
    value: &'a dyn Fn(&MeanPoint) -> Option<f64>,
    /// What the vertical axis must hold.
    zero: bool,
}

fn by_epoch(workload: &Workload, id: &str, of: &ByEpoch<'_>) -> Option<Figure> {
    let line = |curve: &MeanCurve| Line {
        name: curve.optimizer.clone(),
        style: style(workload, &curve.optimizer),
        points: (curve.points.iter())
            .filter_map(|p| Some((p.epoch as f64, (of.value)(p)?)))
            .filter(|p| p.1.is_finite())
            .collect(),
        band: Vec::new(),
        steps: false,
    };
    let lines: Vec<Line> = workload
        .curves
        .iter()
        .map(line)
        .filter(|l| !l.points.is_empty())
        .collect();
    let x = Scale::over(lines.iter().flat_map(|l| l.points.iter().map(|p| p.0)), 0.0)?.with(0.0);
    let y = Scale::over(
        lines.iter().flat_map(|l| l.points.iter().map(|p| p.1)),
        0.05,
    )?;
    let caption = Caption {
        id: format!("{id}-{}", of.id),
        title: of.title.into(),
        description: ends(&lines, of.label),
    };
    let chart = LineChart {
        caption: caption.clone(),
        x,
        y: if of.zero { y.with(0.0) } else { y },
        x_label: "epochs".into(),
        y_label: of.label.into(),
        lines,
        dots: Vec::new(),
        reference: None,
    };
    let rows = data(workload, |p| {
        let value = (of.value)(p).map_or_else(|| NONE.into(), |v| format!("{v:.4}"));
        vec![p.epoch.to_string(), value]
    });
    let rows = rows.into_iter().filter(|r| r[2] != NONE).collect();
    Some(figure(
        &caption,
        of.note,
        chart.draw(),
        &["optimizer", "epoch", of.label],
        rows,
    ))
}

fn loss(workload: &Workload, id: &str) -> Option<Figure> {
    let of = ByEpoch {
        id: "loss",
        title: "Loss of training by epoch",
        label: "loss of the first pass",
        note: "Mean over the steps of an epoch, then over seeds.",
        value: &|p| Some(p.train_loss),
        zero: false,
    };
    by_epoch(workload, id, &of)
}

/// Gap and share of climbs, for methods that decide when to climb.
pub(super) fn stages(workload: &Workload, id: &str) -> Vec<Figure> {
    let decides = workload
        .curves
        .iter()
        .any(|c| c.points.iter().any(|p| p.climbed.is_some()));
    if !decides {
        return Vec::new();
    }
    let radii: Vec<String> = (workload.rows.iter())
        .filter(|row| row.climbed.is_some())
        .filter_map(|row| Some(format!("{} {}", row.optimizer, row.radius?)))
        .collect();
    let note = match radii.as_slice() {
        [] => "Distance between fast and slow weights at the end of an epoch.".into(),
        radii => format!(
            "Distance between fast and slow weights at the end of an epoch. A cycle climbs where it is below ρ: {}.",
            radii.join(", ")
        ),
    };
    let gap = ByEpoch {
        id: "gap",
        title: "Gap between fast and slow weights",
        label: "gap",
        note: &note,
        value: &|p| p.gap,
        zero: true,
    };
    let climbed = ByEpoch {
        id: "climbed",
        title: "Share of cycles that climbed",
        label: "share of cycles, %",
        note: "Cycles that took the second gradient: the cost beyond one gradient a step.",
        value: &|p| p.climbed.map(|c| 100.0 * c),
        zero: true,
    };
    [gap, climbed]
        .iter()
        .filter_map(|of| by_epoch(workload, id, of))
        .collect()
}

/// Scores against every hyper-parameter, of every optimizer of a search.
pub(super) fn sensitivity(workload: &Workload, id: &str) -> Vec<Figure> {
    let all = workload.sensitivity.iter().enumerate();
    all.flat_map(|(number, of)| {
        let names = of.parameters.iter();
        names.filter_map(move |(name, values)| parameter(workload, id, number, of, name, values))
    })
    .collect()
}

fn parameter(
    workload: &Workload,
    id: &str,
    number: usize,
    of: &Sensitivity,
    name: &str,
    values: &[AtValue],
) -> Option<Figure> {
    let factor = workload.metric.unit().0;
    let line = |title: &str, style: usize, score: fn(&AtValue) -> Option<f64>| Line {
        name: title.into(),
        style: Style(style),
        points: values
            .iter()
            .filter_map(|v| Some((v.value, factor * score(v)?)))
            .collect(),
        band: Vec::new(),
        steps: false,
    };
    let lines: Vec<Line> = [line("best", 1, |v| v.best), line("median", 2, |v| v.median)]
        .into_iter()
        .filter(|l| !l.points.is_empty())
        .collect();
    let places = values.iter().map(|v| v.value);
    let above_zero = values.iter().all(|v| v.value > 0.0);
    let x = if above_zero {
        Scale::ratios(places, 0.03)
    } else {
        Scale::over(places, 0.03)
    }?;
    let dot = |trial: &Trial| {
        let (_, value) = trial.parameters.iter().find(|(n, _)| n == name)?;
        Some((*value, factor * trial.score?))
    };
    let dots = of.trials.iter().filter_map(dot).collect();
    // One range for all optimizers, so that figures can be compared.
    let trials = workload.sensitivity.iter().flat_map(|s| &s.trials);
    let y = Scale::over(trials.filter_map(|t| Some(factor * t.score?)), 0.05)?;
    let caption = Caption {
        id: format!("{id}-{number}-{name}"),
        title: format!("{}: {name}", of.optimizer),
        description: ends(&lines, &metric_label(workload)),
    };
    let chart = LineChart {
        caption: caption.clone(),
        x,
        y,
        x_label: name.into(),
        y_label: format!("validation {}", metric_label(workload)),
        lines,
        dots,
        reference: None,
    };
    Some(Figure {
        title: caption.title,
        note: "Dots: trials. Lines: best and median over the values of the other hyper-parameters."
            .into(),
        drawing: chart.draw(),
        data: tables::parameter(workload, of, name),
    })
}

/// The profiles over all comparisons.
pub(super) fn profiles(report: &Report) -> Vec<Figure> {
    let figure = |profiles: &super::super::Profiles| {
        let line = |(number, profile): (usize, &crate::stats::Profile)| {
            let mut ratios: Vec<f64> = profile
                .ratios
                .iter()
                .flatten()
                .copied()
                .filter(|r| *r < TAU_MAX)
                .collect();
            ratios.sort_by(f64::total_cmp);
            let places = [1.0].into_iter().chain(ratios).chain([TAU_MAX]);
            Line {
                name: profile.optimizer.clone(),
                style: Style(number),
                points: places.map(|tau| (tau, 100.0 * profile.at(tau))).collect(),
                band: Vec::new(),
                steps: true,
            }
        };
        let lines: Vec<Line> = profiles.lines.iter().enumerate().map(line).collect();
        let measure = profiles.measure.words();
        let caption = Caption {
            id: format!("profile-{}", measure.split(' ').next().unwrap_or_default()),
            title: format!("Profile by {measure} to the target"),
            description: ends(&lines, "per cent of comparisons"),
        };
        let chart = LineChart {
            caption: caption.clone(),
            x: Scale::linear(1.0, TAU_MAX),
            y: Scale::linear(0.0, 104.0),
            x_label: "cost relative to the cheapest".into(),
            y_label: "% of comparisons within that".into(),
            lines,
            dots: Vec::new(),
            reference: None,
        };
        Figure {
            title: caption.title,
            note: "Share of the comparisons in which an optimizer reaches the target within that factor of the cheapest one.".into(),
            drawing: chart.draw(),
            data: tables::profiles(profiles.measure, &profiles.workloads, &profiles.lines),
        }
    };
    report.profiles.iter().map(figure).collect()
}
