//! Augmentations: random changes of the training images.
//!
//! | stage | what is changed | augmentations |
//! |---|---|---|
//! | 1 | the bytes of an image | `crop`, `flip`, `autoaugment`, `randaugment`, in the order of the experiment |
//! | 2 | its normalised values, in which 0 is the mean of the channel | `cutout`, `random-erasing` |
//! | 3 | a batch and its targets | `mixup`, `cutmix` |
//!
//! Every augmentation draws from a stream of its own, at the epoch and the number of the image in the data set
//! (stages 1 and 2) or at the epoch and the number of the batch (stage 3). So what happens to an image is a pure
//! function of seed, epoch and its number: the same for every optimizer, for any number of threads, and whatever
//! other augmentations there are.

mod auto_augment;
mod crop;
mod cutmix;
mod cutout;
mod flip;
mod frame;
mod image;
mod mixture;
mod mixup;
mod operations;
mod rand_augment;
mod random_erasing;

use std::fmt;

use anyhow::{Result, ensure};
use sala_models::{
    Rng,
    images::{Mixture, Rectangle, View},
    rng::Stream,
};

use crate::spec::Augmentation;

pub(crate) use crop::Border;
pub(crate) use image::{Image, Values};
pub(crate) use mixture::{Shares, mix};

use frame::Frame;

/// Changes which rows and columns of an image are seen.
trait OnFrame: fmt::Debug + Send + Sync {
    fn frame(&self, frame: &mut Frame, draws: Stream);

    /// Whether images of this shape `[C, H, W]` can be changed so.
    fn check(&self, _shape: [usize; 3]) -> Result<()> {
        Ok(())
    }

    /// Changes an image so.
    #[cfg(test)]
    fn apply(&self, image: &mut Image, draws: Stream) {
        let mut frame = Frame::whole(image.size());
        self.frame(&mut frame, draws);
        frame.show(image);
    }
}

/// Changes the bytes of an image.
trait OnPixels: fmt::Debug + Send + Sync {
    fn apply(&self, image: &mut Image, draws: Stream);
}

/// Sets a part of the normalised values of an image to 0.
trait OnValues: fmt::Debug + Send + Sync {
    /// The part of an image of this height and width.
    fn cleared(&self, size: (usize, usize), draws: Stream) -> Option<Rectangle>;

    /// Changes an image so.
    fn apply(&self, values: &mut Values<'_>, draws: Stream) {
        if let Some(part) = self.cleared(values.size(), draws) {
            values.clear(&part);
        }
    }
}

/// Mixes the images of a batch, and their targets with them.
trait OnBatch: fmt::Debug + Send + Sync {
    /// How a batch of so many images of this height and width is mixed.
    fn mixture(&self, images: usize, size: (usize, usize), draws: Stream) -> Mixture;

    /// Mixes images of `shape` that lie one after the other, and the target of each.
    #[cfg(test)]
    fn apply(&self, images: &mut [f32], shape: [usize; 3], shares: &mut Shares, draws: Stream) {
        let [channels, height, width] = shape;
        let count = images.len() / (channels * height * width);
        let mixture = self.mixture(count, (height, width), draws);
        mixture::mix(images, shape, &mixture);
        shares.mix(&mixture, (height, width));
    }
}

/// What changes the bytes of an image.
#[derive(Debug)]
enum OnBytes {
    Frame(Box<dyn OnFrame>),
    Pixels(Box<dyn OnPixels>),
}

/// An augmentation and the stream that it draws from.
#[derive(Debug)]
struct Drawing<T>(Stream, T);

/// The augmentations of an experiment under one seed.
#[derive(Debug, Default)]
pub(crate) struct Pipeline {
    bytes: Vec<Drawing<OnBytes>>,
    normalised: Vec<Drawing<Box<dyn OnValues>>>,
    mixing: Option<Drawing<Box<dyn OnBatch>>>,
}

impl Pipeline {
    /// Puts the augmentations together; within a stage they are applied in the order of the list.
    ///
    /// # Errors
    /// When a number of one of them is out of its range, one is listed twice, or there are both `mixup` and
    /// `cutmix`.
    pub(crate) fn new(augmentations: &[Augmentation], seed: u64) -> Result<Self> {
        let mut pipeline = Self::default();
        for (i, augmentation) in augmentations.iter().enumerate() {
            let name = augmentation.name();
            ensure!(
                augmentations[..i].iter().all(|a| a.name() != name),
                "data.augment: `{name}` is listed twice"
            );
            let stream = Rng::new(seed).stream(&format!("data/augment/{name}"));
            pipeline.add(augmentation, stream)?;
        }
        Ok(pipeline)
    }

    fn add(&mut self, augmentation: &Augmentation, stream: Stream) -> Result<()> {
        let on_bytes = match *augmentation {
            Augmentation::Crop { padding, border } => {
                OnBytes::Frame(Box::new(crop::Crop::new(padding, border)?))
            }
            Augmentation::Flip { probability } => {
                OnBytes::Frame(Box::new(flip::Flip::new(probability)?))
            }
            Augmentation::Autoaugment {} => OnBytes::Pixels(Box::new(auto_augment::AutoAugment)),
            Augmentation::Randaugment {
                operations,
                magnitude,
            } => OnBytes::Pixels(Box::new(rand_augment::RandAugment::new(
                operations, magnitude,
            )?)),
            Augmentation::Cutout { size } => {
                let cutout = cutout::Cutout::new(size)?;
                self.normalised.push(Drawing(stream, Box::new(cutout)));
                return Ok(());
            }
            Augmentation::RandomErasing {
                probability,
                area,
                aspect,
            } => {
                let erasing = random_erasing::RandomErasing::new(probability, area, aspect)?;
                self.normalised.push(Drawing(stream, Box::new(erasing)));
                return Ok(());
            }
            Augmentation::Mixup { alpha } => {
                return self.mix(Drawing(stream, Box::new(mixup::Mixup::new(alpha)?)));
            }
            Augmentation::Cutmix { alpha, probability } => {
                let cutmix = cutmix::CutMix::new(alpha, probability)?;
                return self.mix(Drawing(stream, Box::new(cutmix)));
            }
        };
        self.bytes.push(Drawing(stream, on_bytes));
        Ok(())
    }

    fn mix(&mut self, mixing: Drawing<Box<dyn OnBatch>>) -> Result<()> {
        ensure!(
            self.mixing.is_none(),
            "data.augment: wanted one of `mixup` and `cutmix`, got both"
        );
        self.mixing = Some(mixing);
        Ok(())
    }

    /// Whether images of this shape `[C, H, W]` can be augmented so.
    pub(crate) fn check(&self, shape: [usize; 3]) -> Result<()> {
        self.bytes.iter().try_for_each(|d| match &d.1 {
            OnBytes::Frame(on_frame) => on_frame.check(shape),
            OnBytes::Pixels(_) => Ok(()),
        })
    }

    /// Whether batches are mixed, and their targets are shares of classes.
    pub(crate) fn mixes(&self) -> bool {
        self.mixing.is_some()
    }

    /// Whether stage 1 only chooses rows and columns: then [`view`](Self::view) and [`mixture`](Self::mixture)
    /// say all that happens to a batch.
    pub(crate) fn is_view(&self) -> bool {
        (self.bytes.iter()).all(|drawing| matches!(drawing.1, OnBytes::Frame(_)))
    }

    /// Stage 1, for an image by its number in the data set.
    pub(crate) fn pixels(&self, image: &mut Image, epoch: u64, number: usize) {
        let mut frame = None;
        for Drawing(stream, on_bytes) in &self.bytes {
            let draws = stream.at(epoch).at(number as u64);
            match on_bytes {
                OnBytes::Frame(on_frame) => {
                    let whole = || Frame::whole(image.size());
                    on_frame.frame(frame.get_or_insert_with(whole), draws);
                }
                OnBytes::Pixels(on_pixels) => {
                    show(frame.take(), image);
                    on_pixels.apply(image, draws);
                }
            }
        }
        show(frame, image);
    }

    /// Stage 2, for the same image.
    pub(crate) fn values(&self, values: &mut Values<'_>, epoch: u64, number: usize) {
        for Drawing(stream, augmentation) in &self.normalised {
            augmentation.apply(values, stream.at(epoch).at(number as u64));
        }
    }

    /// Stages 1 and 2, for an image of this height and width, as far as stage 1 chooses rows and columns; `place` is where
    /// the set has it.
    pub(crate) fn view(
        &self,
        size: (usize, usize),
        (epoch, number): (u64, usize),
        place: usize,
    ) -> View {
        let mut frame = Frame::whole(size);
        for Drawing(stream, on_bytes) in &self.bytes {
            if let OnBytes::Frame(on_frame) = on_bytes {
                on_frame.frame(&mut frame, stream.at(epoch).at(number as u64));
            }
        }
        let cleared = self
            .normalised
            .iter()
            .filter_map(|Drawing(stream, on)| on.cleared(size, stream.at(epoch).at(number as u64)));
        View {
            number: place,
            rows: frame.rows,
            columns: frame.columns,
            cleared: cleared.collect(),
        }
    }

    /// Stage 3, for a batch of so many images of this height and width by its number in the epoch, counted from 0;
    /// nothing unless it [mixes](Self::mixes).
    pub(crate) fn mixture(
        &self,
        images: usize,
        size: (usize, usize),
        (epoch, batch): (u64, usize),
    ) -> Mixture {
        let Some(Drawing(stream, mixing)) = &self.mixing else {
            return Mixture::None;
        };
        mixing.mixture(images, size, stream.at(epoch).at(batch as u64))
    }
}

/// Makes an image what a frame shows of it, if there is one.
fn show(frame: Option<Frame>, image: &mut Image) {
    if let Some(frame) = frame {
        frame.show(image);
    }
}

/// A whole number below `n`, which must not be 0.
fn below(draws: Stream, i: u64, n: usize) -> usize {
    // It is below `n`, so it fits.
    usize::try_from(draws.below(i, n as u64)).unwrap_or(0)
}

/// Checks a probability of an augmentation.
fn check_probability(name: &str, probability: f64) -> Result<()> {
    ensure!(
        (0.0..=1.0).contains(&probability),
        "data.augment: {name}.probability must be in [0, 1], got {probability}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Augmentation> {
        let names = [
            "crop",
            "flip",
            "randaugment",
            "cutout",
            "random-erasing",
            "mixup",
        ];
        names.map(|n| n.parse().unwrap()).to_vec()
    }

    fn image() -> Image {
        let pixels = (0..3 * 64).map(|i| u8::try_from(i).unwrap()).collect();
        Image::new([3, 8, 8], pixels)
    }

    #[test]
    fn an_image_depends_on_seed_epoch_and_number_alone() {
        let changed = |list: &[Augmentation], seed, epoch, number| {
            let mut image = image();
            Pipeline::new(list, seed)
                .unwrap()
                .pixels(&mut image, epoch, number);
            image
        };
        let one = changed(&all(), 1, 2, 3);
        assert_eq!(one, changed(&all(), 1, 2, 3));
        let others = [(0, 2, 3), (1, 0, 3), (1, 2, 0)];
        for (seed, epoch, number) in others {
            assert_ne!(one, changed(&all(), seed, epoch, number));
        }
        // What one draws does not move what the next one draws.
        let crop: [Augmentation; 1] = ["crop".parse().unwrap()];
        let with_cutout = [crop[0].clone(), "cutout".parse().unwrap()];
        assert_eq!(changed(&crop, 1, 2, 3), changed(&with_cutout, 1, 2, 3));
    }

    #[test]
    fn stages_come_in_their_order_whatever_the_list_says() {
        let mut list = all();
        list.reverse();
        let pipeline = Pipeline::new(&list, 0).unwrap();
        assert_eq!((pipeline.bytes.len(), pipeline.normalised.len()), (3, 2));
        assert!(pipeline.mixes());
        assert!(!Pipeline::new(&list[1..], 0).unwrap().mixes());
    }

    #[test]
    fn what_cannot_be_put_together_is_refused() {
        let message = |names: &[&str]| {
            let list: Vec<Augmentation> = names.iter().map(|n| n.parse().unwrap()).collect();
            Pipeline::new(&list, 0).unwrap_err().to_string()
        };
        assert!(message(&["flip", "crop", "flip"]).contains("`flip` is listed twice"));
        assert!(message(&["cutmix", "mixup"]).contains("got both"));
        let crop = Pipeline::new(&all(), 0).unwrap();
        let message = crop.check([1, 4, 30]).unwrap_err().to_string();
        assert!(
            message.contains("crop") && message.contains("4×30"),
            "{message}"
        );
        crop.check([1, 5, 5]).unwrap();
    }
}
