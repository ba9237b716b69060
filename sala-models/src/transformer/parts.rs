//! Layers that start as those of `transformers` do, and checks of configurations.

use candle_nn::{Init, VarBuilder};

use crate::{
    Error, Rng,
    ops::{Dropout, Embedding, Linear},
};

fn normal(deviation: f64) -> Init {
    Init::Randn {
        mean: 0.0,
        stdev: deviation,
    }
}

/// A layer whose weight starts from a normal law and whose bias starts at zero.
pub(super) fn linear(
    (inputs, outputs): (usize, usize),
    bias: bool,
    deviation: f64,
    vb: VarBuilder,
) -> crate::Result<Linear> {
    let zeros = bias.then_some(Init::Const(0.0));
    Linear::with_init(inputs, outputs, normal(deviation), zeros, vb)
}

/// As [`linear`] with a bias, with its weight stored as `(inputs, outputs)`, which is how GPT-2 has it.
pub(super) fn transposed_linear(
    (inputs, outputs): (usize, usize),
    deviation: f64,
    vb: VarBuilder,
) -> crate::Result<Linear> {
    let weight = vb.get_with_hints((inputs, outputs), "weight", normal(deviation))?;
    let bias = vb.get_with_hints(outputs, "bias", Init::Const(0.0))?;
    Ok(Linear::from_parts(weight.t()?, Some(bias)))
}

/// A table whose entries start from a normal law.
pub(super) fn embedding(
    entries: usize,
    size: usize,
    deviation: f64,
    vb: VarBuilder,
) -> crate::Result<Embedding> {
    Embedding::with_init(entries, size, normal(deviation), vb)
}

/// A dropout with masks of its own, named after its place.
pub(super) fn dropout(p: f64, place: &str, vb: &VarBuilder, rng: Rng) -> crate::Result<Dropout> {
    let place = vb.pp(place).prefix();
    Dropout::new(p, rng.stream(&format!("dropout/{place}")))
}

/// Checks that heads of one size make up the hidden size.
pub(super) fn check_heads(
    config: &'static str,
    field: &'static str,
    hidden: usize,
    heads: usize,
) -> crate::Result<()> {
    if heads > 0 && hidden.is_multiple_of(heads) {
        return Ok(());
    }
    Err(Error::Config {
        config,
        field,
        wanted: "a divisor of the hidden size",
        got: format!("{heads} for {hidden}"),
    })
}
