//! f32 and f64 as scalars and as vectors of the processor at hand.

use std::{
    fmt::Debug,
    iter::Sum,
    ops::{Add, AddAssign, Div, Mul, Neg, Sub},
};

use candle_core::WithDType;
use pulp::{Simd, bytemuck};

use super::scratch::Pool;

/// An element type that has fast kernels.
pub(crate) trait Element:
    WithDType
    + Debug
    + Default
    + PartialOrd
    + Add<Output = Self>
    + AddAssign
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + Sum
{
    /// A register of [`Element::lanes`] elements.
    type Vector<S: Simd>: Copy + Send + Sync;

    /// `x` rounded to this type.
    fn of(x: f64) -> Self;
    fn wide(self) -> f64;
    fn sqrt(self) -> Self;
    fn max(self, other: Self) -> Self;

    /// Memory to borrow.
    fn pool() -> &'static Pool<Self>;

    /// Elements of a register.
    fn lanes<S: Simd>() -> usize;
    /// The registers that fill the beginning of a slice.
    fn vectors<S: Simd>(slice: &[Self]) -> &[Self::Vector<S>];
    /// As [`Element::vectors`], to write.
    fn vectors_mut<S: Simd>(slice: &mut [Self]) -> &mut [Self::Vector<S>];
    /// The elements of registers.
    fn scalars<S: Simd>(vectors: &[Self::Vector<S>]) -> &[Self];
    /// As [`Element::scalars`], to write.
    fn scalars_mut<S: Simd>(vectors: &mut [Self::Vector<S>]) -> &mut [Self];
    /// All lanes the same.
    fn splat<S: Simd>(simd: S, x: Self) -> Self::Vector<S>;
    /// a b + c, rounded once where the processor can.
    fn mul_add<S: Simd>(
        simd: S,
        a: Self::Vector<S>,
        b: Self::Vector<S>,
        c: Self::Vector<S>,
    ) -> Self::Vector<S>;
}

/// The methods of [`Element`] for one type: they differ in the names of pulp's functions only.
macro_rules! element {
    ($type:ty, $vector:ident, $lanes:ident, $as:ident, $as_mut:ident, $splat:ident, $mul_add:ident) => {
        impl Element for $type {
            type Vector<S: Simd> = S::$vector;

            #[inline(always)]
            #[allow(
                clippy::cast_possible_truncation,
                reason = "constants are rounded to the tensors' precision, as candle does"
            )]
            fn of(x: f64) -> Self {
                x as Self
            }

            #[inline(always)]
            fn wide(self) -> f64 {
                self.into()
            }

            #[inline(always)]
            fn sqrt(self) -> Self {
                self.sqrt()
            }

            #[inline(always)]
            fn max(self, other: Self) -> Self {
                if self > other { self } else { other }
            }

            fn pool() -> &'static Pool<Self> {
                static POOL: Pool<$type> = Pool::new();
                &POOL
            }

            #[inline(always)]
            fn lanes<S: Simd>() -> usize {
                S::$lanes
            }

            #[inline(always)]
            fn vectors<S: Simd>(slice: &[Self]) -> &[Self::Vector<S>] {
                S::$as(slice).0
            }

            #[inline(always)]
            fn vectors_mut<S: Simd>(slice: &mut [Self]) -> &mut [Self::Vector<S>] {
                S::$as_mut(slice).0
            }

            #[inline(always)]
            fn scalars<S: Simd>(vectors: &[Self::Vector<S>]) -> &[Self] {
                bytemuck::cast_slice(vectors)
            }

            #[inline(always)]
            fn scalars_mut<S: Simd>(vectors: &mut [Self::Vector<S>]) -> &mut [Self] {
                bytemuck::cast_slice_mut(vectors)
            }

            #[inline(always)]
            fn splat<S: Simd>(simd: S, x: Self) -> Self::Vector<S> {
                simd.$splat(x)
            }

            #[inline(always)]
            fn mul_add<S: Simd>(
                simd: S,
                a: Self::Vector<S>,
                b: Self::Vector<S>,
                c: Self::Vector<S>,
            ) -> Self::Vector<S> {
                simd.$mul_add(a, b, c)
            }
        }
    };
}

element!(
    f32,
    f32s,
    F32_LANES,
    as_simd_f32s,
    as_mut_simd_f32s,
    splat_f32s,
    mul_add_e_f32s
);
element!(
    f64,
    f64s,
    F64_LANES,
    as_simd_f64s,
    as_mut_simd_f64s,
    splat_f64s,
    mul_add_e_f64s
);
