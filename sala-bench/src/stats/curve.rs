//! A run as a curve: its score on the validation part against what it had cost by then.
//!
//! ```text
//! v(c) = vᵢ + (c − cᵢ) / (cᵢ₊₁ − cᵢ) · (vᵢ₊₁ − vᵢ)   for cᵢ ≤ c ≤ cᵢ₊₁
//! v(c) = vₙ                                           for c > cₙ
//! ```
//!
//! `cᵢ` is the cost (epochs, gradient evaluations or seconds) at the end of epoch i. Before the end of the first
//! epoch nothing is known. Beyond its end a run stays at what it reached: whoever has a larger budget than a
//! method needs keeps that. Within a run the learning rate has not come to its end, so a value in between is
//! less than the method would reach if it were given just that budget; a fair comparison at equal cost is with
//! a run that was planned for it.

/// A point of a curve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Point {
    pub(crate) cost: f64,
    pub(crate) value: f64,
}

/// What a run had reached at some cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct At {
    pub(crate) value: f64,
    /// Whether the run was at its end by then.
    pub(crate) ended: bool,
}

/// Points in the order of their cost.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Curve(Vec<Point>);

impl Curve {
    /// Through these points, whose costs do not fall; a point that costs no more than the one before it takes
    /// its place.
    pub(crate) fn new(points: impl IntoIterator<Item = Point>) -> Self {
        let mut curve: Vec<Point> = Vec::new();
        for point in points {
            while curve.last().is_some_and(|last| last.cost >= point.cost) {
                curve.pop();
            }
            curve.push(point);
        }
        Self(curve)
    }

    /// The value at a cost; nothing before the first point.
    pub(crate) fn at(&self, cost: f64) -> Option<At> {
        let last = self.0.last()?;
        if cost >= last.cost {
            let value = last.value;
            return Some(At { value, ended: true });
        }
        let after = self.0.iter().position(|p| p.cost > cost)?;
        let (b, a) = (self.0[after], self.0[after.checked_sub(1)?]);
        let share = (cost - a.cost) / (b.cost - a.cost);
        Some(At {
            value: a.value + share * (b.value - a.value),
            ended: false,
        })
    }

    /// Cost of the last point.
    pub(crate) fn cost(&self) -> Option<f64> {
        self.0.last().map(|last| last.cost)
    }

    pub(crate) fn points(&self) -> &[Point] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(points: &[(f64, f64)]) -> Curve {
        Curve::new(points.iter().map(|&(cost, value)| Point { cost, value }))
    }

    #[test]
    fn between_points_it_is_straight_and_beyond_the_end_it_stays() {
        let curve = curve(&[(10.0, 0.5), (20.0, 0.7), (40.0, 0.8)]);
        let value = |cost: f64| curve.at(cost).map(|at| (at.value, at.ended));
        assert_eq!(value(10.0), Some((0.5, false)));
        assert_eq!(value(30.0), Some((0.75, false)));
        assert_eq!(value(40.0), Some((0.8, true)));
        assert_eq!(value(1e9), Some((0.8, true)));
        assert_eq!(curve.cost(), Some(40.0));
    }

    #[test]
    fn before_the_first_point_nothing_is_known() {
        assert_eq!(curve(&[(10.0, 0.5), (20.0, 0.7)]).at(9.9), None);
        assert_eq!(curve(&[]).at(1.0), None);
    }

    #[test]
    fn an_epoch_that_took_no_time_takes_the_place_of_the_one_before() {
        let curve = curve(&[(1.0, 0.1), (1.0, 0.2), (2.0, 0.4)]);
        assert_eq!(curve.points().len(), 2);
        let at = curve.at(1.5).unwrap();
        assert!((at.value - 0.3).abs() < 1e-12);
    }
}
