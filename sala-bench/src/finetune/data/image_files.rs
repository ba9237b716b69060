//! Images with the names of their classes, from what data sets are published as.
//!
//! | a path | what is read |
//! |---|---|
//! | folder with `train-images-idx3-ubyte` or `t10k-…` | IDX files, as of MNIST |
//! | folder with `data_batch_1.bin` or `train.bin` | CIFAR-10 or CIFAR-100 in binary |
//! | folder with `data_batch_1.png` | CIFAR-10 in sprites: an image a row, labels in `train_lables.json` |
//! | other folder | a folder of PNG and JPEG files for each class |
//! | `.parquet` | a column of images and one of labels (needs a build with `--features parquet`) |
//!
//! The first three have a part for training and one for the test, which the role of the path decides.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use image::{DynamicImage, GrayImage, RgbImage};
use rayon::prelude::*;

use super::{
    Preprocessing,
    parts::{Named, Role},
    table::ending,
};
use crate::{
    data::{self as idx, Source},
    finetune::spec::Data,
};

/// Endings of image files.
const IMAGES: [&str; 3] = ["png", "jpg", "jpeg"];
/// Side of CIFAR's images, in pixels, and their values.
const SIDE: u32 = 32;
const VALUES: usize = 3 * 32 * 32;

/// Reads the images of a path.
pub(super) fn read(
    path: &Path,
    role: Role,
    data: &Data,
    preprocessing: &Preprocessing,
) -> Result<Vec<Named<Vec<u8>>>> {
    let has = |name: &str| path.join(name).is_file() || path.join(format!("{name}.gz")).is_file();
    let images = if ending(path) == "parquet" {
        return parquet(path, data, preprocessing);
    } else if !path.is_dir() {
        bail!(
            "{}: wanted a folder of images or a .parquet file",
            path.display()
        );
    } else if has("train-images-idx3-ubyte") || has("t10k-images-idx3-ubyte") {
        idx_files(path, role)
    } else if has("data_batch_1.bin") {
        cifar_10(path, role)
    } else if has("train.bin") {
        cifar_100(path, role)
    } else if has("data_batch_1.png") {
        sprites(path, role)
    } else {
        return class_folders(path, preprocessing);
    };
    let images = images.with_context(|| format!("cannot read the images in {}", path.display()))?;
    let prepared = images.into_par_iter();
    Ok(prepared
        .map(|(image, name)| (preprocessing.pixels(&image), name))
        .collect())
}

/// Whether the part for the test is wanted.
fn is_test(role: Role) -> Result<bool> {
    match role {
        Role::Train => Ok(false),
        Role::Test => Ok(true),
        Role::Validation => bail!(
            "this data set has no part for validation of its own; hold out a share of the training images"
        ),
    }
}

fn idx_files(path: &Path, role: Role) -> Result<Vec<Named<DynamicImage>>> {
    let source = Source::Folder(path.into());
    let split = if is_test(role)? {
        idx::load_test(&source)?
    } else {
        idx::load_train(&source)?
    };
    let [_, height, width] = split.shape();
    let (width, height) = (u32::try_from(width)?, u32::try_from(height)?);
    let image = |(i, &label): (usize, &u8)| {
        let pixels = split.image(i).context("an image for each label")?;
        let grey = GrayImage::from_raw(width, height, pixels.to_vec()).context("whole images")?;
        let name = split.class_names()[usize::from(label)];
        Ok((DynamicImage::ImageLuma8(grey), name.to_owned()))
    };
    split.labels().iter().enumerate().map(image).collect()
}

/// The files `data_batch_1`, `data_batch_2`, …, or `test_batch`.
fn batch_files(path: &Path, role: Role, ending: &str) -> Result<Vec<PathBuf>> {
    if is_test(role)? {
        return Ok(vec![path.join(format!("test_batch.{ending}"))]);
    }
    let batches = (1..).map(|i| path.join(format!("data_batch_{i}.{ending}")));
    Ok(batches.take_while(|file| file.is_file()).collect())
}

/// Names of classes, one a line; numbers where there is no such file.
fn class_names(file: &Path, classes: usize) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let names: Vec<String> = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .map(str::to_owned)
        .collect();
    if names.len() == classes {
        return names;
    }
    (0..classes).map(|i| i.to_string()).collect()
}

fn cifar_10(path: &Path, role: Role) -> Result<Vec<Named<DynamicImage>>> {
    let names = class_names(&path.join("batches.meta.txt"), 10);
    records(&batch_files(path, role, "bin")?, 1, &names)
}

fn cifar_100(path: &Path, role: Role) -> Result<Vec<Named<DynamicImage>>> {
    let names = class_names(&path.join("fine_label_names.txt"), 100);
    let file = if is_test(role)? {
        "test.bin"
    } else {
        "train.bin"
    };
    // A coarse label comes before the fine one.
    records(&[path.join(file)], 2, &names)
}

/// Records of so many labels, the last of which counts, and three planes of 32×32.
fn records(files: &[PathBuf], labels: usize, names: &[String]) -> Result<Vec<Named<DynamicImage>>> {
    let mut images = Vec::new();
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
            let label = usize::from(label[labels - 1]);
            let name = names.get(label).with_context(|| {
                format!(
                    "{}: wanted labels below {}, got {label}",
                    file.display(),
                    names.len()
                )
            })?;
            let plane = VALUES / 3;
            let pixels = (0..plane)
                .flat_map(|i| [0, 1, 2].map(|c| planes[c * plane + i]))
                .collect();
            images.push((colour(pixels)?, name.clone()));
        }
    }
    Ok(images)
}

fn colour(pixels: Vec<u8>) -> Result<DynamicImage> {
    let image = RgbImage::from_raw(SIDE, SIDE, pixels).context("whole images")?;
    Ok(DynamicImage::ImageRgb8(image))
}

/// Pictures in each row of which an image lies, pixel after pixel.
fn sprites(path: &Path, role: Role) -> Result<Vec<Named<DynamicImage>>> {
    let labels = path.join(if is_test(role)? {
        "test_lables.json"
    } else {
        "train_lables.json"
    });
    let place = || format!("cannot read {}", labels.display());
    let text = fs::read_to_string(&labels).with_context(place)?;
    let labels: Vec<u32> = serde_json::from_str(&text).with_context(place)?;
    let mut images = Vec::with_capacity(labels.len());
    for file in batch_files(path, role, "png")? {
        let mut reader = image::ImageReader::open(&file)
            .with_context(|| format!("cannot read {}", file.display()))?;
        reader.no_limits();
        let sprite = reader
            .decode()
            .with_context(|| format!("cannot read {}", file.display()))?;
        ensure!(
            sprite.width() == SIDE * SIDE,
            "{}: wanted rows of {} pixels, got {}",
            file.display(),
            SIDE * SIDE,
            sprite.width()
        );
        let rows = sprite.into_rgb8().into_raw();
        let rows = rows.chunks(VALUES).map(|row| colour(row.to_vec()));
        images.extend(rows.collect::<Result<Vec<_>>>()?);
    }
    ensure!(
        images.len() == labels.len(),
        "wanted a label for each image, got {} labels for {} images",
        labels.len(),
        images.len()
    );
    Ok(images
        .into_iter()
        .zip(labels.iter().map(u32::to_string))
        .collect())
}

/// A folder for each class, with PNG and JPEG files in it.
fn class_folders(path: &Path, preprocessing: &Preprocessing) -> Result<Vec<Named<Vec<u8>>>> {
    let mut files = Vec::new();
    for class in entries(path)?.into_iter().filter(|p| p.is_dir()) {
        let name = class.file_name().unwrap_or_default().to_string_lossy();
        let before = files.len();
        let images = entries(&class)?.into_iter();
        let images = images.filter(|f| IMAGES.contains(&ending(f).as_str()));
        files.extend(images.map(|file| (file, name.to_string())));
        ensure!(
            files.len() > before,
            "{} holds no PNG or JPEG files",
            class.display()
        );
    }
    ensure!(
        !files.is_empty(),
        "{}: wanted a folder for each class, with PNG or JPEG files in it",
        path.display()
    );
    let read = |(file, name): (PathBuf, String)| Ok((open(&file, preprocessing)?, name));
    files.into_par_iter().map(read).collect()
}

/// Images without labels: a file, a folder of files or a Parquet file, with a name for each.
pub(crate) fn unlabelled(
    path: &Path,
    column: &str,
    preprocessing: &Preprocessing,
) -> Result<(Vec<String>, Vec<Vec<u8>>)> {
    if ending(path) == "parquet" {
        return unlabelled_parquet(path, column, preprocessing);
    }
    let files = if path.is_dir() {
        let files = entries(path)?.into_iter();
        files
            .filter(|f| IMAGES.contains(&ending(f).as_str()))
            .collect()
    } else {
        vec![path.to_path_buf()]
    };
    ensure!(
        !files.is_empty(),
        "{} holds no PNG or JPEG files",
        path.display()
    );
    let pixels: Result<_> = files
        .par_iter()
        .map(|file| open(file, preprocessing))
        .collect();
    Ok((
        files.iter().map(|f| f.display().to_string()).collect(),
        pixels?,
    ))
}

/// The pixels of an image file.
fn open(file: &Path, preprocessing: &Preprocessing) -> Result<Vec<u8>> {
    let place = || format!("cannot read the image {}", file.display());
    let reader = image::ImageReader::open(file).with_context(place)?;
    // By content: endings of files are often wrong.
    let reader = reader.with_guessed_format().with_context(place)?;
    Ok(preprocessing.pixels(&reader.decode().with_context(place)?))
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

#[cfg(feature = "parquet")]
fn parquet(path: &Path, data: &Data, preprocessing: &Preprocessing) -> Result<Vec<Named<Vec<u8>>>> {
    let columns = [data.image_column.as_str(), data.label_column.as_str()];
    let rows = super::parquet::read(path, &columns)
        .with_context(|| format!("cannot read the images in {}", path.display()))?;
    let example = |(i, row): (usize, Vec<super::parquet::Cell>)| {
        let place = format!("{}, row {}", path.display(), i + 1);
        let mut cells = row.into_iter();
        let (image, label) = (cells.next(), cells.next());
        let image = image.context("an image was asked for")?.bytes(&place)?;
        let image = image::load_from_memory(&image).with_context(|| place.clone())?;
        let label = label.context("a label was asked for")?.text(&place)?;
        Ok((preprocessing.pixels(&image), label))
    };
    rows.into_par_iter().enumerate().map(example).collect()
}

#[cfg(feature = "parquet")]
fn unlabelled_parquet(
    path: &Path,
    column: &str,
    preprocessing: &Preprocessing,
) -> Result<(Vec<String>, Vec<Vec<u8>>)> {
    let rows = super::parquet::read(path, &[column])
        .with_context(|| format!("cannot read the images in {}", path.display()))?;
    let image = |(i, row): (usize, Vec<super::parquet::Cell>)| {
        let place = format!("{}, row {}", path.display(), i + 1);
        let cell = row.into_iter().next().context("an image was asked for")?;
        let image = image::load_from_memory(&cell.bytes(&place)?).with_context(|| place.clone())?;
        Ok((place, preprocessing.pixels(&image)))
    };
    let pairs: Result<Vec<_>> = rows.into_par_iter().enumerate().map(image).collect();
    Ok(pairs?.into_iter().unzip())
}

#[cfg(not(feature = "parquet"))]
fn unlabelled_parquet(
    path: &Path,
    _: &str,
    _: &Preprocessing,
) -> Result<(Vec<String>, Vec<Vec<u8>>)> {
    Err(without_parquet(path))
}

#[cfg(not(feature = "parquet"))]
fn parquet(path: &Path, _: &Data, _: &Preprocessing) -> Result<Vec<Named<Vec<u8>>>> {
    Err(without_parquet(path))
}

#[cfg(not(feature = "parquet"))]
fn without_parquet(path: &Path) -> anyhow::Error {
    let path = path.display();
    anyhow::anyhow!("{path}: this build cannot read Parquet files: build with `--features parquet`")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preprocessing(channels: usize) -> Preprocessing {
        let folder = tempfile::tempdir().unwrap();
        Preprocessing::of(folder.path(), channels, Some(32)).unwrap()
    }

    fn read_all(path: &Path, role: Role, channels: usize) -> Result<Vec<Named<Vec<u8>>>> {
        read(path, role, &Data::of(vec![]), &preprocessing(channels))
    }

    /// An image whose red is its number and whose green counts its pixels.
    fn picture(number: u8) -> Vec<u8> {
        let pixel = |i: usize| [number, u8::try_from(i % 256).unwrap(), 7];
        (0..1024).flat_map(pixel).collect()
    }

    fn planes(number: u8) -> Vec<u8> {
        let pixels = picture(number);
        (0..3)
            .flat_map(|c| {
                pixels
                    .iter()
                    .copied()
                    .skip(c)
                    .step_by(3)
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    #[test]
    fn binary_records_and_sprites_are_the_same_images() {
        let folder = tempfile::tempdir().unwrap();
        let (binary, sprites) = (folder.path().join("binary"), folder.path().join("sprites"));
        fs::create_dir(&binary).unwrap();
        fs::create_dir(&sprites).unwrap();
        for (name, numbers) in [
            ("data_batch_1", [3_u8, 9]),
            ("data_batch_2", [0, 1]),
            ("test_batch", [8, 2]),
        ] {
            let records: Vec<u8> = numbers
                .iter()
                .flat_map(|&n| [vec![n], planes(n)].concat())
                .collect();
            fs::write(binary.join(format!("{name}.bin")), records).unwrap();
            let rows: Vec<u8> = numbers.iter().flat_map(|&n| picture(n)).collect();
            let sprite = RgbImage::from_raw(1024, 2, rows).unwrap();
            sprite.save(sprites.join(format!("{name}.png"))).unwrap();
        }
        fs::write(sprites.join("train_lables.json"), "[3, 9, 0, 1]").unwrap();
        fs::write(sprites.join("test_lables.json"), "[8, 2]").unwrap();
        for role in [Role::Train, Role::Test] {
            let one = read_all(&binary, role, 3).unwrap();
            assert_eq!(one, read_all(&sprites, role, 3).unwrap());
            let first = if role == Role::Train { 3 } else { 8 };
            assert_eq!(one[0], (planes(first), first.to_string()));
        }
        let message = format!("{:#}", read_all(&binary, Role::Validation, 3).unwrap_err());
        assert!(message.contains("hold out a share"), "{message}");
        fs::write(sprites.join("train_lables.json"), "[3]").unwrap();
        let message = format!("{:#}", read_all(&sprites, Role::Train, 3).unwrap_err());
        assert!(message.contains("1 labels for 4 images"), "{message}");
        fs::write(binary.join("data_batch_2.bin"), [0; 3000]).unwrap();
        let message = format!("{:#}", read_all(&binary, Role::Train, 3).unwrap_err());
        assert!(
            message.contains("data_batch_2.bin: wanted records of 3073"),
            "{message}"
        );
    }

    #[test]
    fn each_folder_is_a_class() {
        let folder = tempfile::tempdir().unwrap();
        for (class, number) in [("dog", 4), ("cat", 200)] {
            let class = folder.path().join(class);
            fs::create_dir(&class).unwrap();
            fs::write(class.join("note.txt"), "no image").unwrap();
            let image = RgbImage::from_raw(32, 32, picture(number)).unwrap();
            image.save(class.join("a.png")).unwrap();
        }
        let images = read_all(folder.path(), Role::Validation, 3).unwrap();
        let wanted = [
            (planes(200), "cat".to_owned()),
            (planes(4), "dog".to_owned()),
        ];
        assert_eq!(images, wanted);
        fs::write(folder.path().join("cat/b.jpg"), "no image").unwrap();
        let message = format!("{:#}", read_all(folder.path(), Role::Train, 3).unwrap_err());
        assert!(message.contains("b.jpg"), "{message}");
        fs::create_dir(folder.path().join("emu")).unwrap();
        fs::remove_file(folder.path().join("cat/b.jpg")).unwrap();
        let message = format!("{:#}", read_all(folder.path(), Role::Train, 3).unwrap_err());
        assert!(message.contains("emu holds no PNG"), "{message}");
    }

    #[test]
    fn idx_files_are_those_of_the_project() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../datasets/fashion-mnist");
        let images = read_all(&folder, Role::Train, 1).unwrap();
        assert_eq!((images.len(), images[0].1.as_str()), (5000, "Ankle boot"));
        assert_eq!(images[0].0.len(), 1024);
    }
}
