//! Running text for language models: files, one after the other, in blocks of tokens.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::tokenizer::TextTokenizer;

/// Tokens by which models are told that a text ends.
const ENDS: [&str; 3] = ["<|endoftext|>", "</s>", "<|end_of_text|>"];

/// The tokens of text files, each followed by the token for the end of a text where the tokenizer has one.
pub(super) fn read(paths: &[PathBuf], tokenizer: &TextTokenizer) -> Result<Vec<u32>> {
    let end = ENDS.iter().find_map(|token| tokenizer.id(token));
    let mut all = Vec::new();
    for path in paths {
        let place = || format!("cannot read the text {}", path.display());
        let text = std::fs::read_to_string(path).with_context(place)?;
        let ids = tokenizer.encode_document(&text).with_context(place)?;
        ensure!(!ids.is_empty(), "{} holds no text", path.display());
        all.extend(ids);
        all.extend(end);
    }
    Ok(all)
}

/// Cuts tokens into blocks; the last holds what remains, if that is more than one token.
pub(super) fn blocks(ids: &[u32], length: usize, field: &str) -> Result<Vec<Vec<u32>>> {
    let blocks: Vec<_> = ids
        .chunks(length)
        .filter(|b| b.len() > 1)
        .map(<[u32]>::to_vec)
        .collect();
    ensure!(
        !blocks.is_empty(),
        "{field}: wanted at least two tokens, got {}",
        ids.len()
    );
    Ok(blocks)
}

/// Leaves out what does not fill a block: in training all blocks weigh the same.
pub(super) fn whole_blocks(mut ids: Vec<u32>, length: usize, field: &str) -> Result<Vec<u32>> {
    let whole = ids.len() - ids.len() % length;
    ensure!(
        whole > 0,
        "{field}: wanted at least one block of {length} tokens, got {} tokens",
        ids.len()
    );
    ids.truncate(whole);
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_block_is_shorter_and_one_token_is_none() {
        let cut = |n: u32| blocks(&(0..n).collect::<Vec<_>>(), 3, "x");
        assert_eq!(cut(8).unwrap(), [vec![0, 1, 2], vec![3, 4, 5], vec![6, 7]]);
        assert_eq!(cut(7).unwrap().len(), 2);
        assert!(
            cut(1)
                .unwrap_err()
                .to_string()
                .contains("x: wanted at least two tokens, got 1")
        );
    }

    #[test]
    fn training_has_whole_blocks_only() {
        let whole = |n: u32| whole_blocks((0..n).collect(), 3, "x");
        assert_eq!(whole(8).unwrap().len(), 6);
        assert_eq!(whole(3).unwrap().len(), 3);
        assert!(
            whole(2)
                .unwrap_err()
                .to_string()
                .contains("block of 3 tokens, got 2")
        );
    }
}
