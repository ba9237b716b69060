//! Eigenvalues of small symmetric matrices, by Jacobi's method (Golub and Van Loan, Matrix Computations,
//! 4th edition, section 8.5): rotations that zero one off-diagonal element after the other, until all are
//! negligible. It is as short as it is accurate, and fast enough for the hundred rows that a Krylov space or
//! a trajectory has; a library of linear algebra would be many times this crate's size.

/// Sweeps over all elements; a matrix of a hundred rows needs about eight.
const MAX_SWEEPS: usize = 60;

/// A symmetric matrix of n rows.
#[derive(Debug, Clone)]
pub(super) struct Symmetric {
    n: usize,
    elements: Vec<f64>,
}

/// Eigenvalues, the largest first, each with its eigenvector of length 1.
#[derive(Debug)]
pub(super) struct Eigen {
    pub(super) values: Vec<f64>,
    pub(super) vectors: Vec<Vec<f64>>,
}

impl Symmetric {
    pub(super) fn zeros(n: usize) -> Self {
        Self {
            n,
            elements: vec![0.0; n * n],
        }
    }

    /// With this diagonal, and these elements beside it.
    pub(super) fn tridiagonal(diagonal: &[f64], beside: &[f64]) -> Self {
        let mut matrix = Self::zeros(diagonal.len());
        for (i, &x) in diagonal.iter().enumerate() {
            matrix.set(i, i, x);
        }
        for (i, &x) in beside
            .iter()
            .enumerate()
            .take(diagonal.len().saturating_sub(1))
        {
            matrix.set(i, i + 1, x);
        }
        matrix
    }

    /// Sets an element and its mirror image.
    pub(super) fn set(&mut self, i: usize, j: usize, value: f64) {
        self.elements[i * self.n + j] = value;
        self.elements[j * self.n + i] = value;
    }

    fn at(&self, i: usize, j: usize) -> f64 {
        self.elements[i * self.n + j]
    }

    fn off_diagonal(&self) -> f64 {
        let pairs = (0..self.n).flat_map(|i| (0..i).map(move |j| (i, j)));
        pairs.map(|(i, j)| self.at(i, j).powi(2)).sum()
    }

    pub(super) fn eigen(mut self) -> Eigen {
        let n = self.n;
        let total: f64 = self.elements.iter().map(|x| x * x).sum();
        // Rows are the eigenvectors, once the matrix is diagonal.
        let mut rows: Vec<Vec<f64>> = (0..n)
            .map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect())
            .collect();
        for _ in 0..MAX_SWEEPS {
            if self.off_diagonal() <= total * f64::EPSILON.powi(2) {
                break;
            }
            for p in 0..n {
                for q in p + 1..n {
                    if let Some((c, s)) = self.rotation(p, q) {
                        self.rotate(p, q, c, s);
                        let (above, below) = rows.split_at_mut(q);
                        for (x, y) in above[p].iter_mut().zip(&mut below[0]) {
                            (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
                        }
                    }
                }
            }
        }
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&i, &j| self.at(j, j).total_cmp(&self.at(i, i)));
        Eigen {
            values: order.iter().map(|&i| self.at(i, i)).collect(),
            vectors: order
                .iter()
                .map(|&i| std::mem::take(&mut rows[i]))
                .collect(),
        }
    }

    /// Cosine and sine of the rotation that zeroes element (p, q); nothing when it is zero.
    fn rotation(&self, p: usize, q: usize) -> Option<(f64, f64)> {
        let off = self.at(p, q);
        if off == 0.0 {
            return None;
        }
        let tau = (self.at(q, q) - self.at(p, p)) / (2.0 * off);
        // The smaller of the two angles; the hypotenuse does not overflow.
        let t = tau.signum() / (tau.abs() + tau.hypot(1.0));
        let c = 1.0 / t.hypot(1.0);
        Some((c, t * c))
    }

    /// Jᵀ A J for the rotation J of rows p and q.
    fn rotate(&mut self, p: usize, q: usize, c: f64, s: f64) {
        let (pp, qq, pq) = (self.at(p, p), self.at(q, q), self.at(p, q));
        for k in (0..self.n).filter(|&k| k != p && k != q) {
            let (x, y) = (self.at(k, p), self.at(k, q));
            self.set(k, p, c * x - s * y);
            self.set(k, q, s * x + c * y);
        }
        let t = s / c;
        self.set(p, p, pp - t * pq);
        self.set(q, q, qq + t * pq);
        self.set(p, q, 0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_near(got: f64, wanted: f64, tolerance: f64) {
        assert!(
            (got - wanted).abs() <= tolerance,
            "wanted {wanted}, got {got}"
        );
    }

    #[test]
    fn the_second_difference_matrix_has_the_eigenvalues_of_the_books() {
        // 2 − 2 cos(kπ / (n + 1))
        let n = 30;
        let eigen = Symmetric::tridiagonal(&vec![2.0; n], &vec![-1.0; n - 1]).eigen();
        for (i, value) in eigen.values.iter().enumerate() {
            let k = (n - i) as f64;
            let angle = k * std::f64::consts::PI / (n + 1) as f64;
            assert_near(*value, 2.0 - 2.0 * angle.cos(), 1e-13);
        }
    }

    #[test]
    fn a_full_matrix_is_put_together_again_from_its_eigenvectors() {
        let n = 12;
        let mut matrix = Symmetric::zeros(n);
        for i in 0..n {
            for j in 0..=i {
                // Of sizes from 1e-3 to 1e3.
                let size = 10f64.powf(((i + j) % 7) as f64 - 3.0);
                matrix.set(i, j, size * ((3 * i + 5 * j) as f64).sin());
            }
        }
        let eigen = matrix.clone().eigen();
        assert!(
            eigen.values.is_sorted_by(|a, b| a >= b),
            "{:?}",
            eigen.values
        );
        for i in 0..n {
            for j in 0..n {
                let pairs = eigen.values.iter().zip(&eigen.vectors);
                let sum: f64 = pairs.map(|(value, v)| value * v[i] * v[j]).sum();
                assert_near(sum, matrix.at(i, j), 1e-10);
                let dot: f64 = (0..n)
                    .map(|k| eigen.vectors[i][k] * eigen.vectors[j][k])
                    .sum();
                assert_near(dot, f64::from(u8::from(i == j)), 1e-13);
            }
        }
    }

    #[test]
    fn equal_diagonal_elements_and_matrices_without_or_with_one_row_are_no_exception() {
        let eigen = Symmetric::tridiagonal(&[1.0, 1.0], &[2.0]).eigen();
        assert_near(eigen.values[0], 3.0, 1e-15);
        assert_near(eigen.values[1], -1.0, 1e-15);
        assert_eq!(Symmetric::tridiagonal(&[4.0], &[]).eigen().values, [4.0]);
        assert!(Symmetric::zeros(0).eigen().values.is_empty());
        assert_eq!(Symmetric::zeros(2).eigen().values, [0.0, 0.0]);
    }
}
