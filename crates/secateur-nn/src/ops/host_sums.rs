//! Sums over the rows of a layer's inputs, in memory.

/// The sums in memory; empty before there are any.
#[derive(Clone, Debug, Default)]
pub struct HostSums {
    /// Of a n x^T x: the upper triangle of width x width numbers.
    pub gram: Vec<f32>,
    /// Of a n x: width.
    pub weighted_sums: Vec<f64>,
    /// Of n x: width.
    pub sums: Vec<f64>,
    /// Of n x^2: width.
    pub squares: Vec<f64>,
}

impl HostSums {
    /// No rows yet.
    pub(super) fn zeros(width: usize) -> Self {
        let zeros = vec![0.0; width];
        let gram = vec![0.0; width * width];
        Self { gram, weighted_sums: zeros.clone(), sums: zeros.clone(), squares: zeros }
    }

    /// The upper triangle of the Gram matrix, row by row: width x (width + 1) / 2 numbers.
    #[must_use]
    pub fn triangle(&self) -> Vec<f32> {
        let width = self.sums.len();
        let mut triangle = Vec::with_capacity(width * (width + 1) / 2);
        for (row, numbers) in self.gram.chunks(width.max(1)).enumerate() {
            triangle.extend_from_slice(&numbers[row..]);
        }
        triangle
    }

    /// Sets the Gram matrix to a [`HostSums::triangle`] of the same width.
    pub fn set_triangle(&mut self, triangle: &[f32]) {
        let width = self.sums.len();
        let mut rest = triangle;
        for (row, numbers) in self.gram.chunks_mut(width.max(1)).enumerate() {
            let (own, others) = rest.split_at(width - row);
            numbers[row..].copy_from_slice(own);
            rest = others;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::HostSums;

    #[test]
    fn a_triangle_is_read_and_set() {
        for width in [0, 1, 2, 5] {
            let mut sums = HostSums::zeros(width);
            sums.gram.iter_mut().zip(1..).for_each(|(number, index)| *number = index as f32);
            let triangle = sums.triangle();
            assert_eq!(triangle.len(), width * (width + 1) / 2);
            let mut other = HostSums::zeros(width);
            other.set_triangle(&triangle);
            for (place, number) in other.gram.iter().enumerate() {
                let is_upper = place % width >= place / width;
                assert_eq!(*number, if is_upper { sums.gram[place] } else { 0.0 });
            }
        }
        let mut sums = HostSums::zeros(3);
        sums.set_triangle(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(sums.gram, [1.0, 2.0, 3.0, 0.0, 4.0, 5.0, 0.0, 0.0, 6.0]);
        assert_eq!(sums.triangle(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    }
}
