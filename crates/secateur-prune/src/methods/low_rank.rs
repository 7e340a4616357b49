//! The best low-rank approximation of a product of two projections.

use faer::{Mat, Side};
use std::fmt;

/// New bases for two projections, ordered so that dropping the last dimensions loses least.
///
/// For inputs X and Y and projections P and Q to the same `width` dimensions, with A = P^T X^T X P
/// and B = Q^T Y^T Y Q, this holds matrices L and R of `rank` columns that minimise || X P (I - L
/// R^T) Q^T Y^T ||_F, for every rank at once: the first `rank` columns of [`LowRank::left`] and of
/// [`LowRank::right`]. P becomes P L, and Q becomes Q R.
///
/// This is the whitening SVD of MoDeGPT (Lin et al. 2024, arXiv 2408.09632, type III). Let A = V_a
/// S_a^2 V_a^T, likewise B, and K = S_a V_a^T V_b S_b = U Sigma V^T. The paper's L = V_a S_a^-1 U
/// Sigma^(1/2) equals V_b S_b V Sigma^(-1/2) if S_a can be inverted, and the latter is defined even
/// if it cannot. Likewise R = V_a S_a U Sigma^(-1/2).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LowRank {
    /// L, width x width.
    pub(crate) left: Mat<f64>,
    /// R, width x width.
    pub(crate) right: Mat<f64>,
    /// Sigma^2, descending: the squared error that dropping each dimension adds.
    pub(crate) squares: Vec<f64>,
}

/// Singular values below this share of the largest count as zero: no input has such a direction.
const NONE: f64 = 1e-9;

/// A decomposition failed, for example of a matrix with values that are not finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoDecomposition;

impl fmt::Display for NoDecomposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a matrix of its statistics has no decomposition, as it is not finite")
    }
}

impl LowRank {
    /// Decomposes A and B, symmetric and positive semidefinite.
    ///
    /// # Errors
    /// If their values are not finite.
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

    /// Returns the squared error at that rank.
    pub(crate) fn tail(&self, rank: usize) -> f64 {
        self.squares.iter().skip(rank).sum()
    }
}

/// Returns S V^T for the matrix V S^2 V^T.
fn root(matrix: &Mat<f64>) -> Result<Mat<f64>, NoDecomposition> {
    let eigen = matrix.self_adjoint_eigen(Side::Lower).map_err(|_| NoDecomposition)?;
    let (values, vectors) = (eigen.S().column_vector(), eigen.U());
    // Of what rounding made negative nothing is left.
    let root = |i: usize| values[i].max(0.0).sqrt();
    Ok(Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| root(i) * vectors[(j, i)]))
}
