//! New bases for the columns of a layer's input.

use crate::methods::low_rank::LowRank;
use faer::Mat;
use rayon::prelude::*;
use secateur_nn::LayerName;

/// A new basis of columns of a layer's input, for each head: x becomes (x - offset) L.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    pub(crate) layer: LayerName,
    /// The index of the first column.
    pub(crate) start: usize,
    /// The bias that the layer before no longer adds. The bias of this layer contains its effect.
    pub(crate) offset: Option<Vec<f32>>,
    pub(crate) bases: Vec<LowRank>,
    /// Number of dimensions of a head that are kept.
    pub(crate) rank: usize,
}

/// Multiplies the successive dimensions of each head, in rows of `columns` numbers, by its basis,
/// and sets dimensions from `rank` on to zero.
pub(crate) fn turn(
    rows: &mut [f32],
    columns: usize,
    bases: &[LowRank],
    rank: usize,
    basis: fn(&LowRank) -> &Mat<f64>,
) {
    let heads = rows.chunks_mut(columns * basis(&bases[0]).nrows()).zip(bases);
    let turn = |(rows, head): (&mut [f32], &LowRank)| {
        let basis = basis(head);
        let old: Vec<f64> = rows.iter().map(|&x| f64::from(x)).collect();
        rows.fill(0.0);
        for (to, new) in rows.chunks_exact_mut(columns).take(rank).enumerate() {
            let mut sums = vec![0f64; columns];
            for (from, old) in old.chunks_exact(columns).enumerate() {
                let by = basis[(from, to)];
                sums.iter_mut().zip(old).for_each(|(sum, x)| *sum += by * x);
            }
            new.iter_mut().zip(sums).for_each(|(x, sum)| *x = sum as f32);
        }
    };
    // Heads of whole rows are enough work for a thread each.
    match columns {
        1 => heads.for_each(turn),
        _ => heads.par_bridge().for_each(turn),
    }
}
