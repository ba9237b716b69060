//! How work is cut into pieces and shared among threads.

use std::mem::MaybeUninit;

use pulp::{Arch, Simd, WithSimd};
use rayon::{iter::MaxLen, prelude::*};

use super::element::Element;

/// Elements of a piece of element-wise work: several arrays of this size fit a second-level cache,
/// and handing a piece to another thread costs a hundredth of the work in it.
pub(crate) const PIECE: usize = 16 * 1024;

/// Whether rayon has threads to share work with. A pool of one is not entered: runs that train side by
/// side, each on a thread of its own, would wait for each other at its door.
pub(crate) fn parallel() -> bool {
    rayon::current_num_threads() > 1
}

/// Hands out single pieces. Left to itself, rayon makes few groups of them, and a thread that another program slows
/// down keeps its group while the rest have nothing to do.
fn one_by_one<I: IndexedParallelIterator>(pieces: I) -> MaxLen<I> {
    pieces.with_max_len(1)
}

/// What `work` yields for each number in `0..count`, in their order.
pub(crate) fn map<R: Send>(count: usize, work: impl Fn(usize) -> R + Sync + Send) -> Vec<R> {
    if count > 1 && parallel() {
        one_by_one((0..count).into_par_iter()).map(work).collect()
    } else {
        (0..count).map(work).collect()
    }
}

/// Hands out the pieces of `values`, of `piece` elements but for the last, with their numbers.
pub(crate) fn each_of<T: Send>(
    values: &mut [T],
    piece: usize,
    work: impl Fn(usize, &mut [T]) + Sync + Send,
) {
    if values.len() > piece && parallel() {
        let pieces = values.par_chunks_mut(piece).enumerate();
        one_by_one(pieces).for_each(|(i, values)| work(i, values));
    } else {
        let pieces = values.chunks_mut(piece).enumerate();
        pieces.for_each(|(i, values)| work(i, values));
    }
}

/// A new vector of `len` elements. `work` is handed its pieces, all zeros, with their numbers.
///
/// The zeros are written piece by piece just before the work, when they go no further than the cache:
/// `vec![0.0; len]` would send them through memory.
pub(crate) fn filled<T: Element>(
    len: usize,
    piece: usize,
    work: impl Fn(usize, &mut [T]) + Sync + Send,
) -> Vec<T> {
    let mut values = Vec::with_capacity(len);
    let spare = &mut values.spare_capacity_mut()[..len];
    each_of(spare, piece, |i, piece| work(i, zeroed(piece)));
    // SAFETY: `each_of` has handed every element to `zeroed`, or has panicked before this line.
    unsafe { values.set_len(len) };
    values
}

/// As [`filled`] for work that writes every element of its piece: it proves so by returning the piece.
pub(crate) fn made<T: Element>(
    len: usize,
    piece: usize,
    work: impl Fn(usize, &mut [MaybeUninit<T>]) -> &mut [T] + Sync + Send,
) -> Vec<T> {
    let mut values = Vec::with_capacity(len);
    let spare = &mut values.spare_capacity_mut()[..len];
    each_of(spare, piece, |i, piece| {
        let wanted = piece.as_ptr_range();
        let written = work(i, piece).as_ptr_range();
        let all = wanted.start == written.start.cast() && wanted.end == written.end.cast();
        assert!(all, "the piece was not returned whole");
    });
    // SAFETY: `work` has returned every element as a value, or `each_of` has panicked.
    unsafe { values.set_len(len) };
    values
}

fn zeroed<T: Element>(piece: &mut [MaybeUninit<T>]) -> &mut [T] {
    for value in &mut *piece {
        value.write(T::default());
    }
    // SAFETY: all elements were written in the loop above.
    unsafe { assume_written(piece) }
}

/// The values of a piece.
///
/// # Safety
/// All of them must have been written.
pub(super) unsafe fn assume_written<T>(piece: &mut [MaybeUninit<T>]) -> &mut [T] {
    // SAFETY: `MaybeUninit<T>` is laid out as `T` is, and the caller has written all of them.
    unsafe { &mut *(std::ptr::from_mut(piece) as *mut [T]) }
}

/// A loop over one piece. `run` has to be `#[inline(always)]`.
pub(crate) trait Kernel<A> {
    fn run(self, arguments: A);
}

/// Runs a loop compiled for the best instruction set of this processor. All that is called in it has to
/// be `#[inline(always)]` to be compiled for it, too. So it is no closure, which cannot be marked so: one
/// that the compiler finds too long to inline is compiled for no instruction set in particular, which
/// nothing but its speed tells.
#[inline]
pub(crate) fn compiled<A>(kernel: impl Kernel<A>, arguments: A) {
    Arch::new().dispatch(Call(kernel, arguments));
}

struct Call<K, A>(K, A);

impl<A, K: Kernel<A>> WithSimd for Call<K, A> {
    type Output = ();

    #[expect(clippy::inline_always, reason = "see `compiled`")]
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        self.0.run(self.1);
    }
}

/// As [`filled`], with a second array that is cut alongside: its piece `i`, of `beside_piece` elements, is
/// handed out with piece `i` of the new vector. For what a row leaves besides its elements.
pub(crate) fn filled_beside<T: Element, U: Send>(
    len: usize,
    piece: usize,
    beside: &mut [U],
    beside_piece: usize,
    work: impl Fn(usize, &mut [T], &mut [U]) + Sync + Send,
) -> Vec<T> {
    let mut values = Vec::with_capacity(len);
    let spare = &mut values.spare_capacity_mut()[..len];
    assert_eq!(len.div_ceil(piece), beside.len().div_ceil(beside_piece));
    let work = |(i, (piece, beside)): (usize, (&mut [MaybeUninit<T>], &mut [U]))| {
        work(i, zeroed(piece), beside);
    };
    if len > piece && parallel() {
        let pieces = spare.par_chunks_mut(piece);
        let pieces = pieces.zip(beside.par_chunks_mut(beside_piece)).enumerate();
        one_by_one(pieces).for_each(work);
    } else {
        let pieces = spare.chunks_mut(piece);
        (pieces.zip(beside.chunks_mut(beside_piece)).enumerate()).for_each(work);
    }
    // SAFETY: both arrays have the same number of pieces, so all of `spare` were handed to `zeroed`.
    unsafe { values.set_len(len) };
    values
}

/// The sums of the columns of a matrix.
pub(crate) fn column_sums<T: Element>(matrix: &[T], columns: usize) -> Vec<T> {
    let rows = (PIECE / columns).max(1);
    let count = (matrix.len() / columns).div_ceil(rows);
    let parts = map(count, |i| {
        let start = i * rows * columns;
        let part = &matrix[start..matrix.len().min(start + rows * columns)];
        let mut sums = vec![T::default(); columns];
        compiled(AddRows, (part, &mut *sums));
        sums
    });
    let mut sums = vec![T::default(); columns];
    for part in parts {
        for (sum, x) in sums.iter_mut().zip(part) {
            *sum += x;
        }
    }
    sums
}

struct AddRows;

impl<T: Element> Kernel<(&[T], &mut [T])> for AddRows {
    #[expect(clippy::inline_always, reason = "see `compiled`")]
    #[inline(always)]
    fn run(self, (rows, sums): (&[T], &mut [T])) {
        for row in rows.chunks_exact(sums.len()) {
            for (sum, &x) in sums.iter_mut().zip(row) {
                *sum += x;
            }
        }
    }
}

/// Copies a short stretch. Of the lengths that packed matrices have it is a few instructions; a call into
/// the system's library takes longer than such a copy.
#[expect(
    clippy::inline_always,
    reason = "the length is known where it is called"
)]
#[inline(always)]
pub(crate) fn copy_short<T: Copy>(to: &mut [T], from: &[T]) {
    debug_assert_eq!(to.len(), from.len());
    match to.len() {
        16 => copy_exactly::<T, 16>(to, from),
        8 => copy_exactly::<T, 8>(to, from),
        32 => copy_exactly::<T, 32>(to, from),
        _ => to.copy_from_slice(from),
    }
}

#[expect(clippy::inline_always, reason = "see `copy_short`")]
#[inline(always)]
fn copy_exactly<T: Copy, const N: usize>(to: &mut [T], from: &[T]) {
    if let (Some(to), Some(from)) = (to.first_chunk_mut::<N>(), from.first_chunk::<N>()) {
        *to = *from;
    }
}

/// Hands out the pieces of two arrays together, each cut into as many.
pub(crate) fn each_of_two<T: Send>(
    (a, a_piece): (&mut [T], usize),
    (b, b_piece): (&mut [T], usize),
    work: impl Fn(usize, &mut [T], &mut [T]) + Sync + Send,
) {
    if a.len() > a_piece && parallel() {
        let pieces = a.par_chunks_mut(a_piece).zip(b.par_chunks_mut(b_piece));
        one_by_one(pieces.enumerate()).for_each(|(i, (a, b))| work(i, a, b));
    } else {
        let pieces = a.chunks_mut(a_piece).zip(b.chunks_mut(b_piece));
        (pieces.enumerate()).for_each(|(i, (a, b))| work(i, a, b));
    }
}

/// As [`filled`] for three vectors, each of a length and cut into pieces of another, all into as many.
pub(crate) fn filled_three<T: Element>(
    [a, b, c]: [(usize, usize); 3],
    work: impl Fn(usize, &mut [T], &mut [T], &mut [T]) + Sync + Send,
) -> [Vec<T>; 3] {
    let mut values = [a, b, c].map(|(len, _)| Vec::with_capacity(len));
    assert!(
        [b, c]
            .iter()
            .all(|x| x.0.div_ceil(x.1) == a.0.div_ceil(a.1))
    );
    {
        let [x, y, z] = &mut values;
        let (x, y, z) = (
            &mut x.spare_capacity_mut()[..a.0],
            &mut y.spare_capacity_mut()[..b.0],
            &mut z.spare_capacity_mut()[..c.0],
        );
        let work = |i, x, y, z| work(i, zeroed(x), zeroed(y), zeroed(z));
        if a.0 > a.1 && parallel() {
            let pieces = x.par_chunks_mut(a.1).zip(y.par_chunks_mut(b.1));
            let pieces = pieces.zip(z.par_chunks_mut(c.1)).enumerate();
            one_by_one(pieces).for_each(|(i, ((x, y), z))| work(i, x, y, z));
        } else {
            let pieces = x.chunks_mut(a.1).zip(y.chunks_mut(b.1));
            let pieces = pieces.zip(z.chunks_mut(c.1)).enumerate();
            pieces.for_each(|(i, ((x, y), z))| work(i, x, y, z));
        }
    }
    for (values, (len, _)) in values.iter_mut().zip([a, b, c]) {
        // SAFETY: all three have the same number of pieces, so all were handed to `zeroed`.
        unsafe { values.set_len(len) };
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    fn squares(first: usize, piece: &mut [MaybeUninit<f32>]) -> &mut [f32] {
        for (i, value) in piece.iter_mut().enumerate() {
            value.write(((first + i) * (first + i)) as f32);
        }
        // SAFETY: all were written in the loop above.
        unsafe { assume_written(piece) }
    }

    #[test]
    fn what_is_made_stands_in_its_piece() {
        for len in [0, 1, 6, 7, 20] {
            let made = made(len, 6, |i, piece| squares(6 * i, piece));
            let wanted: Vec<f32> = (0..len).map(|i| (i * i) as f32).collect();
            assert_eq!(made, wanted);
        }
    }

    #[test]
    #[should_panic(expected = "the piece")]
    fn work_that_leaves_a_part_of_its_piece_out_is_found_out() {
        made(4, 4, |_, piece| squares(0, &mut piece[..3]));
    }
}
