//! Images as a network wants them: size, channels, and what they are normalised by.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{Device, Tensor};
use image::{DynamicImage, imageops::FilterType};
use serde_json::Value;

use super::{Batch, Input};

/// The file of a model folder that says how images are prepared.
const FILE: &str = "preprocessor_config.json";
/// Mean and deviation of `ImageNet`'s pixels, which models are published with most often.
const IMAGENET: ([f64; 3], [f64; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
/// What is kept of the shorter side where a file asks for it and does not say how much: 224 of 256.
const KEPT: f64 = 0.875;

/// How an image is brought to what a network wants.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Preprocessing {
    /// 1 for grey, 3 for colour.
    channels: usize,
    height: u32,
    width: u32,
    /// Share of the shorter side that is kept when the middle is cut out; without one the whole image is
    /// stretched.
    kept: Option<f64>,
    mean: Vec<f64>,
    std: Vec<f64>,
}

impl Preprocessing {
    /// What the model folder says; `ImageNet`'s normalisation, or 0.5 for grey images, where it says nothing.
    /// `side` is the one size that the network can take, if it is so.
    pub(crate) fn of(folder: &Path, channels: usize, side: Option<usize>) -> Result<Self> {
        ensure!(
            channels == 1 || channels == 3,
            "images have 1 or 3 channels, but the model wants {channels}"
        );
        let path = folder.join(FILE);
        let json = match std::fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text)
                .with_context(|| format!("cannot read {}", path.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Value::Null,
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        let side = side.map(u32::try_from).transpose()?;
        let made = Self::from_json(&json, channels, side.unwrap_or(224));
        let made = made.with_context(|| path.display().to_string())?;
        if let Some(side) = side {
            ensure!(
                (made.height, made.width) == (side, side),
                "{}: the model takes images of {side}×{side}, got {}×{}",
                path.display(),
                made.height,
                made.width
            );
        }
        Ok(made)
    }

    fn from_json(json: &Value, channels: usize, side: u32) -> Result<Self> {
        let number = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
        let size = json.get("size").unwrap_or(&Value::Null);
        let edge = size.get("shortest_edge").and_then(number);
        let (height, width) = match (number(size), edge) {
            (Some(side), _) | (None, Some(side)) => (side, side),
            (None, None) => {
                let of = |key: &str| size.get(key).map(|value| number(value).context("a size"));
                match (of("height").transpose()?, of("width").transpose()?) {
                    (Some(height), Some(width)) => (height, width),
                    (None, None) => (side, side),
                    _ => bail!("`size` has one of height and width"),
                }
            }
        };
        let wanted = json.get("do_normalize") != Some(&Value::Bool(false));
        let usual = |of_colour: [f64; 3]| match channels {
            1 => vec![0.5],
            _ => of_colour.to_vec(),
        };
        let list = |key: &str, usual: Vec<f64>| match json.get(key).and_then(Value::as_array) {
            Some(list) => list
                .iter()
                .map(|x| x.as_f64().context(key.to_owned()))
                .collect(),
            None => Ok(usual),
        };
        let (mut mean, mut std): (Vec<f64>, Vec<f64>) = (
            list("image_mean", usual(IMAGENET.0))?,
            list("image_std", usual(IMAGENET.1))?,
        );
        if !wanted {
            (mean, std) = (vec![0.0; channels], vec![1.0; channels]);
        }
        ensure!(
            mean.len() == channels && std.len() == channels && std.iter().all(|&s| s > 0.0),
            "image_mean and image_std must have a number for each of {channels} channels, the latter above 0"
        );
        ensure!(height > 0 && width > 0, "`size` must be at least 1");
        let kept = edge.map(|_| json.get("crop_pct").and_then(Value::as_f64).unwrap_or(KEPT));
        Ok(Self {
            channels,
            height,
            width,
            kept,
            mean,
            std,
        })
    }

    /// The pixels of an image, channel by channel, in the size and with the channels that are wanted.
    pub(crate) fn pixels(&self, image: &DynamicImage) -> Vec<u8> {
        let image = if (image.width(), image.height()) == (self.width, self.height) {
            image.clone()
        } else {
            self.resized(image)
        };
        let interleaved = match self.channels {
            1 => image.into_luma8().into_raw(),
            _ => image.into_rgb8().into_raw(),
        };
        let channel = |c: usize| interleaved.iter().copied().skip(c).step_by(self.channels);
        (0..self.channels).flat_map(channel).collect()
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "sizes of images in pixels"
    )]
    fn resized(&self, image: &DynamicImage) -> DynamicImage {
        let (width, height) = (self.width, self.height);
        let filter = FilterType::Triangle;
        let Some(kept) = self.kept else {
            return image.resize_exact(width, height, filter);
        };
        let shorter = f64::from(width.min(height)) / kept;
        let scale = shorter / f64::from(image.width().min(image.height()));
        let scaled = |side: u32, least: u32| ((f64::from(side) * scale).round() as u32).max(least);
        let (w, h) = (scaled(image.width(), width), scaled(image.height(), height));
        let image = image.resize_exact(w, h, filter);
        image.crop_imm((w - width) / 2, (h - height) / 2, width, height)
    }

    const fn values(&self) -> usize {
        self.channels * self.plane()
    }

    /// Pixels of a channel.
    const fn plane(&self) -> usize {
        self.height as usize * self.width as usize
    }

    /// The normalised value of each of the 256 pixel values, for each channel.
    fn tables(&self) -> Vec<Vec<f32>> {
        let table = |(mean, std): (&f64, &f64)| {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "rounded to the network's dtype"
            )]
            let value = |pixel: u8| ((f64::from(pixel) / 255.0 - mean) / std) as f32;
            (0..=u8::MAX).map(value).collect()
        };
        self.mean.iter().zip(&self.std).map(table).collect()
    }
}

/// Images with their classes, one byte a value; they are normalised when a batch is made.
#[derive(Debug, Clone)]
pub(crate) struct Images {
    pixels: Vec<u8>,
    labels: Vec<u32>,
    preprocessing: Preprocessing,
    tables: Vec<Vec<f32>>,
}

impl Images {
    /// From the pixels of each image.
    pub(crate) fn new(
        images: Vec<Vec<u8>>,
        labels: Vec<u32>,
        preprocessing: Preprocessing,
    ) -> Result<Self> {
        let pixels = images.concat();
        ensure!(
            pixels.len() == labels.len() * preprocessing.values(),
            "{} labels want {} pixels each, got {} altogether",
            labels.len(),
            preprocessing.values(),
            pixels.len()
        );
        Ok(Self {
            pixels,
            labels,
            tables: preprocessing.tables(),
            preprocessing,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.labels.len()
    }

    pub(super) fn labels(&self) -> &[u32] {
        &self.labels
    }

    pub(super) fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    pub(super) fn batch(&self, places: &[usize], device: &Device) -> Result<Batch> {
        let size = self.preprocessing.values();
        let Preprocessing {
            channels,
            height,
            width,
            ..
        } = self.preprocessing;
        let mut values = Vec::with_capacity(places.len() * size);
        for &place in places {
            let image = &self.pixels[place * size..][..size];
            for (table, plane) in self
                .tables
                .iter()
                .zip(image.chunks(self.preprocessing.plane()))
            {
                values.extend(plane.iter().map(|&pixel| table[usize::from(pixel)]));
            }
        }
        let labels: Vec<u32> = places.iter().map(|&i| self.labels[i]).collect();
        let shape = (places.len(), channels, height as usize, width as usize);
        Ok(Batch {
            counted: labels.len(),
            targets: Tensor::from_vec(labels, places.len(), device)?,
            input: Input::Images(Tensor::from_vec(values, shape, device)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage};
    use serde_json::json;

    use super::*;

    fn of(json: Value, channels: usize) -> Result<Preprocessing> {
        Preprocessing::from_json(&json, channels, 8)
    }

    #[test]
    fn each_way_to_say_the_size_is_understood() {
        let size = |json: Value| {
            let p = of(json, 3).unwrap();
            (p.height, p.width, p.kept)
        };
        assert_eq!(size(json!({"size": 16})), (16, 16, None));
        assert_eq!(
            size(json!({"size": {"height": 4, "width": 6}})),
            (4, 6, None)
        );
        let edge = json!({"size": {"shortest_edge": 16}, "crop_pct": 0.5});
        assert_eq!(size(edge), (16, 16, Some(0.5)));
        assert_eq!(size(Value::Null), (8, 8, None));
        assert!(of(json!({"size": {"height": 4}}), 3).is_err());
        assert!(of(json!({"image_std": [1.0]}), 3).is_err());
    }

    #[test]
    fn pixels_go_channel_by_channel_and_are_normalised() {
        let preprocessing = of(
            json!({"size": {"height": 1, "width": 2},
            "image_mean": [0.0, 0.5, 1.0], "image_std": [1.0, 0.5, 2.0]}),
            3,
        )
        .unwrap();
        let mut image = RgbImage::new(2, 1);
        image.put_pixel(0, 0, Rgb([255, 0, 51]));
        image.put_pixel(1, 0, Rgb([0, 255, 255]));
        let pixels = preprocessing.pixels(&DynamicImage::ImageRgb8(image));
        assert_eq!(pixels, [255, 0, 0, 255, 51, 255]);
        let images = Images::new(vec![vec![0; 6], pixels], vec![1, 0], preprocessing).unwrap();
        let batch = images.batch(&[1], &Device::Cpu).unwrap();
        let Input::Images(values) = &batch.input else {
            panic!("images");
        };
        assert_eq!(values.dims(), [1, 3, 1, 2]);
        let values: Vec<f32> = values.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(values, [1.0, 0.0, -1.0, 1.0, -0.4, 0.0]);
        assert_eq!(batch.targets.to_vec1::<u32>().unwrap(), [0]);
    }

    #[test]
    fn the_middle_is_cut_out_where_the_file_asks_for_the_shorter_edge() {
        // Left half black, right half white, 16×8: scaled to 8×4, of which the middle 2×2 is kept.
        let edge = json!({"size": {"shortest_edge": 2}, "crop_pct": 0.5});
        let black_and_white =
            RgbImage::from_fn(
                16,
                8,
                |x, _| if x < 8 { Rgb([0; 3]) } else { Rgb([255; 3]) },
            );
        let image = DynamicImage::ImageRgb8(black_and_white);
        let cut = of(edge, 1).unwrap().pixels(&image);
        assert_eq!(cut.len(), 4);
        assert!(
            cut[0] < 64 && cut[1] > 192 && cut[2] < 64 && cut[3] > 192,
            "{cut:?}"
        );
    }
}
