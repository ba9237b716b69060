//! Image data sets: where they come from, how they are cut, spoiled, augmented and fed to a model.
//!
//! A data set has two parts, training and test. They are loaded by separate functions so that
//! nothing can touch the test images before the end of a comparison.

mod ahead;
pub(crate) mod augment;
pub(crate) mod batches;
pub(crate) mod commands;
pub(crate) mod feed;
pub(crate) mod files;
#[cfg(feature = "hub")]
mod hub;
mod known;
pub(crate) mod noise;
#[cfg(feature = "parquet")]
pub(crate) mod parquet;
mod set;
pub(crate) mod split;

use std::{fmt, path::PathBuf};

use anyhow::{Result, bail};

use crate::spec;

pub(crate) use set::Split;

macro_rules! embedded {
    ($name:literal) => {
        include_bytes!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../datasets/fashion-mnist/",
            $name
        ))
    };
}

static TRAIN_IMAGES: &[u8] = embedded!("train-images-idx3-ubyte.gz");
static TRAIN_LABELS: &[u8] = embedded!("train-labels-idx1-ubyte.gz");
static TEST_IMAGES: &[u8] = embedded!("t10k-images-idx3-ubyte.gz");
static TEST_LABELS: &[u8] = embedded!("t10k-labels-idx1-ubyte.gz");

/// Where a data set comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// The subset of Fashion-MNIST inside the program: 5,000 training images (500 of each class)
    /// and the whole test set of 10,000.
    Embedded,
    /// A folder in one of the forms that [`files`] reads, with both parts.
    Folder {
        path: PathBuf,
        resize: Option<files::Resize>,
    },
    /// From the Hugging Face hub: needs the network, or files that an earlier call left in the
    /// hub's cache.
    Hub(HubSet),
}

/// A data set of the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HubSet {
    Mnist,
    FashionMnist,
    Cifar10,
    Cifar100,
}

impl HubSet {
    const ALL: [Self; 4] = [
        Self::Mnist,
        Self::FashionMnist,
        Self::Cifar10,
        Self::Cifar100,
    ];

    /// As it stands in a source.
    const fn name(self) -> &'static str {
        match self {
            Self::Mnist => "mnist",
            Self::FashionMnist => "fashion-mnist",
            Self::Cifar10 => "cifar-10",
            Self::Cifar100 => "cifar-100",
        }
    }
}

impl Source {
    /// What an experiment says.
    pub(crate) fn of(data: &spec::Data) -> Result<Self> {
        let resize = data.image_size.map(files::Resize);
        let source = match data.source.as_str() {
            "embedded" => Self::Embedded,
            "hub" => Self::Hub(HubSet::FashionMnist),
            text => match text.strip_prefix("hub:") {
                Some(name) => Self::Hub(hub_set(name)?),
                None => Self::Folder {
                    path: text.into(),
                    resize,
                },
            },
        };
        if resize.is_some() && !matches!(source, Self::Folder { .. }) {
            bail!("data.image_size is for folders of pictures, but data.source is {source}");
        }
        Ok(source)
    }
}

fn hub_set(name: &str) -> Result<HubSet> {
    match HubSet::ALL.into_iter().find(|set| set.name() == name) {
        Some(set) => Ok(set),
        None => bail!(
            "data.source: there is no `hub:{name}`; there are {}",
            HubSet::ALL
                .map(|set| format!("hub:{}", set.name()))
                .join(", ")
        ),
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str("embedded"),
            Self::Folder { path, .. } => write!(f, "folder {}", path.display()),
            Self::Hub(set) => write!(f, "hub:{}", set.name()),
        }
    }
}

/// One of the two parts of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Train,
    Test,
}

impl Part {
    /// As it stands in the names of files and folders.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "test",
        }
    }

    /// Usual names of the IDX files of images and labels, without `.gz`.
    const fn idx_files(self) -> (&'static str, &'static str) {
        match self {
            Self::Train => ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
            Self::Test => ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
        }
    }
}

/// Loads the training part, and nothing of the test part unless the source cannot help it
/// ([`Source::Hub`] may fetch both; the other part is dropped unseen).
pub(crate) fn load_train(source: &Source) -> Result<Split> {
    load(source, Part::Train)
}

/// Loads the test part.
pub(crate) fn load_test(source: &Source) -> Result<Split> {
    load(source, Part::Test)
}

fn load(source: &Source, part: Part) -> Result<Split> {
    let split = match (source, part) {
        (Source::Embedded, Part::Train) => from_embedded(TRAIN_IMAGES, TRAIN_LABELS, part),
        (Source::Embedded, Part::Test) => from_embedded(TEST_IMAGES, TEST_LABELS, part),
        (Source::Folder { path, resize }, _) => files::split(path, part, *resize),
        #[cfg(feature = "hub")]
        (Source::Hub(set), _) => hub::load(*set, part),
        #[cfg(not(feature = "hub"))]
        (Source::Hub(_), _) => bail!(
            "this build cannot reach the hub: build with `--features hub`, or give a folder of the data with \
             --data-dir"
        ),
    }?;
    tracing::debug!(%source, title = split.title(), images = split.len(), "data loaded");
    Ok(split)
}

fn from_embedded(images: &[u8], labels: &[u8], part: Part) -> Result<Split> {
    let (image_name, label_name) = part.idx_files();
    let images = files::parse_idx(images, 3, &format!("the embedded file {image_name}"))?;
    let labels = files::parse_idx(labels, 1, &format!("the embedded file {label_name}"))?;
    files::idx_together(images, labels)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use sha2::{Digest, Sha256};

    use super::*;
    use crate::hex::hex;

    const SUMS: &str = include_str!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../datasets/fashion-mnist/SHA256SUMS"
    ));

    /// Where Debian's package `dataset-fashion-mnist` puts the full set.
    const DEBIAN: &str = "/usr/share/datasets/fashion-mnist";

    fn write_idx(path: &Path, sizes: &[u32], data: &[u8]) {
        let mut bytes = vec![0, 0, 8, u8::try_from(sizes.len()).unwrap()];
        bytes.extend(sizes.iter().flat_map(|s| s.to_be_bytes()));
        bytes.extend(data);
        fs::write(path, bytes).unwrap();
    }

    /// A folder with a training part of `n` images of 2×3 pixels and the given labels.
    fn folder(n: u32, labels: &[u8]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let pixels: Vec<u8> = (0..6 * n).map(|p| u8::try_from(p % 256).unwrap()).collect();
        write_idx(
            &dir.path().join("train-images-idx3-ubyte"),
            &[n, 2, 3],
            &pixels,
        );
        let count = u32::try_from(labels.len()).unwrap();
        write_idx(
            &dir.path().join("train-labels-idx1-ubyte"),
            &[count],
            labels,
        );
        dir
    }

    fn in_folder(path: &Path) -> Source {
        Source::Folder {
            path: path.into(),
            resize: None,
        }
    }

    fn load_folder(dir: &tempfile::TempDir) -> Result<Split> {
        load_train(&in_folder(dir.path()))
    }

    fn text(result: Result<Split>) -> String {
        format!("{:#}", result.unwrap_err())
    }

    #[test]
    fn embedded_files_are_those_of_the_checksum_list() {
        let files = [
            ("t10k-images-idx3-ubyte.gz", TEST_IMAGES),
            ("t10k-labels-idx1-ubyte.gz", TEST_LABELS),
            ("train-images-idx3-ubyte.gz", TRAIN_IMAGES),
            ("train-labels-idx1-ubyte.gz", TRAIN_LABELS),
        ];
        let listed: Vec<(&str, &str)> = SUMS
            .lines()
            .map(|line| line.split_once("  ").unwrap())
            .collect();
        assert_eq!(listed.len(), files.len());
        for ((sum, listed_name), (name, bytes)) in listed.into_iter().zip(files) {
            assert_eq!(listed_name, name);
            assert_eq!(hex(&Sha256::digest(bytes)), sum, "{name}");
        }
    }

    #[test]
    fn the_embedded_training_part_has_500_images_of_each_class() {
        let train = load_train(&Source::Embedded).unwrap();
        assert_eq!(train.shape(), [1, 28, 28]);
        assert_eq!((train.len(), train.classes()), (5_000, 10));
        let mut counts = [0; 10];
        for &label in train.labels() {
            counts[usize::from(label)] += 1;
        }
        assert_eq!(counts, [500; 10]);
        assert_eq!(train.class_names()[9], "Ankle boot");
        assert!(train.title().starts_with("Fashion-MNIST, first 500"));
        // The official training file begins with an ankle boot, then two T-shirts.
        assert_eq!(train.labels()[..3], [9, 0, 0]);
    }

    #[test]
    fn the_embedded_test_part_is_the_official_one() {
        let test = load_test(&Source::Embedded).unwrap();
        assert_eq!((test.len(), test.shape()), (10_000, [1, 28, 28]));
        // From the official files, by zcat, tail and sha256sum.
        assert_eq!(
            test.fingerprint(),
            "9f1ec356a747bfe4ebab3cfb722d3694c9ca737e2570f6f90cf31d7b6fd689d4"
        );
        let train = load_train(&Source::Embedded).unwrap();
        train.ensure_like(&test).unwrap();
    }

    #[test]
    fn no_test_image_is_among_the_training_images() {
        let train = load_train(&Source::Embedded).unwrap();
        let test = load_test(&Source::Embedded).unwrap();
        let seen: std::collections::HashSet<&[u8]> =
            (0..train.len()).filter_map(|i| train.image(i)).collect();
        let shared = (0..test.len())
            .filter(|&i| seen.contains(test.image(i).unwrap()))
            .count();
        assert_eq!(shared, 0);
    }

    #[test]
    #[ignore = "needs Debian's package dataset-fashion-mnist"]
    fn the_embedded_training_part_is_cut_from_the_full_one_in_order() {
        let full = load_train(&in_folder(DEBIAN.as_ref())).unwrap();
        assert_eq!(
            (full.len(), full.title()),
            (60_000, "Fashion-MNIST, training set")
        );
        let train = load_train(&Source::Embedded).unwrap();
        let mut seen = [0; 10];
        let mut next = 0;
        for (i, &label) in full.labels().iter().enumerate() {
            let count = &mut seen[usize::from(label)];
            if *count < 500 {
                *count += 1;
                assert_eq!(train.labels()[next], label);
                assert_eq!(train.image(next), full.image(i));
                next += 1;
            }
        }
        assert_eq!(next, train.len());
    }

    #[test]
    fn a_folder_is_read_with_and_without_gz() {
        let dir = folder(3, &[0, 9, 4]);
        let plain = load_folder(&dir).unwrap();
        assert_eq!(plain.shape(), [1, 2, 3]);
        assert_eq!(plain.labels(), [0, 9, 4]);
        assert_eq!(plain.image(1).unwrap(), [6, 7, 8, 9, 10, 11]);
        assert_eq!(plain.image(3), None);
        assert_eq!(plain.class_names()[4], "4");

        let packed = tempfile::tempdir().unwrap();
        for name in ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"] {
            let bytes = fs::read(dir.path().join(name)).unwrap();
            let file = fs::File::create(packed.path().join(format!("{name}.gz"))).unwrap();
            let mut gz = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
            std::io::Write::write_all(&mut gz, &bytes).unwrap();
            gz.finish().unwrap();
        }
        assert_eq!(load_folder(&packed).unwrap(), plain);
    }

    #[test]
    fn loading_the_training_part_does_not_need_the_test_files() {
        let dir = folder(2, &[1, 2]);
        assert!(load_folder(&dir).is_ok());
        let missing = load_test(&in_folder(dir.path()));
        assert!(text(missing).contains("neither t10k-images-idx3-ubyte nor"));
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let error = load_train(&in_folder("/no/such/folder".as_ref()));
        assert!(text(error).contains("/no/such/folder is not a folder"));
    }

    #[test]
    fn as_many_labels_as_images_are_required() {
        let error = text(load_folder(&folder(3, &[0, 1])));
        assert!(error.contains("2 labels for 3 images"), "{error}");
    }

    #[test]
    fn a_label_beyond_the_last_class_is_refused_with_its_place() {
        let error = text(load_folder(&folder(3, &[0, 9, 10])));
        assert!(error.contains("image 2"), "{error}");
        assert!(error.contains("wanted less than 10, got 10"), "{error}");
    }

    #[test]
    fn a_set_without_images_is_refused() {
        assert!(text(load_folder(&folder(0, &[]))).contains("at least one"));
    }

    #[test]
    fn a_source_is_named_as_it_is_written() {
        let source = |text: &str| {
            let data = spec::Data {
                source: text.into(),
                ..spec::tests::small().data
            };
            Source::of(&data)
        };
        for text in [
            "embedded",
            "hub:mnist",
            "hub:fashion-mnist",
            "hub:cifar-10",
            "hub:cifar-100",
        ] {
            assert_eq!(source(text).unwrap().to_string(), text);
        }
        assert_eq!(source("hub").unwrap(), source("hub:fashion-mnist").unwrap());
        assert_eq!(source("a/b").unwrap().to_string(), "folder a/b");
        let message = source("hub:cifar").unwrap_err().to_string();
        assert!(message.contains("hub:cifar-100"), "{message}");
    }

    #[test]
    fn only_pictures_can_be_brought_to_another_size() {
        let data = spec::Data {
            image_size: Some(8),
            ..spec::tests::small().data
        };
        let message = Source::of(&data).unwrap_err().to_string();
        assert!(message.contains("data.image_size"), "{message}");
    }
}
