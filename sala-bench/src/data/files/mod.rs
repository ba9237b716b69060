//! Labelled images, from what data sets are published as.
//!
//! | a path | what is read |
//! |---|---|
//! | folder with `train-images-idx3-ubyte` or `t10k-…` | IDX files, as of MNIST |
//! | folder with `data_batch_1.bin` or `train.bin` | CIFAR-10 or CIFAR-100 in binary |
//! | folder with `data_batch_1.png` | CIFAR-10 in sprites: an image a row, labels in `train_lables.json` |
//! | folder with `train*.parquet` and `test*.parquet` | columns of images and labels (needs a build with `--features parquet`) |
//! | folder with folders `train` and `test`, or `val` | in each a folder of PNG and JPEG files for each class |
//! | other folder | a folder of PNG and JPEG files for each class |
//! | `.parquet` | as above |
//!
//! All but the last two have a part for training and one for the test.

mod cifar;
mod folders;
mod idx;
mod rows;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use image::DynamicImage;
use rayon::prelude::*;

use super::{Part, Split};

pub(crate) use folders::Resize;
pub(super) use idx::{parse as parse_idx, together as idx_together};
pub(crate) use rows::Columns;
use rows::Row;

/// Pictures and the numbers of their classes.
#[derive(Debug)]
pub(crate) struct Pictures<T> {
    pub(crate) items: Vec<T>,
    /// Each below the number of names.
    pub(crate) labels: Vec<usize>,
    /// Names of the classes.
    pub(crate) names: Vec<String>,
}

impl<T: Send> Pictures<T> {
    /// From pictures with the names of their classes, which are brought into order.
    fn of(named: Vec<(T, String)>) -> Result<Self> {
        let names = in_order(named.iter().map(|(_, name)| name.as_str()));
        let number = |name: &String| names.iter().position(|n| n == name).context("a known name");
        let (items, of_items): (Vec<T>, Vec<String>) = named.into_iter().unzip();
        Ok(Self {
            items,
            labels: of_items.iter().map(number).collect::<Result<_>>()?,
            names,
        })
    }

    /// Makes something else of every picture, several at a time.
    fn try_map<U: Send>(
        self,
        prepare: impl Fn(T) -> Result<U> + Send + Sync,
    ) -> Result<Pictures<U>> {
        let items = self.items.into_par_iter();
        Ok(Pictures {
            items: items.map(prepare).collect::<Result<_>>()?,
            labels: self.labels,
            names: self.names,
        })
    }
}

/// What a path holds.
enum Found {
    /// Images of one shape, in memory.
    Whole(Split),
    /// Files of pictures.
    Files(Pictures<PathBuf>),
    /// Pictures as the bytes of such files.
    #[cfg_attr(
        not(feature = "parquet"),
        expect(dead_code, reason = "nothing else has rows")
    )]
    Rows(Pictures<Row>),
}

/// How a folder holds pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Idx,
    Cifar10,
    Cifar100,
    Sprites,
    Parquet,
    PartFolders,
    ClassFolders,
}

impl Format {
    fn of(path: &Path) -> Result<Self> {
        let is_file = |name: &str| path.join(name).is_file();
        let has = |name: &str| is_file(name) || is_file(&format!("{name}.gz"));
        Ok(if ending(path) == "parquet" && path.is_file() {
            Self::Parquet
        } else if !path.is_dir() {
            bail!(
                "{} is not a folder; wanted one that holds train-images-idx3-ubyte, data_batch_1.bin, train.bin, \
                 data_batch_1.png, train*.parquet or a folder of pictures for each class, or a .parquet file",
                path.display()
            );
        } else if has("train-images-idx3-ubyte") || has("t10k-images-idx3-ubyte") {
            Self::Idx
        } else if is_file("data_batch_1.bin") {
            Self::Cifar10
        } else if is_file("train.bin") {
            Self::Cifar100
        } else if is_file("data_batch_1.png") {
            Self::Sprites
        } else if entries(path)?.iter().any(|e| ending(e) == "parquet") {
            Self::Parquet
        } else if folders::of_part(path, Part::Train).is_some() {
            Self::PartFolders
        } else {
            Self::ClassFolders
        })
    }
}

/// What a path holds of a part. No part is one for validation, which only paths without parts can be.
fn find(path: &Path, format: Format, part: Option<Part>, columns: Columns<'_>) -> Result<Found> {
    let wanted = || {
        part.context(
            "this data set has no part for validation of its own; hold out a share of the training images",
        )
    };
    match format {
        Format::Idx => Ok(Found::Whole(idx::split(path, wanted()?)?)),
        Format::Cifar10 => Ok(Found::Whole(cifar::ten(path, wanted()?)?)),
        Format::Cifar100 => Ok(Found::Whole(cifar::hundred(path, wanted()?)?)),
        Format::Sprites => Ok(Found::Whole(cifar::sprites(path, wanted()?)?)),
        Format::Parquet => rows::read(path, part, columns),
        Format::PartFolders => {
            let part = wanted()?;
            let folder = folders::of_part(path, part)
                .with_context(|| format!("{} has no folder {}", path.display(), part.name()))?;
            Ok(Found::Files(folders::classes(&folder)?))
        }
        Format::ClassFolders => Ok(Found::Files(folders::classes(path)?)),
    }
}

/// Reads the pictures of a path, each made into what is wanted of it. In a path with parts `part` says which; none
/// is one for validation.
pub(crate) fn read<T: Send>(
    path: &Path,
    part: Option<Part>,
    columns: Columns<'_>,
    prepare: impl Fn(DynamicImage) -> Result<T> + Send + Sync,
) -> Result<Pictures<T>> {
    let place = || format!("cannot read the images in {}", path.display());
    match find(path, Format::of(path)?, part, columns).with_context(place)? {
        Found::Whole(split) => {
            let numbers = (0..split.len()).collect();
            let pictures = Pictures {
                items: numbers,
                labels: split.labels().iter().map(|&l| usize::from(l)).collect(),
                names: split.class_names().to_vec(),
            };
            pictures.try_map(|number| prepare(split.picture(number)?))
        }
        Found::Files(files) => files.try_map(|file| prepare(folders::open(&file)?)),
        Found::Rows(rows) => rows.try_map(|row| prepare(row.decode()?)),
    }
}

/// Reads a part of a data set that has two, as images of one shape: those of files must have it already, or are
/// brought to it by `resize`.
pub(super) fn split(path: &Path, part: Part, resize: Option<Resize>) -> Result<Split> {
    let format = Format::of(path)?;
    let place = || format!("cannot read the images in {}", path.display());
    ensure!(
        format != Format::ClassFolders && !(format == Format::Parquet && path.is_file()),
        "{}: wanted a data set with both parts, such as folders `train` and `test` with a folder of pictures for \
         each class, or files train*.parquet and test*.parquet",
        path.display()
    );
    let found = find(path, format, Some(part), Columns::USUAL).with_context(place)?;
    ensure!(
        resize.is_none() || !matches!(found, Found::Whole(_)),
        "data.image_size is for folders of pictures and Parquet files; the images in {} are of one size",
        path.display()
    );
    together(found, resize).with_context(place)
}

/// All images of a single Parquet file.
#[cfg(feature = "hub")]
pub(super) fn split_of_file(path: &Path) -> Result<Split> {
    let place = || format!("cannot read the images in {}", path.display());
    rows::read(path, None, Columns::USUAL)
        .and_then(|found| together(found, None))
        .with_context(place)
}

/// What was found, as images of one shape.
fn together(found: Found, resize: Option<Resize>) -> Result<Split> {
    match found {
        Found::Whole(split) => Ok(split),
        Found::Files(files) => {
            let names: Vec<String> = (files.items.iter())
                .map(|file| file.display().to_string())
                .collect();
            let pictures =
                files.try_map(|file| Ok(folders::resized(folders::open(&file)?, resize)));
            Split::from_pictures(pictures?, |i| names[i].clone())
        }
        Found::Rows(rows) => {
            let names: Vec<String> = rows.items.iter().map(|row| row.place.clone()).collect();
            let pictures = rows.try_map(|row| Ok(folders::resized(row.decode()?, resize)));
            Split::from_pictures(pictures?, |i| names[i].clone())
        }
    }
}

/// Images without labels: a file, a folder of files or a Parquet file, with a name for each.
pub(crate) fn unlabelled<T: Send>(
    path: &Path,
    column: &str,
    prepare: impl Fn(DynamicImage) -> Result<T> + Send + Sync,
) -> Result<(Vec<String>, Vec<T>)> {
    if ending(path) == "parquet" {
        let rows = rows::unlabelled(path, column)
            .with_context(|| format!("cannot read the images in {}", path.display()))?;
        let names = rows.iter().map(|row| row.place.clone()).collect();
        let pictures = rows.into_par_iter().map(|row| prepare(row.decode()?));
        return Ok((names, pictures.collect::<Result<_>>()?));
    }
    let files = if path.is_dir() {
        folders::pictures(path)?
    } else {
        vec![path.to_path_buf()]
    };
    ensure!(
        !files.is_empty(),
        "{} holds no PNG or JPEG files",
        path.display()
    );
    let pictures = files.par_iter().map(|file| prepare(folders::open(file)?));
    let pictures: Result<_> = pictures.collect();
    Ok((
        files.iter().map(|f| f.display().to_string()).collect(),
        pictures?,
    ))
}

/// The files that lie in a path and make a data set: itself, if it is one, or those in the folder.
pub(super) fn listed(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut files = entries(path)?;
    files.retain(|file| file.is_file());
    Ok(files)
}

/// Different names in order: as numbers where all are, else by the alphabet.
pub(crate) fn in_order<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let names: BTreeSet<&str> = names.into_iter().collect();
    let mut names: Vec<String> = names.into_iter().map(str::to_owned).collect();
    let numbers: Result<Vec<i64>, _> = names.iter().map(|name| name.parse()).collect();
    if let Ok(numbers) = numbers {
        let mut pairs: Vec<_> = numbers.into_iter().zip(names).collect();
        pairs.sort();
        names = pairs.into_iter().map(|(_, name)| name).collect();
    }
    names
}

/// What a file's name ends in, in small letters.
pub(crate) fn ending(path: &Path) -> String {
    let ending = path.extension().unwrap_or_default();
    ending.to_string_lossy().to_lowercase()
}

/// The error of a column that is not there.
pub(crate) fn no_column<'a>(name: &str, there: impl IntoIterator<Item = &'a str>) -> anyhow::Error {
    let there: Vec<&str> = there.into_iter().collect();
    anyhow::anyhow!(
        "there is no column `{name}`; there are {}",
        there.join(", ")
    )
}

/// What a folder holds, in the order of the names.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = || -> std::io::Result<Vec<PathBuf>> {
        fs::read_dir(folder)?
            .map(|entry| Ok(entry?.path()))
            .collect()
    };
    let place = || format!("cannot read the folder {}", folder.display());
    let mut entries = read().with_context(place)?;
    entries.sort();
    Ok(entries)
}
