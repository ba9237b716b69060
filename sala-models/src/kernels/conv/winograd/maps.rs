//! The transformations of one row or column of a tile, for sixteen channels at once.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the chosen instruction set"
)]

use std::ops::{Add, Sub};

use crate::kernels::element::Element;

/// Channels that are transformed together.
pub(super) const LANES: usize = 16;

/// The same element of a tile in neighbouring channels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lanes<T>(pub(super) [T; LANES]);

impl<T: Element> Lanes<T> {
    #[inline(always)]
    pub(super) fn zeros() -> Self {
        Self([T::default(); LANES])
    }

    #[inline(always)]
    fn times(mut self, factor: f64) -> Self {
        let factor = T::of(factor);
        for value in &mut self.0 {
            *value *= factor;
        }
        self
    }

    /// The first sixteen of `from`; zeros where there are fewer.
    #[inline(always)]
    pub(super) fn load(from: &[T]) -> Self {
        if let Some(values) = from.first_chunk() {
            return Self(*values);
        }
        let mut lanes = Self::zeros();
        lanes.0[..from.len()].copy_from_slice(from);
        lanes
    }

    /// Writes as many as `to` has room for.
    #[inline(always)]
    pub(super) fn store(self, to: &mut [T]) {
        match to.first_chunk_mut() {
            Some(to) => *to = self.0,
            None => to.copy_from_slice(&self.0[..to.len()]),
        }
    }
}

impl<T: Element> Add for Lanes<T> {
    type Output = Self;

    #[inline(always)]
    fn add(mut self, other: Self) -> Self {
        for (a, b) in self.0.iter_mut().zip(other.0) {
            *a += b;
        }
        self
    }
}

impl<T: Element> Sub for Lanes<T> {
    type Output = Self;

    #[inline(always)]
    fn sub(mut self, other: Self) -> Self {
        for (a, b) in self.0.iter_mut().zip(other.0) {
            *a -= b;
        }
        self
    }
}

/// F(M, 3): the five matrices of the [module](super), each as a function of a vector. `N` is M + 2.
pub(super) trait Variant<const M: usize, const N: usize>: Send + Sync {
    /// Bᵀ d.
    fn input<T: Element>(d: [Lanes<T>; N]) -> [Lanes<T>; N];
    /// Aᵀ m.
    fn output<T: Element>(m: [Lanes<T>; N]) -> [Lanes<T>; M];
    /// A y, the transposed of [`Variant::output`].
    fn gradient<T: Element>(y: [Lanes<T>; M]) -> [Lanes<T>; N];
    /// G w.
    fn weight<T: Element>(w: [Lanes<T>; 3]) -> [Lanes<T>; N];
    /// Gᵀ u, the transposed of [`Variant::weight`].
    fn weight_back<T: Element>(u: [Lanes<T>; N]) -> [Lanes<T>; 3];
}

/// F(2, 3).
#[derive(Debug)]
pub(super) struct Two;

impl Variant<2, 4> for Two {
    #[inline(always)]
    fn input<T: Element>(d: [Lanes<T>; 4]) -> [Lanes<T>; 4] {
        [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]
    }

    #[inline(always)]
    fn output<T: Element>(m: [Lanes<T>; 4]) -> [Lanes<T>; 2] {
        [m[0] + (m[1] + m[2]), (m[1] - m[2]) - m[3]]
    }

    #[inline(always)]
    fn gradient<T: Element>(y: [Lanes<T>; 2]) -> [Lanes<T>; 4] {
        [y[0], y[0] + y[1], y[0] - y[1], Lanes::zeros() - y[1]]
    }

    #[inline(always)]
    fn weight<T: Element>(w: [Lanes<T>; 3]) -> [Lanes<T>; 4] {
        let (even, odd) = ((w[0] + w[2]).times(0.5), w[1].times(0.5));
        [w[0], even + odd, even - odd, w[2]]
    }

    #[inline(always)]
    fn weight_back<T: Element>(u: [Lanes<T>; 4]) -> [Lanes<T>; 3] {
        let (even, odd) = ((u[1] + u[2]).times(0.5), (u[1] - u[2]).times(0.5));
        [u[0] + even, odd, even + u[3]]
    }
}

/// F(4, 3).
#[derive(Debug)]
pub(super) struct Four;

impl Variant<4, 6> for Four {
    #[inline(always)]
    fn input<T: Element>(d: [Lanes<T>; 6]) -> [Lanes<T>; 6] {
        let (even, odd) = (d[4] - d[2].times(4.0), d[3] - d[1].times(4.0));
        let (wide_even, wide_odd) = (d[4] - d[2], (d[3] - d[1]).times(2.0));
        [
            (d[0].times(4.0) - d[2].times(5.0)) + d[4],
            even + odd,
            even - odd,
            wide_even + wide_odd,
            wide_even - wide_odd,
            (d[1].times(4.0) - d[3].times(5.0)) + d[5],
        ]
    }

    #[inline(always)]
    fn output<T: Element>(m: [Lanes<T>; 6]) -> [Lanes<T>; 4] {
        let (sum, difference) = (m[1] + m[2], m[1] - m[2]);
        let (wide_sum, wide_difference) = (m[3] + m[4], m[3] - m[4]);
        [
            (m[0] + sum) + wide_sum,
            difference + wide_difference.times(2.0),
            sum + wide_sum.times(4.0),
            (difference + wide_difference.times(8.0)) + m[5],
        ]
    }

    #[inline(always)]
    fn gradient<T: Element>(y: [Lanes<T>; 4]) -> [Lanes<T>; 6] {
        let (even, odd) = (y[0] + y[2], y[1] + y[3]);
        let wide_even = y[0] + y[2].times(4.0);
        let wide_odd = y[1].times(2.0) + y[3].times(8.0);
        [
            y[0],
            even + odd,
            even - odd,
            wide_even + wide_odd,
            wide_even - wide_odd,
            y[3],
        ]
    }

    #[inline(always)]
    fn weight<T: Element>(w: [Lanes<T>; 3]) -> [Lanes<T>; 6] {
        let (even, odd) = ((w[0] + w[2]).times(-1.0 / 6.0), w[1].times(1.0 / 6.0));
        let wide_even = w[0].times(1.0 / 24.0) + w[2].times(1.0 / 6.0);
        let wide_odd = w[1].times(1.0 / 12.0);
        [
            w[0].times(0.25),
            even - odd,
            even + odd,
            wide_even + wide_odd,
            wide_even - wide_odd,
            w[2],
        ]
    }

    #[inline(always)]
    fn weight_back<T: Element>(u: [Lanes<T>; 6]) -> [Lanes<T>; 3] {
        let (sum, difference) = ((u[1] + u[2]).times(1.0 / 6.0), u[2] - u[1]);
        let (wide_sum, wide_difference) = (u[3] + u[4], u[3] - u[4]);
        [
            (u[0].times(0.25) - sum) + wide_sum.times(1.0 / 24.0),
            difference.times(1.0 / 6.0) + wide_difference.times(1.0 / 12.0),
            (wide_sum.times(1.0 / 6.0) - sum) + u[5],
        ]
    }
}

/// `F x Fᵀ` for the matrix F that `map` multiplies with.
#[inline(always)]
pub(super) fn both<T: Element, const K: usize, const L: usize>(
    x: &[[Lanes<T>; K]; K],
    map: impl Fn([Lanes<T>; K]) -> [Lanes<T>; L],
) -> [[Lanes<T>; L]; L] {
    let mut rows = [[Lanes::zeros(); L]; K];
    for (to, row) in rows.iter_mut().zip(x) {
        *to = map(*row);
    }
    let mut all = [[Lanes::zeros(); L]; L];
    for j in 0..L {
        let mut column = [Lanes::zeros(); K];
        for (to, row) in column.iter_mut().zip(&rows) {
            *to = row[j];
        }
        for (to, value) in all.iter_mut().zip(map(column)) {
            to[j] = value;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The matrix of a map, row by row, from what it makes of the unit vectors.
    fn matrix<const K: usize, const L: usize>(
        map: impl Fn([Lanes<f64>; K]) -> [Lanes<f64>; L],
    ) -> [[f64; K]; L] {
        let mut matrix = [[0.0; K]; L];
        for k in 0..K {
            let mut unit = [Lanes::zeros(); K];
            unit[k] = Lanes([1.0; LANES]);
            for (row, value) in matrix.iter_mut().zip(map(unit)) {
                row[k] = value.0[0];
            }
        }
        matrix
    }

    fn close<const K: usize, const L: usize>(got: [[f64; K]; L], wanted: [[f64; K]; L]) {
        let pairs = got.as_flattened().iter().zip(wanted.as_flattened());
        for (a, b) in pairs {
            assert!((a - b).abs() < 1e-15, "{got:?} {wanted:?}");
        }
    }

    fn transposed<const K: usize, const L: usize>(matrix: [[f64; K]; L]) -> [[f64; L]; K] {
        std::array::from_fn(|k| std::array::from_fn(|l| matrix[l][k]))
    }

    /// Σ over positions n of Aᵀ[i, n] G[n, k] Bᵀ[n, j] is one where j = i + k, else zero: that is what
    /// makes it a convolution.
    fn is_convolution<V: Variant<M, N>, const M: usize, const N: usize>() {
        let b = matrix::<N, N>(V::input::<f64>);
        let a = matrix::<N, M>(V::output::<f64>);
        let g = matrix::<3, N>(V::weight::<f64>);
        close(matrix::<M, N>(V::gradient::<f64>), transposed(a));
        close(matrix::<N, 3>(V::weight_back::<f64>), transposed(g));
        for (i, a) in a.iter().enumerate() {
            for e in 0..3 * N {
                let (k, j) = (e / N, e % N);
                let sum: f64 = (0..N).map(|n| a[n] * g[n][k] * b[n][j]).sum();
                let wanted = if j == i + k { 1.0 } else { 0.0 };
                assert!((sum - wanted).abs() < 1e-14, "{i} {k} {j}: {sum}");
            }
        }
    }

    #[test]
    fn the_matrices_make_a_convolution() {
        is_convolution::<Two, 2, 4>();
        is_convolution::<Four, 4, 6>();
    }

    #[test]
    fn the_matrices_are_those_of_the_paper() {
        let b = matrix::<6, 6>(Four::input::<f64>);
        close(
            b,
            [
                [4.0, 0.0, -5.0, 0.0, 1.0, 0.0],
                [0.0, -4.0, -4.0, 1.0, 1.0, 0.0],
                [0.0, 4.0, -4.0, -1.0, 1.0, 0.0],
                [0.0, -2.0, -1.0, 2.0, 1.0, 0.0],
                [0.0, 2.0, -1.0, -2.0, 1.0, 0.0],
                [0.0, 4.0, 0.0, -5.0, 0.0, 1.0],
            ],
        );
        let b = matrix::<4, 4>(Two::input::<f64>);
        close(
            b,
            [
                [1.0, 0.0, -1.0, 0.0],
                [0.0, 1.0, 1.0, 0.0],
                [0.0, -1.0, 1.0, 0.0],
                [0.0, 1.0, 0.0, -1.0],
            ],
        );
    }
}
