//! Rotary position embedding.
//!
//! ```text
//! (a, b) ← (a cos θ − b sin θ, b cos θ + a sin θ)        backward: the same with −θ
//! ```
//!
//! One loop over the features of a row, in place of the slices, products and joins of the composed form:
//! it moves 2 elements per element and the tables, which stay in cache. Tables are constants here; the
//! composed form differentiates them.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the chosen instruction set"
)]

use candle_core::{DType, Result, Tensor};

use super::{
    access,
    element::Element,
    graph::{self, Input, Operation},
    pieces::{self, Kernel},
    rows,
};
use crate::ops::RopePairs;

/// Turns contiguous `x (…, T, D)` by contiguous tables `(T, D/2)`, all of f32 or f64.
pub(crate) fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, pairs: RopePairs) -> Result<Tensor> {
    graph::apply(Rope(pairs), &[x, &cos.detach(), &sin.detach()])
}

struct Rope(RopePairs);

impl Rope {
    fn turn<T: Element>(
        &self,
        x: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        back: bool,
    ) -> Result<Vec<T>> {
        let half = cos.dim(1)?;
        let (x, cos, sin) = (access::view(x)?, access::view(cos)?, access::view(sin)?);
        let (rows, size) = (rows::per_piece(2 * half), 2 * half);
        Ok(pieces::filled(x.len(), rows * size, |i, y| {
            let x = &x[i * rows * size..];
            let arguments = (y, x, &*cos, &*sin, (i * rows, half, back));
            match self.0 {
                RopePairs::Halves => pieces::compiled(Halves, arguments),
                RopePairs::Interleaved => pieces::compiled(Interleaved, arguments),
            }
        }))
    }
}

impl Operation for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let (x, cos, sin) = (inputs[0], inputs[1], inputs[2]);
        Ok(match x.dtype() {
            DType::F64 => access::tensor(self.turn::<f64>(x, cos, sin, false)?, x.shape())?,
            _ => access::tensor(self.turn::<f32>(x, cos, sin, false)?, x.shape())?,
        })
    }

    fn backward(&self, inputs: &[Input], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let (cos, sin) = (&inputs[1].value, &inputs[2].value);
        let dx = match dy.dtype() {
            DType::F64 => access::tensor(self.turn::<f64>(dy, cos, sin, true)?, dy.shape()),
            _ => access::tensor(self.turn::<f32>(dy, cos, sin, true)?, dy.shape()),
        };
        Ok(vec![Some(dx?), None, None])
    }
}

/// y, x, the tables, and the number of the first row, D/2 and whether to turn back.
type Rows<'a, T> = (&'a mut [T], &'a [T], &'a [T], &'a [T], (usize, usize, bool));

/// Pairs that are turned together.
const LANES: usize = 8;

/// Pairs of `i` with `i + D/2`.
struct Halves;

impl<T: Element> Kernel<Rows<'_, T>> for Halves {
    #[inline(always)]
    fn run(self, (y, x, cos, sin, (first, half, back)): Rows<T>) {
        let positions = cos.len() / half;
        let rows = y.chunks_exact_mut(2 * half).zip(x.chunks_exact(2 * half));
        for ((y, x), row) in rows.zip(first..) {
            let place = row % positions * half;
            let (cos, sin) = (&cos[place..place + half], &sin[place..place + half]);
            let ((a, b), (y_a, y_b)) = (x.split_at(half), y.split_at_mut(half));
            let (a, a_rest) = a.as_chunks::<LANES>();
            let (b, b_rest) = b.as_chunks::<LANES>();
            let (y_a, y_a_rest) = y_a.as_chunks_mut::<LANES>();
            let (y_b, y_b_rest) = y_b.as_chunks_mut::<LANES>();
            let (cos, cos_rest) = cos.as_chunks::<LANES>();
            let (sin, sin_rest) = sin.as_chunks::<LANES>();
            let tables = cos.iter().zip(sin);
            for ((y, (a, b)), (c, s)) in y_a.iter_mut().zip(y_b).zip(a.iter().zip(b)).zip(tables) {
                (*y.0, *y.1) = turned(*a, *b, *c, *s, back);
            }
            let (values, tables) = (a_rest.iter().zip(b_rest), cos_rest.iter().zip(sin_rest));
            let places = y_a_rest.iter_mut().zip(y_b_rest);
            for ((y, (a, b)), (c, s)) in places.zip(values).zip(tables) {
                ([*y.0], [*y.1]) = turned([*a], [*b], [*c], [*s], back);
            }
        }
    }
}

/// Pairs of neighbours.
struct Interleaved;

impl<T: Element> Kernel<Rows<'_, T>> for Interleaved {
    #[inline(always)]
    fn run(self, (y, x, cos, sin, (first, half, back)): Rows<T>) {
        let positions = cos.len() / half;
        let rows = y.chunks_exact_mut(2 * half).zip(x.chunks_exact(2 * half));
        for ((y, x), row) in rows.zip(first..) {
            let place = row % positions * half;
            let (cos, sin) = (&cos[place..place + half], &sin[place..place + half]);
            let (x, x_rest) = x.as_chunks::<{ 2 * LANES }>();
            let (y, y_rest) = y.as_chunks_mut::<{ 2 * LANES }>();
            let (cos, cos_rest) = cos.as_chunks::<LANES>();
            let (sin, sin_rest) = sin.as_chunks::<LANES>();
            for ((y, x), (c, s)) in y.iter_mut().zip(x).zip(cos.iter().zip(sin)) {
                let (mut a, mut b) = ([T::default(); LANES], [T::default(); LANES]);
                for i in 0..LANES {
                    (a[i], b[i]) = (x[2 * i], x[2 * i + 1]);
                }
                let (a, b) = turned(a, b, *c, *s, back);
                for i in 0..LANES {
                    (y[2 * i], y[2 * i + 1]) = (a[i], b[i]);
                }
            }
            let tables = cos_rest.iter().zip(sin_rest);
            let (y, x) = (y_rest.as_chunks_mut().0, x_rest.as_chunks().0);
            for (([y_a, y_b], [a, b]), (c, s)) in y.iter_mut().zip(x).zip(tables) {
                ([*y_a], [*y_b]) = turned([*a], [*b], [*c], [*s], back);
            }
        }
    }
}

#[inline(always)]
fn turned<T: Element, const N: usize>(
    a: [T; N],
    b: [T; N],
    cos: [T; N],
    sin: [T; N],
    back: bool,
) -> ([T; N], [T; N]) {
    let (mut x, mut y) = (a, b);
    for i in 0..N {
        let sin = if back { -sin[i] } else { sin[i] };
        x[i] = a[i] * cos[i] - b[i] * sin;
        y[i] = b[i] * cos[i] + a[i] * sin;
    }
    (x, y)
}
