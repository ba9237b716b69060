//! Examples: where they come from, how they are cut into parts and made into batches.

pub(crate) mod batches;
mod corpus;
mod images;
pub(crate) mod labels;
mod overlap;
mod parts;
pub(crate) mod table;
pub(crate) mod texts;
pub(crate) mod tokenizer;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use sala_core::Pass;
use sala_models::transformer::Tokens;
use sha2::{Digest, Sha256};

pub(crate) use images::{Images, Preprocessing};
pub(crate) use overlap::{Overlap, overlaps};
pub(crate) use parts::{Parts, load_images, load_language, load_texts};
pub(crate) use texts::{Blocks, Texts};

/// Examples of one part of the data.
#[derive(Debug, Clone)]
pub(crate) enum Examples {
    /// Texts with labels.
    Texts(Texts),
    /// Blocks of running text.
    Blocks(Blocks),
    /// Images with labels.
    Images(Images),
}

/// What goes through a network at once.
#[derive(Debug, Clone)]
pub(crate) struct Batch {
    pub(crate) input: Input,
    /// Classes `(B)` of u32, or the tokens `(B, T)` of i64 themselves with −100 for padding.
    pub(crate) targets: Tensor,
    /// How many targets count in the loss, whose mean it is.
    pub(crate) counted: usize,
}

/// The examples of a batch.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    Tokens(Tokens),
    /// `(B, C, H, W)`.
    Images(Tensor),
}

impl Examples {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Texts(texts) => texts.sequences.len(),
            Self::Blocks(blocks) => blocks.blocks.len(),
            Self::Images(images) => images.len(),
        }
    }

    /// What batches are sorted by: the number of tokens.
    pub(crate) fn lengths(&self) -> Vec<usize> {
        match self {
            Self::Texts(texts) => texts.sequences.iter().map(|s| s.ids.len()).collect(),
            Self::Blocks(blocks) => blocks.blocks.iter().map(Vec::len).collect(),
            Self::Images(images) => vec![0; images.len()],
        }
    }

    /// The examples at these places.
    pub(crate) fn batch(&self, places: &[usize], device: &Device) -> Result<Batch> {
        match self {
            Self::Texts(texts) => texts.batch(places, device),
            Self::Blocks(blocks) => blocks.batch(places, device),
            Self::Images(images) => images.batch(places, device),
        }
    }

    /// Takes all examples as the network sees them, with their targets, into a fingerprint.
    fn add_to(&self, hash: &mut Sha256) {
        let mut words = |words: &[u32]| {
            hash.update((words.len() as u64).to_le_bytes());
            for word in words {
                hash.update(word.to_le_bytes());
            }
        };
        match self {
            Self::Texts(texts) => {
                texts.sequences.iter().for_each(|s| words(&s.ids));
                words(&texts.labels);
            }
            Self::Blocks(blocks) => blocks.blocks.iter().for_each(|b| words(b)),
            Self::Images(images) => {
                words(images.labels());
                hash.update(images.pixels());
            }
        }
    }
}

impl Batch {
    /// With its images, if it has any, as `dtype`.
    pub(crate) fn in_dtype(self, dtype: DType) -> candle_core::Result<Self> {
        let input = match self.input {
            Input::Images(images) => Input::Images(images.to_dtype(dtype)?),
            tokens @ Input::Tokens(_) => tokens,
        };
        Ok(Self { input, ..self })
    }

    /// What a pass wants of it: the first rows for a direction pass on a fraction of the batch.
    pub(crate) fn take(&self, pass: Pass) -> candle_core::Result<Self> {
        let input = match &self.input {
            Input::Tokens(tokens) => Input::Tokens(Tokens {
                ids: pass.take(&tokens.ids)?,
                mask: tokens.mask.as_ref().map(|m| pass.take(m)).transpose()?,
                types: tokens.types.as_ref().map(|t| pass.take(t)).transpose()?,
            }),
            Input::Images(images) => Input::Images(pass.take(images)?),
        };
        Ok(Self {
            input,
            targets: pass.take(&self.targets)?,
            counted: self.counted,
        })
    }
}
