//! Typed values of a configuration's keys, and errors that name the key.

use std::fmt::Display;

use serde_json::{Map, Value};

use crate::{Error, Result, transformer::Activation};

/// The keys of a configuration, or of an object in it.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    place: &'a str,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(super) const fn new(place: &'a str, map: &'a Map<String, Value>) -> Self {
        Self { place, map }
    }

    pub(super) fn refuse(self, key: &str, wanted: impl Into<String>, got: impl Display) -> Error {
        Error::ModelConfig {
            place: self.place.into(),
            key: key.into(),
            wanted: wanted.into(),
            got: got.to_string(),
        }
    }

    /// The value of a key; `null` counts as absent.
    pub(super) fn value(self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn convert<T>(
        self,
        key: &str,
        wanted: &str,
        of: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.map.get(key) else {
            return Ok(None);
        };
        let converted = of(value).ok_or_else(|| self.refuse(key, wanted, value))?;
        Ok(Some(converted))
    }

    /// As [`convert`](Self::convert) for keys that may be `null`.
    fn optional<T>(
        self,
        key: &str,
        wanted: &str,
        of: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.value(key) {
            Some(_) => self.convert(key, wanted, of),
            None => Ok(None),
        }
    }

    pub(super) fn size(self, key: &str, default: usize) -> Result<usize> {
        Ok(self.convert(key, COUNT, count)?.unwrap_or(default))
    }

    pub(super) fn maybe_size(self, key: &str) -> Result<Option<usize>> {
        self.optional(key, COUNT, count)
    }

    pub(super) fn number(self, key: &str, default: f64) -> Result<f64> {
        Ok(self.convert(key, NUMBER, Value::as_f64)?.unwrap_or(default))
    }

    pub(super) fn maybe_number(self, key: &str) -> Result<Option<f64>> {
        self.optional(key, NUMBER, Value::as_f64)
    }

    pub(super) fn flag(self, key: &str, default: bool) -> Result<bool> {
        let flag = self.convert(key, "true or false", Value::as_bool)?;
        Ok(flag.unwrap_or(default))
    }

    pub(super) fn text(self, key: &str, default: &'a str) -> Result<&'a str> {
        Ok(self
            .convert(key, "a string", Value::as_str)?
            .unwrap_or(default))
    }

    pub(super) fn maybe_text(self, key: &str) -> Result<Option<&'a str>> {
        self.optional(key, "a string", Value::as_str)
    }

    pub(super) fn object(self, key: &str) -> Result<Option<&'a Map<String, Value>>> {
        self.optional(key, "an object", Value::as_object)
    }

    /// The keys of an object that stands in this one.
    pub(super) const fn within(self, map: &'a Map<String, Value>) -> Self {
        Self { map, ..self }
    }

    /// A list of exactly `N` sizes.
    pub(super) fn sizes<const N: usize>(
        self,
        key: &str,
        default: [usize; N],
    ) -> Result<[usize; N]> {
        let all = |value: &Value| {
            let counts: Option<Vec<usize>> = value.as_array()?.iter().map(count).collect();
            counts?.try_into().ok()
        };
        let wanted = format!("a list of {N} whole numbers");
        Ok(self.convert(key, &wanted, all)?.unwrap_or(default))
    }

    pub(super) fn activation(self, key: &str, default: Activation) -> Result<Activation> {
        let Some(name) = self.convert(key, "a string", Value::as_str)? else {
            return Ok(default);
        };
        Activation::from_name(name).map_err(|error| match error {
            Error::Config { wanted, got, .. } => self.refuse(key, wanted, got),
            other => other,
        })
    }

    /// Refuses a key with another value than the one that the network is made for, which is the default.
    pub(super) fn only(self, key: &str, made_for: impl Into<Value>) -> Result<()> {
        let made_for = made_for.into();
        match self.value(key) {
            Some(value) if *value != made_for => Err(self.refuse(key, made_for.to_string(), value)),
            _ => Ok(()),
        }
    }
}

const COUNT: &str = "a whole number";
const NUMBER: &str = "a number";

fn count(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|count| count.try_into().ok())
}
