//! `data preview`: a picture of a grid. Each row is an image as it is, and then as the augmentations of each epoch give
//! it to the network; images that are mixed are mixed with those of other rows.

use std::io::Cursor;

use anyhow::{Context, Result, ensure};
use image::{DynamicImage, ImageFormat, Rgb, RgbImage, imageops};
use sala_core::checkpoint::write_atomically;
use sala_models::Rng;

use super::{PreviewArgs, feed};
use crate::{
    data::{
        self, Source,
        batches::{ChannelStats, channel_stats},
        set::picture,
    },
    shell,
    spec::Augmentation,
};

/// Pixels between images.
const GAP: u32 = 4;
/// Small images are enlarged until a side has about so many pixels.
const SIDE: u32 = 96;
const BACKGROUND: Rgb<u8> = Rgb([255; 3]);

pub(super) fn preview(args: &PreviewArgs) -> Result<()> {
    let experiment = args.changes.experiment()?;
    let train = data::load_train(&Source::of(&experiment.data)?)?;
    let n = args.images.get();
    ensure!(
        n <= train.len(),
        "--images: wanted at most the {} training images there are, got {n}",
        train.len()
    );
    let all: Vec<usize> = (0..train.len()).collect();
    let statistics = channel_stats(&train, &all)?;
    let stream = Rng::new(experiment.training.seeds[0]).stream("data/preview");
    let mut shown = stream.permutation(train.len());
    shown.truncate(n);
    let feed = feed(&experiment, &train, shown.clone(), &statistics, n)?;
    let columns = args.columns.get();
    let mut grid = Grid::new(train.shape(), columns + 1, u32::try_from(n)?)?;
    for (row, &image) in (0..).zip(&shown) {
        grid.put(0, row, &train.picture(image)?);
    }
    for epoch in 1..=columns {
        let values = feed.unshuffled(epoch.into())?;
        for (row, values) in (0..).zip(values.chunks(values.len() / n)) {
            let pixels = denormalised(values, &statistics);
            grid.put(epoch, row, &picture(train.shape(), &pixels)?);
        }
    }
    let mut png = Cursor::new(Vec::new());
    grid.canvas.write_to(&mut png, ImageFormat::Png)?;
    let place = || format!("cannot write {}", args.out.display());
    write_atomically(&args.out, png.get_ref()).with_context(place)?;
    let names: Vec<&str> = experiment
        .data
        .augment
        .iter()
        .map(Augmentation::name)
        .collect();
    let names = if names.is_empty() {
        "no augmentations".to_owned()
    } else {
        names.join(", ")
    };
    shell::print(format!(
        "{}: {n} images of {}, as they are and in {columns} epochs of {names}\n",
        args.out.display(),
        train.title()
    ))
}

/// Back to bytes.
fn denormalised(values: &[f32], statistics: &ChannelStats) -> Vec<u8> {
    let plane = values.len() / statistics.mean.len();
    let constants = statistics.mean.iter().zip(&statistics.std);
    let channels = values.chunks(plane).zip(constants);
    channels
        .flat_map(|(values, (mean, std))| {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "casts of floats stop at the ends of the range"
            )]
            let byte = |&value: &f32| ((f64::from(value) * std + mean) * 255.0).round() as u8;
            values.iter().map(byte).collect::<Vec<_>>()
        })
        .collect()
}

/// Images of one size in rows and columns.
struct Grid {
    canvas: RgbImage,
    width: u32,
    height: u32,
}

impl Grid {
    fn new([_, height, width]: [usize; 3], columns: u32, rows: u32) -> Result<Self> {
        let (height, width) = (u32::try_from(height)?, u32::try_from(width)?);
        let scale = (SIDE / height.max(width)).max(1);
        let (height, width) = (scale * height, scale * width);
        let whole = |side: u32, count: u32| {
            let all = (side + GAP)
                .checked_mul(count)
                .and_then(|n| n.checked_add(GAP));
            // Of four bytes and their rows, a picture is not to take more than a few gigabytes.
            all.filter(|&n| n <= 1 << 15)
                .context("the picture would be too large; ask for fewer images")
        };
        let canvas = RgbImage::from_pixel(whole(width, columns)?, whole(height, rows)?, BACKGROUND);
        Ok(Self {
            canvas,
            width,
            height,
        })
    }

    fn put(&mut self, column: u32, row: u32, picture: &DynamicImage) {
        let filter = imageops::FilterType::Nearest;
        let picture = picture
            .resize_exact(self.width, self.height, filter)
            .into_rgb8();
        let x = GAP + column * (self.width + GAP);
        let y = GAP + row * (self.height + GAP);
        imageops::replace(&mut self.canvas, &picture, x.into(), y.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_normalised_is_the_same_byte_again() {
        let statistics = ChannelStats {
            mean: vec![0.3, 0.6],
            std: vec![0.2, 0.1],
        };
        let bytes = [0, 77, 255, 1, 128, 254];
        let values: Vec<f32> = (bytes.chunks(3).zip([(0.3_f32, 0.2_f32), (0.6, 0.1)]))
            .flat_map(|(plane, (mean, std))| {
                let value = move |&b: &u8| (f32::from(b) / 255.0 - mean) / std;
                plane.iter().map(value)
            })
            .collect();
        assert_eq!(denormalised(&values, &statistics), bytes);
    }

    #[test]
    fn pictures_stand_in_their_row_and_column() {
        let mut grid = Grid::new([1, 48, 32], 3, 2).unwrap();
        assert_eq!(grid.canvas.dimensions(), (3 * 68 + 4, 2 * 100 + 4));
        grid.put(2, 1, &DynamicImage::new_luma8(32, 48));
        for (x, y, wanted) in [
            (139, 104, 255),
            (140, 104, 0),
            (203, 199, 0),
            (204, 199, 255),
        ] {
            assert_eq!(grid.canvas.get_pixel(x, y).0, [wanted; 3], "{x} {y}");
        }
        assert!(Grid::new([1, 100, 100], 1, 1 << 20).is_err());
    }
}
