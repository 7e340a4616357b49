//! The best low rank of a product of two projections.

use faer::{Mat, Side};
use std::fmt;

/// Projections are given new bases, in which the first dimensions do best without the others.
///
/// For inputs X and Y and projections P and Q to the same `width` dimensions, with A = P^T X^T X P
/// and B = Q^T Y^T Y Q, it holds the L and R of `rank` columns with the least || X P (I - L R^T)
/// Q^T Y^T ||_F, for every rank at once: the first columns of [`LowRank::left`] and
/// [`LowRank::right`]. P becomes P L, Q becomes Q R.
///
/// This is the whitening SVD of MoDeGPT (Lin et al. 2024, arXiv 2408.09632, type III): with A = V_a
/// S_a^2 V_a^T, likewise B, and K = S_a V_a^T V_b S_b = U Sigma V^T, the paper's L = V_a S_a^-1 U
/// Sigma^(1/2) is V_b S_b V Sigma^(-1/2) where S_a can be inverted, and the latter is defined where
/// it cannot. Likewise R = V_a S_a U Sigma^(-1/2).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LowRank {
    /// width x width.
    pub(crate) left: Mat<f64>,
    /// width x width.
    pub(crate) right: Mat<f64>,
    /// Sigma^2, descending: what leaving out each dimension adds to the squared error.
    pub(crate) squares: Vec<f64>,
}

/// Singular values below this share of the largest are those of directions that no input has.
const NONE: f64 = 1e-9;

/// A decomposition failed, as of a matrix that is not finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoDecomposition;

impl fmt::Display for NoDecomposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a matrix of its statistics has no decomposition, as it is not finite")
    }
}

impl LowRank {
    /// Of A and B, symmetric and positive semidefinite.
    ///
    /// # Errors
    /// If they are not finite.
    pub(crate) fn new(a: &Mat<f64>, b: &Mat<f64>) -> Result<Self, NoDecomposition> {
        let (of_a, of_b) = (root(a)?, root(b)?);
        let product = &of_a * of_b.transpose();
        let svd = product.svd().map_err(|_| NoDecomposition)?;
        let values: Vec<f64> = svd.S().column_vector().iter().copied().collect();
        let largest = values.first().copied().unwrap_or(0.0);
        let scale =
            |j: usize| if values[j] > NONE * largest { 1.0 / values[j].sqrt() } else { 0.0 };
        let scaled = |basis: Mat<f64>| {
            Mat::from_fn(basis.nrows(), basis.ncols(), |i, j| basis[(i, j)] * scale(j))
        };
        Ok(Self {
            left: scaled(of_b.transpose() * svd.V()),
            right: scaled(of_a.transpose() * svd.U()),
            squares: values.iter().map(|value| value * value).collect(),
        })
    }

    /// The squared error that is left at a rank.
    pub(crate) fn tail(&self, rank: usize) -> f64 {
        self.squares.iter().skip(rank).sum()
    }
}

/// S V^T of the matrix V S^2 V^T.
fn root(matrix: &Mat<f64>) -> Result<Mat<f64>, NoDecomposition> {
    let eigen = matrix.self_adjoint_eigen(Side::Lower).map_err(|_| NoDecomposition)?;
    let (values, vectors) = (eigen.S().column_vector(), eigen.U());
    // Of what rounding made negative nothing is left.
    let root = |i: usize| values[i].max(0.0).sqrt();
    Ok(Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| root(i) * vectors[(j, i)]))
}
