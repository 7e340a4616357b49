//! Matrix products: the kernel under linears, convolutions, attention, Gram matrices and the OBS
//! solver.
//!
//! A product is cut into tiles of a few rows x 3 vectors, which stay in registers while the shared
//! dimension passes by (Goto & van de Geijn, "Anatomy of high-performance matrix multiplication",
//! 2008). Both factors are packed so that a tile reads them in order: the right one into
//! [`Panels`], once for weights; the left one into [`Strips`], by each task.
//!
//! Every element is the sum, over stretches of the shared dimension, of a chain of multiply-adds,
//! however the work is cut: results do not depend on the number of threads.

use crate::simd::{Vector, dispatch, lanes};
use crate::transpose::transpose;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;
use std::sync::OnceLock;
use std::thread::LocalKey;

/// Vectors in a full tile's row.
pub(crate) const VECTORS: usize = 3;
/// Depth that passes by a tile at a time: a panel of it stays in the second-level cache, and sums
/// are seldom stored.
pub(crate) const DEPTH: usize = 512;
/// Bytes of a cache line.
const LINE: usize = 64;
/// Elements of the left factor that a task goes over again and again: half of a second-level cache.
const LEFT: usize = 128 * 1024;

/// Rows that a task should have at least: each task reads the whole right factor from beyond its
/// cache.
const LEAST_ROWS: usize = 32;

/// The right factor of a product, depth x columns, in panels of 3 vectors' width, each row after
/// row; the last one is as many whole vectors wide as it needs.
#[derive(Debug, Default)]
pub struct Panels {
    storage: Vec<f32>,
    /// Where the panels begin in the storage: at a cache line, as every vector in them then does.
    start: usize,
    depth: usize,
    columns: usize,
    triangle: Option<Triangle>,
}

/// A square factor with zeros on one side of its diagonal, which need no products.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Triangle {
    /// Zero below the diagonal.
    Upper,
    /// Zero above the diagonal.
    Lower,
}

impl Panels {
    /// The factor W^T: row j of `weight` (rows of `depth` elements, one after another) is its
    /// column j.
    #[must_use]
    pub fn transposed(weight: &[f32], depth: usize) -> Self {
        let columns = weight.len().checked_div(depth).unwrap_or(0);
        Self::from_columns(depth, columns, |column| &weight[column * depth..][..depth])
    }

    /// The factor whose column j is `column(j)`, of `depth` elements.
    #[must_use]
    pub fn from_columns<'a>(
        depth: usize,
        columns: usize,
        column: impl Fn(usize) -> &'a [f32] + Sync,
    ) -> Self {
        let mut panels = Self::default();
        panels.set_columns_in_parallel(depth, columns, column);
        panels
    }

    /// The factor whose row p is `row(p)`, of `columns` elements.
    #[must_use]
    pub fn from_rows<'a>(
        depth: usize,
        columns: usize,
        row: impl Fn(usize) -> &'a [f32] + Sync,
    ) -> Self {
        let mut panels = Self::default();
        panels.set_rows_in_parallel(depth, columns, row);
        panels
    }

    /// The columns one after another, as [`Panels::transposed`] takes them.
    pub(crate) fn to_columns(&self) -> Vec<f32> {
        let mut columns = vec![0f32; self.depth * self.columns];
        columns.par_chunks_mut((self.width() * self.depth).max(1)).enumerate().for_each(
            |(index, columns)| {
                let ((panel, stride), count) = (self.panel(index), columns.len() / self.depth);
                transpose(self.depth, count, |p| &panel[p * stride..], columns, self.depth);
            },
        );
        columns
    }

    /// As [`Panels::from_columns`], replacing what was there.
    pub(crate) fn set_columns_in_parallel<'a>(
        &mut self,
        depth: usize,
        columns: usize,
        column: impl Fn(usize) -> &'a [f32] + Sync,
    ) {
        self.reset(depth, columns);
        let panels: Vec<_> = self.panels_mut().collect();
        panels
            .into_par_iter()
            .for_each(|(range, panel)| copy_columns(panel, depth, range, &column));
    }

    /// As [`Panels::from_rows`], replacing what was there.
    pub(crate) fn set_rows_in_parallel<'a>(
        &mut self,
        depth: usize,
        columns: usize,
        row: impl Fn(usize) -> &'a [f32] + Sync,
    ) {
        self.reset(depth, columns);
        let panels: Vec<_> = self.panels_mut().collect();
        panels.into_par_iter().for_each(|(range, panel)| copy_rows(panel, range, &row));
    }

    /// As [`Panels::from_rows`] on one thread and replacing what was there.
    pub(crate) fn set_rows<'a>(
        &mut self,
        depth: usize,
        columns: usize,
        row: impl Fn(usize) -> &'a [f32],
    ) {
        self.reset(depth, columns);
        self.panels_mut().for_each(|(range, panel)| copy_rows(panel, range, &row));
    }

    /// As [`Panels::from_columns`] on one thread and replacing what was there.
    pub(crate) fn set_columns<'a>(
        &mut self,
        depth: usize,
        columns: usize,
        column: impl Fn(usize) -> &'a [f32],
    ) {
        self.reset(depth, columns);
        self.panels_mut().for_each(|(range, panel)| copy_columns(panel, depth, range, &column));
    }

    /// The factor whose panels `fill` writes line by line: (panel, p, elements), on one thread and
    /// replacing what was there.
    pub(crate) fn set_by(
        &mut self,
        depth: usize,
        columns: usize,
        mut fill: impl FnMut(usize, usize, &mut [f32]),
    ) {
        self.reset(depth, columns);
        for (index, (range, panel)) in self.panels_mut().enumerate() {
            for (p, line) in panel.chunks_exact_mut(padded(range.len())).enumerate() {
                fill(index, p, &mut line[..range.len()]);
            }
        }
    }

    fn reset(&mut self, depth: usize, columns: usize) {
        let width = self.width();
        let padded = columns / width * width + padded(columns % width);
        (self.depth, self.columns, self.triangle) = (depth, columns, None);
        // What is left of an earlier factor in the padding ends up in columns that are never
        // stored.
        resize(&mut self.storage, depth * padded + LINE / size_of::<f32>());
        self.start = self.storage.as_ptr().align_offset(LINE).min(LINE / size_of::<f32>());
    }

    fn values(&self) -> &[f32] {
        let end = self.storage.len().saturating_sub(LINE / size_of::<f32>());
        &self.storage[self.start..self.start + end]
    }

    fn values_mut(&mut self) -> &mut [f32] {
        let end = self.storage.len().saturating_sub(LINE / size_of::<f32>());
        &mut self.storage[self.start..self.start + end]
    }

    /// The panels with their columns.
    fn panels_mut(&mut self) -> impl Iterator<Item = (Range<usize>, &mut [f32])> + Send {
        let (width, columns, panel) = (self.width(), self.columns, self.width() * self.depth);
        let panels = self.values_mut().chunks_mut(panel.max(1)).enumerate();
        panels
            .map(move |(index, panel)| (index * width..(index * width + width).min(columns), panel))
    }

    /// The factor is known to be triangular.
    pub(crate) fn triangular(&mut self, triangle: Triangle) {
        self.triangle = Some(triangle);
    }

    /// Where in the shared dimension a panel is not zero.
    fn depths(&self, index: usize) -> Range<usize> {
        let first = index * self.width();
        match self.triangle {
            None => 0..self.depth,
            Some(Triangle::Upper) => 0..self.depth.min(first + self.width()),
            Some(Triangle::Lower) => first.min(self.depth)..self.depth,
        }
    }

    /// Columns of a full panel.
    pub(crate) fn width(&self) -> usize {
        VECTORS * lanes()
    }

    /// Rows of the factor: the shared dimension.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Columns of the factor.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Panels.
    pub(crate) fn count(&self) -> usize {
        self.columns.div_ceil(self.width())
    }

    /// A panel and the distance of its rows.
    pub(crate) fn panel(&self, index: usize) -> (&[f32], usize) {
        let start = index * self.width() * self.depth;
        let stride = padded(self.width().min(self.columns - index * self.width()));
        (&self.values()[start..start + stride * self.depth], stride)
    }
}

/// The next multiple of the vector's width.
fn padded(columns: usize) -> usize {
    columns.next_multiple_of(lanes())
}

/// Some columns of a factor as a panel, from its rows.
fn copy_rows<'a>(panel: &mut [f32], columns: Range<usize>, row: impl Fn(usize) -> &'a [f32]) {
    for (p, line) in panel.chunks_exact_mut(padded(columns.len())).enumerate() {
        line[..columns.len()].copy_from_slice(&row(p)[columns.clone()]);
    }
}

/// Some columns of a factor as a panel, from these columns.
fn copy_columns<'a>(
    panel: &mut [f32],
    depth: usize,
    columns: Range<usize>,
    column: impl Fn(usize) -> &'a [f32],
) {
    transpose(columns.len(), depth, |i| column(columns.start + i), panel, padded(columns.len()));
}

/// The left factor of a product, rows x depth, in strips of as many rows as a tile has, each column
/// after column.
#[derive(Debug, Default)]
pub struct Strips {
    values: Vec<f32>,
    rows: usize,
    depth: usize,
    /// The first column that is not zero.
    first: usize,
}

/// Rows of a tile: its sums, a row of the panel and an element of the left factor fill the
/// registers.
const fn strip_rows(registers: usize) -> usize {
    if registers >= 32 { 8 } else { 4 }
}

impl Strips {
    /// The factor whose row i is `row(i)`, of `depth` elements.
    #[must_use]
    pub fn from_rows<'a>(rows: usize, depth: usize, row: impl Fn(usize) -> &'a [f32]) -> Self {
        let mut strips = Self::default();
        strips.set_rows(rows, depth, row);
        strips
    }

    /// The rows one after another.
    pub(crate) fn to_rows(&self) -> Vec<f32> {
        let (height, depth) = (registers_rows(), self.depth);
        let mut rows = vec![0f32; self.rows * depth];
        for (rows, lines) in rows
            .chunks_mut((height * depth).max(1))
            .zip(self.values.chunks((height * depth).max(1)))
        {
            transpose(depth, rows.len() / depth, |p| &lines[p * height..], rows, depth);
        }
        rows
    }

    /// Rows of the factor.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// As [`Strips::from_rows`], replacing what was there.
    pub(crate) fn set_rows<'a>(
        &mut self,
        rows: usize,
        depth: usize,
        row: impl Fn(usize) -> &'a [f32],
    ) {
        self.reset(rows, depth);
        let height = registers_rows();
        for (strip, lines) in self.values.chunks_mut((height * depth).max(1)).enumerate() {
            let count = height.min(rows - strip * height);
            transpose(count, depth, |i| row(strip * height + i), lines, height);
        }
    }

    /// The factor whose column p is `column(p)`, of at least `rows` elements, times `weight(p)`, in
    /// the place of what was there.
    pub(crate) fn set_columns<'a>(
        &mut self,
        rows: usize,
        depth: usize,
        column: impl Fn(usize) -> &'a [f32],
        weight: impl Fn(usize) -> f32,
    ) {
        self.reset(rows, depth);
        for p in 0..depth {
            let (values, weight) = (&column(p)[..rows], weight(p));
            match registers_rows() {
                8 => weigh::<8>(values, weight, &mut self.values[8 * p..], depth),
                _ => weigh::<4>(values, weight, &mut self.values[4 * p..], depth),
            }
        }
    }

    /// Columns before this one are zero, and need no products.
    pub(crate) fn begin_at(&mut self, first: usize) {
        self.first = first;
    }

    fn reset(&mut self, rows: usize, depth: usize) {
        (self.rows, self.depth, self.first) = (rows, depth, 0);
        // What is left of an earlier factor in the padding ends up in rows that are never stored.
        resize(&mut self.values, rows.next_multiple_of(registers_rows()) * depth);
    }
}

/// Makes a buffer of some length, whatever it holds: no longer than that, and not beside what was
/// there.
fn resize(buffer: &mut Vec<f32>, length: usize) {
    if length > buffer.capacity() {
        *buffer = Vec::new();
        buffer.reserve_exact(length);
    }
    buffer.resize(length, 0.0);
}

/// A column of a factor, weighted, into strips of M rows, which have a line for it every `depth`
/// lines.
fn weigh<const M: usize>(column: &[f32], weight: f32, strips: &mut [f32], depth: usize) {
    let (whole, rest) = column.as_chunks::<M>();
    let (lines, _) = strips.as_chunks_mut::<M>();
    let mut lines = lines.iter_mut().step_by(depth);
    for (values, line) in whole.iter().zip(&mut lines) {
        *line = values.map(|x| weight * x);
    }
    if let Some(line) = lines.next() {
        line.iter_mut().zip(rest).for_each(|(line, x)| *line = weight * x);
    }
}

/// [`strip_rows`] of this machine.
fn registers_rows() -> usize {
    struct Count;
    impl WithSimd for Count {
        type Output = usize;

        fn with_simd<S: Simd>(self, _: S) -> usize {
            strip_rows(S::REGISTER_COUNT)
        }
    }
    static ROWS: OnceLock<usize> = OnceLock::new();
    *ROWS.get_or_init(|| dispatch(Count))
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a> {
    /// Nothing.
    Zero,
    /// To every row, as long as the right factor has columns.
    Bias(&'a [f32]),
    /// What the output holds.
    Output,
}

/// `output` = `start` + left factor * `right` on all threads; `output` has a slice a row, and
/// `pack` packs some rows of the left factor. `finish` is called with every piece of a row once it
/// is done, while it is in the cache.
pub(crate) fn product(
    pack: impl Fn(Range<usize>, &mut Strips) + Sync,
    right: &Panels,
    start: Start<'_>,
    output: Vec<&mut [f32]>,
    finish: impl Fn(&mut [f32]) + Sync,
) {
    let (rows, panels) = (output.len(), right.count());
    if rows == 0 || panels == 0 {
        return;
    }
    // Enough tasks for the threads to end together, first by rows, and where these are few by
    // panels as well.
    let threads = rayon::current_num_threads();
    let chunk = rows_of_a_task(rows, right.depth);
    let chunks = rows.div_ceil(chunk);
    let wanted = if threads == 1 { 1 } else { (2 * threads).div_ceil(chunks) };
    let group = panels.div_ceil(wanted);
    let groups = panels.div_ceil(group);
    let width = group * right.width();
    let mut tasks: Vec<Vec<&mut [f32]>> =
        (0..chunks * groups).map(|_| Vec::with_capacity(chunk)).collect();
    for (row, output) in output.into_iter().enumerate() {
        for (index, piece) in output.chunks_mut(width).enumerate() {
            tasks[row / chunk * groups + index].push(piece);
        }
    }
    tasks.into_par_iter().enumerate().for_each(|(task, mut output)| {
        let (row, first) = (task / groups * chunk, task % groups * group);
        with_scratch(&LEFT_FACTOR, |left| {
            pack(row..row + output.len(), left);
            multiply(left, 0, right, first..(first + group).min(panels), start, &mut output);
        });
        output.into_iter().for_each(&finish);
    });
}

/// Every row times `right`, in its place, on all threads.
pub(crate) fn product_in_place(mut rows: Vec<&mut [f32]>, right: &Panels) {
    let chunk = rows_of_a_task(rows.len(), right.depth);
    rows.par_chunks_mut(chunk).for_each(|rows| {
        with_scratch(&LEFT_FACTOR, |left| {
            left.set_rows(rows.len(), right.depth, |row| &rows[row][..right.depth]);
            multiply(left, 0, right, 0..right.count(), Start::Zero, rows);
        });
    });
}

/// Rows of the left factor that a task takes.
fn rows_of_a_task(rows: usize, depth: usize) -> usize {
    let height = registers_rows();
    let least = rows.div_ceil(most_rows(depth));
    let tasks = (4 * rayon::current_num_threads()).min(rows.div_ceil(LEAST_ROWS)).max(least);
    rows.div_ceil(tasks.max(1)).next_multiple_of(height).max(height)
}

/// The most rows of the left factor that a task takes.
fn most_rows(depth: usize) -> usize {
    (LEFT / depth.clamp(1, DEPTH)).max(registers_rows())
}

/// Elements that every thread takes to pack a left factor of this depth.
pub(crate) fn left_scratch(depth: usize) -> usize {
    depth * most_rows(depth)
}

thread_local! {
    static LEFT_FACTOR: Cell<Strips> = Cell::default();
}

/// Runs `body` with what this thread left there the last time: packing buffers that need no new
/// memory.
pub(crate) fn with_scratch<T: Default, R>(
    scratch: &'static LocalKey<Cell<T>>,
    body: impl FnOnce(&mut T) -> R,
) -> R {
    let mut taken = scratch.take();
    let result = body(&mut taken);
    scratch.set(taken);
    result
}

/// The columns of some panels of a product, on one thread: `output` has a slice for each of the
/// first rows of `left`, which begins with the first of these columns. `left` is taken from some
/// column on, as deep as `right` is.
pub(crate) fn multiply(
    left: &Strips,
    column: usize,
    right: &Panels,
    panels: Range<usize>,
    start: Start<'_>,
    output: &mut [&mut [f32]],
) {
    assert!(output.len() <= left.rows && column + right.depth <= left.depth);
    dispatch(Multiply { left, column, right, panels, start, output });
}

struct Multiply<'a, 'o> {
    left: &'a Strips,
    column: usize,
    right: &'a Panels,
    panels: Range<usize>,
    start: Start<'a>,
    output: &'a mut [&'o mut [f32]],
}

impl WithSimd for Multiply<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::REGISTER_COUNT >= 32 {
            self.run::<S, { strip_rows(32) }>(simd);
        } else {
            self.run::<S, { strip_rows(16) }>(simd);
        }
    }
}

impl Multiply<'_, '_> {
    #[inline(always)]
    fn run<S: Simd, const M: usize>(self, simd: S) {
        let Self { left, column: left_column, right, panels, start, output } = self;
        let (width, depth) = (right.width(), right.depth);
        let (strips, _) = left.values.as_chunks::<M>();
        let mut stretch = 0;
        loop {
            let stretch_end = (stretch + DEPTH).min(depth);
            for index in panels.clone() {
                let depths = right.depths(index);
                let begin = depths.start.max(left.first.saturating_sub(left_column));
                let (first, end) = (stretch.max(begin), stretch_end.min(depths.end));
                if first >= end && depth > 0 {
                    continue;
                }
                let start = if first == begin { start } else { Start::Output };
                let (panel, stride) = right.panel(index);
                let panel = S::as_simd_f32s(&panel[first * stride..end * stride]).0;
                let column = (index - panels.start) * width;
                let columns = column..column + width.min(right.columns - index * width);
                let start = match start {
                    Start::Bias(bias) => Start::Bias(&bias[index * width..][..columns.len()]),
                    other => other,
                };
                for (strip, output) in output.chunks_mut(M).enumerate() {
                    let left = &strips[strip * left.depth + left_column..][first..end];
                    match stride / S::F32_LANES {
                        1 => tile::<S, M, 1>(simd, left, panel, start, output, columns.clone()),
                        2 => tile::<S, M, 2>(simd, left, panel, start, output, columns.clone()),
                        _ => {
                            tile::<S, M, VECTORS>(simd, left, panel, start, output, columns.clone())
                        }
                    }
                }
            }
            stretch = stretch_end;
            if stretch >= depth {
                break;
            }
        }
    }
}

/// Up to M rows of some columns of the output.
#[inline(always)]
fn tile<S: Simd, const M: usize, const V: usize>(
    simd: S,
    left: &[[f32; M]],
    panel: &[S::f32s],
    start: Start<'_>,
    output: &mut [&mut [f32]],
    columns: Range<usize>,
) {
    let mut sums = [[simd.splat_f32s(0.0); V]; M];
    if let Start::Bias(bias) = start {
        sums = [load(simd, bias); M];
    }
    let sums = sum_up(simd, sums, left, panel.as_chunks::<V>().0);
    // What the output holds comes last: it may be far greater than what is added, as in a Gram
    // matrix of many rows.
    let add = matches!(start, Start::Output);
    for (sums, output) in sums.iter().zip(output) {
        for (&sum, part) in sums.iter().zip(output[columns.clone()].chunks_mut(S::F32_LANES)) {
            let sum = Vector::new(simd, sum);
            let sum = if add { sum + Vector::load(simd, part) } else { sum };
            sum.store(part);
        }
    }
}

/// A tile's sums, by value so that they stay in registers.
#[inline(always)]
fn sum_up<S: Simd, const M: usize, const V: usize>(
    simd: S,
    mut sums: [[S::f32s; V]; M],
    left: &[[f32; M]],
    lines: &[[S::f32s; V]],
) -> [[S::f32s; V]; M] {
    for (left, line) in left.iter().zip(lines) {
        for i in 0..M {
            let x = simd.splat_f32s(left[i]);
            for v in 0..V {
                sums[i][v] = simd.mul_add_e_f32s(x, line[v], sums[i][v]);
            }
        }
    }
    sums
}

/// Up to V vectors from a slice, zeros after its end.
#[inline(always)]
fn load<S: Simd, const V: usize>(simd: S, values: &[f32]) -> [S::f32s; V] {
    let mut vectors = [simd.splat_f32s(0.0); V];
    for (v, part) in values.chunks(S::F32_LANES).enumerate().take(V) {
        vectors[v] = Vector::load(simd, part).value;
    }
    vectors
}
