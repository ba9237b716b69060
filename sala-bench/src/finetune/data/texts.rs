//! Batches of texts, filled up to the longest of each batch.

use anyhow::Result;
use candle_core::{Device, Tensor};
use sala_models::transformer::Tokens;

use super::{Batch, Input, tokenizer::Sequence};

/// What a target must be for its place not to count.
const NOT_COUNTED: i64 = -100;

/// Texts as tokens, with their classes.
#[derive(Debug, Clone)]
pub(crate) struct Texts {
    pub(crate) sequences: Vec<Sequence>,
    /// One for each.
    pub(crate) labels: Vec<u32>,
    /// What shorter texts are filled up with.
    pub(crate) padding: u32,
}

/// Running text in blocks of tokens, each of which is to be told from those before it.
#[derive(Debug, Clone)]
pub(crate) struct Blocks {
    /// Each of at least two tokens.
    pub(crate) blocks: Vec<Vec<u32>>,
    /// What a shorter last block is filled up with.
    pub(crate) padding: u32,
}

impl Texts {
    pub(super) fn batch(&self, places: &[usize], device: &Device) -> Result<Batch> {
        let sequences: Vec<&Sequence> = places.iter().map(|&i| &self.sequences[i]).collect();
        let labels: Vec<u32> = places.iter().map(|&i| self.labels[i]).collect();
        Ok(Batch {
            counted: labels.len(),
            targets: Tensor::from_vec(labels, places.len(), device)?,
            input: Input::Tokens(tokens(&sequences, self.padding, device)?),
        })
    }
}

/// Texts side by side as a network takes them.
pub(crate) fn tokens(sequences: &[&Sequence], padding: u32, device: &Device) -> Result<Tokens> {
    let ids: Vec<&[u32]> = sequences.iter().map(|s| s.ids.as_slice()).collect();
    let types: Vec<&[u32]> = sequences.iter().map(|s| s.types.as_slice()).collect();
    let tokens = Tokens::new(filled(&ids, padding, device)?);
    let tokens = tokens.with_types(filled(&types, 0, device)?);
    Ok(match mask(&ids, device)? {
        Some(mask) => tokens.with_mask(mask),
        None => tokens,
    })
}

impl Blocks {
    pub(super) fn batch(&self, places: &[usize], device: &Device) -> Result<Batch> {
        let blocks: Vec<&[u32]> = places.iter().map(|&i| self.blocks[i].as_slice()).collect();
        let tokens = Tokens::new(filled(&blocks, self.padding, device)?);
        let tokens = match mask(&blocks, device)? {
            Some(mask) => tokens.with_mask(mask),
            None => tokens,
        };
        let signed: Vec<Vec<i64>> = (blocks.iter())
            .map(|block| block.iter().copied().map(i64::from).collect())
            .collect();
        let signed: Vec<&[i64]> = signed.iter().map(Vec::as_slice).collect();
        Ok(Batch {
            targets: filled(&signed, NOT_COUNTED, device)?,
            // Nothing comes before the first token of a block, so nothing tells it.
            counted: blocks.iter().map(|b| b.len() - 1).sum(),
            input: Input::Tokens(tokens),
        })
    }
}

/// `(B, T)` with T the longest row; shorter ones are filled up behind their end.
fn filled<T: candle_core::WithDType>(rows: &[&[T]], with: T, device: &Device) -> Result<Tensor> {
    let longest = rows.iter().map(|r| r.len()).max().unwrap_or(0);
    let mut values = Vec::with_capacity(rows.len() * longest);
    for row in rows {
        values.extend_from_slice(row);
        values.extend(std::iter::repeat_n(with, longest - row.len()));
    }
    Ok(Tensor::from_vec(values, (rows.len(), longest), device)?)
}

/// 1 where there is a token, 0 for padding; nothing when there is no padding.
fn mask(rows: &[&[u32]], device: &Device) -> Result<Option<Tensor>> {
    let shortest = rows.iter().map(|r| r.len()).min();
    if shortest == rows.iter().map(|r| r.len()).max() {
        return Ok(None);
    }
    let ones: Vec<Vec<u8>> = rows.iter().map(|r| vec![1; r.len()]).collect();
    let ones: Vec<&[u8]> = ones.iter().map(Vec::as_slice).collect();
    filled(&ones, 0, device).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(ids: &[u32]) -> Sequence {
        Sequence {
            ids: ids.to_vec(),
            types: (0..).take(ids.len()).map(|i| i % 2).collect(),
        }
    }

    #[test]
    fn texts_are_filled_up_to_the_longest_of_their_batch() {
        let texts = Texts {
            sequences: vec![sequence(&[5, 6, 7]), sequence(&[8]), sequence(&[9; 20])],
            labels: vec![0, 2, 1],
            padding: 4,
        };
        let batch = texts.batch(&[1, 0], &Device::Cpu).unwrap();
        let Input::Tokens(tokens) = &batch.input else {
            panic!("texts");
        };
        let ids: Vec<Vec<u32>> = tokens.ids.to_vec2().unwrap();
        assert_eq!(ids, [[8, 4, 4], [5, 6, 7]]);
        let mask: Vec<Vec<u8>> = tokens.mask.as_ref().unwrap().to_vec2().unwrap();
        assert_eq!(mask, [[1, 0, 0], [1, 1, 1]]);
        let types: Vec<Vec<u32>> = tokens.types.as_ref().unwrap().to_vec2().unwrap();
        assert_eq!(types, [[0, 0, 0], [0, 1, 0]]);
        assert_eq!(batch.targets.to_vec1::<u32>().unwrap(), [2, 0]);
    }

    #[test]
    fn equally_long_texts_have_no_mask() {
        let texts = Texts {
            sequences: vec![sequence(&[5, 6]), sequence(&[8, 9])],
            labels: vec![0, 1],
            padding: 0,
        };
        let batch = texts.batch(&[0, 1], &Device::Cpu).unwrap();
        assert!(matches!(batch.input, Input::Tokens(tokens) if tokens.mask.is_none()));
    }

    #[test]
    fn padding_of_a_block_is_no_target() {
        let blocks = Blocks {
            blocks: vec![vec![1, 2, 3], vec![4, 5]],
            padding: 0,
        };
        let batch = blocks.batch(&[0, 1], &Device::Cpu).unwrap();
        let targets: Vec<Vec<i64>> = batch.targets.to_vec2().unwrap();
        assert_eq!(targets, [[1, 2, 3], [4, 5, -100]]);
        assert_eq!(batch.counted, 3);
    }
}
