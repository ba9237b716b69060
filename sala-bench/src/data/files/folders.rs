//! Pictures in folders.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use image::{DynamicImage, imageops::FilterType};

use super::{Pictures, ending, entries};
use crate::data::Part;

/// Endings of files of pictures.
const PICTURES: [&str; 3] = ["png", "jpg", "jpeg"];

/// The size that pictures are brought to: a square of so many pixels a side, the middle of the picture scaled until
/// its shorter side fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Resize(pub(crate) u32);

/// The folder of a part, if there is one: `train`, or `test` or `val`, with folders in it.
pub(super) fn of_part(path: &Path, part: Part) -> Option<PathBuf> {
    let names: &[&str] = match part {
        Part::Train => &["train"],
        Part::Test => &["test", "val"],
    };
    let holds_folders = |folder: &PathBuf| {
        let entries = entries(folder).unwrap_or_default();
        entries.iter().any(|entry| entry.is_dir())
    };
    (names.iter())
        .map(|name| path.join(name))
        .find(holds_folders)
}

/// A folder for each class, with PNG and JPEG files in it.
pub(super) fn classes(path: &Path) -> Result<Pictures<PathBuf>> {
    let mut named = Vec::new();
    for class in entries(path)?.into_iter().filter(|p| p.is_dir()) {
        let name = class.file_name().unwrap_or_default().to_string_lossy();
        let files = pictures(&class)?;
        ensure!(
            !files.is_empty(),
            "{} holds no PNG or JPEG files",
            class.display()
        );
        named.extend(files.into_iter().map(|file| (file, name.to_string())));
    }
    ensure!(
        !named.is_empty(),
        "{}: wanted a folder for each class, with PNG or JPEG files in it",
        path.display()
    );
    Pictures::of(named)
}

/// The PNG and JPEG files of a folder, in the order of their names.
pub(super) fn pictures(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = entries(folder)?;
    files.retain(|f| PICTURES.contains(&ending(f).as_str()));
    Ok(files)
}

/// The picture in a file.
pub(super) fn open(file: &Path) -> Result<DynamicImage> {
    let place = || format!("cannot read the image {}", file.display());
    let reader = image::ImageReader::open(file).with_context(place)?;
    // By content: endings of files are often wrong.
    let reader = reader.with_guessed_format().with_context(place)?;
    reader.decode().with_context(place)
}

/// A picture in the size that is wanted.
pub(super) fn resized(picture: DynamicImage, resize: Option<Resize>) -> DynamicImage {
    match resize {
        Some(Resize(side)) if (picture.width(), picture.height()) != (side, side) => {
            picture.resize_to_fill(side, side, FilterType::Triangle)
        }
        _ => picture,
    }
}
