//! One safetensors file, of which only the header is kept and tensors are read singly.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use safetensors::tensor::{Metadata, TensorInfo};

use super::locate::{damaged, unreadable};
use crate::Result;

/// The header's length, as the first eight bytes.
const LENGTH: u64 = 8;
/// The longest header that the format allows.
const LONGEST_HEADER: u64 = 100_000_000;
/// How a placeholder begins that Git LFS leaves where a file was not fetched.
const LFS_POINTER: &[u8] = b"version ";

/// An open file and its header.
#[derive(Debug)]
pub(super) struct Shard {
    path: PathBuf,
    file: Mutex<File>,
    header: Metadata,
    /// Where the tensors' bytes begin.
    start: u64,
}

impl Shard {
    /// Reads the header and compares the file's length with what it says.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let io = |source| unreadable(path, source);
        let mut file = File::open(path).map_err(io)?;
        let actual = file.metadata().map_err(io)?.len();
        if actual < LENGTH {
            return Err(damaged(
                path,
                format!("{actual} bytes are no safetensors file"),
            ));
        }
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(io)?;
        if length == LFS_POINTER {
            let problem = "a placeholder of Git LFS; fetch the file itself with `git lfs pull`";
            return Err(damaged(path, problem));
        }
        let length = u64::from_le_bytes(length);
        if length > LONGEST_HEADER.min(actual - LENGTH) {
            let problem = format!(
                "no safetensors file, or cut short: a header of {length} bytes in a file of {actual}"
            );
            return Err(damaged(path, problem));
        }
        let mut header = vec![];
        (&mut file)
            .take(length)
            .read_to_end(&mut header)
            .map_err(io)?;
        let header: Metadata = serde_json::from_slice(&header)
            .map_err(|error| damaged(path, format!("its header is not safetensors': {error}")))?;
        let start = LENGTH + length;
        let wanted = start + header.data_len() as u64;
        if wanted != actual {
            let problem = format!("wanted {wanted} bytes, as its header says, got {actual}");
            return Err(damaged(path, problem));
        }
        Ok(Self {
            path: path.into(),
            file: Mutex::new(file),
            header,
            start,
        })
    }

    /// The tensors of this file, in any order.
    pub(super) fn tensors(&self) -> impl Iterator<Item = (String, TensorInfo)> {
        let tensors = self.header.tensors().into_iter();
        tensors.map(|(name, info)| (name, info.clone()))
    }

    /// The bytes of a tensor of this file.
    pub(super) fn read(&self, info: &TensorInfo) -> Result<Vec<u8>> {
        let io = |source| unreadable(&self.path, source);
        let (from, to) = info.data_offsets;
        let mut bytes = vec![0; to - from];
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let place = SeekFrom::Start(self.start + from as u64);
        file.seek(place).map_err(io)?;
        file.read_exact(&mut bytes).map_err(io)?;
        Ok(bytes)
    }
}
