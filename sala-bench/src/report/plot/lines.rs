//! Lines over an axis, each with a band, a marker and its name at its end.

use maud::{Markup, html};

use super::{Caption, Scale, Style, WIDTH, at, frame::Frame, short, spread, svg};

const HEIGHT: f64 = 300.0;
/// Lines of text in names at the ends of lines.
const LABEL_GAP: f64 = 13.5;
/// Markers on a line, at most.
const MARKERS: usize = 8;

/// A figure of lines.
#[derive(Debug, Clone)]
pub(crate) struct LineChart {
    pub(crate) caption: Caption,
    pub(crate) x: Scale,
    pub(crate) y: Scale,
    pub(crate) x_label: String,
    pub(crate) y_label: String,
    pub(crate) lines: Vec<Line>,
    /// Single values that the lines sum up.
    pub(crate) dots: Vec<(f64, f64)>,
    /// A level to compare with.
    pub(crate) reference: Option<Reference>,
}

/// A series.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) style: Style,
    /// Places, and what is told of each.
    pub(crate) points: Vec<(f64, f64)>,
    /// Lower and upper end of its spread, at the same places.
    pub(crate) band: Vec<(f64, f64)>,
    /// Whether it stays at a value until the next one, as shares do.
    pub(crate) steps: bool,
}

/// A horizontal line with a name.
#[derive(Debug, Clone)]
pub(crate) struct Reference {
    pub(crate) value: f64,
    pub(crate) name: String,
}

impl LineChart {
    pub(crate) fn draw(&self) -> Markup {
        let frame = Frame {
            left: 46.0,
            right: WIDTH - 104.0,
            top: 30.0,
            bottom: HEIGHT - 42.0,
            x: self.x,
            y: self.y,
        };
        let clip = format!("{}-c", self.caption.id);
        svg(
            &self.caption,
            HEIGHT,
            &html! {
                (frame.clip(&clip))
                (frame.axes(&self.x_label, &self.y_label))
                @if let Some(reference) = &self.reference { (reference.draw(&frame)) }
                g clip-path=(format!("url(#{clip})")) {
                    @for line in &self.lines { (line.draw_band(&frame)) }
                    @for (x, y) in &self.dots { circle.dot cx=(at(frame.x(*x))) cy=(at(frame.y(*y))) r="2.6" {} }
                    @for (number, line) in self.lines.iter().enumerate() { (line.draw(&frame, number)) }
                }
                (self.names(&frame))
            },
        )
    }

    /// The names at the ends, moved apart, each tied to its line.
    fn names(&self, frame: &Frame) -> Markup {
        let ends: Vec<(&Line, f64, f64)> = (self.lines.iter())
            .filter_map(|line| {
                let (x, y) = line.points.last()?;
                let y = frame.y(*y).clamp(frame.top, frame.bottom);
                Some((line, frame.x(*x).min(frame.right), y))
            })
            .collect();
        let wishes: Vec<f64> = ends.iter().map(|e| e.2).collect();
        let places = spread(&wishes, LABEL_GAP, frame.top - 4.0, frame.bottom + 2.0);
        let label = frame.right + 14.0;
        html! {
            @for ((line, x, y), place) in ends.iter().zip(places) {
                g class=(line.style.class()) {
                    path.lead d=(format!("M{} {}L{} {}", at(x + 2.0), at(*y), at(label - 2.0), at(place))) {}
                    text.name x=(at(label)) y=(at(place + 4.0)) { (short(&line.name, 14)) }
                }
            }
        }
    }
}

impl Line {
    fn path(&self, frame: &Frame) -> String {
        let place = |(i, &(x, y)): (usize, &(f64, f64))| {
            let (x, y) = (at(frame.x(x)), at(frame.y(y)));
            match (i, self.steps) {
                (0, _) => format!("M{x} {y}"),
                (_, true) => format!("H{x}V{y}"),
                (_, false) => format!("L{x} {y}"),
            }
        };
        self.points.iter().enumerate().map(place).collect()
    }

    fn draw_band(&self, frame: &Frame) -> Markup {
        let corner = |x: f64, y: f64| format!("{} {}", at(frame.x(x)), at(frame.y(y)));
        let both = self.points.iter().zip(&self.band);
        let lower = both.clone().map(|((x, _), (low, _))| corner(*x, *low));
        let upper = both.rev().map(|((x, _), (_, high))| corner(*x, *high));
        let corners: Vec<String> = lower.chain(upper).collect();
        html! {
            @if corners.len() > 2 {
                g class=(self.style.class()) { path.band d=(format!("M{}Z", corners.join("L"))) {} }
            }
        }
    }

    /// The line, with markers at other places than its neighbours'.
    fn draw(&self, frame: &Frame, number: usize) -> Markup {
        let every = self.points.len().div_ceil(MARKERS).max(1);
        let marked = self.points.iter().skip(number % every).step_by(every);
        html! {
            g class=(self.style.class()) {
                path.line d=(self.path(frame)) stroke-dasharray=(self.style.dash()) { title { (self.name) } }
                @for &(x, y) in marked { (self.style.marker(frame.x(x), frame.y(y), 3.2)) }
            }
        }
    }
}

impl Reference {
    fn draw(&self, frame: &Frame) -> Markup {
        let y = frame.y(self.value);
        html! {
            g.reference {
                path d=(format!("M{} {}H{}", at(frame.left), at(y), at(frame.right))) {}
                text x=(at(frame.left + 4.0)) y=(at(y - 4.0)) { (self.name) }
            }
        }
    }
}
