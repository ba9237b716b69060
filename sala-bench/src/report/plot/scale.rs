//! Axes: from numbers to places, and the round numbers to write beside them.

/// What an axis spans.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Scale {
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Scale {
    /// Over all finite values, with so much room at both ends, as a share of the span; nothing without a value.
    pub(crate) fn over(values: impl IntoIterator<Item = f64>, room: f64) -> Option<Self> {
        let (low, high) = extent(values)?;
        let span = match high - low {
            0.0 if low == 0.0 => 1.0,
            0.0 => low.abs() * 0.1,
            span => span,
        };
        Some(Self::linear(low - room * span, high + room * span))
    }

    /// Over values above zero, by ratios.
    pub(crate) fn ratios(values: impl IntoIterator<Item = f64>, room: f64) -> Option<Self> {
        let logs = values.into_iter().filter(|v| *v > 0.0).map(f64::ln);
        let scale = Self::over(logs, room)?;
        Some(Self {
            low: scale.low.exp(),
            high: scale.high.exp(),
            logarithmic: true,
        })
    }

    pub(crate) fn linear(low: f64, high: f64) -> Self {
        Self {
            low,
            high,
            logarithmic: false,
        }
    }

    /// The same with zero in it.
    pub(crate) fn with(self, value: f64) -> Self {
        Self {
            low: self.low.min(value),
            high: self.high.max(value),
            ..self
        }
    }

    pub(crate) fn low(&self) -> f64 {
        self.low
    }

    pub(crate) fn high(&self) -> f64 {
        self.high
    }

    /// Where a value is on the way from 0 to 1.
    pub(crate) fn share(&self, value: f64) -> f64 {
        if self.logarithmic {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        }
    }

    /// About so many round values within, with their labels.
    pub(crate) fn ticks(&self, wanted: usize) -> Vec<(f64, String)> {
        if self.logarithmic {
            return self.round_ratios();
        }
        let step = round_step((self.high - self.low) / wanted as f64);
        let first = (self.low / step).ceil();
        let last = (self.high / step + 1e-9).floor();
        let mut ticks = Vec::new();
        let mut i = first;
        while i <= last {
            ticks.push((i * step, label(i * step, step)));
            i += 1.0;
        }
        ticks
    }

    /// Powers of ten, with their doubles and fives where the axis is short.
    fn round_ratios(&self) -> Vec<(f64, String)> {
        let decades = (self.high / self.low).log10();
        let factors: &[f64] = match decades {
            d if d < 1.5 => &[1.0, 2.0, 5.0],
            d if d < 3.0 => &[1.0, 3.0],
            _ => &[1.0],
        };
        let mut ticks = Vec::new();
        let mut power = self.low.log10().floor();
        while power <= self.high.log10().ceil() {
            for factor in factors {
                let value = factor * 10f64.powf(power);
                // Ends that went through a logarithm are off by a rounding.
                if value > self.low * (1.0 - 1e-9) && value < self.high * (1.0 + 1e-9) {
                    ticks.push((value, label(value, value)));
                }
            }
            power += 1.0;
        }
        ticks
    }
}

/// Smallest and largest finite value.
fn extent(values: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    let finite = values.into_iter().filter(|v| v.is_finite());
    finite.fold(None, |extent, v| match extent {
        None => Some((v, v)),
        Some((low, high)) => Some((f64::min(low, v), f64::max(high, v))),
    })
}

/// The nearest of 1, 2, 5 times a power of ten that is not smaller.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let times = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|t| t * power >= step * (1.0 - 1e-9));
    times.unwrap_or(10.0) * power
}

/// A number with as many digits as a step asks for; thousands as k.
fn label(value: f64, step: f64) -> String {
    if step >= 1000.0 && value != 0.0 {
        return format!("{}k", trimmed(value / 1000.0, step / 1000.0));
    }
    trimmed(value, step)
}

fn trimmed(value: f64, step: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a small number of digits"
    )]
    let digits = (-(step.log10() + 1e-9).floor()).clamp(0.0, 9.0) as usize;
    // No minus in front of a zero that is one by rounding.
    let value = if value.abs() < step / 2.0 { 0.0 } else { value };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: Scale, wanted: usize) -> Vec<String> {
        scale.ticks(wanted).into_iter().map(|t| t.1).collect()
    }

    #[test]
    fn ticks_are_round_and_within() {
        assert_eq!(
            labels(Scale::linear(0.0, 20.0), 5),
            ["0", "5", "10", "15", "20"]
        );
        assert_eq!(labels(Scale::linear(81.3, 84.1), 5), ["82", "83", "84"]);
        assert_eq!(
            labels(Scale::linear(-0.25, 0.21), 5),
            ["-0.2", "-0.1", "0.0", "0.1", "0.2"]
        );
        assert_eq!(labels(Scale::linear(0.0, 4500.0), 4), ["0", "2k", "4k"]);
    }

    #[test]
    fn ratios_have_ticks_at_powers() {
        let scale = Scale::ratios([0.01, 0.1], 0.0).unwrap();
        assert_eq!(labels(scale, 5), ["0.01", "0.02", "0.05", "0.1"]);
        assert!((scale.share(10f64.powf(-1.5)) - 0.5).abs() < 1e-12);
        assert_eq!(Scale::ratios([0.0, -1.0], 0.0), None);
    }

    #[test]
    fn a_single_value_has_room_around_it() {
        let scale = Scale::over([0.8], 0.5).unwrap();
        assert!((scale.share(0.8) - 0.5).abs() < 1e-12);
        assert_eq!(Scale::over([f64::NAN], 0.1), None);
        let zero = Scale::over([0.0, 0.0], 0.5).unwrap();
        assert!(zero.low() < 0.0 && zero.high() > 0.0);
    }
}
