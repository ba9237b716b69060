//! Masks of scores.

use crate::kernels::functions::Functions;

#[derive(Clone, Copy)]
pub(super) struct Mask<'a, T> {
    pub(super) entries: Entries<'a, T>,
    pub(super) strides: [usize; 4],
}

#[derive(Clone, Copy)]
pub(super) enum Entries<'a, T> {
    /// Not zero where a query sees a key.
    Visible(&'a [u8]),
    /// Added to the scores.
    Added(&'a [T]),
}

impl<T: Functions> Mask<'_, T> {
    /// Masks the scores of one query.
    pub(super) fn apply(&self, batch: usize, head: usize, query: usize, scores: &mut [T]) {
        let [b, h, q, k] = self.strides;
        let start = batch * b + head * h + query * q;
        let hidden = T::of(f64::NEG_INFINITY);
        let place = |key: usize| start + key * k;
        match self.entries {
            Entries::Visible(seen) => {
                for (key, score) in scores.iter_mut().enumerate() {
                    if seen[place(key)] == 0 {
                        *score = hidden;
                    }
                }
            }
            Entries::Added(added) => {
                for (key, score) in scores.iter_mut().enumerate() {
                    *score += added[place(key)];
                }
            }
        }
    }
}
