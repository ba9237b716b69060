//! From bytes on the CPU to batches on a device.

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};
use sala_models::rng::Stream;

use super::Split;

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
            .zip(pixels(split, image)?.chunks(height * width))
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

/// Normalised images and their labels, whole on one device.
///
/// The data sets here are small (5,000 images of 28×28 take 16 MB as f32), so they are uploaded once
/// and batches are gathered on the device.
#[derive(Debug, Clone)]
pub(crate) struct Tensors {
    images: Tensor,
    labels: Tensor,
}

/// Images and labels that go through the model together.
#[derive(Debug, Clone)]
pub(crate) struct Batch {
    /// (B, C, H, W), f32 unless changed, normalised.
    pub(crate) images: Tensor,
    /// (B), u32.
    pub(crate) labels: Tensor,
}

impl Batch {
    /// The same with images of another precision.
    pub(crate) fn in_dtype(self, dtype: DType) -> Result<Self> {
        let images = self.images.to_dtype(dtype)?;
        Ok(Self { images, ..self })
    }
}

impl Tensors {
    /// Uploads the listed images of `split`, in the order of the list. A pixel `v` from 0 to 255 of
    /// channel `c` becomes `(v / 255 − mean[c]) / std[c]`.
    pub(crate) fn new(
        split: &Split,
        images: &[usize],
        stats: &ChannelStats,
        device: &Device,
    ) -> Result<Self> {
        ensure!(!images.is_empty(), "no images to upload");
        let [channels, height, width] = split.shape();
        let tables = tables(stats, channels)?;
        let mut values = Vec::with_capacity(images.len() * channels * height * width);
        let mut labels = Vec::with_capacity(images.len());
        for &image in images {
            let planes = pixels(split, image)?.chunks(height * width);
            for (table, plane) in tables.iter().zip(planes) {
                values.extend(plane.iter().map(|&pixel| table[usize::from(pixel)]));
            }
            labels.push(u32::from(split.labels()[image]));
        }
        let n = images.len();
        Ok(Self {
            images: Tensor::from_vec(values, (n, channels, height, width), device)?,
            labels: Tensor::from_vec(labels, n, device)?,
        })
    }

    /// Number of images, N.
    pub(crate) fn len(&self) -> usize {
        self.labels.elem_count()
    }

    /// Batches of `size` images at the given places, in that order; the last holds what remains.
    pub(crate) fn batches(&self, order: &[usize], size: usize) -> Result<Batches> {
        ensure!(size > 0, "batch size: wanted at least 1, got 0");
        Ok(Batches {
            tensors: self.clone(),
            places: self.upload(order)?,
            size,
            next: 0,
            count: order.len().div_ceil(size),
        })
    }

    /// All images in their own order, in batches of `size`; the last may be shorter. For evaluation.
    pub(crate) fn in_order(&self, size: usize) -> Result<Batches> {
        let order: Vec<usize> = (0..self.len()).collect();
        self.batches(&order, size)
    }

    /// Checks the places here, because a device does not: an index beyond the end would read
    /// whatever lies there.
    fn upload(&self, places: &[usize]) -> Result<Tensor> {
        let n = self.len();
        ensure!(!places.is_empty(), "a batch without images");
        let mut checked = Vec::with_capacity(places.len());
        for &place in places {
            ensure!(place < n, "place in a set of {n} images: got {place}");
            checked.push(u32::try_from(place)?);
        }
        Ok(Tensor::from_vec(
            checked,
            places.len(),
            self.images.device(),
        )?)
    }

    fn gather(&self, places: &Tensor) -> Result<Batch> {
        Ok(Batch {
            images: self.images.index_select(places, 0)?,
            labels: self.labels.index_select(places, 0)?,
        })
    }
}

/// Iterator over the batches of one epoch, made by [`Tensors::batches`].
///
/// The order is uploaded once; each batch is gathered when it is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Batches {
    tensors: Tensors,
    /// (n), u32, on the device.
    places: Tensor,
    size: usize,
    next: usize,
    count: usize,
}

impl Iterator for Batches {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next == self.count {
            return None;
        }
        let start = self.next * self.size;
        let len = self.size.min(self.places.elem_count() - start);
        self.next += 1;
        let places = self.places.narrow(0, start, len);
        Some(
            places
                .map_err(Into::into)
                .and_then(|p| self.tensors.gather(&p)),
        )
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.count - self.next;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Batches {}

fn pixels(split: &Split, image: usize) -> Result<&[u8]> {
    let n = split.len();
    split
        .image(image)
        .ok_or_else(|| anyhow::anyhow!("image number: wanted less than {n}, got {image}"))
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
    use sala_models::rng::Rng;

    use super::*;

    const CPU: Device = Device::Cpu;

    /// `n` images of 2 channels, 1×2 pixels: image i holds 4i, 4i+1 | 4i+2, 4i+3, and label i mod 10.
    fn split(n: u8) -> Split {
        let images = (0..4 * n).collect();
        let labels = (0..n).map(|i| i % 10).collect();
        Split::new(images, labels, [2, 1, 2]).unwrap()
    }

    /// Statistics under which a pixel `v` stays `v`.
    fn identity() -> ChannelStats {
        ChannelStats {
            mean: vec![0.0; 2],
            std: vec![1.0 / 255.0; 2],
        }
    }

    fn tensors(n: u8) -> Tensors {
        let all: Vec<usize> = (0..usize::from(n)).collect();
        Tensors::new(&split(n), &all, &identity(), &CPU).unwrap()
    }

    fn first_pixels(batch: &Batch) -> Vec<f32> {
        let n = labels(batch).len();
        let flat: Vec<f32> = batch.images.flatten_all().unwrap().to_vec1().unwrap();
        flat.chunks(flat.len() / n).map(|image| image[0]).collect()
    }

    fn labels(batch: &Batch) -> Vec<u32> {
        batch.labels.to_vec1().unwrap()
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
        let split = super::super::load_train(&super::super::Source::Embedded).unwrap();
        let some: Vec<usize> = (0..5_000).step_by(10).collect();
        let stats = channel_stats(&split, &some).unwrap();
        let images = Tensors::new(&split, &some, &stats, &CPU).unwrap().images;
        assert_eq!(images.dims(), [500, 1, 28, 28]);
        let images = images.to_dtype(DType::F64).unwrap();
        let mean: f64 = images.mean_all().unwrap().to_scalar().unwrap();
        let square: f64 = images
            .sqr()
            .unwrap()
            .mean_all()
            .unwrap()
            .to_scalar()
            .unwrap();
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
        let tensors = Tensors::new(&split(3), &[1], &stats, &CPU).unwrap();
        assert_eq!(tensors.images.dims(), [1, 2, 1, 2]);
        let got: Vec<f32> = tensors.images.flatten_all().unwrap().to_vec1().unwrap();
        for (got, wanted) in got.iter().zip([4.0, 5.0, 8.0, 10.0]) {
            assert!((got - wanted).abs() < 1e-5, "{got} {wanted}");
        }
    }

    #[test]
    fn constants_that_cannot_normalise_are_refused() {
        let flat = Split::new(vec![7; 8], vec![0, 1], [2, 1, 2]).unwrap();
        let error = channel_stats(&flat, &[0, 1]).unwrap_err();
        assert!(error.to_string().contains("channel 0"), "{error}");
        for (mean, std) in [
            (vec![0.0], vec![1.0]),
            (vec![0.0; 2], vec![1.0, 0.0]),
            (vec![0.0, f64::NAN], vec![1.0; 2]),
        ] {
            let stats = ChannelStats { mean, std };
            assert!(
                Tensors::new(&split(2), &[0], &stats, &CPU).is_err(),
                "{stats:?}"
            );
        }
    }

    #[test]
    fn images_and_labels_stay_together_in_the_order_of_the_list() {
        let tensors = Tensors::new(&split(6), &[5, 0, 3], &identity(), &CPU).unwrap();
        let batch = tensors
            .batches(&[2, 0], 2)
            .unwrap()
            .next()
            .unwrap()
            .unwrap();
        assert_eq!(batch.images.dims(), [2, 2, 1, 2]);
        assert_eq!(labels(&batch), [3, 5]);
        let got = first_pixels(&batch);
        assert!(
            (got[0] - 12.0).abs() < 1e-4 && (got[1] - 20.0).abs() < 1e-4,
            "{got:?}"
        );
        assert_eq!(tensors.images.dtype(), DType::F32);
        assert_eq!(tensors.labels.dtype(), DType::U32);
    }

    #[test]
    fn an_epoch_sees_every_image_once_with_a_short_last_batch() {
        let tensors = tensors(10);
        let order = order(Rng::new(1).stream("order"), 0, 10);
        let batches = tensors.batches(&order, 4).unwrap();
        assert_eq!(batches.len(), 3);
        let batches: Vec<Batch> = batches.collect::<Result<_>>().unwrap();
        assert_eq!(
            batches.iter().map(|b| labels(b).len()).collect::<Vec<_>>(),
            [4, 4, 2]
        );
        let seen: Vec<usize> = batches
            .iter()
            .flat_map(labels)
            .map(|l| l as usize)
            .collect();
        assert_eq!(seen, order);
    }

    #[test]
    fn a_size_that_divides_the_number_adds_no_empty_batch() {
        let sizes = |size| -> Vec<usize> {
            let batches = tensors(10).in_order(size).unwrap();
            batches.map(|b| labels(&b.unwrap()).len()).collect()
        };
        assert_eq!(sizes(5), [5, 5]);
        assert_eq!(sizes(10), [10]);
        assert_eq!(sizes(64), [10]);
    }

    #[test]
    fn evaluation_keeps_the_order() {
        let batches = tensors(7).in_order(3).unwrap();
        let seen: Vec<u32> = batches.flat_map(|b| labels(&b.unwrap())).collect();
        assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn an_epoch_without_any_batch_is_refused() {
        let tensors = tensors(5);
        assert!(tensors.batches(&[0, 1], 0).is_err());
        assert!(tensors.batches(&[], 2).is_err());
        assert!(Tensors::new(&split(2), &[], &identity(), &CPU).is_err());
        assert!(channel_stats(&split(2), &[]).is_err());
    }

    #[test]
    fn a_place_beyond_the_end_is_refused() {
        let tensors = tensors(5);
        let error = tensors.batches(&[0, 5], 1).unwrap_err();
        assert!(error.to_string().contains("got 5"), "{error}");
        assert!(Tensors::new(&split(2), &[2], &identity(), &CPU).is_err());
        assert!(channel_stats(&split(2), &[2]).is_err());
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
