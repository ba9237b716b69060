//! The figure: levels of the loss with the four ways down, and the loss along the line through both
//! basins. Paths differ in dashes and markers as well as in colour, and the figure brings its own light
//! background, so that it reads the same on a dark page and in print.

use anyhow::Result;
use candle_core::{Device, Tensor};
use contour::ContourBuilder;
use svg::{
    Document,
    node::element::{ClipPath, Group, Path, Rectangle, Text, path::Data},
};

use super::{FLAT, RHO, SHARP, START, Well, loss, sharpness};

/// What of the plane is shown.
const LEFT: f64 = -2.2;
const RIGHT: f64 = 2.3;
const TOP: f64 = 1.3;
const BOTTOM: f64 = -1.2;

/// Pixels for a unit of the plane, and where the map and the profile under it lie in the picture.
const SCALE: f64 = 160.0;
const MAP: [f64; 2] = [20.0, 48.0];
const MAP_SIZE: [f64; 2] = [(RIGHT - LEFT) * SCALE, (TOP - BOTTOM) * SCALE];
const PROFILE_TOP: f64 = MAP[1] + MAP_SIZE[1] + 14.0;
const PROFILE_HEIGHT: f64 = 110.0;
const SIZE: [f64; 2] = [
    MAP[0] * 2.0 + MAP_SIZE[0],
    PROFILE_TOP + PROFILE_HEIGHT + 34.0,
];

/// The grid on which the loss is sampled: the side of a cell, and columns and rows, which reach a little
/// beyond the map on every side.
const CELL: f64 = 0.04;
const GRID: [usize; 2] = [116, 66];

/// From this step on paths are drawn faintly: they only circle about their end.
const ARRIVED: usize = 80;

const INK: &str = "#1f2933";

/// How a path is told from the others.
struct Style {
    colour: &'static str,
    dashes: &'static str,
    marker: fn([f64; 2], f64) -> Data,
    /// Radius of the marker at the end: SGD and Lookahead end at one point, so one shows around the other.
    size: f64,
    /// Where in the plane its label begins.
    label: [f64; 2],
}

/// In the order of `methods`. The colours stay apart with any of the usual colour-vision deficiencies
/// (Okabe and Ito 2008).
const STYLES: [Style; 4] = [
    Style {
        colour: "#c24e00",
        dashes: "none",
        marker: circle,
        size: 9.0,
        label: [1.14, -0.13],
    },
    Style {
        colour: "#8f3d78",
        dashes: "2 3.5",
        marker: square,
        size: 4.5,
        label: [1.14, -0.25],
    },
    Style {
        colour: "#005f99",
        dashes: "9 4",
        marker: triangle,
        size: 6.5,
        label: [0.02, 0.06],
    },
    Style {
        colour: "#00604a",
        dashes: "13 3 2.5 3",
        marker: diamond,
        size: 6.5,
        label: [-0.32, -0.49],
    },
];

fn circle([x, y]: [f64; 2], r: f64) -> Data {
    Data::new()
        .move_to((x - r, y))
        .elliptical_arc_by((r, r, 0, 1, 0, 2.0 * r, 0))
        .elliptical_arc_by((r, r, 0, 1, 0, -2.0 * r, 0))
        .close()
}

fn polygon(corners: impl IntoIterator<Item = (f64, f64)>) -> Data {
    line(corners.into_iter().map(|(x, y)| [x, y])).close()
}

fn square([x, y]: [f64; 2], r: f64) -> Data {
    let r = 0.9 * r;
    polygon([
        (x - r, y - r),
        (x + r, y - r),
        (x + r, y + r),
        (x - r, y + r),
    ])
}

fn triangle([x, y]: [f64; 2], r: f64) -> Data {
    polygon([
        (x, y - 1.2 * r),
        (x + 1.1 * r, y + 0.8 * r),
        (x - 1.1 * r, y + 0.8 * r),
    ])
}

fn diamond([x, y]: [f64; 2], r: f64) -> Data {
    let r = 1.3 * r;
    polygon([(x, y - r), (x + r, y), (x, y + r), (x - r, y)])
}

/// A line through points of the picture, to a tenth of a pixel.
fn line(points: impl IntoIterator<Item = [f64; 2]>) -> Data {
    let mut data = Data::new();
    for (i, point) in points.into_iter().enumerate() {
        let [x, y] = point.map(|v| (10.0 * v).round() / 10.0);
        data = if i == 0 {
            data.move_to((x, y))
        } else {
            data.line_to((x, y))
        };
    }
    data
}

/// From the plane to the picture.
fn on_map([x, y]: [f64; 2]) -> [f64; 2] {
    [MAP[0] + (x - LEFT) * SCALE, MAP[1] + (TOP - y) * SCALE]
}

fn text(content: &str, [x, y]: [f64; 2], anchor: &str) -> Text {
    Text::new(content)
        .set("x", x)
        .set("y", y)
        .set("text-anchor", anchor)
        .set("fill", INK)
}

/// Text on the map, over a halo that keeps it off the lines behind it. The halo is a text of its own,
/// because not every viewer knows the order of painting that one text would need.
fn label(content: &str, at: [f64; 2], anchor: &str, restyle: impl Fn(Text) -> Text) -> Group {
    let halo = restyle(text(content, at, anchor))
        .set("fill", "none")
        .set("stroke", "#ffffff")
        .set("stroke-opacity", 0.8)
        .set("stroke-width", 4)
        .set("stroke-linejoin", "round")
        .set("aria-hidden", "true");
    Group::new()
        .add(halo)
        .add(restyle(text(content, at, anchor)))
}

fn bold(text: Text) -> Text {
    text.set("font-weight", 600)
}

fn small(text: Text) -> Text {
    text.set("font-size", 12)
}

/// Losses at many points.
fn losses(points: Vec<f64>) -> Result<Vec<f64>> {
    let points = Tensor::from_vec(points, ((), 2), &Device::Cpu)?;
    Ok(loss(&points)?.to_vec1()?)
}

/// Filled levels, the lower the darker.
fn levels() -> Result<Group> {
    let [columns, rows] = GRID;
    let beyond = |shown: f64, cells: usize| (cells as f64 * CELL - shown) / 2.0;
    let corner = [
        LEFT - beyond(RIGHT - LEFT, columns),
        TOP + beyond(TOP - BOTTOM, rows),
    ];
    // Values stand at the middle of their cells.
    let middle = |i: usize| (i as f64 + 0.5) * CELL;
    let points = (0..rows * columns)
        .flat_map(|i| {
            [
                corner[0] + middle(i % columns),
                corner[1] - middle(i / columns),
            ]
        })
        .collect();
    // `contour` finds where values lie above a threshold; wanted is where the loss lies below.
    let depths: Vec<f64> = losses(points)?.into_iter().map(|loss| -loss).collect();
    let thresholds: Vec<f64> = (-3..12).map(|i| 0.1 * f64::from(i)).collect();
    let contours = ContourBuilder::new(columns, rows, true)
        .x_origin(on_map(corner)[0])
        .y_origin(on_map(corner)[1])
        .x_step(SCALE * CELL)
        .y_step(SCALE * CELL)
        .contours(&depths, &thresholds)?;

    let mut group = Group::new()
        .set("stroke", "#7b8fa6")
        .set("stroke-width", 0.6)
        .set("fill-rule", "evenodd");
    for (i, contour) in contours.iter().enumerate() {
        let mut data = Data::new();
        for polygon in contour.geometry() {
            for ring in std::iter::once(polygon.exterior()).chain(polygon.interiors()) {
                let ring = line(ring.coords().map(|c| [c.x, c.y])).close();
                data = ring.iter().cloned().fold(data, Data::add);
            }
        }
        let share = i as f64 / (thresholds.len() - 1) as f64;
        group = group.add(Path::new().set("d", data).set("fill", shade(share)));
    }
    Ok(group)
}

/// From almost white, at 0, to a blue grey that dark lines still stand out from, at 1.
fn shade(share: f64) -> String {
    let mix = |high: f64, low: f64| (high + (low - high) * share).round();
    format!(
        "rgb({},{},{})",
        mix(244.0, 150.0),
        mix(247.0, 175.0),
        mix(250.0, 203.0)
    )
}

/// One path: as far as it travels in full, the rest faintly.
fn way(path: &[[f64; 2]], style: &Style) -> Group {
    let stroke = |part: &[[f64; 2]], width: f64| {
        Path::new()
            .set("d", line(part.iter().copied().map(on_map)))
            .set("fill", "none")
            .set("stroke-width", width)
            .set("stroke-linejoin", "round")
    };
    let (travel, rest) = (&path[..=ARRIVED], &path[ARRIVED..]);
    let casing = stroke(travel, 3.8)
        .set("stroke", "#ffffff")
        .set("stroke-opacity", 0.7);
    let travel = stroke(travel, 1.9)
        .set("stroke", style.colour)
        .set("stroke-dasharray", style.dashes);
    let rest = stroke(rest, 0.8)
        .set("stroke", style.colour)
        .set("stroke-opacity", 0.3);
    Group::new().add(rest).add(casing).add(travel)
}

fn marker(style: &Style, at: [f64; 2], size: f64) -> Path {
    Path::new()
        .set("d", (style.marker)(at, size))
        .set("fill", style.colour)
        .set("stroke", "#ffffff")
        .set("stroke-width", 1.2)
}

/// The loss on the line through both centres, with where the runs ended.
fn profile(runs: &[(&str, Vec<[f64; 2]>)]) -> Result<Group> {
    let at = |x: f64, loss: f64| {
        let [x, _] = on_map([x, 0.0]);
        // From −1.3 to 0.3.
        [x, PROFILE_TOP + PROFILE_HEIGHT * (0.3 - loss) / 1.6]
    };
    let xs: Vec<f64> = (0..=450)
        .map(|i| LEFT + (RIGHT - LEFT) * f64::from(i) / 450.0)
        .collect();
    let heights = losses(xs.iter().flat_map(|x| [*x, 0.0]).collect())?;
    let curve = || line(xs.iter().zip(&heights).map(|(x, loss)| at(*x, *loss)));
    let [left, right] = [LEFT, RIGHT].map(|x| at(x, 0.3)[0]);
    let below = curve()
        .line_to((right, PROFILE_TOP + PROFILE_HEIGHT))
        .line_to((left, PROFILE_TOP + PROFILE_HEIGHT))
        .close();
    let mut group = Group::new()
        .add(Path::new().set("d", below).set("fill", shade(0.35)))
        .add(
            Path::new()
                .set("d", curve())
                .set("fill", "none")
                .set("stroke", INK)
                .set("stroke-width", 1.4),
        );
    for ((_, path), style) in runs.iter().zip(&STYLES) {
        let end = path[path.len() - 1];
        let height = losses(end.to_vec())?[0];
        group = group.add(marker(style, at(end[0], height), 0.8 * style.size));
    }
    let caption = "loss along y = 0, with the ends of the four runs";
    let place = [SIZE[0] / 2.0, PROFILE_TOP + PROFILE_HEIGHT + 20.0];
    Ok(group.add(small(text(caption, place, "middle"))))
}

fn legend(names: impl Iterator<Item = &'static str>) -> Group {
    let mut group = Group::new();
    for (i, (name, style)) in names.zip(&STYLES).enumerate() {
        let (x, y) = (MAP[0] + 4.0 + 150.0 * i as f64, 27.0);
        let sample = line([[x, y], [x + 44.0, y]]);
        group = group
            .add(
                Path::new()
                    .set("d", sample)
                    .set("stroke", style.colour)
                    .set("stroke-width", 2)
                    .set("stroke-dasharray", style.dashes),
            )
            .add(marker(style, [x + 44.0, y], 5.5))
            .add(text(name, [x + 57.0, y + 5.0], "start"));
    }
    group
}

/// What a basin is called, above it on the map.
fn naming(well: &Well) -> Result<Group> {
    let [x, y] = on_map([well.centre[0], well.centre[1] + 0.85]);
    let loss = losses(well.centre.to_vec())?[0];
    let facts = format!("loss {loss:.2}, curvature {:.0}", sharpness(well.centre));
    Ok(Group::new()
        .add(label(
            &format!("{} basin", well.name),
            [x, y],
            "middle",
            bold,
        ))
        .add(label(
            &facts.replace('-', "\u{2212}"),
            [x, y + 17.0],
            "middle",
            small,
        )))
}

/// The radius of the ascent, as a bar.
fn scale() -> Group {
    let [x, y] = on_map([LEFT + 0.1, BOTTOM + 0.1]);
    let end = x + RHO * SCALE;
    let bar = [[x, y - 4.0], [x, y], [end, y], [end, y - 4.0]];
    Group::new()
        .add(
            Path::new()
                .set("d", line(bar))
                .set("fill", "none")
                .set("stroke", INK)
                .set("stroke-width", 1.4),
        )
        .add(label(
            &format!("\u{3c1} = {RHO}"),
            [end + 8.0, y + 1.0],
            "start",
            small,
        ))
}

/// Draws runs given by name and path.
pub(super) fn draw(runs: &[(&'static str, Vec<[f64; 2]>)]) -> Result<Document> {
    let [width, height] = SIZE;
    let rectangle = |[x, y]: [f64; 2], [width, height]: [f64; 2]| {
        Rectangle::new()
            .set("x", x)
            .set("y", y)
            .set("width", width)
            .set("height", height)
    };
    let mut map = Group::new()
        .set("clip-path", "url(#map)")
        .add(rectangle(MAP, MAP_SIZE).set("fill", "#fbfcfd"))
        .add(levels()?);
    for ((_, path), style) in runs.iter().zip(&STYLES) {
        map = map.add(way(path, style));
    }
    // Above all paths, so that none covers where another ended or what it is called.
    for ((name, path), style) in runs.iter().zip(&STYLES) {
        let coloured = |text: Text| bold(text).set("fill", style.colour);
        let place = on_map(style.label);
        map = map
            .add(marker(style, on_map(path[path.len() - 1]), style.size))
            .add(label(name, place, "start", coloured));
    }
    let start = on_map(START);
    map = map
        .add(Path::new().set("d", circle(start, 4.5)).set("fill", INK))
        .add(label("start", [start[0], start[1] - 12.0], "middle", bold))
        .add(naming(&FLAT)?)
        .add(naming(&SHARP)?)
        .add(scale());

    Ok(Document::new()
        .set("viewBox", (0.0, 0.0, width, height))
        .set("width", width)
        .set("height", height)
        .set("role", "img")
        .set(
            "font-family",
            "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif",
        )
        .set("font-size", 14)
        .add(svg::node::element::Title::new(
            "From one start SGD and Lookahead end in the sharp basin, SAM and SALA in the flat one",
        ))
        .add(
            ClipPath::new()
                .set("id", "map")
                .add(rectangle(MAP, MAP_SIZE).set("rx", 4)),
        )
        .add(
            rectangle([0.0; 2], SIZE)
                .set("fill", "#ffffff")
                .set("rx", 8),
        )
        .add(legend(runs.iter().map(|(name, _)| *name)))
        .add(map)
        .add(
            rectangle(MAP, MAP_SIZE)
                .set("fill", "none")
                .set("stroke", "#9aa8b8")
                .set("rx", 4),
        )
        .add(profile(runs)?))
}
