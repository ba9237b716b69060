//! Initial values from a seed and a name.

use candle_core::{CpuStorage, DType, Device, Shape, Tensor, Var, WithDType};
use candle_nn::{Init, init::NormalOrUniform};

use crate::{
    Error, Result, Rng,
    kernels::pieces::{self, PIECE},
    rng::Stream,
};

/// The distributions that the initialisations of candle come down to.
enum Law {
    Constant(f64),
    Normal { mean: f64, deviation: f64 },
    Uniform { low: f64, width: f64 },
}

/// A new variable. Its values, in row-major order, are drawn in f64 and rounded to `dtype`: value `i` is number `i` of
/// the stream that belongs to the variable's name, whoever draws it, so threads share the work.
pub(super) fn variable(
    init: Init,
    (shape, dtype): (&Shape, DType),
    name: &str,
    rng: Rng,
    device: &Device,
) -> Result<Var> {
    let draw = Draw::of(init, shape, name, rng)?;
    // Straight to the type of the variable: f64 first would be three times the memory and the time.
    match dtype {
        DType::F32 => draw.variable(CpuStorage::F32, device),
        DType::F64 => draw.variable(CpuStorage::F64, device),
        DType::BF16 => draw.variable(CpuStorage::BF16, device),
        DType::F16 => draw.variable(CpuStorage::F16, device),
        other => {
            let wide = Tensor::from_vec(draw.values::<f64>(), shape, &Device::Cpu)?;
            let tensor = wide.to_dtype(other)?.to_device(device)?;
            Ok(Var::from_tensor(&tensor)?)
        }
    }
}

/// The values of a variable that is to be made.
struct Draw<'a> {
    law: Law,
    stream: Stream,
    shape: &'a Shape,
}

impl<'a> Draw<'a> {
    fn of(init: Init, shape: &'a Shape, name: &str, rng: Rng) -> Result<Self> {
        Ok(Self {
            law: law(init, shape, name)?,
            // The prefix keeps these streams apart from those of dropout or shuffling with the same seed.
            stream: rng.stream(&format!("init/{name}")),
            shape,
        })
    }

    /// The variable of the type of elements that `_storage` holds, which says it without a name for it.
    fn variable<T: WithDType>(
        &self,
        _storage: fn(Vec<T>) -> CpuStorage,
        device: &Device,
    ) -> Result<Var> {
        Ok(Var::from_vec(self.values::<T>(), self.shape, device)?)
    }

    fn values<T: WithDType>(&self) -> Vec<T> {
        let stream = self.stream;
        match self.law {
            Law::Constant(value) => vec![T::from_f64(value); self.shape.elem_count()],
            Law::Normal { mean, deviation } => {
                self.pairs(|k| stream.normal_pair(k).map(|z| mean + deviation * z))
            }
            Law::Uniform { low, width } => {
                self.pairs(|k| stream.uniform_pair(k).map(|u| low + width * u))
            }
        }
    }

    /// Values of which `pair` yields numbers `2k` and `2k + 1`, because a block of the stream makes two.
    fn pairs<T: WithDType>(&self, pair: impl Fn(u64) -> [f64; 2] + Sync + Send) -> Vec<T> {
        // Pieces begin at even numbers.
        const { assert!(PIECE.is_multiple_of(2)) };
        let mut values = vec![T::from_f64(0.0); self.shape.elem_count()];
        pieces::each_of(&mut values, PIECE, |i, piece| {
            let first = (i * PIECE / 2) as u64;
            for (places, k) in piece.chunks_mut(2).zip(first..) {
                for (place, value) in places.iter_mut().zip(pair(k)) {
                    *place = T::from_f64(value);
                }
            }
        });
        values
    }
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

    fn draw(init: Init, shape: &Shape, name: &str, rng: Rng) -> Result<Vec<f64>> {
        Ok(Draw::of(init, shape, name, rng)?.values())
    }

    // Catches pieces that begin at the wrong number, pairs in the wrong order, and a second rounding.
    #[test]
    fn values_are_those_of_the_stream_one_by_one_in_every_dtype() {
        let count = 2 * PIECE + 7;
        let shape = Shape::from(count);
        let stream = Rng::new(3).stream("init/w");
        let normal = Init::Randn {
            mean: 0.5,
            stdev: 0.02,
        };
        let uniform = Init::Uniform { lo: -0.3, up: 0.1 };
        for (init, normal) in [(normal, true), (uniform, false)] {
            let value = |i| {
                if normal {
                    0.5 + 0.02 * stream.normal(i)
                } else {
                    -0.3 + (0.1 - -0.3) * stream.uniform(i)
                }
            };
            let wanted: Vec<f64> = (0..count as u64).map(value).collect();
            let wanted = Tensor::new(wanted, &Device::Cpu).unwrap();
            for dtype in [DType::F64, DType::F32, DType::BF16, DType::F16] {
                let of = (&shape, dtype);
                let got = variable(init, of, "w", Rng::new(3), &Device::Cpu).unwrap();
                assert_eq!(got.dtype(), dtype);
                let values =
                    |t: &Tensor| -> Vec<f64> { t.to_dtype(DType::F64).unwrap().to_vec1().unwrap() };
                let wanted = values(&wanted.to_dtype(dtype).unwrap());
                let bits = |values: Vec<f64>| -> Vec<u64> {
                    values.into_iter().map(f64::to_bits).collect()
                };
                assert_eq!(bits(values(&got)), bits(wanted), "{init:?} {dtype:?}");
            }
        }
    }

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
