//! CIFAR-10 and CIFAR-100, in the binary files of their author or in sprites.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::data::{Part, Split};

/// Side of an image in pixels.
const SIDE: usize = 32;
/// Pixels of a channel, and values of an image.
const PLANE: usize = SIDE * SIDE;
const VALUES: usize = 3 * PLANE;
const SHAPE: [usize; 3] = [3, SIDE, SIDE];

/// CIFAR-10 in binary: `data_batch_1.bin`, …, `test_batch.bin`.
pub(super) fn ten(path: &Path, part: Part) -> Result<Split> {
    let names = class_names(&path.join("batches.meta.txt"), 10);
    records(&batch_files(path, part, "bin"), 1, names)
}

/// CIFAR-100 in binary: `train.bin` and `test.bin`.
pub(super) fn hundred(path: &Path, part: Part) -> Result<Split> {
    let names = class_names(&path.join("fine_label_names.txt"), 100);
    let file = path.join(format!("{}.bin", part.name()));
    // A coarse label comes before the fine one.
    records(&[file], 2, names)
}

/// The files `data_batch_1`, `data_batch_2`, …, or `test_batch`.
fn batch_files(path: &Path, part: Part, ending: &str) -> Vec<PathBuf> {
    if part == Part::Test {
        return vec![path.join(format!("test_batch.{ending}"))];
    }
    let batches = (1..).map(|i| path.join(format!("data_batch_{i}.{ending}")));
    batches.take_while(|file| file.is_file()).collect()
}

/// Names of classes, one a line; numbers where there is no such file.
fn class_names(file: &Path, classes: usize) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let names = text.lines().map(str::trim).filter(|l| !l.is_empty());
    let names: Vec<String> = names.map(str::to_owned).collect();
    if names.len() == classes {
        return names;
    }
    (0..classes).map(|i| i.to_string()).collect()
}

/// Records of so many labels, the last of which counts, and three planes of 32×32.
fn records(files: &[PathBuf], labels: usize, names: Vec<String>) -> Result<Split> {
    let (mut images, mut of_images) = (Vec::new(), Vec::new());
    for file in files {
        let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let record = labels + VALUES;
        ensure!(
            !bytes.is_empty() && bytes.len().is_multiple_of(record),
            "{}: wanted records of {record} bytes, got {} bytes",
            file.display(),
            bytes.len()
        );
        for record in bytes.chunks(record) {
            let (label, planes) = record.split_at(labels);
            let label = label[labels - 1];
            ensure!(
                usize::from(label) < names.len(),
                "{}: wanted labels below {}, got {label}",
                file.display(),
                names.len()
            );
            of_images.push(label);
            images.extend_from_slice(planes);
        }
    }
    Split::new(images, of_images, SHAPE, names)
}

/// CIFAR-10 in pictures in each row of which an image lies, pixel after pixel.
pub(super) fn sprites(path: &Path, part: Part) -> Result<Split> {
    // The names are spelled so.
    let labels = path.join(format!("{}_lables.json", part.name()));
    let place = || format!("cannot read {}", labels.display());
    let text = fs::read_to_string(&labels).with_context(place)?;
    let labels: Vec<u8> = serde_json::from_str(&text).with_context(place)?;
    let mut images = Vec::with_capacity(labels.len() * VALUES);
    for file in batch_files(path, part, "png") {
        let place = || format!("cannot read {}", file.display());
        let mut reader = image::ImageReader::open(&file).with_context(place)?;
        reader.no_limits();
        let sprite = reader.decode().with_context(place)?.into_rgb8();
        ensure!(
            sprite.width() as usize == PLANE,
            "{}: wanted rows of {PLANE} pixels, got {}",
            file.display(),
            sprite.width()
        );
        for row in sprite.into_raw().chunks_exact(VALUES) {
            images.extend((0..3).flat_map(|c| row.iter().skip(c).step_by(3)));
        }
    }
    ensure!(
        images.len() == labels.len() * VALUES,
        "wanted a label for each image, got {} labels for {} images",
        labels.len(),
        images.len() / VALUES
    );
    let names = (0..10).map(|i| i.to_string()).collect();
    Split::new(images, labels, SHAPE, names)
}
