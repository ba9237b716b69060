//! The processor in the place of a graphics card: the same kernels, a block after the other.

use std::ffi::{CString, c_char, c_int};

use candle_core::{Error, Result, Tensor, bail};

use super::{Card, Sent};

unsafe extern "C" {
    fn sala_emulate(name: *const c_char, blocks: u32, a: u64, b: u64, c: u64, d: u64) -> c_int;
}

/// What this thread has queued and waited for since it was last asked: names of kernels, and `receive`.
#[cfg(test)]
pub(in super::super) mod log {
    use std::cell::RefCell;

    thread_local! {
        static EVENTS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn add(event: &str) {
        EVENTS.with_borrow_mut(|events| events.push(event.into()));
    }

    pub(in super::super::super) fn take() -> Vec<String> {
        EVENTS.take()
    }
}

/// Tensors are on the CPU.
pub(super) struct Emulated;

impl Card for Emulated {
    fn launch(&self, kernel: &str, blocks: u32, [a, b, c, d]: [u64; 4]) -> Result<()> {
        #[cfg(test)]
        log::add(kernel);
        let name = CString::new(kernel).map_err(Error::wrap)?;
        // SAFETY: the addresses belong to tensors of the lengths that the table says, which live until this returns
        // and which nobody else uses meanwhile.
        if unsafe { sala_emulate(name.as_ptr(), blocks, a, b, c, d) } == 0 {
            bail!("there is no kernel of the name {kernel}");
        }
        Ok(())
    }

    fn send(&self, numbers: &Tensor) -> Result<Box<dyn Sent>> {
        Ok(Box::new(Copied(numbers.to_vec1()?)))
    }
}

/// Numbers that are there already.
#[derive(Debug)]
struct Copied(Vec<f64>);

impl Sent for Copied {
    fn receive(self: Box<Self>) -> Result<Vec<f64>> {
        #[cfg(test)]
        log::add("receive");
        Ok(self.0)
    }
}
