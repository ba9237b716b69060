//! Random erasing (Zhong et al. 2020, arXiv:1708.04896): with probability `p` a rectangle is replaced by the mean.
//!
//! ```text
//! area  S ~ U(s_l, s_h) · H · W        aspect  log r ~ U(log r_1, log r_2)
//! height √(S r), width √(S / r), rounded; drawn again, at most ten times, unless it is smaller than the image;
//! then its place is drawn uniformly from those where it lies within the image
//! ```
//!
//! As in torchvision the aspect is uniform in its logarithm, so that lying and standing rectangles are equally
//! likely.

use anyhow::{Result, ensure};
use sala_models::{images::Rectangle, rng::Stream};

use super::{OnValues, below, check_probability};

/// How often a rectangle is drawn before the image is left as it is.
const ATTEMPTS: u64 = 10;

#[derive(Debug)]
pub(super) struct RandomErasing {
    probability: f64,
    area: [f64; 2],
    aspect: [f64; 2],
}

impl RandomErasing {
    pub(super) fn new(probability: f64, area: [f64; 2], aspect: [f64; 2]) -> Result<Self> {
        check_probability("random-erasing", probability)?;
        let ordered = |[low, high]: [f64; 2]| low > 0.0 && low <= high && high.is_finite();
        ensure!(
            ordered(area) && area[1] <= 1.0,
            "data.augment: random-erasing.area must be two shares in (0, 1], the smaller first, got {area:?}"
        );
        ensure!(
            ordered(aspect),
            "data.augment: random-erasing.aspect must be two numbers above 0, the smaller first, got {aspect:?}"
        );
        Ok(Self {
            probability,
            area,
            aspect,
        })
    }

    /// Height and width of a rectangle, if it is smaller than the image.
    fn sides(&self, attempt: u64, draws: Stream, size: (usize, usize)) -> Option<(usize, usize)> {
        let between = |i: u64, [low, high]: [f64; 2]| low + (high - low) * draws.uniform(i);
        let (height, width) = size;
        let area = between(2 * attempt, self.area) * (height * width) as f64;
        let aspect = between(2 * attempt + 1, self.aspect.map(f64::ln)).exp();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the side of a rectangle in pixels"
        )]
        let pixels = |side: f64| side.round() as usize;
        let sides = (
            pixels((area * aspect).sqrt()),
            pixels((area / aspect).sqrt()),
        );
        (sides.0 < height && sides.1 < width).then_some(sides)
    }
}

impl OnValues for RandomErasing {
    fn cleared(&self, size: (usize, usize), draws: Stream) -> Option<Rectangle> {
        let (whether, shape, place) = (draws.at(0), draws.at(1), draws.at(2));
        if whether.uniform(0) >= self.probability {
            return None;
        }
        let sides = (0..ATTEMPTS).find_map(|attempt| self.sides(attempt, shape, size));
        let (height, width) = sides?;
        let top = below(place, 0, size.0 - height + 1);
        let left = below(place, 1, size.1 - width + 1);
        Some(Rectangle {
            rows: top..top + height,
            columns: left..left + width,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use sala_models::Rng;

    use super::{super::Values, *};

    const SIDE: usize = 20;

    /// The rows and columns that are cleared, after a check that they are a rectangle.
    fn erased(erasing: &RandomErasing, i: u64) -> Option<(Range<usize>, Range<usize>)> {
        let stream = Rng::new(4).stream("erasing");
        let mut values = vec![1.0; SIDE * SIDE];
        erasing.apply(&mut Values::new([1, SIDE, SIDE], &mut values), stream.at(i));
        let cleared: Vec<usize> = (0..SIDE * SIDE).filter(|&p| values[p] == 0.0).collect();
        let (first, last) = (cleared.first()?, cleared.last()?);
        let (rows, columns) = (first / SIDE..last / SIDE + 1, first % SIDE..last % SIDE + 1);
        assert_eq!(cleared.len(), rows.len() * columns.len());
        assert!(cleared.iter().all(|p| columns.contains(&(p % SIDE))));
        Some((rows, columns))
    }

    #[test]
    fn areas_and_aspects_are_those_asked_for() {
        let erasing = RandomErasing::new(1.0, [0.1, 0.2], [0.5, 2.0]).unwrap();
        let (mut areas, mut tall) = (0.0, 0);
        let mut corners = [0; 2];
        for i in 0..2_000 {
            let (rows, columns) = erased(&erasing, i).unwrap();
            let area = (rows.len() * columns.len()) as f64 / 400.0;
            // Sides are rounded: half a pixel of five at the least, in each of them.
            assert!((0.08..0.23).contains(&area), "{rows:?} {columns:?}");
            let aspect = rows.len() as f64 / columns.len() as f64;
            assert!((0.4..2.5).contains(&aspect), "{rows:?} {columns:?}");
            areas += area / 2_000.0;
            tall += usize::from(rows.len() > columns.len());
            corners[0] += usize::from(rows.start == 0 && columns.start == 0);
            corners[1] += usize::from(rows.end == SIDE && columns.end == SIDE);
        }
        assert!((areas - 0.15).abs() < 0.005, "{areas}");
        assert!((800..1_000).contains(&tall), "{tall}");
        assert!(corners.iter().all(|&c| c > 0), "{corners:?}");
    }

    #[test]
    fn as_many_are_erased_as_the_probability_says() {
        let erasing = RandomErasing::new(0.5, [0.02, 0.33], [0.3, 3.3]).unwrap();
        let count = (0..2_000)
            .filter(|&i| erased(&erasing, i).is_some())
            .count();
        // Standard deviation 22.
        assert!((900..1_100).contains(&count), "{count}");
    }

    #[test]
    fn rectangles_that_never_fit_leave_the_image_alone() {
        // As high as 1,000 times the width: never below 20 rows.
        let erasing = RandomErasing::new(1.0, [0.5, 0.5], [1_000.0, 1_000.0]).unwrap();
        assert!((0..100).all(|i| erased(&erasing, i).is_none()));
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for (area, aspect) in [
            ([0.0, 0.3], [0.3, 3.3]),
            ([0.4, 0.3], [0.3, 3.3]),
            ([0.1, 1.1], [0.3, 3.3]),
            ([0.1, 0.3], [0.0, 3.3]),
            ([0.1, 0.3], [0.3, f64::INFINITY]),
        ] {
            assert!(RandomErasing::new(0.5, area, aspect).is_err());
        }
        assert!(RandomErasing::new(-0.5, [0.1, 0.3], [0.3, 3.3]).is_err());
    }
}
