//! What is minimised, and how well a network does.

use anyhow::{Result, ensure};
use candle_core::{D, DType, Device, Tensor};
use sala_models::{Mode, ops::cross_entropy, pretrained::Built, transformer::next_token_loss};

use super::data::{Batch, Examples, Input, batches};
use crate::{
    metrics::{Confusion, Score},
    train::{at_least_f32, scalar},
};

/// Examples evaluated at a time, and blocks of text, whose logits are large.
const EVALUATED: usize = 64;
const BLOCKS_EVALUATED: usize = 8;

/// Logits in f32 (f64 of a network in f64): `(B, classes)`, or `(B, T, vocabulary)` of a language model.
pub(crate) fn logits(network: &Built, input: &Input, mode: Mode) -> candle_core::Result<Tensor> {
    let logits = match (network, input) {
        (Built::Tokens(network), Input::Tokens(tokens)) => network.forward_tokens(tokens, mode)?,
        (Built::Images(network), Input::Images(images)) => network.forward(images, mode)?,
        _ => candle_core::bail!("a network on texts was given images, or one on images texts"),
    };
    at_least_f32(&logits)
}

/// The mean loss of a batch.
pub(crate) fn loss(network: &Built, batch: &Batch, mode: Mode) -> candle_core::Result<Tensor> {
    let logits = logits(network, &batch.input, mode)?;
    loss_of(&logits, batch)
}

fn loss_of(logits: &Tensor, batch: &Batch) -> candle_core::Result<Tensor> {
    if logits.rank() == 3 {
        return next_token_loss(logits, &batch.targets);
    }
    cross_entropy(logits, &batch.targets)
}

/// The score of a part: losses as means over examples, or over the tokens of a language model.
pub(crate) fn evaluate(
    network: &Built,
    examples: &Examples,
    classes: usize,
    (device, dtype): (&Device, DType),
) -> Result<Score> {
    ensure!(examples.len() > 0, "there is no example to evaluate");
    let size = match examples {
        Examples::Blocks(_) => BLOCKS_EVALUATED,
        Examples::Texts(_) | Examples::Images(_) => EVALUATED,
    };
    let mut confusion = Confusion::new(classes);
    let (mut sum, mut counted) = (0.0, 0.0);
    for places in batches::in_order(&examples.lengths(), size) {
        let batch = examples.batch(&places, device)?.in_dtype(dtype)?;
        let logits = logits(network, &batch.input, Mode::eval())?.detach();
        let loss = loss_of(&logits, &batch)?;
        sum += batch.counted as f64 * scalar(&loss)?;
        counted += batch.counted as f64;
        if !matches!(examples, Examples::Blocks(_)) {
            let said: Vec<u32> = logits.argmax(D::Minus1)?.to_vec1()?;
            for (right, said) in batch.targets.to_vec1()?.into_iter().zip(said) {
                confusion.add(right, said)?;
            }
        }
    }
    match examples {
        Examples::Blocks(_) => Ok(Score::of_language_model(sum / counted)),
        Examples::Texts(_) | Examples::Images(_) => confusion.score(sum / counted),
    }
}
