//! The processor in the place of a graphics card, for tests: the same kernels, a block after the other, on tensors of
//! the CPU.

use std::ffi::{CString, c_char, c_int};

use candle_core::{Error, Result, bail};

use super::Arguments;

unsafe extern "C" {
    fn sala_models_emulate(name: *const c_char, blocks: u32, arguments: *const Arguments) -> c_int;
}

pub(super) fn launch(kernel: &str, dtype: &str, blocks: u32, arguments: &Arguments) -> Result<()> {
    let name = CString::new(format!("{kernel}_{dtype}")).map_err(Error::wrap)?;
    // SAFETY: the addresses belong to tensors of the lengths that the kernel is told, which live until this returns and
    // which nobody else uses meanwhile.
    if unsafe { sala_models_emulate(name.as_ptr(), blocks, arguments) } == 0 {
        bail!("there is no kernel of the name {kernel}_{dtype}");
    }
    Ok(())
}
