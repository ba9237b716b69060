//! Figures as SVG files of their own, with a light background, so that they read the same on a dark page and in
//! print. Colours stay apart with the usual colour-vision deficiencies (Okabe and Ito 2008); dashes tell
//! lines apart too.

mod axes;
mod map;

use anyhow::Result;
use svg::{
    Document,
    node::element::{Group, Path, path::Data},
};

use super::measure::Slices;
use axes::{Axis, Frame, line, text};

pub(super) use map::map;

const INK: &str = "#1f2933";
const GRID: &str = "#d5dde5";

/// Colours and dashes of lines, in the order of the optimizers; they repeat after so many.
const STYLES: [(&str, &str); 6] = [
    ("#c24e00", "none"),
    ("#8f3d78", "2 3.5"),
    ("#005f99", "9 4"),
    ("#00604a", "13 3 2.5 3"),
    ("#7a5c00", "5 2"),
    ("#444444", "1.5 2"),
];

fn style(number: usize) -> (&'static str, &'static str) {
    STYLES[number % STYLES.len()]
}

/// Points of a density's curve.
const DENSITY_POINTS: usize = 500;
/// Densities below this are not shown: it is less than one eigenvalue's share of these networks.
const LEAST_DENSITY: f64 = 1e-6;
/// Width of an eigenvalue in the figure, as a share of the range.
const DENSITY_WIDTH: f64 = 0.006;

/// The spectral density of each solution, on a logarithmic scale.
pub(super) fn density(solutions: &[Slices]) -> Result<String> {
    let values = || {
        solutions
            .iter()
            .flat_map(|s| s.density.iter().map(|node| node.0))
    };
    let low = values().fold(f64::INFINITY, f64::min);
    let high = values().fold(f64::NEG_INFINITY, f64::max);
    let sigma = DENSITY_WIDTH * (high - low).max(f64::MIN_POSITIVE);
    let (low, high) = (low - 6.0 * sigma, high + 6.0 * sigma);
    let curve = |solution: &Slices| -> Vec<[f64; 2]> {
        let density = |t: f64| -> f64 {
            let normal = |x: f64| (-0.5 * ((t - x) / sigma).powi(2)).exp();
            let sum: f64 = solution.density.iter().map(|(x, w)| w * normal(*x)).sum();
            sum / (sigma * (2.0 * std::f64::consts::PI).sqrt())
        };
        let step = (high - low) / DENSITY_POINTS as f64;
        let ts = (0..=DENSITY_POINTS).map(|i| low + step * i as f64);
        ts.map(|t| [t, density(t).max(LEAST_DENSITY).log10()])
            .collect()
    };
    let curves: Vec<_> = solutions.iter().map(curve).collect();
    let top = curves
        .iter()
        .flatten()
        .map(|p| p[1])
        .fold(0.0, f64::max)
        .ceil();
    let frame = Frame {
        x: Axis::linear("eigenvalue of the Hessian", low, high),
        y: Axis::powers("density", LEAST_DENSITY.log10(), top),
    };
    chart(
        "Spectral density of the Hessian",
        &frame,
        solutions,
        &curves,
    )
}

/// The loss of each solution along one random direction.
pub(super) fn profile(solutions: &[Slices]) -> Result<String> {
    let curve = |s: &Slices| -> Vec<[f64; 2]> {
        let points = s.ts.iter().zip(&s.losses);
        points
            .filter_map(|(t, loss)| Some([*t, (*loss)?]))
            .collect()
    };
    let curves: Vec<_> = solutions.iter().map(curve).collect();
    let points = || curves.iter().flatten();
    let top = points().map(|p| p[1]).fold(0.0, f64::max);
    let left = points().map(|p| p[0]).fold(0.0, f64::min);
    let right = points().map(|p| p[0]).fold(0.0, f64::max);
    let frame = Frame {
        x: Axis::linear("distance, 1 being as long as the weights", left, right),
        y: Axis::linear("training loss", 0.0, 1.05 * top),
    };
    let title = "Loss along a random, filter-normalised direction";
    chart(title, &frame, solutions, &curves)
}

fn chart(
    title: &str,
    frame: &Frame,
    solutions: &[Slices],
    curves: &[Vec<[f64; 2]>],
) -> Result<String> {
    let mut group = frame.axes();
    for (number, (solution, curve)) in solutions.iter().zip(curves).enumerate() {
        let (colour, dashes) = style(number);
        let stroke = |data: Data| {
            Path::new()
                .set("d", data)
                .set("fill", "none")
                .set("stroke", colour)
                .set("stroke-dasharray", dashes)
                .set("stroke-width", 1.8)
                .set("stroke-linejoin", "round")
        };
        let y = axes::TOP + 10.0 + 17.0 * number as f64;
        let key = Data::new()
            .move_to((axes::RIGHT - 150.0, y))
            .horizontal_line_by(34);
        group = group
            .add(stroke(line(curve.iter().map(|p| frame.place(*p)))))
            .add(stroke(key))
            .add(text(
                &solution.optimizer,
                [axes::RIGHT - 110.0, y + 4.0],
                "start",
            ));
    }
    document(title, group)
}

/// A whole picture, as text.
fn document(title: &str, content: Group) -> Result<String> {
    let picture = Document::new()
        .set("viewBox", (0, 0, axes::WIDTH, axes::HEIGHT))
        .set("role", "img")
        .set("font-family", "system-ui, sans-serif")
        .set("font-size", 12.5)
        .add(svg::node::element::Title::new(title))
        .add(
            svg::node::element::Rectangle::new()
                .set("width", "100%")
                .set("height", "100%")
                .set("fill", "#ffffff"),
        )
        .add(text(title, [axes::LEFT, 22.0], "start").set("font-weight", 600))
        .add(content);
    let mut bytes = Vec::new();
    svg::write(&mut bytes, &picture)?;
    Ok(String::from_utf8(bytes)?)
}
