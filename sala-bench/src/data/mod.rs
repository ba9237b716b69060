//! Image data sets: where they come from, how they are cut, spoiled and fed to a model.
//!
//! A data set has two parts, training and test. They are loaded by separate functions so that
//! nothing can touch the test images before the end of a comparison.

pub(crate) mod batches;
#[cfg(feature = "hub")]
mod hub;
mod idx;
pub(crate) mod noise;
pub(crate) mod split;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::hex::hex;

use idx::Idx;

/// Classes of every data set read here: MNIST and Fashion-MNIST have ten each.
const CLASSES: usize = 10;

/// Names of the classes of Fashion-MNIST, by label.
const FASHION_CLASSES: [&str; CLASSES] = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
];

/// Names of the classes of a data set that is not recognised.
const NUMBERED_CLASSES: [&str; CLASSES] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];

/// Title of a part that is not recognised.
const UNKNOWN_TITLE: &str = "an image set without a name";

/// Fingerprints of the parts that are recognised, and their titles. All are Fashion-MNIST.
const KNOWN: [(&str, &str); 3] = [
    (
        "3e4733ae8450a2837c1f62ea9946542fde2197204feb158e5b790257ac34143a",
        "Fashion-MNIST, first 500 training images of each class",
    ),
    (
        "16d82e2b505296aa2b78bd5ea0992634f30419a4c97def7c907d154a35ac6157",
        "Fashion-MNIST, training set",
    ),
    (
        "9f1ec356a747bfe4ebab3cfb722d3694c9ca737e2570f6f90cf31d7b6fd689d4",
        "Fashion-MNIST, test set",
    ),
];

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
    /// A folder with the four IDX files of MNIST or Fashion-MNIST under their usual names.
    Folder(PathBuf),
    /// Fashion-MNIST from the Hugging Face hub: needs the network, or files that an earlier call
    /// left in the hub's cache.
    Hub,
}

impl Source {
    /// `embedded`, `hub`, or the path of a folder.
    pub(crate) fn parse(text: &str) -> Self {
        match text {
            "embedded" => Self::Embedded,
            "hub" => Self::Hub,
            folder => Self::Folder(folder.into()),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str("embedded"),
            Self::Folder(path) => write!(f, "folder {}", path.display()),
            Self::Hub => f.write_str("hub"),
        }
    }
}

/// One of the two parts of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Train,
    Test,
}

impl Part {
    /// Usual names of the files of images and labels, without `.gz`.
    const fn files(self) -> (&'static str, &'static str) {
        match self {
            Self::Train => ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
            Self::Test => ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
        }
    }
}

/// Loads the training part, and nothing of the test part unless the source cannot help it
/// ([`Source::Hub`] fetches both; the other part is dropped unseen).
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
        (Source::Folder(folder), _) => from_folder(folder, part),
        #[cfg(feature = "hub")]
        (Source::Hub, _) => hub::load(part),
        #[cfg(not(feature = "hub"))]
        (Source::Hub, _) => bail!("this build cannot reach the hub: build with `--features hub`"),
    }?;
    tracing::debug!(%source, title = split.title, images = split.len(), "data loaded");
    Ok(split)
}

fn from_embedded(images: &[u8], labels: &[u8], part: Part) -> Result<Split> {
    let (image_name, label_name) = part.files();
    let images = idx::parse(images, 3, &format!("the embedded file {image_name}"))?;
    let labels = idx::parse(labels, 1, &format!("the embedded file {label_name}"))?;
    Split::from_idx(images, labels)
}

fn from_folder(folder: &Path, part: Part) -> Result<Split> {
    let (image_name, label_name) = part.files();
    let images = idx::read(&find(folder, image_name)?, 3)?;
    let labels = idx::read(&find(folder, label_name)?, 1)?;
    Split::from_idx(images, labels).with_context(|| {
        format!(
            "{image_name} and {label_name} in {} do not make a data set",
            folder.display()
        )
    })
}

/// The file called `name` or `name.gz`. With both there the plain one is taken: it is what some
/// tools unpack beside the archive, so the contents agree and it is quicker to read.
fn find(folder: &Path, name: &str) -> Result<PathBuf> {
    let (plain, packed) = (folder.join(name), folder.join(format!("{name}.gz")));
    if plain.is_file() {
        Ok(plain)
    } else if packed.is_file() {
        Ok(packed)
    } else if folder.is_dir() {
        bail!("{} holds neither {name} nor {name}.gz", folder.display())
    } else {
        bail!(
            "{} is not a folder; wanted one that holds {name} or {name}.gz",
            folder.display()
        )
    }
}

/// Images and labels of one part of a data set, on the CPU.
///
/// Always consistent: at least one image, as many labels as images, every label below the number of
/// classes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Split {
    title: &'static str,
    class_names: &'static [&'static str],
    channels: usize,
    height: usize,
    width: usize,
    images: Vec<u8>,
    labels: Vec<u8>,
}

impl Split {
    /// Puts a part together.
    ///
    /// `images` holds N·C·H·W pixels (0 to 255) in that order, `labels` N classes, and `shape` is
    /// `[C, H, W]`. Title and class names come from the fingerprint, if it is known.
    fn new(images: Vec<u8>, labels: Vec<u8>, shape: [usize; 3]) -> Result<Self> {
        let [channels, height, width] = shape;
        let n = labels.len();
        ensure!(n > 0, "the data set holds no labels, wanted at least one");
        let wanted = shape.iter().try_fold(n, |all, &d| all.checked_mul(d));
        ensure!(
            wanted == Some(images.len()) && !images.is_empty(),
            "{n} labels with images of {channels}×{height}×{width} want {} pixels, got {}",
            wanted.map_or_else(|| "too many".to_owned(), |pixels| pixels.to_string()),
            images.len()
        );
        check_labels(&labels, CLASSES)?;
        let mut split = Self {
            title: UNKNOWN_TITLE,
            class_names: &NUMBERED_CLASSES,
            channels,
            height,
            width,
            images,
            labels,
        };
        let fingerprint = split.fingerprint();
        if let Some((_, title)) = KNOWN.iter().find(|(known, _)| *known == fingerprint) {
            split.title = title;
            split.class_names = &FASHION_CLASSES;
        }
        Ok(split)
    }

    /// From a file of grey images (N×H×W) and one of labels (N).
    fn from_idx(images: Idx, labels: Idx) -> Result<Self> {
        let &[n, height, width] = images.dims.as_slice() else {
            bail!("wanted images of 3 dimensions, got {:?}", images.dims);
        };
        ensure!(
            n == labels.data.len(),
            "wanted as many labels as images, got {} labels for {n} images",
            labels.data.len()
        );
        Self::new(images.data, labels.data, [1, height, width])
    }

    /// The same images under other labels, for example those of [`noise::symmetric`].
    pub(crate) fn with_labels(mut self, labels: Vec<u8>) -> Result<Self> {
        ensure!(
            labels.len() == self.len(),
            "wanted a label for each of {} images, got {} labels",
            self.len(),
            labels.len()
        );
        check_labels(&labels, self.classes())?;
        self.labels = labels;
        Ok(self)
    }

    /// What the images are, for people: known by their content, not by the name of a folder.
    pub(crate) const fn title(&self) -> &'static str {
        self.title
    }

    /// Number of images.
    pub(crate) const fn len(&self) -> usize {
        self.labels.len()
    }

    /// Number of classes; labels lie below it.
    pub(crate) const fn classes(&self) -> usize {
        self.class_names.len()
    }

    /// Names of the classes, by label.
    pub(crate) const fn class_names(&self) -> &'static [&'static str] {
        self.class_names
    }

    /// `[C, H, W]` of an image.
    pub(crate) const fn shape(&self) -> [usize; 3] {
        [self.channels, self.height, self.width]
    }

    /// Pixels of image `index` as C×H×W, or nothing beyond the end.
    pub(crate) fn image(&self, index: usize) -> Option<&[u8]> {
        let size = self.images.len() / self.len();
        self.images.chunks_exact(size).nth(index)
    }

    /// Label of each image.
    pub(crate) fn labels(&self) -> &[u8] {
        &self.labels
    }

    /// SHA-256 over all pixels and then all labels, as 64 lower-case hexadecimal digits.
    ///
    /// It depends neither on how the files were compressed nor on their headers.
    pub(crate) fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(&self.images);
        hash.update(&self.labels);
        hex(&hash.finalize())
    }

    /// Makes sure that this part and `other` go together: the same shape of images and the same
    /// classes. A folder can hold the training files of one data set and the test files of another.
    pub(crate) fn ensure_like(&self, other: &Self) -> Result<()> {
        ensure!(
            self.shape() == other.shape(),
            "images of {} are {:?} (channels, height, width), but those of {} are {:?}",
            self.title,
            self.shape(),
            other.title,
            other.shape()
        );
        ensure!(
            self.class_names == other.class_names,
            "{} and {} belong to different data sets",
            self.title,
            other.title
        );
        Ok(())
    }
}

/// Fails on the first label that is not below `classes`.
fn check_labels(labels: &[u8], classes: usize) -> Result<()> {
    match labels
        .iter()
        .position(|&label| usize::from(label) >= classes)
    {
        None => Ok(()),
        Some(i) => bail!(
            "label of image {i}: wanted less than {classes}, got {}",
            labels[i]
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

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

    fn load_folder(dir: &tempfile::TempDir) -> Result<Split> {
        load_train(&Source::Folder(dir.path().to_owned()))
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
        assert_eq!(train.class_names[9], "Ankle boot");
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
        let full = load_train(&Source::Folder(DEBIAN.into())).unwrap();
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
        assert_eq!(plain.class_names[4], "4");

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
        let missing = load_test(&Source::Folder(dir.path().to_owned()));
        assert!(text(missing).contains("neither t10k-images-idx3-ubyte nor"));
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let error = load_train(&Source::Folder("/no/such/folder".into()));
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
        let flat = Split::new(vec![], vec![1, 2], [1, 0, 5]);
        assert!(text(flat).contains("got 0"));
    }

    #[test]
    fn a_fingerprint_changes_with_one_pixel_one_label_or_the_order() {
        let part = |images: &[u8], labels: &[u8]| {
            Split::new(images.to_vec(), labels.to_vec(), [1, 1, 2]).unwrap()
        };
        let base = part(&[1, 2, 3, 4], &[5, 6]);
        // printf '\001\002\003\004\005\006' | sha256sum
        assert_eq!(
            base.fingerprint(),
            "7192385c3c0605de55bb9476ce1d90748190ecb32a8eed7f5207b30cf6a1fe89"
        );
        for other in [
            part(&[1, 2, 3, 5], &[5, 6]),
            part(&[1, 2, 3, 4], &[5, 7]),
            part(&[3, 4, 1, 2], &[6, 5]),
        ] {
            assert_ne!(base.fingerprint(), other.fingerprint());
        }
    }

    #[test]
    fn new_labels_are_checked_and_leave_the_images_alone() {
        let base = Split::new(vec![1, 2, 3], vec![0, 1, 2], [1, 1, 1]).unwrap();
        let relabelled = base.clone().with_labels(vec![2, 2, 2]).unwrap();
        assert_eq!(relabelled.image(1), base.image(1));
        assert_eq!(relabelled.labels(), [2, 2, 2]);
        assert!(text(base.clone().with_labels(vec![0, 1])).contains("got 2 labels"));
        assert!(text(base.with_labels(vec![0, 1, 10])).contains("got 10"));
    }

    #[test]
    fn parts_of_different_data_sets_do_not_go_together() {
        let small = Split::new(vec![0; 4], vec![0], [1, 2, 2]).unwrap();
        let large = Split::new(vec![0; 784], vec![0], [1, 28, 28]).unwrap();
        let error = small.ensure_like(&large).unwrap_err().to_string();
        assert!(
            error.contains("[1, 2, 2]") && error.contains("[1, 28, 28]"),
            "{error}"
        );
        // Same shape, but one is recognised and the other is not.
        let fashion = load_test(&Source::Embedded).unwrap();
        assert!(fashion.ensure_like(&large).is_err());
    }

    #[test]
    fn a_source_names_itself() {
        assert_eq!(Source::Embedded.to_string(), "embedded");
        assert_eq!(Source::Folder("a/b".into()).to_string(), "folder a/b");
        assert_eq!(Source::Hub.to_string(), "hub");
    }
}
