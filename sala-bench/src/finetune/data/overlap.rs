//! Examples that stand in two parts. What was trained on tells nothing as a test, and what chose tells too much.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::{Examples, parts::Parts};
use crate::finetune::spec::{Data, Part};

/// Makes sure that no file is for two parts, whatever its name.
///
/// # Errors
/// When one is, with both names. A folder may hold the files of several parts.
pub(super) fn check_files(data: &Data) -> Result<()> {
    let file = |part: &Part, name| match part {
        Part::File(path) => Some((name, path.clone())),
        Part::Share(_) => None,
    };
    let mut files: Vec<(&str, PathBuf)> = Vec::new();
    files.extend(data.train.iter().map(|path| ("train", path.clone())));
    files.extend(file(&data.validation, "validation"));
    files.extend(data.test.as_ref().and_then(|test| file(test, "test")));
    for (number, (part, path)) in files.iter().enumerate() {
        for (earlier_part, earlier) in &files[..number] {
            ensure!(
                earlier_part == part || !is_same(earlier, path)?,
                "data.{part}: {} is the file of data.{earlier_part} ({}); give another one, or a share such as 0.2 to \
                 hold out",
                path.display(),
                earlier.display()
            );
        }
    }
    Ok(())
}

/// Whether two files are one, or hold the same. What cannot be read is told by whoever reads it.
fn is_same(one: &Path, other: &Path) -> Result<bool> {
    let (Ok(a), Ok(b)) = (fs::metadata(one), fs::metadata(other)) else {
        return Ok(false);
    };
    if !a.is_file() || !b.is_file() || a.len() != b.len() {
        return Ok(false);
    }
    let read =
        |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    Ok(fs::canonicalize(one)? == fs::canonicalize(other)? || read(one)? == read(other)?)
}

/// Examples of one part that are, as the network sees them, in another one too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overlap {
    part: &'static str,
    with: &'static str,
    examples: usize,
    of: usize,
}

impl Overlap {
    /// What it is, in a sentence.
    pub(crate) fn words(self) -> String {
        let harm = match self.with {
            "training" => "what was trained on scores too well",
            _ => "what chose scores too well",
        };
        format!(
            "{} of {} examples of the {} part are in the {} part too: {harm}.",
            self.examples, self.of, self.part, self.with
        )
    }
}

/// Each pair of parts with examples in common.
pub(crate) fn overlaps(parts: &Parts) -> Vec<Overlap> {
    let train = hashes(&parts.train);
    let validation = hashes(&parts.validation);
    let test = parts.test.as_ref().map(hashes).unwrap_or_default();
    let pairs = [
        ("validation", &validation, "training", &train),
        ("test", &test, "training", &train),
        ("test", &test, "validation", &validation),
    ];
    let overlap = |(part, own, with, others): (_, &Vec<Hash>, _, &Vec<Hash>)| {
        let others: HashSet<&Hash> = others.iter().collect();
        let examples = own.iter().filter(|hash| others.contains(hash)).count();
        let of = own.len();
        (examples > 0).then_some(Overlap {
            part,
            with,
            examples,
            of,
        })
    };
    pairs.into_iter().filter_map(overlap).collect()
}

type Hash = [u8; 32];

/// Of each example without its label: the same text with another one is no other text.
fn hashes(examples: &Examples) -> Vec<Hash> {
    let of_words = |words: &[u32]| {
        let mut hash = Sha256::new();
        for word in words {
            hash.update(word.to_le_bytes());
        }
        hash.finalize().into()
    };
    match examples {
        Examples::Texts(texts) => texts.sequences.iter().map(|s| of_words(&s.ids)).collect(),
        Examples::Blocks(blocks) => blocks.blocks.iter().map(|b| of_words(b)).collect(),
        Examples::Images(images) => {
            let size = images.pixels().len() / images.len().max(1);
            let pixels = images.pixels().chunks_exact(size.max(1));
            pixels.map(|image| Sha256::digest(image).into()).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Blocks, Texts, tokenizer::Sequence},
        *,
    };

    fn texts(all: &[&[u32]]) -> Examples {
        let sequence = |ids: &&[u32]| Sequence {
            ids: ids.to_vec(),
            types: vec![0; ids.len()],
        };
        Examples::Texts(Texts {
            sequences: all.iter().map(sequence).collect(),
            labels: (0..).take(all.len()).collect(),
            padding: 0,
        })
    }

    #[test]
    fn what_stands_in_two_parts_is_counted_for_each_pair() {
        let parts = Parts {
            train: texts(&[&[1, 2], &[3], &[4]]),
            validation: texts(&[&[5], &[3]]),
            test: Some(texts(&[&[4], &[3], &[6], &[2, 1]])),
        };
        let words: Vec<String> = overlaps(&parts).into_iter().map(Overlap::words).collect();
        assert_eq!(
            words,
            [
                "1 of 2 examples of the validation part are in the training part too: what was trained on scores too well.",
                "2 of 4 examples of the test part are in the training part too: what was trained on scores too well.",
                "1 of 4 examples of the test part are in the validation part too: what chose scores too well.",
            ]
        );
        let blocks = |block: Vec<u32>| {
            Examples::Blocks(Blocks {
                blocks: vec![block],
                padding: 0,
            })
        };
        let apart = Parts {
            train: blocks(vec![1, 2]),
            validation: blocks(vec![1, 3]),
            test: None,
        };
        assert_eq!(overlaps(&apart), []);
    }
}
