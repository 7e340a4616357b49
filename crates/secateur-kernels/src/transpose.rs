//! Rows become columns: how factors of products are packed.

/// Writes element p of row i to `out[p * stride + i]`, for i below `count` and p below `depth`.
pub(crate) fn transpose<'a>(
    count: usize,
    depth: usize,
    row: impl Fn(usize) -> &'a [f32],
    out: &mut [f32],
    stride: usize,
) {
    let whole = transpose_whole_tiles(count, depth, &row, out, stride);
    for i in 0..count {
        let first = if i < whole.0 { whole.1 } else { 0 };
        let row = &row(i)[first..depth];
        for (line, &value) in out[first * stride..].chunks_mut(stride).zip(row) {
            line[i] = value;
        }
    }
}

/// Rows and elements that were written in whole tiles.
#[cfg(not(target_arch = "x86_64"))]
fn transpose_whole_tiles<'a>(
    _: usize,
    _: usize,
    _: &impl Fn(usize) -> &'a [f32],
    _: &mut [f32],
    _: usize,
) -> (usize, usize) {
    (0, 0)
}

/// Rows and elements that were written in whole tiles.
#[cfg(target_arch = "x86_64")]
fn transpose_whole_tiles<'a>(
    count: usize,
    depth: usize,
    row: &impl Fn(usize) -> &'a [f32],
    out: &mut [f32],
    stride: usize,
) -> (usize, usize) {
    use pulp::x86::V3;
    use std::sync::OnceLock;

    static AVX: OnceLock<Option<V3>> = OnceLock::new();
    let Some(simd) = *AVX.get_or_init(V3::try_new) else { return (0, 0) };
    let (rows, elements) = (count / x86::SIDE * x86::SIDE, depth / x86::SIDE * x86::SIDE);
    for first in (0..rows).step_by(x86::SIDE) {
        let rows: [&[[f32; x86::SIDE]]; x86::SIDE] =
            std::array::from_fn(|i| row(first + i)[..elements].as_chunks().0);
        simd.vectorize(x86::Tiles { simd, rows, first, out: &mut *out, stride });
    }
    (rows, elements)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use pulp::x86::V3;
    use pulp::{NullaryFnOnce, cast, f32x8};

    /// Rows and columns of a tile.
    pub(super) const SIDE: usize = 8;

    pub(super) struct Tiles<'a> {
        pub(super) simd: V3,
        /// In pieces of a tile's width.
        pub(super) rows: [&'a [[f32; SIDE]]; SIDE],
        /// Where a line of the output begins.
        pub(super) first: usize,
        pub(super) out: &'a mut [f32],
        pub(super) stride: usize,
    }

    impl NullaryFnOnce for Tiles<'_> {
        type Output = ();

        #[inline(always)]
        fn call(self) {
            let Self { simd, rows, first, out, stride } = self;
            let [a, b, c, d, e, f, g, h] = rows;
            let rows = a.iter().zip(b).zip(c).zip(d).zip(e).zip(f).zip(g).zip(h);
            // The last line of the output may end with the tile.
            let mut rest = &mut out[first..];
            for (((((((a, b), c), d), e), f), g), h) in rows {
                let tile = [
                    cast(*a),
                    cast(*b),
                    cast(*c),
                    cast(*d),
                    cast(*e),
                    cast(*f),
                    cast(*g),
                    cast(*h),
                ];
                let tile = transpose(simd, tile);
                let end = (SIDE * stride).min(rest.len());
                let (lines, others) = rest.split_at_mut(end);
                rest = others;
                for (line, values) in lines.chunks_mut(stride).zip(tile) {
                    if let Some(line) = line.first_chunk_mut::<SIDE>() {
                        *line = cast(values);
                    }
                }
            }
        }
    }

    /// Pairs within halves of two rows, then pairs of these, then halves.
    #[inline(always)]
    fn transpose(simd: V3, rows: [f32x8; SIDE]) -> [f32x8; SIDE] {
        let avx = simd.avx;
        let (mut pairs, mut quads, mut columns) = (rows, rows, rows);
        for i in 0..4 {
            let (a, b) = (cast(rows[2 * i]), cast(rows[2 * i + 1]));
            pairs[2 * i] = cast(avx._mm256_unpacklo_ps(a, b));
            pairs[2 * i + 1] = cast(avx._mm256_unpackhi_ps(a, b));
        }
        for half in [0, 4] {
            for i in 0..2 {
                let (a, b) = (cast(pairs[half + i]), cast(pairs[half + 2 + i]));
                quads[half + 2 * i] = cast(avx._mm256_shuffle_ps::<0x44>(a, b));
                quads[half + 2 * i + 1] = cast(avx._mm256_shuffle_ps::<0xEE>(a, b));
            }
        }
        for i in 0..4 {
            let (a, b) = (cast(quads[i]), cast(quads[i + 4]));
            columns[i] = cast(avx._mm256_permute2f128_ps::<0x20>(a, b));
            columns[i + 4] = cast(avx._mm256_permute2f128_ps::<0x31>(a, b));
        }
        columns
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_element_goes_to_its_place() {
        for count in [1, 3, 7, 8, 9, 16, 21] {
            for depth in [1, 5, 8, 15, 16, 17, 40] {
                let matrix: Vec<f32> = (0..count * depth).map(|i| i as f32).collect();
                let stride = count + 2;
                let mut out = vec![-1.0; depth * stride];
                super::transpose(count, depth, |i| &matrix[i * depth..][..depth], &mut out, stride);
                for (p, line) in out.chunks(stride).enumerate() {
                    for (i, &value) in line.iter().enumerate() {
                        let want = if i < count { matrix[i * depth + p] } else { -1.0 };
                        assert_eq!(value, want, "{count} x {depth}: row {i}, element {p}");
                    }
                }
            }
        }
    }
}
