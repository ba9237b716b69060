//! Memory that kernels borrow: packed weights, padded images, partial sums.
//!
//! Fresh memory costs more than the arithmetic that is done in it: the system hands it out page by page,
//! and fills each with zeros. So what a kernel gives back is kept for the next one. All the kernels of a
//! training step borrow about as much as the largest of them needs.

use std::{
    ops::{Deref, DerefMut},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::element::Element;

/// Buffers that are kept for each element type. More than a few are only needed at once by several
/// training loops in one process.
const KEPT: usize = 16;

/// Bytes that a cache line has, and the widest registers.
const ALIGNMENT: usize = 64;

/// Buffers that nobody uses at the moment, the shortest first.
#[derive(Debug)]
pub(crate) struct Pool<T>(Mutex<Vec<Vec<T>>>);

impl<T> Pool<T> {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// A panic while the lock was held cannot have left the list in a bad state.
    fn lock(&self) -> MutexGuard<'_, Vec<Vec<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shortest buffer of at least `len` elements, else the longest one, to grow.
    fn take(&self, len: usize) -> Vec<T> {
        let mut idle = self.lock();
        let fitting = idle.partition_point(|buffer| buffer.len() < len);
        if fitting < idle.len() {
            return idle.remove(fitting);
        }
        idle.pop().unwrap_or_default()
    }

    fn give_back(&self, buffer: Vec<T>) {
        let mut idle = self.lock();
        let place = idle.partition_point(|other| other.len() < buffer.len());
        idle.insert(place, buffer);
        if idle.len() > KEPT {
            idle.remove(0);
        }
    }
}

/// A borrowed buffer. It begins at a cache line and holds whatever was last written to it.
#[derive(Debug)]
pub(crate) struct Scratch<T: Element> {
    buffer: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Element> Scratch<T> {
    pub(crate) fn new(len: usize) -> Self {
        let margin = ALIGNMENT / size_of::<T>();
        let mut buffer = T::pool().take(len + margin);
        if buffer.len() < len + margin {
            // Not resized: that would copy what nobody wants.
            buffer = vec![T::default(); len + margin];
        }
        let start = buffer.as_ptr().align_offset(ALIGNMENT).min(margin);
        Self { buffer, start, len }
    }

    pub(crate) fn zeros(len: usize) -> Self {
        let mut scratch = Self::new(len);
        scratch.fill(T::default());
        scratch
    }
}

impl<T: Element> Drop for Scratch<T> {
    fn drop(&mut self) {
        T::pool().give_back(std::mem::take(&mut self.buffer));
    }
}

impl<T: Element> Deref for Scratch<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.buffer[self.start..self.start + self.len]
    }
}

impl<T: Element> DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.buffer[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_begin_at_a_cache_line_and_come_back() {
        let mut first = Scratch::<f32>::new(1000);
        assert_eq!(first.as_ptr().addr() % ALIGNMENT, 0);
        first.fill(7.0);
        drop(first);
        assert!(Scratch::<f32>::zeros(10).iter().all(|&x| x < 1.0));
        assert_eq!(Scratch::<f64>::new(3).len(), 3);
    }

    #[test]
    fn the_shortest_that_fits_is_taken() {
        let pool = Pool::<f32>::new();
        for len in [8, 2, 4] {
            pool.give_back(vec![0.0; len]);
        }
        assert_eq!(pool.take(3).len(), 4);
        assert_eq!(pool.take(9).len(), 8);
        assert_eq!(pool.take(1).len(), 2);
        assert_eq!(pool.take(1).len(), 0);
    }
}
