//! The parts of the data: what is trained on, what chooses, and what is looked at last.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sala_models::Rng;
use sha2::{Digest, Sha256};

use super::{
    Blocks, Examples, Images, Preprocessing, Texts, corpus,
    labels::Labels,
    overlap::check_files,
    table::{self, Columns},
    tokenizer::TextTokenizer,
};
use crate::{
    data::{
        self as sets,
        files::{self, Pictures},
        split::hold_out,
    },
    finetune::spec::{Data, Part},
};

/// The examples of a fine-tuning.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) train: Examples,
    pub(crate) validation: Examples,
    pub(crate) test: Option<Examples>,
}

impl Parts {
    /// SHA-256 of all examples as the network sees them, with their targets, to be gone on with.
    pub(crate) fn hash(&self) -> Sha256 {
        let parts = [
            Some(&self.train),
            Some(&self.validation),
            self.test.as_ref(),
        ];
        let mut hash = Sha256::new();
        for part in parts.into_iter().flatten() {
            part.add_to(&mut hash);
        }
        hash
    }
}

/// What a file of a part is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Train,
    Validation,
    Test,
}

/// An example with the name of its class.
pub(super) type Named<T> = (T, String);

/// Examples with the numbers of their classes.
struct Numbered<T> {
    items: Vec<T>,
    labels: Vec<u32>,
}

impl<T> Numbered<T> {
    fn of(named: Vec<Named<T>>, labels: &Labels) -> Result<Self> {
        let (items, names): (Vec<T>, Vec<String>) = named.into_iter().unzip();
        let labels: Result<_> = names.iter().map(|name| labels.number(name)).collect();
        Ok(Self {
            items,
            labels: labels?,
        })
    }

    /// Takes a share of these out, the same share of every class.
    fn cut(&mut self, share: f64, field: &str, classes: usize, rng: Rng) -> Result<Self> {
        let count = share_of(self.items.len(), share, field)?;
        let places: Vec<usize> = self.labels.iter().map(|&l| l as usize).collect();
        let stream = rng.stream(field);
        let (_, held) = hold_out(&places, classes, count, stream).context(field.to_owned())?;
        let mut is_held = vec![false; self.items.len()];
        for place in held {
            is_held[place] = true;
        }
        let (mut kept, mut taken) = (Self::empty(), Self::empty());
        let (items, labels) = (
            std::mem::take(&mut self.items),
            std::mem::take(&mut self.labels),
        );
        for ((item, label), held) in items.into_iter().zip(labels).zip(is_held) {
            let side = if held { &mut taken } else { &mut kept };
            side.items.push(item);
            side.labels.push(label);
        }
        *self = kept;
        Ok(taken)
    }

    fn empty() -> Self {
        Self {
            items: Vec::new(),
            labels: Vec::new(),
        }
    }
}

/// How many of `n` examples a share is.
fn share_of(n: usize, share: f64, field: &str) -> Result<usize> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share in (0, 1) of a count is a count"
    )]
    let count = (share * n as f64).round() as usize;
    ensure!(
        count > 0 && count < n,
        "{field}: the share {share} of {n} examples leaves one of the two parts empty"
    );
    Ok(count)
}

/// Training, validation and test examples, and the classes.
struct Split<T> {
    labels: Labels,
    train: Numbered<T>,
    validation: Numbered<T>,
    test: Option<Numbered<T>>,
}

/// Reads files by `read` and cuts shares off the training examples; the test part's first, so that it does
/// not depend on the validation part.
fn split<T>(
    data: &Data,
    model: &[String],
    read: impl Fn(&Path, Role) -> Result<Vec<Named<T>>>,
) -> Result<Split<T>> {
    check_files(data)?;
    let mut named = Vec::new();
    for path in &data.train {
        named.extend(read(path, Role::Train)?);
    }
    let labels = Labels::of(named.iter().map(|(_, name)| name.as_str()), model)?;
    let mut train = Numbered::of(named, &labels)?;
    let mut part = |part: &Part, field: &str, role: Role| match part {
        Part::Share(share) => {
            let rng = Rng::new(data.split_seed);
            train.cut(*share, field, labels.names().len(), rng)
        }
        Part::File(path) => {
            Numbered::of(read(path, role)?, &labels).with_context(|| path.display().to_string())
        }
    };
    let test = (data.test.as_ref()).map(|p| part(p, "data.test", Role::Test));
    let test = test.transpose()?;
    let validation = part(&data.validation, "data.validation", Role::Validation)?;
    Ok(Split {
        labels,
        train,
        validation,
        test,
    })
}

impl<T> Split<T> {
    fn into_parts(
        self,
        mut make: impl FnMut(Numbered<T>) -> Result<Examples>,
    ) -> Result<(Labels, Parts)> {
        let parts = Parts {
            train: make(self.train)?,
            validation: make(self.validation)?,
            test: self.test.map(make).transpose()?,
        };
        Ok((self.labels, parts))
    }
}

/// Texts with labels, from tables.
pub(crate) fn load_texts(
    data: &Data,
    model: &[String],
    tokenizer: &TextTokenizer,
    padding: u32,
) -> Result<(Labels, Parts)> {
    let columns = Columns {
        text: &data.text_column,
        label: Some(&data.label_column),
    };
    let read = |path: &Path, _: Role| {
        let rows = table::read(path, columns)?.into_iter();
        Ok(rows
            .map(|r| (r.text, r.label.unwrap_or_default()))
            .collect())
    };
    split(data, model, read)?.into_parts(|part: Numbered<String>| {
        let texts: Vec<&str> = part.items.iter().map(String::as_str).collect();
        Ok(Examples::Texts(Texts {
            sequences: tokenizer.encode(&texts)?,
            labels: part.labels,
            padding,
        }))
    })
}

/// Images with labels, from folders or files.
pub(crate) fn load_images(
    data: &Data,
    model: &[String],
    preprocessing: &Preprocessing,
) -> Result<(Labels, Parts)> {
    let columns = files::Columns {
        image: &[&data.image_column],
        label: &[&data.label_column],
    };
    let read = |path: &Path, role: Role| {
        let part = match role {
            Role::Train => Some(sets::Part::Train),
            Role::Test => Some(sets::Part::Test),
            Role::Validation => None,
        };
        let prepare = |picture| Ok(preprocessing.pixels(&picture));
        let Pictures {
            items,
            labels,
            names,
        } = files::read(path, part, columns, prepare)?;
        let names = labels.into_iter().map(|label| names[label].clone());
        Ok(items.into_iter().zip(names).collect())
    };
    split(data, model, read)?.into_parts(|part: Numbered<Vec<u8>>| {
        let images = Images::new(part.items, part.labels, preprocessing.clone())?;
        Ok(Examples::Images(images))
    })
}

/// Running text in blocks. Shares are cut from the end of the text, the test part's last.
pub(crate) fn load_language(data: &Data, tokenizer: &TextTokenizer, padding: u32) -> Result<Parts> {
    check_files(data)?;
    let read = |paths: &[PathBuf]| corpus::read(paths, tokenizer);
    let mut train = read(&data.train)?;
    let mut part = |part: &Part, field: &str| match part {
        Part::Share(share) => {
            let count = share_of(train.len(), *share, field)?;
            Ok(train.split_off(train.len() - count))
        }
        Part::File(path) => read(std::slice::from_ref(path)),
    };
    let test = data.test.as_ref().map(|p| part(p, "data.test"));
    let test = test.transpose()?;
    let validation = part(&data.validation, "data.validation")?;
    let length = data.max_length;
    let blocks = |ids: Vec<u32>, field: &str| {
        let blocks = corpus::blocks(&ids, length, field)?;
        Ok::<_, anyhow::Error>(Examples::Blocks(Blocks { blocks, padding }))
    };
    Ok(Parts {
        train: blocks(
            corpus::whole_blocks(train, length, "data.train")?,
            "data.train",
        )?,
        validation: blocks(validation, "data.validation")?,
        test: test.map(|ids| blocks(ids, "data.test")).transpose()?,
    })
}
