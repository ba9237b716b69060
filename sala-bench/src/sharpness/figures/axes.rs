//! Axes with ticks, and the way from numbers to places in the picture.

use svg::node::element::{Group, Path, Text, path::Data};

use super::{GRID, INK};

pub(super) const WIDTH: f64 = 560.0;
pub(super) const HEIGHT: f64 = 360.0;
pub(super) const LEFT: f64 = 58.0;
pub(super) const RIGHT: f64 = WIDTH - 18.0;
pub(super) const TOP: f64 = 36.0;
pub(super) const BOTTOM: f64 = HEIGHT - 50.0;

/// About so many ticks on an axis.
const TICKS: f64 = 6.0;

/// One axis: what it shows, from where to where.
pub(super) struct Axis {
    name: &'static str,
    low: f64,
    high: f64,
    /// Whether numbers are exponents of ten.
    powers: bool,
}

impl Axis {
    pub(super) fn linear(name: &'static str, low: f64, high: f64) -> Self {
        let high = if high > low { high } else { low + 1.0 };
        Self {
            name,
            low,
            high,
            powers: false,
        }
    }

    pub(super) fn powers(name: &'static str, low: f64, high: f64) -> Self {
        Self {
            powers: true,
            ..Self::linear(name, low, high)
        }
    }

    /// 0 at the low end, 1 at the high one.
    fn share(&self, value: f64) -> f64 {
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    /// Round numbers within the axis, and how they are written.
    fn ticks(&self) -> Vec<(f64, String)> {
        let rough = (self.high - self.low) / TICKS;
        let power = 10f64.powf(rough.log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0].map(|s| s * power);
        let mut step = steps
            .into_iter()
            .find(|s| *s >= rough)
            .unwrap_or(10.0 * power);
        if self.powers {
            step = step.max(1.0);
        }
        let first = (self.low / step).ceil();
        let values = (0..20).map(|i| (first + f64::from(i)) * step);
        let inside = values.take_while(|v| *v <= self.high + 1e-9 * step);
        inside.map(|v| (v, self.written(v, step))).collect()
    }

    fn written(&self, value: f64, step: f64) -> String {
        if self.powers {
            return format!("1e{value:.0}");
        }
        let mut decimals = 0;
        while decimals < 6 && step * 10f64.powi(decimals) < 0.999 {
            decimals += 1;
        }
        let value = if value.abs() < 1e-9 * step {
            0.0
        } else {
            value
        };
        format!("{value:.*}", usize::try_from(decimals).unwrap_or(0))
    }
}

/// A pair of axes.
pub(super) struct Frame {
    pub(super) x: Axis,
    pub(super) y: Axis,
}

impl Frame {
    /// From numbers to the picture.
    pub(super) fn place(&self, [x, y]: [f64; 2]) -> [f64; 2] {
        [
            LEFT + (RIGHT - LEFT) * self.x.share(x),
            BOTTOM - (BOTTOM - TOP) * self.y.share(y),
        ]
    }

    /// Lines at the ticks of both axes, their numbers and names.
    pub(super) fn axes(&self) -> Group {
        let mut group = Group::new();
        let rule = |data: Data| {
            Path::new()
                .set("d", data)
                .set("stroke", GRID)
                .set("fill", "none")
        };
        for (value, written) in self.x.ticks() {
            let [x, _] = self.place([value, self.y.low]);
            let data = Data::new().move_to((x, TOP)).vertical_line_to(BOTTOM);
            group = group
                .add(rule(data))
                .add(text(&written, [x, BOTTOM + 17.0], "middle"));
        }
        for (value, written) in self.y.ticks() {
            let [_, y] = self.place([self.x.low, value]);
            let data = Data::new().move_to((LEFT, y)).horizontal_line_to(RIGHT);
            group = group
                .add(rule(data))
                .add(text(&written, [LEFT - 6.0, y + 4.0], "end"));
        }
        let middle = f64::midpoint(LEFT, RIGHT);
        let side = f64::midpoint(TOP, BOTTOM);
        let turned = format!("rotate(-90 14 {side})");
        group
            .add(text(self.x.name, [middle, HEIGHT - 12.0], "middle"))
            .add(text(self.y.name, [14.0, side], "middle").set("transform", turned))
    }
}

pub(super) fn text(content: &str, [x, y]: [f64; 2], anchor: &str) -> Text {
    Text::new(content)
        .set("x", x)
        .set("y", y)
        .set("text-anchor", anchor)
        .set("fill", INK)
}

/// A line through points of the picture, to a tenth of a unit.
pub(super) fn line(points: impl IntoIterator<Item = [f64; 2]>) -> Data {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within_the_axis() {
        let written = |axis: Axis| axis.ticks().into_iter().map(|t| t.1).collect::<Vec<_>>();
        assert_eq!(
            written(Axis::linear("", -1.0, 1.0)),
            ["-1.0", "-0.5", "0.0", "0.5", "1.0"]
        );
        assert_eq!(
            written(Axis::linear("", 0.0, 0.043)),
            ["0.00", "0.01", "0.02", "0.03", "0.04"]
        );
        assert_eq!(
            written(Axis::powers("", -3.0, 1.0)),
            ["1e-3", "1e-2", "1e-1", "1e0", "1e1"]
        );
        // Nothing to show is no reason to fail.
        assert!(!written(Axis::linear("", 2.0, 2.0)).is_empty());
    }

    #[test]
    fn places_lie_within_the_frame_the_larger_the_higher() {
        let frame = Frame {
            x: Axis::linear("", 0.0, 10.0),
            y: Axis::linear("", 0.0, 1.0),
        };
        for (at, wanted) in [
            ([0.0, 0.0], [LEFT, BOTTOM]),
            ([10.0, 1.0], [RIGHT, TOP]),
            ([20.0, -5.0], [RIGHT, BOTTOM]),
        ] {
            assert_eq!(frame.place(at).map(f64::to_bits), wanted.map(f64::to_bits));
        }
    }
}
