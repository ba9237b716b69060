//! Activations: functions of one element, and their derivatives.
//!
//! ```text
//! y = f(x)        dx = f′(x) dy
//!
//! relu        x > 0                     1 for x > 0, else 0
//! relu6       min(max(x, 0), 6)         1 for 0 < x < 6, else 0
//! silu        x σ                       σ (1 + x (1 − σ))           σ = 1 / (1 + exp(−x))
//! gelu        x Φ                       Φ + x φ                     φ = exp(−x²/2) / √(2π)
//! gelu_tanh   x σ(2u)                   σ (1 + 2 x (1 − σ) u′)      u = √(2/π) (x + 0.044715 x³)
//! ```
//!
//! with `(1 + tanh u) / 2 = σ(2u)`, which keeps its digits where the left side cancels. The derivative
//! is computed again from `x`, which the graph keeps anyway: that costs less than to send it through
//! memory. Forward moves 2 elements per element, backward 3; composed of candle's operations gelu's two
//! directions move about 30.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the chosen instruction set"
)]

use std::{
    f64::consts::{FRAC_2_PI, TAU},
    marker::PhantomData,
    mem::MaybeUninit,
};

use candle_core::{DType, Result, Tensor};

use super::{
    access,
    functions::Functions,
    graph::{self, Input, Operation},
    pieces::{self, Kernel, PIECE},
};

/// A function of one element.
pub(crate) trait Activation: Send + Sync + 'static {
    const NAME: &'static str;

    fn value<T: Functions>(x: T) -> T;
    /// The gradient of `x`, from that of the value.
    fn back<T: Functions>(x: T, dy: T) -> T;
}

pub(crate) struct Relu;

/// Of a NaN x ≤ 0 does not hold: it stays.
impl Activation for Relu {
    const NAME: &'static str = "relu";

    #[inline(always)]
    fn value<T: Functions>(x: T) -> T {
        if x <= T::default() { T::default() } else { x }
    }

    #[inline(always)]
    fn back<T: Functions>(x: T, dy: T) -> T {
        if x <= T::default() { T::default() } else { dy }
    }
}

pub(crate) struct Relu6;

impl Activation for Relu6 {
    const NAME: &'static str = "relu6";

    #[inline(always)]
    fn value<T: Functions>(x: T) -> T {
        let (y, six) = (Relu::value(x), T::of(6.0));
        if y >= six { six } else { y }
    }

    #[inline(always)]
    fn back<T: Functions>(x: T, dy: T) -> T {
        let dx = Relu::back(x, dy);
        if x >= T::of(6.0) { T::default() } else { dx }
    }
}

pub(crate) struct Silu;

impl Activation for Silu {
    const NAME: &'static str = "silu";

    #[inline(always)]
    fn value<T: Functions>(x: T) -> T {
        x * x.sigmoid()
    }

    #[inline(always)]
    fn back<T: Functions>(x: T, dy: T) -> T {
        let (sigma, one) = (x.sigmoid(), T::of(1.0));
        dy * (sigma * (one + x * (one - sigma)))
    }
}

pub(crate) struct Gelu;

impl Activation for Gelu {
    const NAME: &'static str = "gelu";

    #[inline(always)]
    fn value<T: Functions>(x: T) -> T {
        x * x.normal().1
    }

    #[inline(always)]
    fn back<T: Functions>(x: T, dy: T) -> T {
        let (density, below) = x.normal();
        dy * (below + x * density * T::of(1.0 / TAU.sqrt()))
    }
}

pub(crate) struct GeluTanh;

/// 2√(2/π) and the factor of x².
#[inline(always)]
fn bend<T: Functions>() -> (T, T) {
    (T::of(2.0 * FRAC_2_PI.sqrt()), T::of(0.044_715))
}

impl Activation for GeluTanh {
    const NAME: &'static str = "gelu_tanh";

    #[inline(always)]
    fn value<T: Functions>(x: T) -> T {
        let (scale, cubic) = bend::<T>();
        let u = scale * x * (T::of(1.0) + cubic * x * x);
        x * u.sigmoid()
    }

    #[inline(always)]
    fn back<T: Functions>(x: T, dy: T) -> T {
        let ((scale, cubic), one) = (bend::<T>(), T::of(1.0));
        let square = cubic * x * x;
        let sigma = (scale * x * (one + square)).sigmoid();
        let slope = scale * (one + T::of(3.0) * square);
        dy * (sigma * (one + x * (one - sigma) * slope))
    }
}

/// The activation `A` of a contiguous f32 or f64 tensor.
pub(crate) fn activation<A: Activation>(x: &Tensor) -> Result<Tensor> {
    match x.dtype() {
        DType::F64 => graph::apply(Op::<A, f64>(PhantomData), &[x]),
        _ => graph::apply(Op::<A, f32>(PhantomData), &[x]),
    }
}

struct Op<A, T>(PhantomData<(A, T)>);

impl<A: Activation, T: Functions> Operation for Op<A, T> {
    fn name(&self) -> &'static str {
        A::NAME
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let x = access::view::<T>(inputs[0])?;
        let y = pieces::made(x.len(), PIECE, |i, y| {
            let x = &x[i * PIECE..][..y.len()];
            pieces::compiled(Values::<A>(PhantomData), (&mut *y, x));
            // SAFETY: the loop writes an element for each of `x`.
            unsafe { pieces::assume_written(y) }
        });
        access::tensor(y, inputs[0].shape())
    }

    fn backward(&self, inputs: &[Input], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let shape = dy.shape();
        let (x, dy) = (access::view::<T>(&inputs[0].value)?, access::view::<T>(dy)?);
        let dx = pieces::made(x.len(), PIECE, |i, dx| {
            let (start, len) = (i * PIECE, dx.len());
            let (x, dy) = (&x[start..][..len], &dy[start..][..len]);
            pieces::compiled(Gradients::<A>(PhantomData), (&mut *dx, x, dy));
            // SAFETY: the loop writes an element for each of `x` and `dy`.
            unsafe { pieces::assume_written(dx) }
        });
        Ok(vec![Some(access::tensor(dx, shape)?)])
    }
}

struct Values<A>(PhantomData<A>);

impl<A: Activation, T: Functions> Kernel<(&mut [MaybeUninit<T>], &[T])> for Values<A> {
    #[inline(always)]
    fn run(self, (y, x): (&mut [MaybeUninit<T>], &[T])) {
        for (y, &x) in y.iter_mut().zip(x) {
            y.write(A::value(x));
        }
    }
}

struct Gradients<A>(PhantomData<A>);

impl<A: Activation, T: Functions> Kernel<(&mut [MaybeUninit<T>], &[T], &[T])> for Gradients<A> {
    #[inline(always)]
    fn run(self, (dx, x, dy): (&mut [MaybeUninit<T>], &[T], &[T])) {
        for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
            dx.write(A::back(x, dy));
        }
    }
}
