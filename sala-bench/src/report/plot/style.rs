//! How a series looks: a colour, a dash and a marker, so that it is told apart without its colour too.

use maud::{Markup, html};

use super::at;

/// Colours of the page's style sheet.
pub(crate) const COLOURS: usize = 8;
const DASHES: [&str; 5] = ["none", "7 3", "2 2.5", "9 3 2 3", "5 2 1.5 2 1.5 2"];
const MARKERS: usize = 7;

/// The look of the series of this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Style(pub(crate) usize);

impl Style {
    /// The class that has its colour.
    pub(crate) fn class(self) -> String {
        format!("s{}", self.0 % COLOURS)
    }

    pub(crate) fn dash(self) -> &'static str {
        DASHES[self.0 % DASHES.len()]
    }

    /// Its marker, filled, at a place.
    pub(crate) fn marker(self, x: f64, y: f64, size: f64) -> Markup {
        let r = size;
        let path = |points: &[(f64, f64)]| {
            let points = points
                .iter()
                .map(|(dx, dy)| format!("{} {}", at(x + r * dx), at(y + r * dy)));
            format!("M{}Z", points.collect::<Vec<_>>().join("L"))
        };
        let cross = [
            (-0.35, -1.1),
            (0.35, -1.1),
            (0.35, -0.35),
            (1.1, -0.35),
            (1.1, 0.35),
            (0.35, 0.35),
            (0.35, 1.1),
            (-0.35, 1.1),
            (-0.35, 0.35),
            (-1.1, 0.35),
            (-1.1, -0.35),
            (-0.35, -0.35),
        ];
        let path = match self.0 % MARKERS {
            0 => return html! { circle.marker cx=(at(x)) cy=(at(y)) r=(at(r)) {} },
            1 => path(&[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]),
            2 => path(&[(0.0, -1.25), (1.15, 0.85), (-1.15, 0.85)]),
            3 => path(&[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)]),
            4 => path(&[(0.0, 1.25), (1.15, -0.85), (-1.15, -0.85)]),
            5 => path(&cross),
            _ => path(&[(-1.3, -0.6), (1.3, -0.6), (1.3, 0.6), (-1.3, 0.6)]),
        };
        html! { path.marker d=(path) {} }
    }

    /// A short line with a marker in it, for a legend.
    pub(crate) fn sample(self) -> Markup {
        html! {
            svg.sample aria-hidden="true" viewBox="0 0 34 12" xmlns="http://www.w3.org/2000/svg" {
                g class=(self.class()) {
                    path.line d="M1 6H33" stroke-dasharray=(self.dash()) {}
                    (self.marker(17.0, 6.0, 3.6))
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn forty_series_differ_without_their_colour() {
        let looks: BTreeSet<String> = (0..35)
            .map(|i| {
                format!(
                    "{} {}",
                    Style(i).dash(),
                    Style(i % MARKERS).marker(0.0, 0.0, 1.0).into_string()
                )
            })
            .collect();
        assert_eq!(looks.len(), 35);
    }
}
