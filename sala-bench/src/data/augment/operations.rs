//! The operations that `AutoAugment` and `RandAugment` choose from (Cubuk et al. 2019, arXiv:1805.09501, table 6),
//! with the ranges that torchvision gives them.
//!
//! | operation | at strength `s` from 0 to 1 |
//! |---|---|
//! | shear X, Y | `x ← x ± 0.3 s y` |
//! | translate X, Y | by `⌊150/331 · s · size⌋` pixels either way |
//! | rotate | by `30 s` degrees either way, about the middle |
//! | brightness, colour, contrast, sharpness | away from or towards black, grey, the mean grey, a blurred image: `b + (1 ± 0.9 s)(v − b)` |
//! | posterise | keeps `8 − round(4 s)` bits |
//! | solarise | inverts values of at least `255 (1 − s)` |
//! | auto-contrast, equalise, invert, identity | have no strength |
//!
//! Geometry takes the nearest pixel, and grey 128 from outside, as the authors' code does. Values are rounded as
//! Pillow rounds them, whose operations these are in every pixel.

use super::Image;

/// The grey of what comes in from outside.
const OUTSIDE: u8 = 128;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(serde::Deserialize))]
pub(super) enum Operation {
    Identity,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
    Brightness,
    Color,
    Contrast,
    Sharpness,
    Posterize,
    Solarize,
    AutoContrast,
    Equalize,
    Invert,
}

impl Operation {
    /// Applies it with a strength from 0 to 1, to the other side where it has two and `negative` says so.
    pub(super) fn apply(self, image: &mut Image, strength: f64, negative: bool) {
        let signed = if negative { -strength } else { strength };
        let (height, width) = image.size();
        match self {
            Self::Identity => {}
            Self::ShearX => warp(image, [1.0, 0.3 * signed, 0.0, 0.0, 1.0, 0.0]),
            Self::ShearY => warp(image, [1.0, 0.0, 0.0, 0.3 * signed, 1.0, 0.0]),
            Self::TranslateX => warp(image, [1.0, 0.0, pixels(signed, width), 0.0, 1.0, 0.0]),
            Self::TranslateY => warp(image, [1.0, 0.0, 0.0, 0.0, 1.0, pixels(signed, height)]),
            Self::Rotate => rotate(image, 30.0 * signed),
            Self::Brightness => {
                let black = vec![0; height * width];
                away_from(image, &black, 1.0 + 0.9 * signed);
            }
            Self::Color => {
                let grey = image.grey();
                away_from(image, &grey, 1.0 + 0.9 * signed);
            }
            Self::Contrast => {
                let mean = mean(&image.grey());
                away_from(image, &vec![mean; height * width], 1.0 + 0.9 * signed);
            }
            Self::Sharpness => sharpen(image, 1.0 + 0.9 * signed),
            Self::Posterize => posterize(image, strength),
            Self::Solarize => {
                let threshold = 255.0 * (1.0 - strength);
                let inverted = |v: u8| if f64::from(v) < threshold { v } else { !v };
                image
                    .pixels_mut()
                    .iter_mut()
                    .for_each(|v| *v = inverted(*v));
            }
            Self::AutoContrast => image.planes_mut().for_each(stretch),
            Self::Equalize => image.planes_mut().for_each(equalize),
            Self::Invert => image.pixels_mut().iter_mut().for_each(|v| *v = !*v),
        }
    }
}

/// Pixels of a translation.
fn pixels(signed: f64, size: usize) -> f64 {
    (150.0 / 331.0 * signed * size as f64).trunc()
}

/// Takes each pixel from where the affine map `(a x + b y + c, d x + e y + f)` of its middle lies.
fn warp(image: &mut Image, [a, b, c, d, e, f]: [f64; 6]) {
    let (height, width) = image.size();
    let place = |value: f64, size: usize| -> Option<usize> {
        let inside = value >= 0.0 && value < size as f64;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it lies within the image"
        )]
        inside.then_some(value as usize)
    };
    let mut sources = Vec::with_capacity(height * width);
    for y in 0..height {
        for x in 0..width {
            let (x, y) = (x as f64 + 0.5, y as f64 + 0.5);
            let column = place(a * x + b * y + c, width);
            let row = place(d * x + e * y + f, height);
            sources.push(row.zip(column).map(|(row, column)| row * width + column));
        }
    }
    let mut warped = Vec::with_capacity(image.pixels().len());
    for plane in image.planes() {
        warped.extend(sources.iter().map(|s| s.map_or(OUTSIDE, |s| plane[s])));
    }
    image.replace(warped);
}

/// Turns the image about its middle, counter-clockwise for positive angles.
fn rotate(image: &mut Image, degrees: f64) {
    let (height, width) = image.size();
    let (x, y) = (width as f64 / 2.0, height as f64 / 2.0);
    let (sin, cos) = (-degrees.to_radians()).sin_cos();
    let map = [
        cos,
        sin,
        x - cos * x - sin * y,
        -sin,
        cos,
        y + sin * x - cos * y,
    ];
    warp(image, map);
}

/// `b + factor (v − b)` with the same `b` in every channel.
fn away_from(image: &mut Image, base: &[u8], factor: f64) {
    for plane in image.planes_mut() {
        blend(plane, base, factor);
    }
}

/// `b + factor (v − b)`, cut to a byte, in the precision that Pillow has.
fn blend(plane: &mut [u8], base: &[u8], factor: f64) {
    #[expect(clippy::cast_possible_truncation, reason = "as Pillow does")]
    let factor = factor as f32;
    for (value, &base) in plane.iter_mut().zip(base) {
        let base = f32::from(base);
        *value = byte((base + factor * (f32::from(*value) - base)).into());
    }
}

/// Cut off to a whole number from 0 to 255.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "casts of floats stop at the ends of the range"
)]
const fn byte(value: f64) -> u8 {
    value as u8
}

/// The mean, rounded.
fn mean(values: &[u8]) -> u8 {
    let sum: u64 = values.iter().map(|&v| u64::from(v)).sum();
    byte(sum as f64 / values.len() as f64 + 0.5)
}

/// Away from or towards the image under the weights 1 1 1, 1 5 1, 1 1 1 of thirteen; pixels at the border are not
/// blurred.
fn sharpen(image: &mut Image, factor: f64) {
    let (height, width) = image.size();
    if height < 3 || width < 3 {
        return;
    }
    for plane in image.planes_mut() {
        let mut smooth = plane.to_vec();
        for y in 1..height - 1 {
            for x in 1..width - 1 {
                let row = |y: usize| {
                    let three = &plane[y * width + x - 1..][..3];
                    three.iter().map(|&v| u32::from(v)).sum::<u32>()
                };
                let middle = 4 * u32::from(plane[y * width + x]);
                let sum = row(y - 1) + row(y) + row(y + 1) + middle;
                smooth[y * width + x] = byte(f64::from(sum) / 13.0 + 0.5);
            }
        }
        blend(plane, &smooth, factor);
    }
}

fn posterize(image: &mut Image, strength: f64) {
    // Of at most four bits.
    let cleared = u32::from(byte((4.0 * strength).round()));
    let mask = u8::MAX.checked_shl(cleared).unwrap_or(0);
    image.pixels_mut().iter_mut().for_each(|v| *v &= mask);
}

/// Stretches the values of a channel to the whole range.
fn stretch(plane: &mut [u8]) {
    let (Some(&low), Some(&high)) = (plane.iter().min(), plane.iter().max()) else {
        return;
    };
    if low < high {
        let scale = 255.0 / f64::from(high - low);
        let offset = -f64::from(low) * scale;
        for value in plane.iter_mut() {
            *value = byte(f64::from(*value) * scale + offset);
        }
    }
}

/// Makes all values of a channel about equally frequent.
fn equalize(plane: &mut [u8]) {
    let mut counts = [0_usize; 256];
    for &value in plane.iter() {
        counts[usize::from(value)] += 1;
    }
    let last = counts.iter().rev().copied().find(|&c| c > 0).unwrap_or(0);
    let step = (plane.len() - last) / 255;
    if step == 0 {
        return;
    }
    let mut table = [0; 256];
    let mut sum = step / 2;
    for (value, count) in table.iter_mut().zip(counts) {
        *value = u8::try_from(sum / step).unwrap_or(u8::MAX);
        sum += count;
    }
    for value in plane.iter_mut() {
        *value = table[usize::from(*value)];
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    /// Made by `tests/reference/pillow_operations.py`.
    const PILLOW: &str = include_str!("../../../tests/reference/pillow_operations.json");

    #[derive(Deserialize)]
    struct Reference {
        shape: [usize; 3],
        pixels: String,
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        operation: Operation,
        strength: f64,
        negative: bool,
        pixels: String,
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let pairs = hex.as_bytes().chunks(2);
        let byte = |pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
        pairs.map(byte).collect()
    }

    #[test]
    fn every_operation_is_pillows_in_every_pixel() {
        let reference: Reference = serde_json::from_str(PILLOW).unwrap();
        assert_eq!(reference.cases.len(), 43);
        for case in reference.cases {
            let mut image = Image::new(reference.shape, bytes(&reference.pixels));
            case.operation
                .apply(&mut image, case.strength, case.negative);
            let wanted = bytes(&case.pixels);
            let wrong = image.pixels().iter().zip(&wanted).filter(|(a, b)| a != b);
            let (operation, strength) = (case.operation, case.strength);
            assert_eq!(
                wrong.count(),
                0,
                "{operation:?} {strength} {}",
                case.negative
            );
        }
    }

    fn applied(operation: Operation, pixels: &[u8], width: usize, strength: f64) -> Vec<u8> {
        let height = pixels.len() / width;
        let mut image = Image::new([1, height, width], pixels.to_vec());
        operation.apply(&mut image, strength, false);
        image.pixels().to_vec()
    }

    #[test]
    fn operations_on_a_few_grey_pixels_are_as_by_hand() {
        use Operation::{
            AutoContrast, Brightness, Color, Contrast, Equalize, Identity, Invert, Posterize,
            Solarize, TranslateX,
        };
        let row = [10, 100, 200, 255];
        assert_eq!(applied(Identity, &row, 4, 1.0), row);
        assert_eq!(applied(Invert, &row, 4, 0.0), [245, 155, 55, 0]);
        // ⌊150/331 · 4⌋ = 1 pixel to the left, and grey from the right.
        assert_eq!(applied(TranslateX, &row, 4, 1.0), [100, 200, 255, 128]);
        // At least 127.5 is inverted.
        assert_eq!(applied(Solarize, &row, 4, 0.5), [10, 100, 55, 0]);
        // Four bits stay.
        assert_eq!(
            applied(Posterize, &[255, 0x1f, 16, 7], 4, 1.0),
            [240, 16, 16, 0]
        );
        assert_eq!(applied(Brightness, &row, 4, 1.0), [19, 190, 255, 255]);
        // The mean is 141.25, so 141.
        assert_eq!(applied(Contrast, &row, 4, 0.5), [0, 81, 226, 255]);
        assert_eq!(applied(AutoContrast, &[51, 60, 102], 3, 0.0), [0, 45, 255]);
        // Grey has no colour, and what has one value has no contrast.
        assert_eq!(applied(Color, &row, 4, 1.0), row);
        assert_eq!(applied(AutoContrast, &[9; 4], 2, 0.0), [9; 4]);
        assert_eq!(applied(Equalize, &[9; 4], 2, 0.0), [9; 4]);
    }

    #[test]
    fn a_strength_of_nothing_leaves_the_image_alone() {
        use Operation::{
            Brightness, Color, Contrast, Posterize, Rotate, Sharpness, ShearX, ShearY, TranslateX,
            TranslateY,
        };
        let pixels: Vec<u8> = (0..36).map(|i| i * 7).collect();
        for operation in [
            ShearX, ShearY, TranslateX, TranslateY, Rotate, Brightness, Color, Contrast, Sharpness,
            Posterize,
        ] {
            assert_eq!(applied(operation, &pixels, 6, 0.0), pixels, "{operation:?}");
        }
    }
}
