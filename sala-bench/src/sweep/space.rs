//! The values that a search may try, field by field.

use std::fmt;

use anyhow::{Result, bail, ensure};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess, SeqAccess, value::MapAccessDeserializer},
};
use toml::Value;

/// What a field may be.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Dimension {
    /// One of these.
    Values(Vec<Value>),
    Range(Range),
}

/// Numbers between two bounds; whole numbers, both bounds among them, where the bounds are whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Range {
    min: Value,
    max: Value,
    #[serde(default)]
    scale: Scale,
    /// How many a grid takes, both bounds among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    points: Option<usize>,
}

/// What is even along a range: differences or ratios.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Scale {
    #[default]
    Linear,
    Log,
}

impl Dimension {
    /// The values of a grid.
    pub(crate) fn grid(&self) -> Result<Vec<Value>> {
        let range = match self {
            Self::Values(values) => return Ok(values.clone()),
            Self::Range(range) => range,
        };
        let Some(points) = range.points else {
            bail!("a grid wants a list of values here, or `points` beside `min` and `max`");
        };
        let last = points.saturating_sub(1).max(1) as f64;
        Ok((0..points)
            .map(|i| range.between(i as f64 / last))
            .collect())
    }

    /// The value at a place from 0 to below 1.
    pub(crate) fn at(&self, place: f64) -> Value {
        match self {
            Self::Values(values) => {
                let index = whole(place * values.len() as f64);
                values[index.min(values.len() - 1)].clone()
            }
            Self::Range(range) => range.draw(place),
        }
    }

    pub(crate) fn validate(&self) -> Result<()> {
        match self {
            Self::Values(values) => ensure!(!values.is_empty(), "a value to try is wanted"),
            Self::Range(range) => range.validate()?,
        }
        Ok(())
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "indices and counts from zero on"
)]
fn whole(x: f64) -> usize {
    x as usize
}

/// A number of TOML.
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Integer(n) => Some(*n as f64),
        Value::Float(x) => Some(*x),
        _ => None,
    }
}

impl Range {
    fn is_whole(&self) -> bool {
        self.min.is_integer() && self.max.is_integer()
    }

    /// Zero where a bound is no number, which `validate` refuses.
    fn bounds(&self) -> (f64, f64) {
        let bound = |value| number(value).unwrap_or(0.0);
        (bound(&self.min), bound(&self.max))
    }

    fn validate(&self) -> Result<()> {
        for (name, value) in [("min", &self.min), ("max", &self.max)] {
            ensure!(
                number(value).is_some_and(f64::is_finite),
                "`{name}` must be a finite number, got {value}"
            );
        }
        let (min, max) = self.bounds();
        ensure!(
            min < max,
            "`min` must be below `max`, got {} and {}",
            self.min,
            self.max
        );
        ensure!(
            self.scale == Scale::Linear || min > 0.0,
            "`min` must be above 0 on a logarithmic scale, got {}",
            self.min
        );
        ensure!(self.points != Some(0), "`points` must be >= 1, got 0");
        Ok(())
    }

    /// At this share of the way, bounds included.
    fn between(&self, share: f64) -> Value {
        let (min, max) = self.bounds();
        let x = interpolate(self.scale, min, max, share);
        if self.is_whole() {
            integer(x.round())
        } else {
            Value::Float(x)
        }
    }

    /// Every whole number has the same width on the scale: the one from half below it to half above.
    fn draw(&self, place: f64) -> Value {
        if !self.is_whole() {
            return self.between(place);
        }
        let (min, max) = self.bounds();
        let x = interpolate(self.scale, min - 0.5, max + 0.5, place);
        integer(x.round().clamp(min, max))
    }
}

fn interpolate(scale: Scale, min: f64, max: f64, share: f64) -> f64 {
    match scale {
        // At its ends the bounds themselves, without rounding.
        _ if share <= 0.0 => min,
        _ if share >= 1.0 => max,
        Scale::Linear => min + share * (max - min),
        Scale::Log => (min.ln() + share * (max.ln() - min.ln())).exp(),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "between two whole numbers")]
fn integer(x: f64) -> Value {
    Value::Integer(x as i64)
}

impl Serialize for Dimension {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Values(values) => values.serialize(serializer),
            Self::Range(range) => range.serialize(serializer),
        }
    }
}

// By hand, because an untagged enum would not say which key of a range is wrong.
impl<'de> Deserialize<'de> for Dimension {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Dimension;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of values, or a table with `min` and `max`")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Dimension, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = seq.next_element()? {
                    values.push(value);
                }
                Ok(Dimension::Values(values))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Dimension, A::Error> {
                Range::deserialize(MapAccessDeserializer::new(map)).map(Dimension::Range)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn dimension(text: &str) -> Result<Dimension> {
        let read: BTreeMap<String, Dimension> =
            crate::spec::read::from_toml(&format!("x = {text}"))?;
        let dimension = read["x"].clone();
        dimension.validate()?;
        Ok(dimension)
    }

    fn floats(values: &[Value]) -> Vec<f64> {
        values.iter().map(|v| v.as_float().unwrap()).collect()
    }

    #[test]
    fn a_grid_of_a_range_has_both_bounds_and_even_ratios_on_a_logarithmic_scale() {
        let log = dimension("{ min = 1e-4, max = 1e-1, scale = \"log\", points = 4 }").unwrap();
        let grid = floats(&log.grid().unwrap());
        assert_eq!((grid[0], grid[3]), (1e-4, 1e-1));
        assert!((grid[1] / 1e-3 - 1.0).abs() < 1e-12 && (grid[2] / 1e-2 - 1.0).abs() < 1e-12);
        let linear = dimension("{ min = 0.0, max = 1.0, points = 5 }").unwrap();
        assert_eq!(floats(&linear.grid().unwrap()), [0.0, 0.25, 0.5, 0.75, 1.0]);
        let whole = dimension("{ min = 1, max = 9, points = 3 }").unwrap();
        assert_eq!(whole.grid().unwrap(), [1.into(), 5.into(), 9.into()]);
    }

    #[test]
    fn a_place_is_drawn_at_its_share_of_the_scale() {
        let log = dimension("{ min = 1e-4, max = 1.0, scale = \"log\" }").unwrap();
        let middle = log.at(0.5).as_float().unwrap();
        assert!((middle / 1e-2 - 1.0).abs() < 1e-12, "{middle}");
        let linear = dimension("{ min = 2.0, max = 4.0 }").unwrap();
        assert_eq!(floats(&[linear.at(0.0), linear.at(0.75)]), [2.0, 3.5]);
    }

    #[test]
    fn whole_numbers_and_values_of_a_list_are_equally_likely() {
        for text in ["{ min = 1, max = 4 }", "[1, 2, 3, 4]"] {
            let dimension = dimension(text).unwrap();
            let mut counts = [0; 4];
            for i in 0..1000 {
                let value = dimension.at(f64::from(i) / 1000.0).as_integer().unwrap();
                counts[usize::try_from(value - 1).unwrap()] += 1;
            }
            assert!(
                counts.iter().all(|&c| (249..=251).contains(&c)),
                "{text}: {counts:?}"
            );
        }
    }

    #[test]
    fn a_dimension_survives_being_written_and_read() {
        for text in [
            "[1, 2.5, \"linear\"]",
            "{ min = 1, max = 4, scale = \"log\" }",
        ] {
            let one = dimension(text).unwrap();
            let written = toml::Value::try_from(&one).unwrap().to_string();
            assert_eq!(dimension(&written).unwrap(), one);
        }
    }

    #[test]
    fn a_wrong_dimension_is_named() {
        for (text, words) in [
            ("[]", "a value to try"),
            ("3", "a list of values"),
            ("{ min = 1.0, maxx = 2.0 }", "Did you mean `max`?"),
            (
                "{ min = 1.0, max = 2.0, scale = \"lgo\" }",
                "Did you mean `log`?",
            ),
            ("{ min = 2.0, max = 1.0 }", "`min` must be below `max`"),
            (
                "{ min = 0.0, max = 1.0, scale = \"log\" }",
                "above 0 on a logarithmic",
            ),
            (
                "{ min = \"a\", max = 1.0 }",
                "`min` must be a finite number",
            ),
            ("{ min = 0, max = 1, points = 0 }", "`points` must be >= 1"),
        ] {
            let message = format!("{:#}", dimension(text).unwrap_err());
            assert!(message.contains(words), "{text}: {message}");
        }
        let range = dimension("{ min = 1.0, max = 2.0 }").unwrap();
        let message = range.grid().unwrap_err().to_string();
        assert!(message.contains("`points`"), "{message}");
    }
}
