//! Rotary angles: `rope_parameters`, and what stood for it before version 5 of `transformers`, `rope_theta`
//! and `rope_scaling`.

use super::Fields;
use crate::{Result, transformer::RopeScaling};

const TYPE: &str = "rope_type";
const FACTOR: &str = "factor";

/// The base of the angles and how they are stretched. Where both kinds of keys are there, the library takes
/// `rope_scaling`, and the base of whichever object has one.
pub(super) fn read(
    fields: Fields,
    default_base: f64,
    positions: usize,
) -> Result<(f64, RopeScaling)> {
    let base = fields.number("rope_theta", default_base)?;
    let old = fields.object("rope_scaling")?.filter(|map| !map.is_empty());
    let Some(map) = old.or(fields.object("rope_parameters")?) else {
        return Ok((base, RopeScaling::None));
    };
    let inner = fields.within(map);
    inner.only("partial_rotary_factor", 1.0)?;
    let base = inner.number("rope_theta", base)?;
    Ok((base, scaling(inner, fields, positions)?))
}

fn scaling(inner: Fields, outer: Fields, positions: usize) -> Result<RopeScaling> {
    let kind = match inner.maybe_text(TYPE)? {
        Some(kind) => kind,
        None => inner.text("type", "default")?,
    };
    let factor = || required(inner, FACTOR);
    let length = || match outer.maybe_size("original_max_position_embeddings")? {
        Some(length) => Ok(length),
        None => inner.size("original_max_position_embeddings", positions),
    };
    Ok(match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: factor()? },
        "dynamic" => RopeScaling::Dynamic { factor: factor()? },
        "llama3" => RopeScaling::Llama3 {
            factor: factor()?,
            low_freq_factor: required(inner, "low_freq_factor")?,
            high_freq_factor: required(inner, "high_freq_factor")?,
            original_max_position_embeddings: length()?,
        },
        "yarn" => yarn(inner, length()?, positions)?,
        other => {
            let wanted = "default, linear, dynamic, llama3 or yarn";
            return Err(inner.refuse(TYPE, wanted, format!("`{other}`")));
        }
    })
}

fn yarn(inner: Fields, length: usize, positions: usize) -> Result<RopeScaling> {
    // `null` asks for the ratio of both lengths.
    let factor = match inner.maybe_number(FACTOR)? {
        Some(factor) => factor,
        None => positions as f64 / length as f64,
    };
    let exponents = (
        inner.maybe_number("mscale")?.filter(|m| *m != 0.0),
        inner.maybe_number("mscale_all_dim")?.filter(|m| *m != 0.0),
    );
    let attention = |m| RopeScaling::yarn_attention(factor, m);
    let inferred = match exponents {
        (Some(m), Some(all)) => attention(m) / attention(all),
        _ => attention(1.0),
    };
    Ok(RopeScaling::Yarn {
        factor,
        attention_factor: inner.maybe_number("attention_factor")?.unwrap_or(inferred),
        beta_fast: inner.maybe_number("beta_fast")?.unwrap_or(32.0),
        beta_slow: inner.maybe_number("beta_slow")?.unwrap_or(1.0),
        original_max_position_embeddings: length,
        truncate: inner.flag("truncate", true)?,
    })
}

/// A number without a default.
fn required(fields: Fields, key: &str) -> Result<f64> {
    let number = fields.maybe_number(key)?;
    number.ok_or_else(|| fields.refuse(key, "a number", "nothing"))
}
