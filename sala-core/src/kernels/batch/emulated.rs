//! The processor in the place of a graphics card: the same kernels, a block after the other.

use std::ffi::{CString, c_char, c_int};

use candle_core::{Error, Result, bail};

use super::{Card, Pages, Sent};

unsafe extern "C" {
    fn sala_emulate(name: *const c_char, blocks: u32, arguments: *const u64) -> c_int;
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
    fn launch(&self, kernel: &str, blocks: u32, arguments: &[u64]) -> Result<()> {
        #[cfg(test)]
        log::add(kernel);
        let name = CString::new(kernel).map_err(Error::wrap)?;
        // SAFETY: a kernel's arguments are as many as it takes. The addresses belong to tensors of the lengths that the
        // table says, which live until this returns and which nobody else uses meanwhile.
        if unsafe { sala_emulate(name.as_ptr(), blocks, arguments.as_ptr()) } == 0 {
            bail!("there is no kernel of the name {kernel}");
        }
        Ok(())
    }

    fn pages(&self, len: usize) -> Result<Box<dyn Pages>> {
        Ok(Box::new(Memory(vec![f64::NAN; len])))
    }
}

/// Numbers that are there as soon as a kernel was launched.
#[derive(Debug)]
struct Memory(Vec<f64>);

impl Pages for Memory {
    fn address(&mut self) -> Result<u64> {
        Ok(self.0.as_mut_ptr().expose_provenance() as u64)
    }

    fn sent(self: Box<Self>) -> Result<Box<dyn Sent>> {
        Ok(self)
    }
}

impl Sent for Memory {
    fn receive(self: Box<Self>) -> Result<Vec<f64>> {
        #[cfg(test)]
        log::add("receive");
        Ok(self.0)
    }
}
