//! Initial values from a seed and a name.

use candle_core::Shape;
use candle_nn::{Init, init::NormalOrUniform};

use crate::{Error, Result, Rng};

/// The distributions that the initialisations of candle come down to.
enum Law {
    Constant(f64),
    Normal { mean: f64, deviation: f64 },
    Uniform { low: f64, width: f64 },
}

/// The values of a new variable, in row-major order: value `i` is number `i` of the stream that
/// belongs to the variable's name.
pub(super) fn draw(init: Init, shape: &Shape, name: &str, rng: Rng) -> Result<Vec<f64>> {
    let law = law(init, shape, name)?;
    // The prefix keeps these streams apart from those of dropout or shuffling with the same seed.
    let stream = rng.stream(&format!("init/{name}"));
    let indices = 0..shape.elem_count() as u64;
    Ok(match law {
        Law::Constant(value) => vec![value; shape.elem_count()],
        Law::Normal { mean, deviation } => indices
            .map(|i| mean + deviation * stream.normal(i))
            .collect(),
        Law::Uniform { low, width } => indices.map(|i| low + width * stream.uniform(i)).collect(),
    })
}

fn law(init: Init, shape: &Shape, name: &str) -> Result<Law> {
    let refuse = |wanted| Error::Init {
        name: name.into(),
        init: format!("{init:?}"),
        wanted,
    };
    let law = match init {
        Init::Const(value) => Law::Constant(value),
        Init::Randn { mean, stdev } => Law::Normal {
            mean,
            deviation: stdev,
        },
        Init::Uniform { lo, up } => Law::Uniform {
            low: lo,
            width: up - lo,
        },
        // He et al. 2015, arXiv:1502.01852: standard deviation gain / √fan.
        Init::Kaiming {
            dist,
            fan,
            non_linearity,
        } => {
            let fan = fan.for_shape(shape);
            if fan == 0 {
                return Err(refuse("a fan of at least 1"));
            }
            let deviation = non_linearity.gain() / (fan as f64).sqrt();
            match dist {
                NormalOrUniform::Normal => Law::Normal {
                    mean: 0.0,
                    deviation,
                },
                NormalOrUniform::Uniform => {
                    // The uniform law on (−b, b) has the standard deviation b / √3.
                    let bound = 3_f64.sqrt() * deviation;
                    Law::Uniform {
                        low: -bound,
                        width: 2.0 * bound,
                    }
                }
            }
        }
    };
    let sound = match law {
        Law::Constant(value) => value.is_finite(),
        Law::Normal { mean, deviation } => {
            mean.is_finite() && deviation.is_finite() && deviation >= 0.0
        }
        Law::Uniform { low, width } => low.is_finite() && width.is_finite() && width >= 0.0,
    };
    if !sound {
        return Err(refuse("finite values and a width that is not negative"));
    }
    Ok(law)
}

#[cfg(test)]
mod tests {
    use candle_nn::init::{FanInOut, NonLinearity};

    use super::*;

    fn moments(init: Init, dims: &[usize]) -> (f64, f64, f64) {
        let values = draw(init, &Shape::from(dims), "w", Rng::new(3)).unwrap();
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let var = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        let largest = values.iter().fold(0_f64, |m, v| m.max(v.abs()));
        (mean, var.sqrt(), largest)
    }

    #[test]
    fn every_initialisation_has_its_mean_and_spread() {
        let (dims, n) = ([40, 20, 3, 3], 7200_f64);
        let kaiming = |dist, fan, non_linearity| Init::Kaiming {
            dist,
            fan,
            non_linearity,
        };
        let (normal, uniform) = (NormalOrUniform::Normal, NormalOrUniform::Uniform);
        let cases = [
            (
                Init::Randn {
                    mean: 1.5,
                    stdev: 0.2,
                },
                1.5,
                0.2,
            ),
            (Init::Uniform { lo: 1.0, up: 4.0 }, 2.5, 3.0 / 12_f64.sqrt()),
            // fan in: 20·9 = 180; fan out: 40·9 = 360.
            (
                kaiming(normal, FanInOut::FanIn, NonLinearity::ReLU),
                0.0,
                (2.0 / 180_f64).sqrt(),
            ),
            (
                kaiming(normal, FanInOut::FanOut, NonLinearity::ReLU),
                0.0,
                (2.0 / 360_f64).sqrt(),
            ),
            (
                kaiming(uniform, FanInOut::FanIn, NonLinearity::Linear),
                0.0,
                (1.0 / 180_f64).sqrt(),
            ),
            (
                kaiming(uniform, FanInOut::FanOut, NonLinearity::ExplicitGain(3.0)),
                0.0,
                3.0 / 360_f64.sqrt(),
            ),
        ];
        for (init, mean, deviation) in cases {
            let (got_mean, got_deviation, _) = moments(init, &dims);
            // Five standard errors; a gain or fan of another kind is off by a factor of √2.
            let tolerance = 5.0 * deviation / n.sqrt();
            assert!((got_mean - mean).abs() < tolerance, "{init:?} {got_mean}");
            assert!(
                (got_deviation - deviation).abs() < tolerance,
                "{init:?} {got_deviation}"
            );
        }
    }

    #[test]
    fn a_uniform_law_keeps_its_bounds_and_a_constant_its_value() {
        let (_, _, largest) = moments(Init::Uniform { lo: -0.5, up: 0.5 }, &[5000]);
        assert!(largest <= 0.5 && largest > 0.49);
        let values = draw(Init::Const(-2.5), &Shape::from(3), "w", Rng::new(0)).unwrap();
        assert_eq!(values, [-2.5; 3]);
    }

    #[test]
    fn a_law_that_makes_no_sense_is_refused_by_name() {
        let bad = [
            Init::Const(f64::NAN),
            Init::Uniform { lo: 1.0, up: 0.0 },
            Init::Randn {
                mean: 0.0,
                stdev: -1.0,
            },
        ];
        for init in bad {
            let error = draw(init, &Shape::from(2), "a.weight", Rng::new(0)).unwrap_err();
            assert!(error.to_string().contains("a.weight"), "{error}");
        }
        let shape = Shape::from((3, 0));
        let error = draw(
            candle_nn::init::DEFAULT_KAIMING_NORMAL,
            &shape,
            "w",
            Rng::new(0),
        );
        assert!(error.unwrap_err().to_string().contains("fan"));
    }
}
