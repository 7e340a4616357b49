//! Rotary position embeddings (RoFormer, Su et al. 2021): every pair of successive elements of a
//! head is a point of the plane, turned by an angle that depends on the token.

use crate::simd::{Row, for_rows};
use pulp::Simd;
use rayon::prelude::*;

struct Turn<'a> {
    table: &'a [f32],
    width: usize,
    /// -1 turns the other way.
    direction: f32,
}

impl Row for Turn<'_> {
    #[inline(always)]
    fn run<S: Simd>(&self, _: S, row: usize, x: &[f32], y: &mut [f32]) {
        let angles = pairs(of_token(self.table, row, self.width));
        for (x, y) in x.chunks_exact(self.width).zip(y.chunks_exact_mut(self.width)) {
            for ((&[a, b], y), &[cos, sin]) in pairs(x).iter().zip(y.as_chunks_mut().0).zip(angles)
            {
                let sin = self.direction * sin;
                *y = [a * cos - b * sin, a * sin + b * cos];
            }
        }
    }
}

#[inline(always)]
fn pairs(x: &[f32]) -> &[[f32; 2]] {
    x.as_chunks().0
}

/// The line of `table` for a row of samples x tokens rows.
#[inline(always)]
fn of_token(table: &[f32], row: usize, width: usize) -> &[f32] {
    &table[row * width % table.len()..][..width]
}

/// Turns the pairs of the heads of `x`, samples x tokens x `size.0`, by the angles whose cosines
/// and sines alternate in `table`, tokens x `size.1`, the width of a head.
pub fn rope(x: &[f32], y: &mut [f32], table: &[f32], size: (usize, usize)) {
    for_rows(x, y, size.0, &Turn { table, width: size.1, direction: 1.0 });
}

/// The gradient of x of [`rope`].
pub fn rope_gradient(gy: &[f32], gx: &mut [f32], table: &[f32], size: (usize, usize)) {
    for_rows(gy, gx, size.0, &Turn { table, width: size.1, direction: -1.0 });
}

/// The gradient of the table of [`rope`].
pub fn rope_table_gradient(x: &[f32], gy: &[f32], gtable: &mut [f32], size: (usize, usize)) {
    let (row, width) = size;
    let tokens = gtable.len() / width.max(1);
    gtable.par_chunks_exact_mut(width.max(1)).enumerate().for_each(|(token, gtable)| {
        let rows =
            x.chunks_exact(row.max(1)).zip(gy.chunks_exact(row.max(1))).skip(token).step_by(tokens);
        let heads = rows.flat_map(|(x, gy)| x.chunks_exact(width).zip(gy.chunks_exact(width)));
        for (x, gy) in heads {
            for ((&[a, b], &[ga, gb]), [gcos, gsin]) in
                pairs(x).iter().zip(pairs(gy)).zip(gtable.as_chunks_mut().0)
            {
                *gcos += ga * a + gb * b;
                *gsin += gb * a - ga * b;
            }
        }
    });
}
