//! The frame of a figure: its plane, axes and grid.

use maud::{Markup, html};

use super::{Scale, at};

/// A plane with two axes.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub(super) left: f64,
    pub(super) right: f64,
    pub(super) top: f64,
    pub(super) bottom: f64,
    pub(super) x: Scale,
    pub(super) y: Scale,
}

impl Frame {
    pub(super) fn x(&self, value: f64) -> f64 {
        self.left + self.x.share(value) * (self.right - self.left)
    }

    pub(super) fn y(&self, value: f64) -> f64 {
        self.bottom - self.y.share(value) * (self.bottom - self.top)
    }

    /// Grid, ticks and what the axes are called: x below the plane, y above its corner, so that nothing stands
    /// on its side.
    pub(super) fn axes(&self, x_label: &str, y_label: &str) -> Markup {
        html! {
            g.grid {
                @for (value, _) in self.y.ticks(7) {
                    path d=(format!("M{} {}H{}", at(self.left), at(self.y(value)), at(self.right))) {}
                }
            }
            g.axis {
                path d=(format!("M{} {}H{}", at(self.left), at(self.bottom), at(self.right))) {}
                @for (value, _) in self.x.ticks(6) {
                    path d=(format!("M{} {}v4", at(self.x(value)), at(self.bottom))) {}
                }
            }
            g.ticks text-anchor="end" {
                @for (value, label) in self.y.ticks(7) {
                    text x=(at(self.left - 6.0)) y=(at(self.y(value) + 4.0)) { (label) }
                }
            }
            g.ticks text-anchor="middle" {
                @for (value, label) in self.x.ticks(6) {
                    text x=(at(self.x(value))) y=(at(self.bottom + 17.0)) { (label) }
                }
            }
            text.label x=(at(f64::midpoint(self.left, self.right))) y=(at(self.bottom + 34.0)) text-anchor="middle" { (x_label) }
            text.label x="2" y=(at(self.top - 10.0)) { (y_label) }
        }
    }

    /// What keeps drawings within the plane, by an id of its own.
    pub(super) fn clip(&self, id: &str) -> Markup {
        html! {
            defs {
                clipPath id=(id) {
                    rect x=(at(self.left)) y=(at(self.top)) width=(at(self.right - self.left))
                        height=(at(self.bottom - self.top)) {}
                }
            }
        }
    }
}
