//! Run-time dispatch to the widest vector unit, vectors with operators, and elementary functions of
//! them.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::ops::{Add, Div, Mul, Neg, Sub};
use std::sync::OnceLock;

/// Runs `body` compiled for the vector unit of this machine (or for the baseline where there is
/// nothing better). What it calls must be inlined into it to be compiled so too: loops rather than
/// iterator adaptors with closures.
#[inline(always)]
pub(crate) fn dispatch<B: WithSimd>(body: B) -> B::Output {
    static ARCH: OnceLock<Arch> = OnceLock::new();
    ARCH.get_or_init(arch).dispatch(body)
}

/// The widest vectors of this machine, or those that the variable SECATEUR_VECTORS asks for, to
/// compare: `none`, or on x86-64 `avx2`.
fn arch() -> Arch {
    match std::env::var("SECATEUR_VECTORS").as_deref() {
        Ok("none") => Arch::Scalar,
        #[cfg(target_arch = "x86_64")]
        Ok("avx2") => pulp::x86::V3::try_new().map_or(Arch::Scalar, Arch::V3),
        _ => Arch::new(),
    }
}

/// Numbers in a vector of this machine.
pub(crate) fn lanes() -> usize {
    struct Lanes;
    impl WithSimd for Lanes {
        type Output = usize;

        fn with_simd<S: Simd>(self, _: S) -> usize {
            S::F32_LANES
        }
    }
    static LANES: OnceLock<usize> = OnceLock::new();
    *LANES.get_or_init(|| dispatch(Lanes))
}

/// The most numbers that a vector holds on any machine.
pub(crate) const MOST_LANES: usize = 16;

/// A vector of f32 with operators.
#[derive(Clone, Copy)]
pub(crate) struct Vector<S: Simd> {
    simd: S,
    pub(crate) value: S::f32s,
}

macro_rules! operator {
    ($trait:ident, $name:ident, $method:ident) => {
        impl<S: Simd> $trait for Vector<S> {
            type Output = Self;

            #[inline(always)]
            fn $name(self, other: Self) -> Self {
                Self { value: self.simd.$method(self.value, other.value), ..self }
            }
        }

        impl<S: Simd> $trait<f32> for Vector<S> {
            type Output = Self;

            #[inline(always)]
            fn $name(self, other: f32) -> Self {
                self.$name(self.splat(other))
            }
        }
    };
}

operator!(Add, add, add_f32s);
operator!(Sub, sub, sub_f32s);
operator!(Mul, mul, mul_f32s);
operator!(Div, div, div_f32s);

impl<S: Simd> Neg for Vector<S> {
    type Output = Self;

    #[inline(always)]
    fn neg(self) -> Self {
        Self { value: self.simd.neg_f32s(self.value), ..self }
    }
}

impl<S: Simd> Vector<S> {
    #[inline(always)]
    pub(crate) fn new(simd: S, value: S::f32s) -> Self {
        Self { simd, value }
    }

    /// The same number in every lane.
    #[inline(always)]
    pub(crate) fn of(simd: S, number: f32) -> Self {
        Self { simd, value: simd.splat_f32s(number) }
    }

    /// Up to a vector's numbers, zeros after them.
    #[inline(always)]
    pub(crate) fn load(simd: S, numbers: &[f32]) -> Self {
        let value = match S::as_simd_f32s(numbers).0.first() {
            Some(value) => *value,
            None => simd.partial_load_f32s(numbers),
        };
        Self { simd, value }
    }

    /// The first numbers to a slice of up to a vector's length.
    #[inline(always)]
    pub(crate) fn store(self, numbers: &mut [f32]) {
        match S::as_mut_simd_f32s(numbers).0.first_mut() {
            Some(whole) => *whole = self.value,
            None => self.simd.partial_store_f32s(numbers, self.value),
        }
    }

    #[inline(always)]
    fn splat(self, number: f32) -> Self {
        Self::of(self.simd, number)
    }

    /// self * factor + term, rounded once where the machine can.
    #[inline(always)]
    pub(crate) fn mul_add(self, factor: Self, term: Self) -> Self {
        Self { value: self.simd.mul_add_e_f32s(self.value, factor.value, term.value), ..self }
    }

    /// `self` where it is less than `bound` or NaN, else `bound`.
    #[inline(always)]
    fn at_most(self, bound: f32) -> Self {
        let bound = self.splat(bound);
        let over = self.simd.less_than_f32s(bound.value, self.value);
        Self { value: self.simd.select_f32s(over, bound.value, self.value), ..self }
    }

    /// `self` where it is more than `bound` or NaN, else `bound`.
    #[inline(always)]
    pub(crate) fn at_least(self, bound: f32) -> Self {
        let bound = self.splat(bound);
        let under = self.simd.less_than_f32s(self.value, bound.value);
        Self { value: self.simd.select_f32s(under, bound.value, self.value), ..self }
    }

    /// The greater of two; the first where the second is NaN.
    #[inline(always)]
    fn greater(self, other: Self) -> Self {
        let more = self.simd.less_than_f32s(self.value, other.value);
        Self { value: self.simd.select_f32s(more, other.value, self.value), ..self }
    }

    /// a * x^n + b * x^(n-1) + ..., the highest power's coefficient first.
    #[inline(always)]
    fn polynomial<const N: usize>(self, coefficients: [f32; N]) -> Self {
        let mut sum = self.splat(coefficients[0]);
        for &coefficient in &coefficients[1..] {
            sum = sum.mul_add(self, self.splat(coefficient));
        }
        sum
    }

    /// e^x to about one unit in the last place over the whole range: 2^n times a polynomial (Cephes
    /// `expf`), without a branch. NaN in gives NaN out; below -87.3 the result is the smallest
    /// normal number, near zero.
    #[inline(always)]
    pub(crate) fn exp(self) -> Self {
        // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits.
        const MAGIC: f32 = 12_582_912.0;
        let (simd, x) = (self.simd, self.at_most(88.3).at_least(-87.3));
        let shifted = x.mul_add(self.splat(std::f32::consts::LOG2_E), self.splat(MAGIC));
        let n = shifted - MAGIC;
        // x - n ln 2, with ln 2 in two parts, the first exact in few bits.
        let r = n.mul_add(self.splat(-0.693_359_4), x);
        let r = n.mul_add(self.splat(2.121_944_4e-4), r);
        let p = r.polynomial([
            1.987_569_1e-4,
            1.398_199_9e-3,
            8.333_452e-3,
            4.166_579_6e-2,
            1.666_666_5e-1,
            0.5,
        ]);
        let value = p.mul_add(r * r, r + 1.0);
        let bits = simd.transmute_u32s_f32s(shifted.value);
        let exponent = simd.add_u32s(bits, simd.splat_u32s(127u32.wrapping_sub(MAGIC.to_bits())));
        let exponent = simd.wrapping_dyn_shl_u32s(exponent, simd.splat_u32s(23));
        value * Self { simd, value: simd.transmute_f32s_u32s(exponent) }
    }

    /// 1 / (1 + e^-x).
    #[inline(always)]
    pub(crate) fn sigmoid(self) -> Self {
        self.splat(1.0) / ((-self).exp() + 1.0)
    }

    /// erf x to 1.2e-7 (Numerical Recipes, `erfcc`).
    #[inline(always)]
    pub(crate) fn erf(self) -> Self {
        let z = Self { value: self.simd.abs_f32s(self.value), ..self };
        let t = self.splat(1.0) / z.mul_add(self.splat(0.5), self.splat(1.0));
        let p = t.polynomial([
            0.170_872_77,
            -0.822_152_23,
            1.488_515_9,
            -1.135_204,
            0.278_868_07,
            -0.186_288_06,
            0.096_784_18,
            0.374_091_96,
            1.000_023_7,
            -1.265_512_2,
        ]);
        let complement = t * (p - z * z).exp();
        let erf = self.splat(1.0) - complement;
        let negative = self.simd.less_than_f32s(self.value, self.splat(0.0).value);
        Self { value: self.simd.select_f32s(negative, (-erf).value, erf.value), ..self }
    }

    /// `self` where `condition` is not zero, else 0: what 0 times infinity should have been.
    #[inline(always)]
    pub(crate) fn unless_zero(self, condition: Self) -> Self {
        let zero = self.splat(0.0).value;
        let is_zero = self.simd.equal_f32s(condition.value, zero);
        Self { value: self.simd.select_f32s(is_zero, zero, self.value), ..self }
    }
}

/// Sum of f over the vectors of a slice: interleaved partial sums are fast, and more accurate than
/// one running sum.
#[inline(always)]
pub(crate) fn sum_of<S: Simd>(simd: S, x: &[f32], f: impl Fn(Vector<S>) -> Vector<S>) -> f32 {
    const CHAINS: usize = 4;
    let mut sums = [Vector::of(simd, 0.0); CHAINS];
    let (vectors, tail) = S::as_simd_f32s(x);
    let (blocks, rest) = vectors.as_chunks::<CHAINS>();
    for block in blocks {
        for i in 0..CHAINS {
            sums[i] = sums[i] + f(Vector::new(simd, block[i]));
        }
    }
    for &vector in rest {
        sums[0] = sums[0] + f(Vector::new(simd, vector));
    }
    if !tail.is_empty() {
        let present = Vector::load(simd, &[1.0; MOST_LANES][..tail.len()]);
        sums[1] = sums[1] + f(Vector::load(simd, tail)) * present;
    }
    simd.reduce_sum_f32s(((sums[0] + sums[1]) + (sums[2] + sums[3])).value)
}

/// The greatest element, -inf of none. NaN is passed over.
#[inline(always)]
pub(crate) fn maximum<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let mut greatest = Vector::of(simd, f32::NEG_INFINITY);
    let (vectors, tail) = S::as_simd_f32s(x);
    for &vector in vectors {
        greatest = greatest.greater(Vector::new(simd, vector));
    }
    let mut most = simd.reduce_max_f32s(greatest.value);
    for &x in tail {
        most = if x > most { x } else { most };
    }
    most
}

/// y = f(y) for every vector of a slice; f sees zeros after the end.
#[inline(always)]
pub(crate) fn map_each<S: Simd>(simd: S, y: &mut [f32], f: impl Fn(Vector<S>) -> Vector<S>) {
    let (vectors, tail) = S::as_mut_simd_f32s(y);
    for vector in vectors {
        *vector = f(Vector::new(simd, *vector)).value;
    }
    if !tail.is_empty() {
        f(Vector::load(simd, tail)).store(tail);
    }
}

/// y = f(x, y) for every pair of vectors of two slices of one length.
#[inline(always)]
pub(crate) fn map_pairs<S: Simd>(
    simd: S,
    x: &[f32],
    y: &mut [f32],
    f: impl Fn(Vector<S>, Vector<S>) -> Vector<S>,
) {
    let ((xs, x_tail), (ys, y_tail)) = (S::as_simd_f32s(x), S::as_mut_simd_f32s(y));
    for (x, y) in xs.iter().zip(ys) {
        *y = f(Vector::new(simd, *x), Vector::new(simd, *y)).value;
    }
    if !y_tail.is_empty() {
        f(Vector::load(simd, x_tail), Vector::load(simd, y_tail)).store(y_tail);
    }
}

/// [`sum_of`], [`map_each`] and [`map_pairs`] with a closure that is inlined, so that it is
/// compiled for the same vectors.
macro_rules! sum {
    ($simd:expr, $x:expr, $f:expr) => {
        $crate::simd::sum_of(
            $simd,
            $x,
            #[inline(always)]
            $f,
        )
    };
}
macro_rules! map {
    ($simd:expr, $y:expr, $f:expr) => {
        $crate::simd::map_each(
            $simd,
            $y,
            #[inline(always)]
            $f,
        )
    };
}
macro_rules! map_with {
    ($simd:expr, $x:expr, $y:expr, $f:expr) => {
        $crate::simd::map_pairs(
            $simd,
            $x,
            $y,
            #[inline(always)]
            $f,
        )
    };
}
pub(crate) use {map, map_with, sum};

/// Elements a task should have before it is worth a thread.
const GRAIN: usize = 16 * 1024;

/// What is done to a row of the output, given the row of the input and its number.
pub(crate) trait Row: Sync {
    fn run<S: Simd>(&self, simd: S, row: usize, x: &[f32], y: &mut [f32]);
}

/// Applies `body` to `input` and `output` in equal rows of `width`, rows spread over the threads.
pub(crate) fn for_rows(input: &[f32], output: &mut [f32], width: usize, body: &impl Row) {
    struct Chunk<'a, R> {
        first: usize,
        width: usize,
        input: &'a [f32],
        output: &'a mut [f32],
        body: &'a R,
    }
    impl<R: Row> WithSimd for Chunk<'_, R> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let rows =
                self.input.chunks_exact(self.width).zip(self.output.chunks_exact_mut(self.width));
            for (row, (x, y)) in rows.enumerate() {
                self.body.run(simd, self.first + row, x, y);
            }
        }
    }
    if width == 0 || input.is_empty() {
        return;
    }
    let rows = (GRAIN / width).max(1);
    let chunks = input.par_chunks(rows * width).zip(output.par_chunks_mut(rows * width));
    chunks.enumerate().for_each(|(chunk, (input, output))| {
        dispatch(Chunk { first: chunk * rows, width, input, output, body });
    });
}

#[cfg(test)]
mod tests {
    use super::{Vector, dispatch, maximum};
    use pulp::{Simd, WithSimd};

    /// A function of one number through the vectors of this machine.
    struct One(f32, &'static str);

    impl WithSimd for One {
        type Output = f32;

        fn with_simd<S: Simd>(self, simd: S) -> f32 {
            let x = Vector::of(simd, self.0);
            let y = match self.1 {
                "exp" => x.exp(),
                "sigmoid" => x.sigmoid(),
                _ => x.erf(),
            };
            let mut first = [0.0];
            y.store(&mut first);
            first[0]
        }
    }

    #[test]
    fn elementary_functions_match_f64() {
        for i in -2000..2000 {
            let x = i as f32 * 0.01;
            let wide = f64::from(x);
            let close = |name: &'static str, want: f64, scale: f64| {
                for (got, unit) in [
                    (dispatch(One(x, name)), "vector"),
                    (One(x, name).with_simd(pulp::Scalar), "scalar"),
                ] {
                    let error = (f64::from(got) - want).abs() / scale;
                    assert!(
                        error < 4e-7,
                        "{name}({x}), {unit}: {got} against {want}, error {error:e}"
                    );
                }
            };
            close("exp", wide.exp(), wide.exp());
            let sigmoid = 1.0 / (1.0 + (-wide).exp());
            close("sigmoid", sigmoid, sigmoid);
        }
        assert!(dispatch(One(f32::NAN, "exp")).is_nan());
        assert!(dispatch(One(-1000.0, "exp")) < 1e-37);
        assert!((dispatch(One(0.5, "erf")) - 0.520_499_9).abs() < 3e-7);
        assert!((dispatch(One(-1.5, "erf")) + 0.966_105_1).abs() < 3e-7);
    }

    #[test]
    fn reductions_of_any_length() {
        struct Reduce<'a>(&'a [f32]);
        impl WithSimd for Reduce<'_> {
            type Output = (f32, f32);

            fn with_simd<S: Simd>(self, simd: S) -> (f32, f32) {
                (sum!(simd, self.0, |x| x + 1.0), maximum(simd, self.0))
            }
        }
        for count in 0..200u16 {
            let x: Vec<f32> = (0..count).map(|i| -f32::from(i) - 1.0).collect();
            let (total, most) = dispatch(Reduce(&x));
            assert_eq!(total, -(f32::from(count) * (f32::from(count) - 1.0)) / 2.0, "{count}");
            assert_eq!(most, if count == 0 { f32::NEG_INFINITY } else { -1.0 }, "{count}");
        }
    }
}
