//! Dots with a spread and their names.

use maud::{Markup, html};

use super::{Caption, Scale, Style, WIDTH, at, frame::Frame, short, svg};

const HEIGHT: f64 = 270.0;
/// Width of a letter and height of a line of names.
const LETTER: (f64, f64) = (6.4, 13.0);

/// A figure of dots.
#[derive(Debug, Clone)]
pub(crate) struct Scatter {
    pub(crate) caption: Caption,
    pub(crate) x_label: String,
    pub(crate) y_label: String,
    pub(crate) dots: Vec<Dot>,
}

/// One of them.
#[derive(Debug, Clone)]
pub(crate) struct Dot {
    pub(crate) name: String,
    pub(crate) style: Style,
    pub(crate) x: f64,
    pub(crate) y: f64,
    /// Lower and upper end.
    pub(crate) spread: Option<(f64, f64)>,
}

/// A rectangle: left, top, right, bottom.
type Area = [f64; 4];

impl Scatter {
    pub(crate) fn draw(&self) -> Markup {
        let ends = |dot: &Dot| {
            let (low, high) = dot.spread.unwrap_or((dot.y, dot.y));
            [dot.y, low, high]
        };
        let x = Scale::over(self.dots.iter().map(|d| d.x), 0.1);
        let y = Scale::over(self.dots.iter().flat_map(ends), 0.08);
        let (Some(x), Some(y)) = (x, y) else {
            return html! {};
        };
        let frame = Frame {
            left: 46.0,
            right: WIDTH - 30.0,
            top: 30.0,
            bottom: HEIGHT - 42.0,
            x,
            y,
        };
        let labels = self.labels(&frame);
        svg(
            &self.caption,
            HEIGHT,
            &html! {
                (frame.axes(&self.x_label, &self.y_label))
                @for (dot, (x, y, anchor)) in self.dots.iter().zip(labels) {
                    g class=(dot.style.class()) {
                        @if let Some((low, high)) = dot.spread {
                            path.interval d=(format!("M{} {}V{}", at(frame.x(dot.x)), at(frame.y(low)), at(frame.y(high)))) {}
                        }
                        (dot.style.marker(frame.x(dot.x), frame.y(dot.y), 5.0))
                        text.name x=(at(x)) y=(at(y)) text-anchor=(anchor) { (short(&dot.name, 16)) }
                        title { (dot.name) }
                    }
                }
            },
        )
    }

    /// Where names go: beside, above or below their dot, wherever the least is covered.
    fn labels(&self, frame: &Frame) -> Vec<(f64, f64, &'static str)> {
        let mut taken: Vec<Area> = self
            .dots
            .iter()
            .flat_map(|dot| dot_area(frame, dot))
            .collect();
        let mut labels = Vec::new();
        for dot in &self.dots {
            let (x, y) = (frame.x(dot.x), frame.y(dot.y));
            let width = LETTER.0 * short(&dot.name, 16).chars().count() as f64;
            let candidates = candidates(x, y, width);
            let cost = |area: &Area| {
                let outside = outside(area, frame);
                taken.iter().map(|other| overlap(area, other)).sum::<f64>() + 4.0 * outside
            };
            let best = candidates
                .into_iter()
                .min_by(|a, b| cost(&a.1).total_cmp(&cost(&b.1)));
            if let Some((label, area)) = best {
                taken.push(area);
                labels.push(label);
            }
        }
        labels
    }
}

/// What a dot and its spread cover.
fn dot_area(frame: &Frame, dot: &Dot) -> [Area; 2] {
    let (x, y) = (frame.x(dot.x), frame.y(dot.y));
    let (low, high) = dot.spread.unwrap_or((dot.y, dot.y));
    [
        [x - 6.0, y - 6.0, x + 6.0, y + 6.0],
        [x - 2.0, frame.y(high), x + 2.0, frame.y(low)],
    ]
}

/// Places of a name, the preferred ones first, with what it covers there.
fn candidates(x: f64, y: f64, width: f64) -> Vec<((f64, f64, &'static str), Area)> {
    let mut all = Vec::new();
    for dy in [4.0, -8.0, 16.0, -20.0, 28.0, -32.0, 40.0] {
        let (top, bottom) = (y + dy - LETTER.1 + 3.0, y + dy + 3.0);
        all.push((
            (x + 9.0, y + dy, "start"),
            [x + 9.0, top, x + 9.0 + width, bottom],
        ));
        all.push((
            (x - 9.0, y + dy, "end"),
            [x - 9.0 - width, top, x - 9.0, bottom],
        ));
    }
    all
}

fn overlap(a: &Area, b: &Area) -> f64 {
    let width = (a[2].min(b[2]) - a[0].max(b[0])).max(0.0);
    let height = (a[3].min(b[3]) - a[1].max(b[1])).max(0.0);
    width * height
}

/// The part of an area beyond the drawing.
fn outside(area: &Area, frame: &Frame) -> f64 {
    let right = (area[2] - (WIDTH - 2.0)).max(0.0);
    let left = (frame.left + 2.0 - area[0]).max(0.0);
    let vertical = (frame.top - 12.0 - area[1]).max(0.0) + (area[3] - frame.bottom + 2.0).max(0.0);
    (right + left + vertical) * LETTER.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_near_dots_do_not_cover_each_other() {
        let dot = |i: usize| Dot {
            name: format!("optimizer-{i}"),
            style: Style(i),
            x: 1.0 + 0.01 * i as f64,
            y: 0.8 + 0.001 * i as f64,
            spread: None,
        };
        let scatter = Scatter {
            caption: Caption {
                id: "test".into(),
                title: String::new(),
                description: String::new(),
            },
            x_label: String::new(),
            y_label: String::new(),
            dots: (0..5).map(dot).collect(),
        };
        let frame = Frame {
            left: 46.0,
            right: 430.0,
            top: 30.0,
            bottom: 230.0,
            x: Scale::linear(0.5, 2.0),
            y: Scale::linear(0.7, 0.9),
        };
        let areas: Vec<Area> = (scatter.labels(&frame).into_iter())
            .map(|(x, y, anchor)| {
                let width = LETTER.0 * 11.0;
                let left = if anchor == "end" { x - width } else { x };
                [left, y - LETTER.1 + 3.0, left + width, y + 3.0]
            })
            .collect();
        for (i, a) in areas.iter().enumerate() {
            for b in &areas[i + 1..] {
                assert!(overlap(a, b) < 1e-9, "{areas:?}");
            }
        }
    }
}
