//! From bytes on the CPU to batches on a device.

use std::ops::Range;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use sala_models::{
    images::{ImageSet, Mixture, View},
    rng::Stream,
};

use super::{Split, augment::Shares};

/// Bytes of images that may stay on a graphics card, which networks want for themselves; CIFAR's are 150 million.
const MOST_ON_CARD: u64 = 4 << 30;

/// Mean and standard deviation of the pixels of each channel, on the scale from 0 to 1.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ChannelStats {
    /// One mean for each channel.
    pub(crate) mean: Vec<f64>,
    /// One standard deviation for each channel (with divisor n), all above zero.
    pub(crate) std: Vec<f64>,
}

/// The statistics of the listed images, over all their pixels. Meant for the images that are trained
/// on: those of validation and test must not leak into the normalisation.
///
/// Sums are taken in whole numbers, so the result does not depend on the order of the list.
pub(crate) fn channel_stats(split: &Split, images: &[usize]) -> Result<ChannelStats> {
    ensure!(!images.is_empty(), "no images to take the statistics of");
    let [channels, height, width] = split.shape();
    let mut sums = vec![(0_u64, 0_u64); channels];
    for &image in images {
        for (sum, plane) in sums
            .iter_mut()
            .zip(split.pixels(image)?.chunks(height * width))
        {
            for &pixel in plane {
                sum.0 += u64::from(pixel);
                sum.1 += u64::from(pixel).pow(2);
            }
        }
    }
    let n = images.len() * height * width;
    let (mut mean, mut std) = (Vec::new(), Vec::new());
    for (channel, (sum, squares)) in sums.into_iter().enumerate() {
        // n² times the variance, without any rounding.
        let spread = n as u128 * u128::from(squares) - u128::from(sum).pow(2);
        ensure!(
            spread > 0,
            "channel {channel} has the same value in every pixel: it cannot be normalised"
        );
        mean.push(sum as f64 / n as f64 / 255.0);
        std.push((spread as f64).sqrt() / n as f64 / 255.0);
    }
    Ok(ChannelStats { mean, std })
}

/// The order in which epoch `epoch` goes through `n` images: a random permutation of `0..n` that
/// depends on nothing else.
pub(crate) fn order(stream: Stream, epoch: u64, n: usize) -> Vec<usize> {
    stream.at(epoch).permutation(n)
}

/// Images of a part by their numbers, with the constants that they are normalised by.
///
/// They stay bytes, and are made into floats batch by batch: 50,000 of CIFAR's images take 150 MB so, and would
/// take 600 as f32.
#[derive(Debug, Clone)]
pub(crate) struct Selection {
    split: Split,
    images: Vec<usize>,
    tables: Vec<[f32; 256]>,
    device: Device,
    /// The same images, by their place in the list, on a card that puts batches together.
    on_card: Option<ImageSet>,
}

/// Images and their targets that go through the model together.
#[derive(Debug, Clone)]
pub(crate) struct Batch {
    /// (B, C, H, W), f32 unless changed, normalised.
    pub(crate) images: Tensor,
    /// Classes, (B), u32; or the share of every class, (B, classes), f32, where images are mixed.
    pub(crate) targets: Tensor,
}

impl Batch {
    /// The same with images of another precision.
    pub(crate) fn in_dtype(self, dtype: DType) -> Result<Self> {
        let images = self.images.to_dtype(dtype)?;
        Ok(Self { images, ..self })
    }
}

impl Selection {
    /// The listed images of `split`, in the order of the list. A pixel `v` from 0 to 255 of
    /// channel `c` becomes `(v / 255 − mean[c]) / std[c]`.
    pub(crate) fn new(
        split: Split,
        images: Vec<usize>,
        stats: &ChannelStats,
        device: &Device,
    ) -> Result<Self> {
        ensure!(!images.is_empty(), "no images to take");
        let tables = tables(stats, split.shape()[0])?;
        for &image in &images {
            split.pixels(image)?;
        }
        Ok(Self {
            on_card: on_card(&split, &images, &tables, device)?,
            split,
            images,
            tables,
            device: device.clone(),
        })
    }

    /// Number of images, N.
    pub(crate) const fn len(&self) -> usize {
        self.images.len()
    }

    /// `[C, H, W]` of an image.
    pub(crate) const fn shape(&self) -> [usize; 3] {
        self.split.shape()
    }

    /// Number of classes; labels lie below it.
    pub(crate) fn classes(&self) -> usize {
        self.split.classes()
    }

    /// The number in the data set of the image at a place of the list.
    pub(super) fn number(&self, place: usize) -> Result<usize> {
        let n = self.len();
        let number = self.images.get(place).copied();
        number.with_context(|| format!("place in a set of {n} images: got {place}"))
    }

    /// The pixels of an image by its number in the data set.
    pub(super) fn pixels(&self, number: usize) -> Result<&[u8]> {
        self.split.pixels(number)
    }

    /// The label of an image by its number in the data set.
    pub(super) fn label(&self, number: usize) -> u32 {
        u32::from(self.split.labels()[number])
    }

    /// Appends the normalised values of an image of this shape.
    pub(super) fn normalise(&self, pixels: &[u8], values: &mut Vec<f32>) {
        let [_, height, width] = self.shape();
        for (table, plane) in self.tables.iter().zip(pixels.chunks(height * width)) {
            values.extend(plane.iter().map(|&pixel| table[usize::from(pixel)]));
        }
    }

    /// Uploads B·C·H·W values.
    pub(super) fn upload_images(&self, images: Vec<f32>) -> Result<Tensor> {
        let [channels, height, width] = self.shape();
        let n = images.len() / (channels * height * width);
        let shape = (n, channels, height, width);
        Ok(Tensor::from_vec(images, shape, &self.device)?)
    }

    /// Uploads B classes or B·classes shares.
    pub(super) fn upload_targets(&self, targets: Targets) -> Result<Tensor> {
        let (values, classes) = match targets {
            Targets::Classes(classes) => {
                let n = classes.len();
                return Ok(Tensor::from_vec(classes, n, &self.device)?);
            }
            Targets::Shares(shares) => (shares.into_values(), self.classes()),
        };
        let n = values.len() / classes;
        Ok(Tensor::from_vec(values, (n, classes), &self.device)?)
    }

    /// The images, by their place in the list, on a card that puts batches together; nothing on another device, or if
    /// they would take too much of its memory.
    pub(super) const fn on_card(&self) -> Option<&ImageSet> {
        self.on_card.as_ref()
    }

    /// All images in their own order, in batches of `size`; the last may be shorter. For evaluation.
    pub(crate) fn in_order(&self, size: usize) -> Result<impl Iterator<Item = Result<Batch>>> {
        ensure!(size > 0, "batch size: wanted at least 1, got 0");
        let batch = move |start| self.batch(start..self.len().min(start + size));
        Ok((0..self.len()).step_by(size).map(batch))
    }

    /// The images at these places of the list, as they are.
    fn batch(&self, places: Range<usize>) -> Result<Batch> {
        let numbers = &self.images[places.clone()];
        let classes = numbers.iter().map(|&number| self.label(number)).collect();
        let [_, height, width] = self.shape();
        let images = if let Some(set) = &self.on_card {
            let views = places.map(|place| View::whole(place, height, width));
            set.batch(&views.collect::<Vec<_>>(), &Mixture::None)?
        } else {
            let size: usize = self.shape().iter().product();
            let mut values = Vec::with_capacity(numbers.len() * size);
            for &number in numbers {
                self.normalise(self.pixels(number)?, &mut values);
            }
            self.upload_images(values)?
        };
        Ok(Batch {
            images,
            targets: self.upload_targets(Targets::Classes(classes))?,
        })
    }
}

/// The images of these numbers on a card that puts batches together.
fn on_card(
    split: &Split,
    images: &[usize],
    tables: &[[f32; 256]],
    device: &Device,
) -> Result<Option<ImageSet>> {
    let bytes = images.len() * split.shape().iter().product::<usize>();
    // Where there is no kernel for them they need not be copied together.
    if bytes as u64 > MOST_ON_CARD || !ImageSet::fits(device)? {
        return Ok(None);
    }
    let mut pixels = Vec::with_capacity(bytes);
    for &number in images {
        pixels.extend_from_slice(split.pixels(number)?);
    }
    let set = ImageSet::new(pixels, split.shape(), tables, device);
    Ok(set.unwrap_or_else(|error| {
        // The most likely reason is that others use the card's memory.
        tracing::warn!(%error, bytes, "the images cannot stay on the graphics card: batches are made by the processor");
        None
    }))
}

/// The targets of a batch.
#[derive(Debug)]
pub(super) enum Targets {
    Classes(Vec<u32>),
    Shares(Shares),
}

/// For each channel, the normalised value of each of the 256 pixel values.
fn tables(stats: &ChannelStats, channels: usize) -> Result<Vec<[f32; 256]>> {
    let ChannelStats { mean, std } = stats;
    ensure!(
        mean.len() == channels && std.len() == channels,
        "wanted statistics of {channels} channels, got {} means and {} standard deviations",
        mean.len(),
        std.len()
    );
    let usable = |(m, s): (&f64, &f64)| m.is_finite() && s.is_finite() && *s > 0.0;
    ensure!(
        mean.iter().zip(std).all(usable),
        "cannot normalise with means {mean:?} and standard deviations {std:?}"
    );
    Ok(mean.iter().zip(std).map(|(&m, &s)| table(m, s)).collect())
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "f32 is the precision of the model's input; the value is rounded once, here"
)]
fn table(mean: f64, std: f64) -> [f32; 256] {
    let mut table = [0.0; 256];
    for (pixel, value) in (0_u8..=255).zip(&mut table) {
        *value = ((f64::from(pixel) / 255.0 - mean) / std) as f32;
    }
    table
}

#[cfg(test)]
mod tests {
    use candle_core::DType;
    use sala_models::{
        kernels::{Choice, with_choice},
        rng::Rng,
    };

    use super::*;
    use crate::data::set::tests::split as set;

    const CPU: Device = Device::Cpu;

    /// `n` images of 2 channels, 1×2 pixels: image i holds 4i, 4i+1 | 4i+2, 4i+3, and label i mod 10.
    fn split(n: u8) -> Split {
        let images = (0..4 * n).collect();
        let labels = (0..n).map(|i| i % 10).collect();
        set(images, labels, [2, 1, 2]).unwrap()
    }

    /// Statistics under which a pixel `v` stays `v`.
    fn identity() -> ChannelStats {
        ChannelStats {
            mean: vec![0.0; 2],
            std: vec![1.0 / 255.0; 2],
        }
    }

    fn selection(n: u8, images: &[usize], stats: &ChannelStats) -> Result<Selection> {
        Selection::new(split(n), images.to_vec(), stats, &CPU)
    }

    fn batches(selection: &Selection, size: usize) -> Vec<Batch> {
        let batches = selection.in_order(size).unwrap();
        batches.collect::<Result<_>>().unwrap()
    }

    fn labels(batch: &Batch) -> Vec<u32> {
        batch.targets.to_vec1().unwrap()
    }

    #[test]
    fn channel_stats_are_those_of_the_listed_images_only() {
        // Channel 0 of images 1 and 3 holds 4, 5, 12, 13: mean 8.5, variance (20.25+12.25)·2/4.
        let stats = channel_stats(&split(5), &[1, 3]).unwrap();
        let sd = 16.25_f64.sqrt() / 255.0;
        assert!((stats.mean[0] - 8.5 / 255.0).abs() < 1e-15, "{stats:?}");
        assert!((stats.mean[1] - 10.5 / 255.0).abs() < 1e-15, "{stats:?}");
        assert!((stats.std[0] - sd).abs() < 1e-15, "{stats:?}");
        assert!((stats.std[1] - sd).abs() < 1e-15, "{stats:?}");
        assert_eq!(stats, channel_stats(&split(5), &[3, 1]).unwrap());
    }

    #[test]
    fn normalised_training_images_have_mean_zero_and_variance_one() {
        let split = crate::data::load_train(&crate::data::Source::Embedded).unwrap();
        let some: Vec<usize> = (0..5_000).step_by(10).collect();
        let stats = channel_stats(&split, &some).unwrap();
        let selection = Selection::new(split, some, &stats, &CPU).unwrap();
        let images = batches(&selection, 500).swap_remove(0).images;
        assert_eq!(images.dims(), [500, 1, 28, 28]);
        let images = images.to_dtype(DType::F64).unwrap();
        let mean = |x: Tensor| x.mean_all().unwrap().to_scalar::<f64>().unwrap();
        let (square, mean) = (mean(images.sqr().unwrap()), mean(images));
        assert!(
            mean.abs() < 1e-6 && (square - 1.0).abs() < 1e-6,
            "{mean} {square}"
        );
    }

    #[test]
    fn each_channel_is_normalised_with_its_own_constants() {
        let stats = ChannelStats {
            mean: vec![0.0, 2.0 / 255.0],
            std: vec![1.0 / 255.0, 0.5 / 255.0],
        };
        let images = batches(&selection(3, &[1], &stats).unwrap(), 1)
            .swap_remove(0)
            .images;
        assert_eq!(images.dims(), [1, 2, 1, 2]);
        let got: Vec<f32> = images.flatten_all().unwrap().to_vec1().unwrap();
        for (got, wanted) in got.iter().zip([4.0, 5.0, 8.0, 10.0]) {
            assert!((got - wanted).abs() < 1e-5, "{got} {wanted}");
        }
    }

    #[test]
    fn constants_that_cannot_normalise_are_refused() {
        let flat = set(vec![7; 8], vec![0, 1], [2, 1, 2]).unwrap();
        let error = channel_stats(&flat, &[0, 1]).unwrap_err();
        assert!(error.to_string().contains("channel 0"), "{error}");
        for (mean, std) in [
            (vec![0.0], vec![1.0]),
            (vec![0.0; 2], vec![1.0, 0.0]),
            (vec![0.0, f64::NAN], vec![1.0; 2]),
        ] {
            let stats = ChannelStats { mean, std };
            assert!(selection(2, &[0], &stats).is_err(), "{stats:?}");
        }
    }

    #[test]
    fn images_and_labels_stay_together_in_the_order_of_the_list() {
        let selection = selection(6, &[5, 0, 3], &identity()).unwrap();
        assert_eq!(selection.len(), 3);
        let batch = batches(&selection, 3).swap_remove(0);
        assert_eq!(batch.images.dims(), [3, 2, 1, 2]);
        assert_eq!(labels(&batch), [5, 0, 3]);
        let flat: Vec<f32> = batch.images.flatten_all().unwrap().to_vec1().unwrap();
        let first: Vec<f32> = flat.chunks(4).map(|image| image[0]).collect();
        for (got, wanted) in first.iter().zip([20.0, 0.0, 12.0]) {
            assert!((got - wanted).abs() < 1e-4, "{first:?}");
        }
        assert_eq!(batch.images.dtype(), DType::F32);
        assert_eq!(batch.targets.dtype(), DType::U32);
    }

    #[test]
    fn evaluation_takes_every_image_once_with_a_short_last_batch() {
        let all: Vec<usize> = (0..7).collect();
        let selection = selection(7, &all, &identity()).unwrap();
        let sizes = |size| -> Vec<usize> {
            let batches = batches(&selection, size);
            batches.iter().map(|b| labels(b).len()).collect()
        };
        assert_eq!(sizes(3), [3, 3, 1]);
        assert_eq!(sizes(7), [7]);
        assert_eq!(sizes(64), [7]);
        let seen: Vec<u32> = batches(&selection, 3).iter().flat_map(labels).collect();
        assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6]);
        assert!(selection.in_order(0).is_err());
    }

    #[test]
    fn a_card_makes_the_same_batches_for_evaluation() {
        let select = || selection(7, &[6, 0, 3, 5], &identity()).unwrap();
        let on_card = with_choice(Choice::Emulated, select);
        // Without a C++ compiler there is nothing to compare.
        let fits = with_choice(Choice::Emulated, || ImageSet::fits(&CPU)).unwrap();
        assert_eq!(on_card.on_card().is_some(), fits);
        let values = |selection: &Selection| -> Vec<(Vec<f32>, Vec<u32>)> {
            let batches = batches(selection, 3);
            let flat = |b: &Batch| b.images.flatten_all().unwrap().to_vec1().unwrap();
            batches.iter().map(|b| (flat(b), labels(b))).collect()
        };
        assert_eq!(values(&on_card), values(&select()));
    }

    #[test]
    fn an_image_beyond_the_end_and_an_empty_list_are_refused() {
        let error = selection(5, &[0, 5], &identity()).unwrap_err();
        assert!(error.to_string().contains("got 5"), "{error}");
        assert!(selection(2, &[], &identity()).is_err());
        assert!(channel_stats(&split(2), &[2]).is_err());
        assert!(channel_stats(&split(2), &[]).is_err());
    }

    #[test]
    fn epochs_have_different_orders_that_repeat_with_the_seed() {
        let stream = Rng::new(3).stream("order");
        assert_eq!(order(stream, 4, 100), order(stream, 4, 100));
        assert_ne!(order(stream, 4, 100), order(stream, 5, 100));
        let mut sorted = order(stream, 4, 100);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
    }
}
