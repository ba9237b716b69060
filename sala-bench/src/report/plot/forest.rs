//! Differences with their intervals, one a row, around zero and a margin.

use maud::{Markup, html};

use super::{Caption, Scale, Style, WIDTH, at, frame::Frame, short, svg};

const ROW: f64 = 34.0;
const TOP: f64 = 30.0;

/// Width of a letter of the words beside an interval, mostly digits, and what is left free before them.
const LETTER: f64 = 7.0;
const ROOM: f64 = 12.0;

/// A figure of intervals.
#[derive(Debug, Clone)]
pub(crate) struct Forest {
    pub(crate) caption: Caption,
    pub(crate) x_label: String,
    pub(crate) rows: Vec<Interval>,
    /// Differences within ± this do not matter; with its words.
    pub(crate) margin: Option<(f64, String)>,
}

/// A row.
#[derive(Debug, Clone)]
pub(crate) struct Interval {
    pub(crate) name: String,
    pub(crate) style: Style,
    pub(crate) mean: f64,
    /// Its interval, drawn thick.
    pub(crate) first: Option<(f64, f64)>,
    /// A second interval, drawn thinner below.
    pub(crate) second: Option<(f64, f64)>,
    /// Single differences, drawn as small strokes.
    pub(crate) single: Vec<f64>,
    /// Numbers in words, beside it.
    pub(crate) words: String,
}

impl Forest {
    pub(crate) fn draw(&self) -> Markup {
        let bottom = TOP + ROW * self.rows.len() as f64;
        let ends = self.rows.iter().flat_map(|row| {
            let pairs = row.first.into_iter().chain(row.second);
            let ends = pairs.flat_map(|(low, high)| [low, high]);
            ends.chain(row.single.iter().copied()).chain([row.mean])
        });
        let margins = (self.margin.iter()).flat_map(|(margin, _)| [-1.2 * margin, 1.2 * margin]);
        let values: Vec<f64> = ends.chain(margins).chain([0.0]).collect();
        let Some(x) = Scale::over(values, 0.04) else {
            return html! {};
        };
        let longest = self.rows.iter().map(|row| row.words.chars().count()).max();
        let frame = Frame {
            left: 100.0,
            right: WIDTH - ROOM - LETTER * longest.unwrap_or(0) as f64,
            top: TOP,
            bottom,
            x,
            y: Scale::linear(0.0, 1.0),
        };
        svg(
            &self.caption,
            bottom + 44.0,
            &html! {
                (self.draw_margin(&frame))
                (self.axis(&frame))
                @for (number, row) in self.rows.iter().enumerate() {
                    (row.draw(&frame, TOP + ROW * (number as f64 + 0.5)))
                }
            },
        )
    }

    fn draw_margin(&self, frame: &Frame) -> Markup {
        let Some((margin, words)) = &self.margin else {
            return html! {};
        };
        let (low, high) = (frame.x(-margin), frame.x(*margin));
        html! {
            g.margin {
                rect x=(at(low)) y=(at(frame.top)) width=(at(high - low)) height=(at(frame.bottom - frame.top)) {}
                path d=(format!("M{} {}V{}M{} {}V{}", at(low), at(frame.top), at(frame.bottom), at(high), at(frame.top), at(frame.bottom))) {}
                text x=(at(f64::midpoint(low, high))) y=(at(frame.top - 6.0)) text-anchor="middle" { (words) }
            }
        }
    }

    fn axis(&self, frame: &Frame) -> Markup {
        let zero = at(frame.x(0.0));
        html! {
            g.axis {
                path d=(format!("M{} {}H{}", at(frame.left), at(frame.bottom), at(frame.right))) {}
                @for (value, _) in frame.x.ticks(4) {
                    path d=(format!("M{} {}v4", at(frame.x(value)), at(frame.bottom))) {}
                }
            }
            path.zero d=(format!("M{zero} {}V{}", at(frame.top - 2.0), at(frame.bottom))) {}
            g.ticks text-anchor="middle" {
                @for (value, label) in frame.x.ticks(4) {
                    text x=(at(frame.x(value))) y=(at(frame.bottom + 17.0)) { (label) }
                }
            }
            text.label x=(at(f64::midpoint(frame.left, frame.right))) y=(at(frame.bottom + 35.0)) text-anchor="middle" { (self.x_label) }
        }
    }
}

impl Interval {
    fn draw(&self, frame: &Frame, y: f64) -> Markup {
        let span = |(low, high): (f64, f64), y: f64| {
            format!("M{} {}H{}", at(frame.x(low)), at(y), at(frame.x(high)))
        };
        html! {
            g class=(self.style.class()) {
                text.name x="2" y=(at(y + 4.0)) { (short(&self.name, 14)) }
                @for difference in &self.single {
                    path.tick d=(format!("M{} {}v6", at(frame.x(*difference)), at(y - 11.0))) {}
                }
                @if let Some(second) = self.second { path.second d=(span(second, y + 7.0)) {} }
                @if let Some(interval) = self.first { path.interval d=(span(interval, y)) {} }
                (self.style.marker(frame.x(self.mean), y, 4.6))
                title { (self.name) ": " (self.words) }
            }
            text.value x=(at(WIDTH - 2.0)) y=(at(y + 4.0)) text-anchor="end" { (self.words) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Catches numbers that are written over the interval that they belong to.
    #[test]
    fn the_words_have_room_beside_the_widest_interval() {
        let words = "-12.34 [-123.45, +123.45]";
        let forest = Forest {
            caption: Caption {
                id: "f".into(),
                title: "t".into(),
                description: "d".into(),
            },
            x_label: "difference".into(),
            rows: vec![Interval {
                name: "sala".into(),
                style: Style(0),
                mean: -12.34,
                first: Some((-123.45, 123.45)),
                second: None,
                single: Vec::new(),
                words: words.into(),
            }],
            margin: None,
        };
        let drawing = forest.draw().into_string();
        let (_, interval) = drawing.split_once("class=\"interval\" d=\"").unwrap();
        let (_, end) = interval.split('"').next().unwrap().split_once('H').unwrap();
        // Digits of 12.5 units are about 7 wide in every usual font.
        let words_begin = WIDTH - 2.0 - 7.0 * words.len() as f64;
        assert!(
            end.parse::<f64>().unwrap() < words_begin,
            "{end} and {words_begin}"
        );
    }
}
