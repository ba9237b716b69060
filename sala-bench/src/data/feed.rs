//! What a network is trained on: shuffled, augmented batches, made ahead by threads of their own.
//!
//! On a graphics card the images stay there as bytes, and the threads only draw what becomes of them, as far as all
//! augmentations are choices of rows and columns, cleared rectangles and mixtures. The batches have the same bits.
//!
//! A batch is a pure function of seed, epoch and its number, so it does not matter how many threads there are, and a
//! run can go on anywhere.

use std::{num::NonZero, sync::Arc, thread::available_parallelism};

use anyhow::{Context, Result, ensure};
use sala_models::{
    Rng,
    images::{Mixture, View},
    rng::Stream,
};

use super::{
    ahead::Ahead,
    augment::{Image, Pipeline, Shares, Values, mix},
    batches::{Batch, Selection, Targets, order},
};

/// One thread for so many processors: what a step takes is usually a hundred times what its batch takes.
const PROCESSORS_PER_THREAD: usize = 4;
const MOST_THREADS: usize = 8;

/// The training images of a run, from the order of which batches are cut.
#[derive(Debug, Clone)]
pub(crate) struct Feed {
    shared: Arc<Shared>,
    threads: usize,
}

#[derive(Debug)]
struct Shared {
    selection: Selection,
    pipeline: Pipeline,
    order: Stream,
    batch_size: usize,
    /// Whether the card that the images are on puts batches together.
    on_card: bool,
}

/// A batch that is still in memory.
#[derive(Debug)]
struct Raw {
    images: Made,
    targets: Targets,
}

/// The images of a batch.
#[derive(Debug)]
enum Made {
    Values(Vec<f32>),
    /// What the card puts together.
    Views(Vec<View>, Mixture),
}

impl Feed {
    /// Batches of `batch_size` of these images, augmented.
    ///
    /// # Errors
    /// When the augmentations cannot be applied to images of this shape, or a batch would be empty.
    pub(crate) fn new(
        selection: Selection,
        pipeline: Pipeline,
        batch_size: usize,
        seed: u64,
    ) -> Result<Self> {
        ensure!(batch_size > 0, "batch size: wanted at least 1, got 0");
        pipeline.check(selection.shape())?;
        let on_card = pipeline.is_view() && selection.on_card().is_some();
        let processors = available_parallelism().map_or(1, NonZero::get);
        Ok(Self {
            shared: Arc::new(Shared {
                selection,
                pipeline,
                order: Rng::new(seed).stream("data/order"),
                batch_size,
                on_card,
            }),
            threads: (processors / PROCESSORS_PER_THREAD).clamp(1, MOST_THREADS),
        })
    }

    /// With another number of threads.
    #[cfg(test)]
    fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Number of images, N.
    pub(crate) fn len(&self) -> usize {
        self.shared.selection.len()
    }

    /// Batches of an epoch; the last may be shorter.
    pub(crate) fn batches(&self) -> usize {
        self.len().div_ceil(self.shared.batch_size)
    }

    /// Images in a batch.
    pub(crate) fn batch_size(&self) -> usize {
        self.shared.batch_size
    }

    /// How many make batches.
    pub(crate) const fn threads(&self) -> usize {
        self.threads
    }

    /// The values of an epoch's first batch, made by the caller's thread.
    pub(crate) fn first_of(&self, epoch: u64) -> Result<Vec<f32>> {
        let order = order(self.shared.order, epoch, self.len());
        self.shared.values(epoch, &order, 0)
    }

    /// The values of the first images of the list in their own order, as a batch of an epoch.
    pub(crate) fn unshuffled(&self, epoch: u64) -> Result<Vec<f32>> {
        let order: Vec<usize> = (0..self.len()).collect();
        self.shared.values(epoch, &order, 0)
    }

    /// The images without augmentation.
    pub(crate) fn selection(&self) -> &Selection {
        &self.shared.selection
    }

    /// The batches of an epoch from number `first` on, counted from 0. They are made ahead from now on.
    ///
    /// # Errors
    /// When there are fewer, or the system gives no thread.
    pub(crate) fn epoch(&self, epoch: u64, first: usize) -> Result<Epoch> {
        let batches = self.batches();
        ensure!(
            first <= batches,
            "an epoch has {batches} batches, but number {first} was to be the first"
        );
        let order = order(self.shared.order, epoch, self.len());
        let shared = Arc::clone(&self.shared);
        let make = move |number| shared.batch(epoch, &order, number);
        let room = 2 * self.threads + 1;
        Ok(Epoch {
            shared: Arc::clone(&self.shared),
            raw: Ahead::new(first..batches, self.threads, room, make)?,
        })
    }
}

impl Shared {
    /// Batch `number` of an epoch with this order.
    fn batch(&self, epoch: u64, order: &[usize], number: usize) -> Result<Raw> {
        let places = self.places(order, number);
        let mixture = self.mixture(places, epoch, number);
        let targets = self.targets(places, &mixture)?;
        let images = if self.on_card {
            Made::Views(self.views(epoch, places)?, mixture)
        } else {
            Made::Values(self.mixed(epoch, places, &mixture)?)
        };
        Ok(Raw { images, targets })
    }

    /// The values of batch `number` of an epoch with this order.
    fn values(&self, epoch: u64, order: &[usize], number: usize) -> Result<Vec<f32>> {
        let places = self.places(order, number);
        self.mixed(epoch, places, &self.mixture(places, epoch, number))
    }

    /// The places in the list of the images of a batch.
    fn places<'a>(&self, order: &'a [usize], number: usize) -> &'a [usize] {
        let start = number * self.batch_size;
        &order[start..(start + self.batch_size).min(order.len())]
    }

    /// Height and width of an image.
    fn size(&self) -> (usize, usize) {
        let [_, height, width] = self.selection.shape();
        (height, width)
    }

    /// How the images at these places are mixed.
    fn mixture(&self, places: &[usize], epoch: u64, number: usize) -> Mixture {
        (self.pipeline).mixture(places.len(), self.size(), (epoch, number))
    }

    /// The values of the images at these places, mixed.
    fn mixed(&self, epoch: u64, places: &[usize], mixture: &Mixture) -> Result<Vec<f32>> {
        let shape = self.selection.shape();
        let mut images = Vec::with_capacity(places.len() * shape.iter().product::<usize>());
        for &place in places {
            let image = self.selection.number(place)?;
            let mut picture = Image::new(shape, self.selection.pixels(image)?.to_vec());
            self.pipeline.pixels(&mut picture, epoch, image);
            let end = images.len();
            self.selection.normalise(picture.pixels(), &mut images);
            let mut values = Values::new(shape, &mut images[end..]);
            self.pipeline.values(&mut values, epoch, image);
        }
        mix(&mut images, shape, mixture);
        Ok(images)
    }

    /// What a card is told of the images at these places.
    fn views(&self, epoch: u64, places: &[usize]) -> Result<Vec<View>> {
        let view = |&place: &usize| {
            let image = self.selection.number(place)?;
            Ok(self.pipeline.view(self.size(), (epoch, image), place))
        };
        places.iter().map(view).collect()
    }

    fn targets(&self, places: &[usize], mixture: &Mixture) -> Result<Targets> {
        let label = |&place: &usize| Ok(self.selection.label(self.selection.number(place)?));
        let labels = places.iter().map(label).collect::<Result<Vec<_>>>()?;
        if !self.pipeline.mixes() {
            return Ok(Targets::Classes(labels));
        }
        let mut shares = Shares::of(&labels, self.selection.classes());
        shares.mix(mixture, self.size());
        Ok(Targets::Shares(shares))
    }

    /// The batch on its device.
    fn upload(&self, Raw { images, targets }: Raw) -> Result<Batch> {
        let images = match images {
            Made::Values(values) => self.selection.upload_images(values)?,
            Made::Views(views, mixture) => {
                let set = self.selection.on_card();
                set.context("the images are not on a card")?
                    .batch(&views, &mixture)?
            }
        };
        let targets = self.selection.upload_targets(targets)?;
        Ok(Batch { images, targets })
    }
}

/// The batches of one epoch, made by [`Feed::epoch`].
#[derive(Debug)]
pub(crate) struct Epoch {
    shared: Arc<Shared>,
    raw: Ahead<Raw>,
}

impl Iterator for Epoch {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        let raw = self.raw.next()?;
        Some(raw.and_then(|raw| self.shared.upload(raw)))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.raw.size_hint()
    }
}

impl ExactSizeIterator for Epoch {}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use sala_models::{
        images::ImageSet,
        kernels::{Choice, with_choice},
    };

    use super::*;
    use crate::{
        data::{batches::ChannelStats, set::tests::split},
        spec::Augmentation,
    };

    const N: usize = 50;

    /// 50 images of 3×8×8 with the given augmentations, in batches of 16.
    fn feed(names: &[&str], seed: u64) -> Feed {
        let pixels = (0..N * 192).map(|i| u8::try_from(i * 31 % 251).unwrap());
        let labels = (0..N).map(|i| u8::try_from(i % 10).unwrap()).collect();
        let split = split(pixels.collect(), labels, [3, 8, 8]).unwrap();
        let stats = ChannelStats {
            mean: vec![0.4; 3],
            std: vec![0.2; 3],
        };
        let list: Vec<Augmentation> = names.iter().map(|n| n.parse().unwrap()).collect();
        // Number 0 is left out, so that places and numbers differ.
        let selection = Selection::new(split, (1..N).collect(), &stats, &Device::Cpu).unwrap();
        Feed::new(selection, Pipeline::new(&list, seed).unwrap(), 16, seed).unwrap()
    }

    fn flat(batch: Result<Batch>) -> (Vec<f32>, Vec<f32>) {
        let Batch { images, targets } = batch.unwrap();
        let targets = targets.to_dtype(images.dtype()).unwrap();
        let values = |x: candle_core::Tensor| x.flatten_all().unwrap().to_vec1().unwrap();
        (values(images), values(targets))
    }

    fn epoch(feed: &Feed, epoch: u64, first: usize) -> Vec<(Vec<f32>, Vec<f32>)> {
        feed.epoch(epoch, first).unwrap().map(flat).collect()
    }

    const EVERYTHING: [&str; 6] = [
        "crop",
        "flip",
        "autoaugment",
        "cutout",
        "random-erasing",
        "mixup",
    ];

    #[test]
    fn batches_are_the_same_for_any_number_of_threads_and_from_any_batch_on() {
        let feed = feed(&EVERYTHING, 1);
        let wanted = epoch(&feed, 3, 0);
        assert_eq!(wanted.len(), 4);
        for threads in [1, 2, 5] {
            let feed = feed.clone().with_threads(threads);
            assert_eq!(epoch(&feed, 3, 0), wanted, "{threads} threads");
        }
        for first in 0..=4 {
            assert_eq!(epoch(&feed, 3, first), wanted[first..], "from {first} on");
        }
        assert_ne!(epoch(&feed, 4, 0), wanted);
        assert!(feed.epoch(3, 5).is_err());
    }

    #[test]
    fn an_epoch_sees_every_image_once_with_a_short_last_batch() {
        let feed = feed(&[], 2);
        let batches = epoch(&feed, 1, 0);
        let sizes: Vec<usize> = batches.iter().map(|(_, labels)| labels.len()).collect();
        assert_eq!(sizes, [16, 16, 16, 1]);
        assert_eq!((feed.len(), feed.batches()), (49, 4));
        let mut seen: Vec<Vec<u32>> = Vec::new();
        for (images, labels) in &batches {
            for (image, label) in images.chunks(192).zip(labels) {
                let image: Vec<u32> = image.iter().map(|v| v.to_bits()).collect();
                // The image says which one it is, and so which label it must have.
                let of_number = |i: &usize| {
                    let pixels = (0..192).map(|p| ((i * 192 + p) * 31 % 251) as f32);
                    let values = image.iter().map(|bits| f32::from_bits(*bits));
                    let mut both = pixels.zip(values);
                    both.all(|(p, v)| ((p / 255.0 - 0.4) / 0.2 - v).abs() < 1e-3)
                };
                let number = (0..N).find(of_number).unwrap();
                assert!((*label - (number % 10) as f32).abs() < 0.5);
                seen.push(image);
            }
        }
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 49);
    }

    #[test]
    fn a_card_puts_batches_together_with_the_same_bits() {
        let all = ["crop", "flip", "cutout", "random-erasing", "mixup"];
        for names in [&all[..], &["flip", "crop", "cutmix"], &[]] {
            let on_card = with_choice(Choice::Emulated, || feed(names, 7));
            // Without a C++ compiler there is nothing to compare.
            let fits = with_choice(Choice::Emulated, || ImageSet::fits(&Device::Cpu)).unwrap();
            assert_eq!(on_card.shared.on_card, fits);
            assert_eq!(epoch(&on_card, 2, 1), epoch(&feed(names, 7), 2, 1));
        }
        // What changes bytes by more than their place is the processor's.
        let on_card = with_choice(Choice::Emulated, || feed(&["flip", "randaugment"], 7));
        assert!(!on_card.shared.on_card);
    }

    #[test]
    fn mixed_batches_have_shares_of_classes_and_others_classes() {
        let mixed = feed(&["cutmix"], 5)
            .epoch(1, 0)
            .unwrap()
            .next()
            .unwrap()
            .unwrap();
        assert_eq!(mixed.targets.dims(), [16, 10]);
        let plain = feed(&["flip"], 5)
            .epoch(1, 0)
            .unwrap()
            .next()
            .unwrap()
            .unwrap();
        assert_eq!(plain.targets.dims(), [16]);
        assert_eq!(plain.images.dims(), [16, 3, 8, 8]);
    }

    #[test]
    fn what_cuts_out_leaves_the_mean() {
        let cut = epoch(&feed(&["cutout"], 6), 1, 0);
        let whole = epoch(&feed(&[], 6), 1, 0);
        let (cut, whole) = (&cut[0].0, &whole[0].0);
        let changed: Vec<f32> = (cut.iter().zip(whole))
            .filter_map(|(a, b)| (a.to_bits() != b.to_bits()).then_some(*a))
            .collect();
        assert!(!changed.is_empty() && changed.iter().all(|&v| v == 0.0));
    }

    #[test]
    fn augmentations_that_do_not_fit_the_images_are_refused() {
        let selection = feed(&[], 0).shared.selection.clone();
        let large: Augmentation = toml::from_str("kind = \"crop\"\npadding = 8").unwrap();
        let pipeline = Pipeline::new(&[large], 0).unwrap();
        assert!(Feed::new(selection, pipeline, 4, 0).is_err());
    }
}
