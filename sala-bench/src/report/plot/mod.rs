//! Figures as SVG within HTML: no scripts, no colour of their own (the page's style sheet gives the classes
//! `s0` … `s7` theirs), and everything that is told by colour told by dashes, markers and labels too.

mod forest;
mod frame;
mod lines;
mod scale;
mod scatter;
mod style;

use maud::{Markup, html};

pub(crate) use forest::{Forest, Interval};
pub(crate) use lines::{Line, LineChart, Reference};
pub(crate) use scale::Scale;
pub(crate) use scatter::{Dot, Scatter};
#[cfg(test)]
pub(crate) use style::COLOURS;
pub(crate) use style::Style;

/// Width of a figure, in units of its drawing; text is 12.5 of them high.
const WIDTH: f64 = 460.0;

/// What a figure is called and what it shows, for those who see it and those who do not.
#[derive(Debug, Clone)]
pub(crate) struct Caption {
    /// Unique within the page.
    pub(crate) id: String,
    pub(crate) title: String,
    /// What one sees in it, in words.
    pub(crate) description: String,
}

/// The drawing's outer element, with its title and description.
fn svg(caption: &Caption, height: f64, content: &Markup) -> Markup {
    let (title, description) = (format!("{}-t", caption.id), format!("{}-d", caption.id));
    html! {
        svg role="img" aria-labelledby=(format!("{title} {description}")) viewBox=(format!("0 0 {WIDTH} {height}"))
            xmlns="http://www.w3.org/2000/svg" preserveAspectRatio="xMidYMid meet" {
            title id=(title) { (caption.title) }
            desc id=(description) { (caption.description) }
            (content)
        }
    }
}

/// A coordinate, to a tenth of a unit.
fn at(value: f64) -> String {
    format!("{value:.1}")
}

/// Moves labels apart, each as little as is needed: no two nearer than `gap`, all within the limits if they fit.
/// The order is that of the wishes.
fn spread(wishes: &[f64], gap: f64, low: f64, high: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..wishes.len()).collect();
    order.sort_by(|&i, &j| wishes[i].total_cmp(&wishes[j]));
    let mut places = vec![0.0; wishes.len()];
    let mut lowest = low;
    for &i in &order {
        places[i] = wishes[i].max(lowest);
        lowest = places[i] + gap;
    }
    let mut highest = high;
    for &i in order.iter().rev() {
        places[i] = f64::min(places[i], highest);
        highest = places[i] - gap;
    }
    places
}

/// A name that fits a figure.
fn short(name: &str, letters: usize) -> String {
    if name.chars().count() <= letters {
        return name.into();
    }
    let kept: String = name.chars().take(letters - 1).collect();
    format!("{kept}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_keep_their_distance_and_their_order() {
        let places = spread(&[10.0, 11.0, 50.0, 9.0], 12.0, 0.0, 100.0);
        assert_eq!(places, [21.0, 33.0, 50.0, 9.0]);
        // At the end of the room they are pushed back.
        assert_eq!(spread(&[95.0, 99.0], 12.0, 0.0, 100.0), [88.0, 100.0]);
        assert!(spread(&[], 12.0, 0.0, 1.0).is_empty());
    }

    #[test]
    fn long_names_are_cut_at_letters() {
        assert_eq!(short("sala", 6), "sala");
        assert_eq!(short("größter", 5), "größ…");
    }
}
