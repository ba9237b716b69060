//! Images and labels of one part of a data set.

use std::{borrow::Cow, sync::Arc};

use anyhow::{Context, Result, bail, ensure};
use image::{DynamicImage, GrayImage, RgbImage};
use sha2::{Digest, Sha256};

use super::{
    files::Pictures,
    known::{Known, known},
};
use crate::hex::hex;

/// The most classes that there can be: a label is a byte.
const MOST_CLASSES: usize = 256;

/// Images and labels of one part of a data set, on the CPU. Copies share the images.
///
/// Always consistent: at least one image, as many labels as images, every label below the number of
/// classes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Split {
    title: Option<&'static str>,
    class_names: Arc<[String]>,
    channels: usize,
    height: usize,
    width: usize,
    images: Arc<Vec<u8>>,
    labels: Vec<u8>,
}

impl Split {
    /// Puts a part together.
    ///
    /// `images` holds N·C·H·W pixels (0 to 255) in that order, `labels` N classes, `shape` is
    /// `[C, H, W]`, and `class_names` has a name for each class. Title and names come from the fingerprint, if it
    /// is known.
    pub(super) fn new(
        images: Vec<u8>,
        labels: Vec<u8>,
        shape: [usize; 3],
        class_names: Vec<String>,
    ) -> Result<Self> {
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
        check_labels(&labels, class_names.len())?;
        let mut split = Self {
            title: None,
            class_names: class_names.into(),
            channels,
            height,
            width,
            images: Arc::new(images),
            labels,
        };
        if let Some(Known { title, classes, .. }) = known(&split.fingerprint()) {
            split.title = Some(title);
            split.class_names = classes.iter().map(|&name| name.to_owned()).collect();
        }
        Ok(split)
    }

    /// From decoded pictures, which must be of one size; in colour if one of them is. `name` says what a picture
    /// is called, for errors.
    pub(super) fn from_pictures(
        pictures: Pictures<DynamicImage>,
        name: impl Fn(usize) -> String,
    ) -> Result<Self> {
        let Pictures {
            items,
            labels,
            names,
        } = pictures;
        let size = |picture: &DynamicImage| (picture.height() as usize, picture.width() as usize);
        let (height, width) = size(items.first().context("there are no pictures")?);
        let colour = items.iter().any(|picture| picture.color().has_color());
        let channels = if colour { 3 } else { 1 };
        let mut images = Vec::with_capacity(items.len() * channels * height * width);
        for (i, picture) in items.into_iter().enumerate() {
            let (h, w) = size(&picture);
            ensure!(
                (h, w) == (height, width),
                "{}: wanted an image of {height}×{width} as the first one is, got {h}×{w}; data.image_size brings \
                 all to one size",
                name(i)
            );
            let interleaved = if colour {
                picture.into_rgb8().into_raw()
            } else {
                picture.into_luma8().into_raw()
            };
            images.extend((0..channels).flat_map(|c| interleaved.iter().skip(c).step_by(channels)));
        }
        ensure!(
            names.len() <= MOST_CLASSES,
            "wanted at most {MOST_CLASSES} classes, got {}",
            names.len()
        );
        let labels = labels.into_iter().map(u8::try_from);
        let labels = labels.collect::<Result<_, _>>()?;
        Self::new(images, labels, [channels, height, width], names)
    }

    /// The same images under other labels, for example those of [`noise`](super::noise).
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
    pub(crate) fn title(&self) -> &'static str {
        self.title.unwrap_or("an image set without a name")
    }

    /// Whether they are recognised.
    pub(crate) const fn is_known(&self) -> bool {
        self.title.is_some()
    }

    /// Number of images.
    pub(crate) const fn len(&self) -> usize {
        self.labels.len()
    }

    /// Number of classes; labels lie below it.
    pub(crate) fn classes(&self) -> usize {
        self.class_names.len()
    }

    /// Names of the classes, by label.
    pub(crate) fn class_names(&self) -> &[String] {
        &self.class_names
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

    /// As [`image`](Self::image); beyond the end is an error.
    pub(crate) fn pixels(&self, index: usize) -> Result<&[u8]> {
        let n = self.len();
        let image = self.image(index);
        image.with_context(|| format!("image number: wanted less than {n}, got {index}"))
    }

    /// Image `index`, which has 1 or 3 channels, as a picture.
    pub(crate) fn picture(&self, index: usize) -> Result<DynamicImage> {
        picture(self.shape(), self.pixels(index)?)
    }

    /// Label of each image.
    pub(crate) fn labels(&self) -> &[u8] {
        &self.labels
    }

    /// Number of images of each class.
    pub(crate) fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.classes()];
        for &label in &self.labels {
            counts[usize::from(label)] += 1;
        }
        counts
    }

    /// SHA-256 over all pixels and then all labels, as 64 lower-case hexadecimal digits.
    ///
    /// It depends neither on how the files were compressed nor on their headers.
    pub(crate) fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(&*self.images);
        hash.update(&self.labels);
        hex(&hash.finalize())
    }

    /// Makes sure that this part and `other` go together: the same shape of images and the same
    /// classes. A folder can hold the training files of one data set and the test files of another.
    pub(crate) fn ensure_like(&self, other: &Self) -> Result<()> {
        ensure!(
            self.shape() == other.shape(),
            "images of {} are {:?} (channels, height, width), but those of {} are {:?}",
            self.title(),
            self.shape(),
            other.title(),
            other.shape()
        );
        ensure!(
            self.class_names == other.class_names,
            "{} and {} belong to different data sets",
            self.title(),
            other.title()
        );
        Ok(())
    }
}

/// A picture of C×H×W bytes, where C is 1 or 3.
pub(super) fn picture(
    [channels, height, width]: [usize; 3],
    pixels: &[u8],
) -> Result<DynamicImage> {
    let interleaved = match channels {
        1 => Cow::Borrowed(pixels),
        3 => {
            let (red, others) = pixels.split_at(height * width);
            let (green, blue) = others.split_at(height * width);
            let both = red.iter().zip(green).zip(blue);
            Cow::Owned(both.flat_map(|((&r, &g), &b)| [r, g, b]).collect())
        }
        _ => bail!("a picture has 1 or 3 channels, got {channels}"),
    };
    let (width, height) = (u32::try_from(width)?, u32::try_from(height)?);
    let interleaved = interleaved.into_owned();
    let picture = if channels == 1 {
        GrayImage::from_raw(width, height, interleaved).map(DynamicImage::ImageLuma8)
    } else {
        RgbImage::from_raw(width, height, interleaved).map(DynamicImage::ImageRgb8)
    };
    picture.context("an image with another number of pixels than its size says")
}

/// Fails on the first label that is not below `classes`.
pub(super) fn check_labels(labels: &[u8], classes: usize) -> Result<()> {
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
pub(super) mod tests {
    use super::*;

    /// A part with ten classes.
    pub(crate) fn split(images: Vec<u8>, labels: Vec<u8>, shape: [usize; 3]) -> Result<Split> {
        let names = (0..10).map(|i| i.to_string()).collect();
        Split::new(images, labels, shape, names)
    }

    fn text(result: Result<Split>) -> String {
        format!("{:#}", result.unwrap_err())
    }

    #[test]
    fn a_set_without_pixels_is_refused() {
        assert!(text(split(vec![], vec![], [1, 1, 1])).contains("at least one"));
        assert!(text(split(vec![], vec![1, 2], [1, 0, 5])).contains("got 0"));
    }

    #[test]
    fn a_fingerprint_changes_with_one_pixel_one_label_or_the_order() {
        let part = |images: &[u8], labels: &[u8]| {
            split(images.to_vec(), labels.to_vec(), [1, 1, 2]).unwrap()
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
        let base = split(vec![1, 2, 3], vec![0, 1, 2], [1, 1, 1]).unwrap();
        let relabelled = base.clone().with_labels(vec![2, 2, 2]).unwrap();
        assert_eq!(relabelled.image(1), base.image(1));
        assert_eq!(relabelled.labels(), [2, 2, 2]);
        assert_eq!(relabelled.counts()[..4], [0, 0, 3, 0]);
        assert!(text(base.clone().with_labels(vec![0, 1])).contains("got 2 labels"));
        assert!(text(base.with_labels(vec![0, 1, 10])).contains("got 10"));
    }

    #[test]
    fn parts_of_different_data_sets_do_not_go_together() {
        let small = split(vec![0; 4], vec![0], [1, 2, 2]).unwrap();
        let large = split(vec![0; 784], vec![0], [1, 28, 28]).unwrap();
        let error = small.ensure_like(&large).unwrap_err().to_string();
        assert!(
            error.contains("[1, 2, 2]") && error.contains("[1, 28, 28]"),
            "{error}"
        );
        let named = Split::new(vec![0; 4], vec![0], [1, 2, 2], vec!["zero".into()]).unwrap();
        assert!(small.ensure_like(&named).is_err());
    }

    #[test]
    fn a_picture_of_planes_is_interleaved_and_back() {
        let planes = vec![1, 2, 3, 4, 5, 6];
        let colour = split(planes.clone(), vec![7], [3, 1, 2]).unwrap();
        let picture = colour.picture(0).unwrap();
        assert_eq!(picture.as_bytes(), [1, 3, 5, 2, 4, 6]);
        let names = (0..10).map(|i| i.to_string()).collect();
        let pictures = |items| Pictures {
            items,
            labels: vec![7],
            names,
        };
        let again = Split::from_pictures(pictures(vec![picture]), |i| i.to_string()).unwrap();
        assert_eq!(again, colour);
        assert!(colour.picture(1).is_err());
    }

    #[test]
    fn pictures_of_different_sizes_are_refused_and_grey_ones_go_with_colour() {
        let grey = |height| DynamicImage::new_luma8(2, height);
        let pictures = |items: Vec<DynamicImage>| Pictures {
            labels: vec![0; items.len()],
            items,
            names: vec!["x".into()],
        };
        let name = |i: usize| format!("picture {i}");
        let message = text(Split::from_pictures(pictures(vec![grey(2), grey(3)]), name));
        assert!(
            message.contains("picture 1: wanted an image of 2×2") && message.contains("image_size"),
            "{message}"
        );
        let mixed = pictures(vec![grey(2), DynamicImage::new_rgb8(2, 2)]);
        assert_eq!(
            Split::from_pictures(mixed, name).unwrap().shape(),
            [3, 2, 2]
        );
        let grey = pictures(vec![grey(2)]);
        assert_eq!(Split::from_pictures(grey, name).unwrap().shape(), [1, 2, 2]);
    }
}
