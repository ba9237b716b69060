//! Reader of IDX files of unsigned bytes, the format of MNIST and its drop-in replacements.
//!
//! An IDX file is a header and then the values, last dimension fastest. The header is two zero
//! bytes, one byte for the type (8 is the unsigned byte), one byte for the number of dimensions,
//! and each size as a big-endian 32-bit word. Files may be gzipped; that is decided by content and
//! not by name, because both habits are found in the wild.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use flate2::read::MultiGzDecoder;

use crate::data::{Part, Split};

/// First bytes of every gzip file (RFC 1952, section 2.3.1).
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
/// IDX type code of unsigned bytes.
const UNSIGNED_BYTE: u8 = 0x08;
/// Classes of the data sets in this format.
const CLASSES: u8 = 10;
/// More than any data set of this format holds; a header that asks for more is a damaged one.
const MAX_VALUES: u64 = 1 << 31;

/// The content of one IDX file: a dense array of unsigned bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Idx {
    /// Size of each dimension, outermost first.
    pub(crate) dims: Vec<usize>,
    /// As many values as the product of `dims`, last dimension fastest.
    pub(crate) data: Vec<u8>,
}

/// A part of a data set in the four files of MNIST or Fashion-MNIST.
pub(super) fn split(folder: &Path, part: Part) -> Result<Split> {
    let (image_name, label_name) = part.idx_files();
    let images = read(&find(folder, image_name)?, 3)?;
    let labels = read(&find(folder, label_name)?, 1)?;
    together(images, labels)
        .with_context(|| format!("{image_name} and {label_name} do not make a data set"))
}

/// From a file of grey images (N×H×W) and one of labels (N) in ten classes.
pub(crate) fn together(images: Idx, labels: Idx) -> Result<Split> {
    let &[n, height, width] = images.dims.as_slice() else {
        bail!("wanted images of 3 dimensions, got {:?}", images.dims);
    };
    ensure!(
        n == labels.data.len(),
        "wanted as many labels as images, got {} labels for {n} images",
        labels.data.len()
    );
    let names = (0..CLASSES).map(|i| i.to_string()).collect();
    Split::new(images.data, labels.data, [1, height, width], names)
}

/// The file called `name` or `name.gz`. With both there the plain one is taken: it is what some
/// tools unpack beside the archive, so the contents agree and it is quicker to read.
fn find(folder: &Path, name: &str) -> Result<PathBuf> {
    let (plain, packed) = (folder.join(name), folder.join(format!("{name}.gz")));
    if plain.is_file() {
        Ok(plain)
    } else if packed.is_file() {
        Ok(packed)
    } else {
        bail!("{} holds neither {name} nor {name}.gz", folder.display())
    }
}

/// Reads the file at `path`, gzipped or not, and insists on `rank` dimensions.
fn read(path: &Path, rank: u8) -> Result<Idx> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&bytes, rank, &path.display().to_string())
}

/// Reads an IDX file that is already in memory, gzipped or not, and insists on `rank` dimensions.
/// `origin` is the name that errors give to it.
pub(crate) fn parse(bytes: &[u8], rank: u8, origin: &str) -> Result<Idx> {
    if bytes.starts_with(&GZIP_MAGIC) {
        decode(MultiGzDecoder::new(bytes), rank)
            .with_context(|| format!("{origin} (gzip) is not the IDX file that was wanted"))
    } else {
        decode(bytes, rank).with_context(|| format!("{origin} is not the IDX file that was wanted"))
    }
}

fn decode(mut reader: impl Read, rank: u8) -> Result<Idx> {
    let [zero0, zero1, kind, dims] = word(&mut reader, "the magic number")?;
    ensure!(
        [zero0, zero1] == [0, 0],
        "wrong magic number: wanted two zero bytes first, got {zero0:#04x} {zero1:#04x}"
    );
    ensure!(
        kind == UNSIGNED_BYTE,
        "wrong type of values: wanted code {UNSIGNED_BYTE:#04x} (unsigned byte), got {kind:#04x}"
    );
    ensure!(
        dims == rank,
        "wrong number of dimensions: wanted {rank}, got {dims}"
    );
    let sizes = (0..rank)
        .map(|d| word(&mut reader, &format!("size number {d}")).map(u32::from_be_bytes))
        .collect::<Result<Vec<u32>>>()?;
    let data = values(reader, &sizes)?;
    let dims = sizes
        .iter()
        .map(|&size| usize::try_from(size))
        .collect::<Result<_, _>>()
        .context("a size does not fit this machine's address space")?;
    Ok(Idx { dims, data })
}

/// The values behind the header. Memory grows with what really arrives, never with what the header
/// claims, and one byte beyond the claim is enough to see that there is too much.
fn values(reader: impl Read, sizes: &[u32]) -> Result<Vec<u8>> {
    let wanted = sizes
        .iter()
        .try_fold(1_u64, |n, &size| n.checked_mul(u64::from(size)))
        .filter(|&n| n <= MAX_VALUES);
    let Some(wanted) = wanted else {
        bail!("the header claims sizes {sizes:?}, more than the limit of {MAX_VALUES} values");
    };
    let mut data = Vec::new();
    if let Err(error) = reader.take(wanted + 1).read_to_end(&mut data) {
        let got = data.len();
        return Err(error).with_context(|| {
            format!("the file breaks off: wanted {wanted} values for sizes {sizes:?}, got {got}")
        });
    }
    let got = data.len() as u64;
    ensure!(
        got >= wanted,
        "truncated: wanted {wanted} values for sizes {sizes:?}, got {got}"
    );
    ensure!(
        got == wanted,
        "surplus bytes: wanted {wanted} values for sizes {sizes:?}, but the file goes on"
    );
    Ok(data)
}

/// Four bytes of the header.
fn word(reader: &mut impl Read, what: &str) -> Result<[u8; 4]> {
    let mut bytes = [0; 4];
    reader
        .read_exact(&mut bytes)
        .with_context(|| format!("the header breaks off in {what}"))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    fn file(sizes: &[u32], data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 8, u8::try_from(sizes.len()).unwrap()];
        bytes.extend(sizes.iter().flat_map(|s| s.to_be_bytes()));
        bytes.extend(data);
        bytes
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// The whole chain of causes of the error that `bytes` must give.
    fn error(bytes: &[u8], rank: u8) -> String {
        format!("{:#}", parse(bytes, rank, "here").unwrap_err())
    }

    #[test]
    fn a_file_reads_the_same_plain_and_gzipped() {
        let data: Vec<u8> = (0..24).collect();
        let plain = file(&[2, 3, 4], &data);
        let wanted = Idx {
            dims: vec![2, 3, 4],
            data,
        };
        assert_eq!(parse(&plain, 3, "here").unwrap(), wanted);
        assert_eq!(parse(&gzip(&plain), 3, "here").unwrap(), wanted);
    }

    #[test]
    fn a_path_is_read_by_content_whatever_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("labels.gz");
        std::fs::write(&path, file(&[3], &[7, 8, 9])).unwrap();
        assert_eq!(read(&path, 1).unwrap().data, [7, 8, 9]);
        let missing = read(&dir.path().join("absent"), 1).unwrap_err();
        assert!(format!("{missing:#}").contains("absent"));
    }

    #[test]
    fn an_empty_array_is_a_valid_file() {
        let idx = parse(&file(&[0, 28, 28], &[]), 3, "here").unwrap();
        assert_eq!((idx.dims, idx.data.len()), (vec![0, 28, 28], 0));
    }

    #[test]
    fn a_foreign_magic_number_is_refused() {
        let text = error(b"\x89PNG and so on", 3);
        assert!(
            text.contains("here") && text.contains("0x89 0x50"),
            "{text}"
        );
    }

    #[test]
    fn values_other_than_unsigned_bytes_are_refused() {
        // 0x0d is the code of 32-bit floats, whose bytes would otherwise pass for pixels.
        let mut bytes = file(&[4], &[0; 4]);
        bytes[2] = 0x0d;
        let text = error(&bytes, 1);
        assert!(text.contains("0x08") && text.contains("0x0d"), "{text}");
    }

    #[test]
    fn labels_in_place_of_images_are_refused() {
        let text = error(&file(&[4], &[0; 4]), 3);
        assert!(text.contains("wanted 3, got 1"), "{text}");
    }

    #[test]
    fn a_truncated_file_is_refused_with_both_counts() {
        let text = error(&file(&[2, 2, 2], &[0; 7]), 3);
        assert!(
            text.contains("wanted 8") && text.contains("got 7"),
            "{text}"
        );
    }

    #[test]
    fn a_header_that_breaks_off_is_refused() {
        let bytes = file(&[2, 2, 2], &[]);
        assert!(error(&bytes[..3], 3).contains("magic number"));
        assert!(error(&bytes[..10], 3).contains("size number 1"));
        assert!(error(&[], 3).contains("magic number"));
    }

    #[test]
    fn surplus_bytes_are_refused() {
        assert!(error(&file(&[2, 2], &[0; 5]), 2).contains("surplus"));
        assert!(error(&gzip(&file(&[2, 2], &[0; 5])), 2).contains("surplus"));
    }

    #[test]
    fn a_lying_header_neither_overflows_nor_allocates() {
        // The product is 2^96: it would wrap to 0 and make an empty file look valid.
        let text = error(&file(&[u32::MAX, u32::MAX, u32::MAX], &[]), 3);
        assert!(text.contains("limit"), "{text}");
        // Just under the limit: two gigabytes must not be reserved for three bytes.
        let text = error(&file(&[1 << 31], &[1, 2, 3]), 1);
        assert!(text.contains("got 3"), "{text}");
    }

    #[test]
    fn a_gzip_bomb_is_unpacked_only_as_far_as_its_header_claims() {
        let header = file(&[3], &[]);
        let mut endless = std::io::repeat(0).take(1_000_000);
        let error = decode(header.as_slice().chain(&mut endless), 1).unwrap_err();
        assert!(error.to_string().contains("surplus"), "{error}");
        // Three values and one byte that shows there is more.
        assert_eq!(endless.limit(), 1_000_000 - 4);
    }

    #[test]
    fn a_damaged_gzip_stream_is_refused() {
        let data: Vec<u8> = (0..=255).collect();
        let packed = gzip(&file(&[256], &data));
        let text = error(&packed[..packed.len() / 2], 1);
        assert!(
            text.contains("gzip") && text.contains("breaks off"),
            "{text}"
        );
        // The checksum stands before the length, in the last eight bytes.
        let mut flipped = packed.clone();
        flipped[packed.len() - 8] ^= 1;
        assert!(parse(&flipped, 1, "here").is_err());
    }
}
