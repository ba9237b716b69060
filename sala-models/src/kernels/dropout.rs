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

use candle_core::{CpuStorage, DType, Result, Shape, Tensor};

use super::{
    access,
    element::Element,
    graph::{self, Input, Operation},
    pieces::{self, Kernel, PIECE},
};
use crate::rng::Stream;

/// Drops entries of a contiguous f32 or f64 tensor with probability `p > 0`, by the words of `stream`.
pub(crate) fn dropout(x: &Tensor, p: f64, stream: Stream) -> Result<Tensor> {
    graph::apply(Dropout { p, stream }, &[x])
}

/// Blocks of four words that are drawn together.
const BLOCKS: usize = 64;
const WORDS: usize = 4 * BLOCKS;

struct Dropout {
    p: f64,
    stream: Stream,
}

impl Dropout {
    fn masked<T: Element>(&self, x: &[T]) -> Vec<T> {
        let scale = T::of(1.0 / (1.0 - self.p));
        // The last word that drops; p lies in (0, 1).
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 0 and u32::MAX"
        )]
        let last = ((self.p * 4_294_967_296.0).ceil() - 1.0) as u32;
        pieces::filled(x.len(), PIECE, |i, y| {
            let start = i * PIECE;
            pieces::compiled(Drop, (y, &x[start..], self.stream, start, (last, scale)));
        })
    }
}

impl Operation for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<(CpuStorage, Shape)> {
        let x = inputs[0];
        Ok(match x.dtype() {
            DType::F64 => access::result(self.masked(&access::view::<f64>(x)?), x.shape()),
            _ => access::result(self.masked(&access::view::<f32>(x)?), x.shape()),
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
            let blocks = stream.blocks::<BLOCKS>((start + i * WORDS) as u64 / 4);
            let mut words = [[0; 4]; BLOCKS];
            for (i, words) in words.iter_mut().enumerate() {
                *words = [blocks[0][i], blocks[1][i], blocks[2][i], blocks[3][i]];
            }
            for ((y, &x), &word) in y.iter_mut().zip(x).zip(words.as_flattened()) {
                *y = product(x, word);
            }
        }
    }
}
