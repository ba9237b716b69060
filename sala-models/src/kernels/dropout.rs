//! Dropout.
//!
//! ```text
//! y = x · mask / (1 − p)        dx = dy · mask / (1 − p)
//! ```
//!
//! Entry `i` is kept when word `i` of the stream is not below `p 2³²`. The words are drawn where they are
//! used, [`BLOCKS`] blocks of the generator side by side, and drawn again in the backward: that takes less
//! time than a mask takes through memory, and no memory. Both directions move 2 elements per element.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the chosen instruction set"
)]

use candle_core::{DType, Result, Tensor};

use super::{
    access,
    element::Element,
    graph::{self, Input, Operation},
    pieces::{self, Kernel, PIECE},
};
use crate::{ops::DropoutMask, rng::Stream};

/// Drops entries of a contiguous f32 or f64 tensor with probability `p > 0`, by the words of `stream`.
pub(crate) fn dropout(x: &Tensor, mask: DropoutMask) -> Result<Tensor> {
    graph::apply(Dropout(mask), &[x])
}

/// Writes what the entries `start..` of a tensor are multiplied with, on the calling thread.
pub(super) fn factors<T: Element>(mask: DropoutMask, start: usize, to: &mut [T]) {
    pieces::compiled(Factors, (to, mask.stream, start, threshold(mask)));
}

/// The last word that drops, and 1 / (1 − p).
pub(super) fn threshold<T: Element>(DropoutMask { p, .. }: DropoutMask) -> (u32, T) {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "p lies in (0, 1), so it is between 0 and u32::MAX"
    )]
    let last = ((p * 4_294_967_296.0).ceil() - 1.0) as u32;
    (last, T::of(1.0 / (1.0 - p)))
}

/// Blocks of four words that are drawn together.
const BLOCKS: usize = 64;
const WORDS: usize = 4 * BLOCKS;

struct Dropout(DropoutMask);

impl Dropout {
    fn masked<T: Element>(&self, x: &[T]) -> Vec<T> {
        let (stream, threshold) = (self.0.stream, threshold(self.0));
        pieces::filled(x.len(), PIECE, |i, y| {
            let start = i * PIECE;
            pieces::compiled(Drop, (y, &x[start..], stream, start, threshold));
        })
    }
}

impl Operation for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let x = inputs[0];
        Ok(match x.dtype() {
            DType::F64 => access::tensor(self.masked(&access::view::<f64>(x)?), x.shape())?,
            _ => access::tensor(self.masked(&access::view::<f32>(x)?), x.shape())?,
        })
    }

    fn backward(&self, _: &[Input], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let shape = dy.shape();
        let dx = match dy.dtype() {
            DType::F64 => access::tensor(self.masked(&access::view::<f64>(dy)?), shape),
            _ => access::tensor(self.masked(&access::view::<f32>(dy)?), shape),
        };
        Ok(vec![Some(dx?)])
    }
}

/// y, x, the words, the number of the first, the last word that drops, and 1 / (1 − p).
type Piece<'a, T> = (&'a mut [T], &'a [T], Stream, usize, (u32, T));

/// y ← mask x / (1 − p).
struct Drop;

impl<T: Element> Kernel<Piece<'_, T>> for Drop {
    #[inline(always)]
    fn run(self, (y, x, stream, start, (last, scale)): Piece<T>) {
        // A product with 0, not 0: an infinite or undefined entry shows, dropped or not.
        let product = |x: T, word: u32| x * if word > last { scale } else { T::default() };
        let chunks = y.chunks_mut(WORDS).zip(x.chunks(WORDS));
        for (i, (y, x)) in chunks.enumerate() {
            let words = words(stream, (start + i * WORDS) / 4);
            for ((y, &x), &word) in y.iter_mut().zip(x).zip(&words) {
                *y = product(x, word);
            }
        }
    }
}

/// y ← mask / (1 − p).
struct Factors;

impl<T: Element> Kernel<(&mut [T], Stream, usize, (u32, T))> for Factors {
    #[inline(always)]
    fn run(self, (y, stream, start, (last, scale)): (&mut [T], Stream, usize, (u32, T))) {
        // The first words of a first block belong to entries before.
        let before = start % 4;
        let (first, rest) = y.split_at_mut((WORDS - before).min(y.len()));
        for (i, y) in std::iter::once(first)
            .chain(rest.chunks_mut(WORDS))
            .enumerate()
        {
            let words = words(stream, start / 4 + i * BLOCKS);
            let skipped = if i == 0 { before } else { 0 };
            for (y, &word) in y.iter_mut().zip(&words[skipped..]) {
                *y = if word > last { scale } else { T::default() };
            }
        }
    }
}

/// The words of some blocks, in their order.
#[inline(always)]
fn words(stream: Stream, first: usize) -> [u32; WORDS] {
    let blocks = stream.blocks::<BLOCKS>(first as u64);
    let mut words = [0; WORDS];
    for (i, words) in words.as_chunks_mut().0.iter_mut().enumerate() {
        *words = [blocks[0][i], blocks[1][i], blocks[2][i], blocks[3][i]];
    }
    words
}
