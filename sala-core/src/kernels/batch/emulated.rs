//! The processor in the place of a graphics card: the same kernels, a block after the other.

use std::ffi::{CString, c_char, c_int};

use candle_core::{Error, Result, bail};

use super::Card;

unsafe extern "C" {
    fn sala_emulate(name: *const c_char, blocks: u32, a: u64, b: u64, c: u64) -> c_int;
}

/// Tensors are on the CPU.
pub(super) struct Emulated;

impl Card for Emulated {
    fn launch(&self, kernel: &str, blocks: u32, [a, b, c]: [u64; 3]) -> Result<()> {
        let name = CString::new(kernel).map_err(Error::wrap)?;
        // SAFETY: the addresses belong to tensors of the lengths that the table says, which live until this returns
        // and which nobody else uses meanwhile.
        if unsafe { sala_emulate(name.as_ptr(), blocks, a, b, c) } == 0 {
            bail!("there is no kernel of the name {kernel}");
        }
        Ok(())
    }
}
