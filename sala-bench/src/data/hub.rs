//! Fashion-MNIST from the Hugging Face hub, through `candle-datasets`.

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Tensor};

use super::{Part, Split};

/// Images are squares of this many pixels; the hub's loader delivers them flattened.
const SIDE: usize = 28;

/// Downloads Fashion-MNIST, or finds it in the hub's cache, and keeps one part.
///
/// The loader always fetches both parts; the one that was not asked for is dropped here.
pub(super) fn load(part: Part) -> Result<Split> {
    let sets = candle_datasets::vision::fashion_mnist::load().context(
        "cannot load Fashion-MNIST from the Hugging Face hub (is there a network?); \
         the embedded subset needs none, and a folder with the four IDX files works too",
    )?;
    let (images, labels) = match part {
        Part::Train => (sets.train_images, sets.train_labels),
        Part::Test => (sets.test_images, sets.test_labels),
    };
    let split = convert(&images, &labels).context("the hub's Fashion-MNIST is not as expected")?;
    if split.title() == super::UNKNOWN_TITLE {
        tracing::warn!(
            fingerprint = split.fingerprint(),
            "the hub's files differ from the official ones in content or order"
        );
    }
    Ok(split)
}

/// Back from pixels in 0..=1 (f32, N×784) and labels (u8, N) to whole bytes.
fn convert(images: &Tensor, labels: &Tensor) -> Result<Split> {
    let (n, pixels) = images.dims2()?;
    ensure!(
        pixels == SIDE * SIDE,
        "wanted images of {} pixels, got {pixels}",
        SIDE * SIDE
    );
    let labels: Vec<u8> = labels.to_dtype(DType::U8)?.to_vec1()?;
    ensure!(
        labels.len() == n,
        "wanted as many labels as images, got {} labels for {n} images",
        labels.len()
    );
    // The division by 255 is exact to half a unit in the last place, so rounding restores the byte.
    let images = (images.to_dtype(DType::F32)? * 255.0)?.round()?;
    let images: Vec<u8> = images.to_dtype(DType::U8)?.flatten_all()?.to_vec1()?;
    Split::new(images, labels, [1, SIDE, SIDE])
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn every_byte_survives_the_way_through_floats() {
        let bytes: Vec<u8> = (0..2 * 784)
            .map(|i| u8::try_from(i % 256).unwrap())
            .collect();
        let images = Tensor::from_vec(bytes.clone(), (2, 784), &Device::Cpu).unwrap();
        let images = (images.to_dtype(DType::F32).unwrap() / 255.0).unwrap();
        let labels = Tensor::from_vec(vec![3_u8, 9], 2, &Device::Cpu).unwrap();
        let split = convert(&images, &labels).unwrap();
        assert_eq!(split.image(0).unwrap(), &bytes[..784]);
        assert_eq!(split.image(1).unwrap(), &bytes[784..]);
        assert_eq!(split.labels(), [3, 9]);
    }

    #[test]
    fn images_of_another_size_or_number_are_refused() {
        let zeros = |n, pixels| Tensor::zeros((n, pixels), DType::F32, &Device::Cpu).unwrap();
        let labels = Tensor::zeros(2, DType::U8, &Device::Cpu).unwrap();
        let error = convert(&zeros(2, 1024), &labels).unwrap_err();
        assert!(error.to_string().contains("got 1024"), "{error}");
        let error = convert(&zeros(3, 784), &labels).unwrap_err();
        assert!(
            error.to_string().contains("2 labels for 3 images"),
            "{error}"
        );
    }
}
