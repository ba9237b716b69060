//! Data sets of the Hugging Face hub: MNIST and Fashion-MNIST through `candle-datasets`, CIFAR through `hf-hub` and
//! the reader of [Parquet files](super::files).
//!
//! `candle-datasets` 0.11 has CIFAR-10 too, with rows and columns of the images exchanged, and has no CIFAR-100.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Tensor};
use hf_hub::{HFClientSync, HFError};

use super::{HubSet, Part, Split, files};

/// Images of MNIST are squares of this many pixels; the hub's loader delivers them flattened.
const SIDE: usize = 28;
/// Where the hub keeps all data sets as Parquet files.
const REVISION: &str = "refs/convert/parquet";

/// Downloads a data set, or finds it in the hub's cache, and keeps one part.
pub(super) fn load(set: HubSet, part: Part) -> Result<Split> {
    let split = match set {
        HubSet::Mnist => mnist_like(candle_datasets::vision::mnist::load(), part),
        HubSet::FashionMnist => mnist_like(candle_datasets::vision::fashion_mnist::load(), part),
        HubSet::Cifar10 => cifar("cifar10", "plain_text", part),
        HubSet::Cifar100 => cifar("cifar100", "cifar100", part),
    };
    let split = split.with_context(|| {
        format!(
            "cannot load hub:{} from the Hugging Face hub (is there a network?); the embedded subset of \
             Fashion-MNIST needs none, and a folder with the data works too (--data-dir)",
            set.name()
        )
    })?;
    if !split.is_known() {
        let fingerprint = split.fingerprint();
        tracing::info!(
            fingerprint,
            "the hub's files are not among those that are recognised"
        );
    }
    Ok(split)
}

/// The loader always fetches both parts; the one that was not asked for is dropped here.
fn mnist_like(
    sets: candle_core::Result<candle_datasets::vision::Dataset>,
    part: Part,
) -> Result<Split> {
    let sets = sets?;
    let (images, labels) = match part {
        Part::Train => (sets.train_images, sets.train_labels),
        Part::Test => (sets.test_images, sets.test_labels),
    };
    convert(&images, &labels).context("the hub's files are not as expected")
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
    let names = (0..10).map(|i| i.to_string()).collect();
    Split::new(images, labels, [1, SIDE, SIDE], names)
}

/// A part of `uoft-cs/NAME`, in the first file of its folder.
fn cifar(name: &str, folder: &str, part: Part) -> Result<Split> {
    let file = format!("{folder}/{}/0000.parquet", part.name());
    files::split_of_file(&cached(name, &file)?)
}

/// A file of a data set, downloaded unless the cache has it.
fn cached(name: &str, file: &str) -> Result<PathBuf> {
    let client = HFClientSync::new()?;
    let repository = client.dataset("uoft-cs", name);
    let download = repository.download_file().filename(file).revision(REVISION);
    match download.clone().local_files_only(true).send() {
        Err(HFError::LocalEntryNotFound { .. }) => Ok(download.send()?),
        cached => Ok(cached?),
    }
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
