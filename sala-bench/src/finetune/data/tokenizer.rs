//! From texts to token ids, as the model's `tokenizer.json` has it.

use std::path::Path;

use anyhow::{Result, anyhow, ensure};
use rayon::prelude::*;
use tokenizers::{Encoding, Tokenizer, TruncationParams};

/// The file of a model folder.
pub(crate) const FILE: &str = "tokenizer.json";

/// One text as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sequence {
    pub(crate) ids: Vec<u32>,
    /// The segment of each token.
    pub(crate) types: Vec<u32>,
}

impl From<Encoding> for Sequence {
    fn from(encoding: Encoding) -> Self {
        Self {
            ids: encoding.get_ids().to_vec(),
            types: encoding.get_type_ids().to_vec(),
        }
    }
}

/// A model's tokenizer. Padding and truncation that its file may ask for are left out: texts are cut to the
/// length that is given, and filled up where batches are made.
#[derive(Debug, Clone)]
pub(crate) struct TextTokenizer {
    inner: Tokenizer,
}

impl TextTokenizer {
    /// Of a model folder.
    ///
    /// # Errors
    /// When the file is missing or no tokenizer, or has ids that the model's `vocabulary` has no rows for.
    pub(crate) fn open(folder: &Path, max_length: usize, vocabulary: usize) -> Result<Self> {
        let path = folder.join(FILE);
        ensure!(
            path.is_file(),
            "{} has no {FILE}; `save_pretrained` of a fast tokenizer of transformers writes one",
            folder.display()
        );
        let shown = path.display();
        let mut inner =
            Tokenizer::from_file(&path).map_err(|e| anyhow!("cannot read {shown}: {e}"))?;
        let largest = inner.get_vocab(true).into_values().max().unwrap_or(0);
        ensure!(
            (largest as usize) < vocabulary,
            "{shown} does not belong to the model: it has token ids up to {largest}, but the model's \
             vocabulary has {vocabulary} entries"
        );
        let truncation = TruncationParams {
            max_length,
            ..TruncationParams::default()
        };
        inner
            .with_padding(None)
            .with_truncation(Some(truncation))
            .map_err(|e| anyhow!("texts cannot be cut to {max_length} tokens with {shown}: {e}"))?;
        Ok(Self { inner })
    }

    /// Texts as the model wants them, with its special tokens, cut to the greatest length.
    ///
    /// # Errors
    /// When a text has no tokens.
    pub(crate) fn encode(&self, texts: &[&str]) -> Result<Vec<Sequence>> {
        let encode = |(number, text): (usize, &&str)| {
            let encoding = self.inner.encode_fast(*text, true);
            let encoding = encoding.map_err(|e| anyhow!("text {}: {e}", number + 1))?;
            let sequence = Sequence::from(encoding);
            ensure!(
                !sequence.ids.is_empty(),
                "text {} has no tokens: `{text}`",
                number + 1
            );
            Ok(sequence)
        };
        texts.par_iter().enumerate().map(encode).collect()
    }

    /// A long text in full, without special tokens.
    pub(crate) fn encode_document(&self, text: &str) -> Result<Vec<u32>> {
        let mut whole = self.inner.clone();
        whole.with_truncation(None).map_err(|e| anyhow!("{e}"))?;
        let encoding = whole.encode_fast(text, false).map_err(|e| anyhow!("{e}"))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The id of a token, if there is one of that name.
    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use super::*;

    /// Words of a little language; `[CLS] … [SEP]` around a text. It asks for padding and truncation to
    /// three tokens, which is to be left out.
    pub(crate) fn word_level(words: &[&str]) -> String {
        let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"];
        let all = special.iter().chain(words);
        let vocab: serde_json::Map<String, serde_json::Value> = all
            .enumerate()
            .map(|(i, w)| ((*w).to_owned(), i.into()))
            .collect();
        serde_json::json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 3}, "direction": "Right", "pad_to_multiple_of": null,
                "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
            "added_tokens": [],
            "normalizer": {"type": "Lowercase"},
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
            "decoder": null,
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}
        })
        .to_string()
    }

    fn open(max_length: usize, vocabulary: usize) -> Result<TextTokenizer> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), word_level(&["a", "b", "c"])).unwrap();
        TextTokenizer::open(folder.path(), max_length, vocabulary)
    }

    #[test]
    fn padding_and_truncation_of_the_file_are_left_out() {
        let sequences = open(5, 7)
            .unwrap()
            .encode(&["a", "B c b a c", "x"])
            .unwrap();
        let ids: Vec<_> = sequences.iter().map(|s| s.ids.clone()).collect();
        assert_eq!(ids, [vec![2, 4, 3], vec![2, 5, 6, 5, 3], vec![2, 1, 3]]);
        assert_eq!(sequences[1].types, [0; 5]);
        let document = open(5, 7)
            .unwrap()
            .encode_document("a b c a b c a b")
            .unwrap();
        assert_eq!(document, [4, 5, 6, 4, 5, 6, 4, 5]);
    }

    #[test]
    fn a_tokenizer_of_another_model_is_refused() {
        let message = open(5, 6).unwrap_err().to_string();
        assert!(
            message.contains("ids up to 6") && message.contains("6 entries"),
            "{message}"
        );
    }

    #[test]
    fn a_folder_without_one_says_what_makes_one() {
        let folder = tempfile::tempdir().unwrap();
        let message = TextTokenizer::open(folder.path(), 5, 7)
            .unwrap_err()
            .to_string();
        assert!(message.contains("tokenizer.json") && message.contains("save_pretrained"));
        fs::write(folder.path().join(FILE), "{}").unwrap();
        let message = TextTokenizer::open(folder.path(), 5, 7)
            .unwrap_err()
            .to_string();
        assert!(message.contains("cannot read"), "{message}");
    }
}
