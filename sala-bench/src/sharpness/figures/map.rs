//! Levels of the loss in a plane, with the way that training took.

use anyhow::{Result, ensure};
use contour::ContourBuilder;
use svg::node::element::{Circle, Group, Path, path::Data};

use super::{
    INK,
    axes::{Axis, Frame, LEFT, RIGHT, TOP, line, text},
    document,
};
use crate::sharpness::measure::Slices;

/// Levels between the lowest and the highest loss, in equal ratios.
const LEVELS: u32 = 12;

/// The map of one solution.
pub(crate) fn map(solution: &Slices) -> Result<String> {
    let map = &solution.map;
    let (xs, ys) = (&map.xs, &map.ys);
    let finite: Vec<f64> = map.losses.iter().flatten().copied().flatten().collect();
    ensure!(!finite.is_empty(), "no loss of the plane is finite");
    let low = finite
        .iter()
        .copied()
        .fold(f64::INFINITY, f64::min)
        .max(1e-12);
    let high = finite.iter().copied().fold(0.0, f64::max).max(low * 1.01);
    let [ends_x, ends_y] = [xs, ys].map(|v| (v[0], v[v.len() - 1]));
    let axis = |name_of_random, name_of_trajectory, (from, to)| {
        let name = if map.trajectory.is_empty() {
            name_of_random
        } else {
            name_of_trajectory
        };
        Axis::linear(name, from, to)
    };
    let frame = Frame {
        x: axis(
            "first random direction",
            "first principal component",
            ends_x,
        ),
        y: axis(
            "second random direction",
            "second principal component",
            ends_y,
        ),
    };
    // Below what is shown everything lies in the lowest level.
    let depths: Vec<f64> = map
        .losses
        .iter()
        .flatten()
        .map(|loss| -loss.unwrap_or(high).max(low).ln())
        .collect();
    let ratio = (high / low).ln();
    let thresholds: Vec<f64> = (0..LEVELS)
        .map(|i| -(low.ln() + ratio * f64::from(LEVELS - i) / f64::from(LEVELS)))
        .collect();
    // The builder's cells have their values in the middle, so the outer half of the border's cells is cut off.
    let contours = ContourBuilder::new(xs.len(), ys.len(), true).contours(&depths, &thresholds)?;
    let on_grid = |[column, row]: [f64; 2]| {
        let along = |at: f64, (from, to): (f64, f64), count: usize| {
            from + (to - from) * (at - 0.5) / (count - 1) as f64
        };
        frame.place([
            along(column, ends_x, xs.len()),
            along(row, ends_y, ys.len()),
        ])
    };
    let mut levels = Group::new()
        .set("stroke", "#7b8fa6")
        .set("stroke-width", 0.6)
        .set("fill-rule", "evenodd");
    for (i, contour) in contours.iter().enumerate() {
        let mut data = Data::new();
        for polygon in contour.geometry() {
            for ring in std::iter::once(polygon.exterior()).chain(polygon.interiors()) {
                let ring = line(ring.coords().map(|c| on_grid([c.x, c.y]))).close();
                data = ring.iter().cloned().fold(data, Data::add);
            }
        }
        let fill = shade(i as f64 / f64::from(LEVELS - 1));
        levels = levels.add(Path::new().set("d", data).set("fill", fill));
    }
    let range = format!("training loss from {low:.3} (dark) to {high:.3}");
    let mut content =
        Group::new()
            .add(levels)
            .add(frame.axes())
            .add(text(&range, [RIGHT, TOP - 6.0], "end"));
    content = content.add(way(&map.trajectory, &frame));
    if let Some([first, second]) = map.explained {
        let share = format!(
            "{:.0} % and {:.0} % of the path's variance",
            100.0 * first,
            100.0 * second
        );
        content = content.add(text(&share, [LEFT + 6.0, TOP + 16.0], "start"));
    }
    document(
        &format!("{}, seed {}", solution.optimizer, solution.seed),
        content,
    )
}

/// The path of training, a dot for each epoch, and the solution.
fn way(trajectory: &[[f64; 2]], frame: &Frame) -> Group {
    let path = Path::new()
        .set("d", line(trajectory.iter().map(|p| frame.place(*p))))
        .set("fill", "none")
        .set("stroke", "#c24e00")
        .set("stroke-width", 1.6);
    let dot = |[x, y]: [f64; 2], radius: f64, colour: &str| {
        Circle::new()
            .set("cx", x)
            .set("cy", y)
            .set("r", radius)
            .set("fill", colour.to_owned())
            .set("stroke", "#ffffff")
    };
    let mut group = Group::new();
    if !trajectory.is_empty() {
        group = group.add(path);
    }
    for point in trajectory {
        group = group.add(dot(frame.place(*point), 2.4, "#c24e00"));
    }
    group.add(dot(frame.place([0.0, 0.0]), 4.5, INK))
}

/// From almost white, at 0, to a blue grey that dark lines still stand out from, at 1.
fn shade(share: f64) -> String {
    let mix = |high: f64, low: f64| (high + (low - high) * share).round();
    format!(
        "rgb({},{},{})",
        mix(246.0, 138.0),
        mix(248.0, 165.0),
        mix(251.0, 198.0)
    )
}
