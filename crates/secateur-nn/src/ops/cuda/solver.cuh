// The parts of the OBS solver between products: secateur-kernels' factor.rs and obs.rs, in f32.

#pragma once
#include <stdint.h>

// Columns that are factored in f64 by one block.
constexpr int BASE = 64;

// Turns a symmetric positive definite matrix A (n x n, n <= BASE; its upper triangle is read) into
// the upper triangular U with A^-1 = U^T U, in place; rows are `stride` apart. Where A is not
// positive definite, *failed becomes 1. Shared memory: two triangles of BASE x BASE numbers.
extern "C" __global__ void inverse_factor_f32_1(float *failed, float *a, int n, size_t stride) {
  extern __shared__ double of_factor[];
  double *r = of_factor, *u = of_factor + BASE * BASE;
  __shared__ double column[BASE];
  __shared__ bool is_none;
  const int thread = threadIdx.x, threads = blockDim.x;
  for (int at = thread; at < n * n; at += threads) {
    const int i = at / n, j = at % n;
    r[i * n + j] = j >= i ? (double)a[i * stride + j] : 0.;
    u[i * n + j] = 0.;
  }
  if (thread == 0) is_none = false;
  __syncthreads();
  // A_ij = sum over k >= j of R_ik R_jk: once column j of R is known, what it gives is taken from
  // what is before it.
  for (int j = n - 1; j >= 0; j--) {
    const double square = r[j * n + j];
    // A pivot that rounding in f32 could have made is none; NaN is none either.
    if (thread == 0 && !(square > (double)a[j * stride + j] * 1.1920928955078125e-7)) is_none = true;
    __syncthreads();
    if (is_none) break;
    const double pivot = sqrt(square);
    for (int i = thread; i < j; i += threads) column[i] = r[i * n + j] / pivot;
    __syncthreads();
    for (int at = thread; at < j * j; at += threads) {
      const int i = at / j, k = at % j;
      if (k >= i) r[i * n + k] -= column[i] * column[k];
    }
    for (int i = thread; i < j; i += threads) r[i * n + j] = column[i];
    if (thread == 0) r[j * n + j] = pivot;
    __syncthreads();
  }
  if (is_none) {
    if (thread == 0) *failed = 1.f;
    return;
  }
  // U_ij = -(sum over i < k <= j of R_ik U_kj) / R_ii; four threads a column.
  const int part = thread % 4;
  for (int i = n - 1; i >= 0; i--) {
    const double inverse = 1. / r[i * n + i];
    for (int first = i; first < n; first += threads / 4) {
      const int j = first + thread / 4;
      double sum = 0.;
      if (j < n)
        for (int k = i + 1 + part; k <= j; k += 4) sum += r[i * n + k] * u[k * n + j];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      if (part == 0 && j < n) u[i * n + j] = j == i ? inverse : -sum * inverse;
    }
    __syncthreads();
  }
  for (int at = thread; at < n * n; at += threads)
    a[(at / n) * stride + at % n] = (float)u[at];
}

// Puts bands of `rows` rows, which begin at the column of their first row and follow each other, to
// their places in a whole matrix (width x width). What is left of them is not written.
extern "C" __global__ void spread_bands_f32_1(const float *bands, float *whole, int width, int rows) {
  const int row = blockIdx.y, column = blockIdx.x * blockDim.x + threadIdx.x;
  const int before = row / rows, first = before * rows;
  if (column < first || column >= width) return;
  // Those of all bands before it: rows * (width - 0), rows * (width - rows), ...
  const size_t numbers = (size_t)before * rows * width - (size_t)rows * rows * before * (before - 1) / 2;
  const size_t at = numbers + (size_t)(row - first) * (width - first) + (column - first);
  whole[(size_t)row * width + column] = bands[at];
}

// Mirrors the upper triangle of a (width x width) into the lower one, in place.
extern "C" __global__ void symmetrise_f32_1(float *a, int width) {
  __shared__ float tile[32][33];
  const int tiles = (width + 31) / 32;
  // Of the tiles on and above the diagonal, row by row.
  const int down = blockIdx.y, across = blockIdx.x;
  if (across < down || across >= tiles) return;
  const int x = threadIdx.x % 32, y = threadIdx.x / 32, step = blockDim.x / 32;
  for (int i = y; i < 32; i += step) {
    const int row = down * 32 + i, column = across * 32 + x;
    if (row < width && column < width) {
      tile[i][x] = a[(size_t)row * width + column];
    }
  }
  __syncthreads();
  for (int i = y; i < 32; i += step) {
    const int row = across * 32 + i, column = down * 32 + x;
    if (row < width && column < width && row > column) a[(size_t)row * width + column] = tile[x][i];
  }
}

// The score of a weight: w^2 / U_jj^2, in the order of its bits, as it is not negative.
__device__ inline uint32_t score(float w, float diagonal) {
  const float ratio = w / diagonal;
  return __float_as_uint(ratio * ratio);
}

// What is known of element k of the sorted scores: its first bits, and its place among the scores
// that begin with them.
struct Sought {
  uint32_t bits;
  uint32_t place;
};

constexpr int BINS = 2048;

// Counts the scores of a block of columns (rows x width, from column `first` on), by the 11 bits from
// bit `shift` on. Of those only that begin as what is sought does, down to bit `known`.
extern "C" __global__ void count_scores_f32_1(const float *weight, const float *factor,
                                              const Sought *sought, uint32_t *counts, int rows,
                                              int columns, int first, int width, int shift,
                                              int known) {
  __shared__ uint32_t own[BINS];
  __shared__ float diagonal[128];
  for (int bin = threadIdx.x; bin < BINS; bin += blockDim.x) own[bin] = 0;
  for (int j = threadIdx.x; j < width; j += blockDim.x)
    diagonal[j] = factor[(size_t)(first + j) * columns + first + j];
  __syncthreads();
  const uint32_t wanted = known < 32 ? sought->bits >> known : 0;
  const size_t count = (size_t)rows * width, step = (size_t)gridDim.x * blockDim.x;
  for (size_t at = (size_t)blockIdx.x * blockDim.x + threadIdx.x; at < count; at += step) {
    const int row = at / width, j = at % width;
    const uint32_t bits = score(weight[(size_t)row * columns + first + j], diagonal[j]);
    if (known == 32 || bits >> known == wanted)
      atomicAdd(&own[(bits >> shift) & (BINS - 1)], 1u);
  }
  __syncthreads();
  for (int bin = threadIdx.x; bin < BINS; bin += blockDim.x)
    if (own[bin]) atomicAdd(&counts[bin], own[bin]);
}

// Finds the bin of the sought score, and clears the counts. One block of BINS / 2 threads. `first`
// is its place among all if no bit of it is known yet, else -1.
extern "C" __global__ void find_score_f32_1(uint32_t *counts, Sought *sought, int shift,
                                            int first) {
  __shared__ uint32_t sums[BINS / 2];
  const int thread = threadIdx.x;
  const uint32_t a = counts[2 * thread], b = counts[2 * thread + 1];
  sums[thread] = a + b;
  __syncthreads();
  for (int step = 1; step < BINS / 2; step *= 2) {
    const uint32_t before = thread >= step ? sums[thread - step] : 0;
    __syncthreads();
    sums[thread] += before;
    __syncthreads();
  }
  const uint32_t known = first < 0 ? sought->bits : 0;
  const uint32_t place = first < 0 ? sought->place : (uint32_t)first;
  const uint32_t end = sums[thread], start = end - a - b;
  __syncthreads();
  if (place >= start && place < end) {
    const bool second = place >= start + a;
    sought->bits = known | (uint32_t)(2 * thread + second) << shift;
    sought->place = place - (second ? start + a : start);
  }
  counts[2 * thread] = counts[2 * thread + 1] = 0;
}

// Rows that a warp solves at a time, and warps of a block.
constexpr int ROWS_OF_WARP = 4;
constexpr int WARPS = 8;
// Columns of a block.
constexpr int BLOCK = 128;

// Removes weights of a block of columns (`width` <= BLOCK from `first` on), one column after
// another: err = w_i / U_ii for a weight that goes, and w_j -= err * U_ij for the columns behind it
// in the block. `errors` (rows x width) gets err. Those go whose score is at most that of `sought`
// before the block is begun; or, if `group` is not 0, in each group of that many successive columns
// (<= 32) the `pruned` with the least scores when the group is reached.
extern "C" __global__ void solve_block_f32_1(const float *factor, const Sought *sought,
                                             float *weight, float *errors, int rows, int columns,
                                             int first, int width, int pruned, int group) {
  extern __shared__ float u[];  // width x BLOCK, zero behind `width`
  __shared__ float now[WARPS][ROWS_OF_WARP][BLOCK];
  for (int at = threadIdx.x; at < width * BLOCK; at += blockDim.x) {
    const int i = at / BLOCK, j = at % BLOCK;
    u[at] = j < width ? factor[(size_t)(first + i) * columns + first + j] : 0.f;
  }
  __syncthreads();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = (blockIdx.x * WARPS + warp) * ROWS_OF_WARP;
  if (row >= rows) return;
  // Lane l has columns l, l + 32, l + 64 and l + 96.
  float w[ROWS_OF_WARP][4], e[ROWS_OF_WARP][4];
  uint32_t goes[ROWS_OF_WARP][4];
  const uint32_t threshold = sought->bits;
#pragma unroll
  for (int r = 0; r < ROWS_OF_WARP; r++)
#pragma unroll
    for (int q = 0; q < 4; q++) {
      const int j = q * 32 + lane;
      const bool is_there = row + r < rows && j < width;
      w[r][q] = is_there ? weight[(size_t)(row + r) * columns + first + j] : 0.f;
      e[r][q] = 0.f;
      const bool least = is_there && !group && score(w[r][q], u[j * BLOCK + j]) <= threshold;
      goes[r][q] = __ballot_sync(~0u, least);
    }
#pragma unroll
  for (int q = 0; q < 4; q++) {
    for (int l = 0; l < 32 && q * 32 + l < width; l++) {
      const int i = q * 32 + l;
      if (group && i % group == 0) {
        // The weights of the group as they are now, for all lanes.
#pragma unroll
        for (int r = 0; r < ROWS_OF_WARP; r++)
#pragma unroll
          for (int p = 0; p < 4; p++) now[warp][r][p * 32 + lane] = w[r][p];
        __syncwarp();
#pragma unroll
        for (int r = 0; r < ROWS_OF_WARP; r++) {
          int rank = group;
          if (lane < group) {
            rank = 0;
            const float mine = now[warp][r][i + lane] / u[(i + lane) * BLOCK + i + lane];
            for (int other = 0; other < group; other++) {
              const float its = now[warp][r][i + other] / u[(i + other) * BLOCK + i + other];
              if (other < lane) rank += its * its <= mine * mine;
              if (other > lane) rank += its * its < mine * mine;
            }
          }
          const uint32_t of_group = __ballot_sync(~0u, rank < pruned);
          // Bit k of these is column i + k; they may go over the end of 32 columns.
#pragma unroll
          for (int p = 0; p < 4; p++) {
            const int shift = i - p * 32;
            if (shift >= 0 && shift < 32) goes[r][p] |= of_group << shift;
            if (shift < 0 && shift > -32) goes[r][p] |= of_group >> -shift;
          }
        }
        __syncwarp();
      }
      float line[4];
#pragma unroll
      for (int p = q; p < 4; p++) line[p] = u[i * BLOCK + p * 32 + lane];
      const float diagonal = u[i * BLOCK + i];
#pragma unroll
      for (int r = 0; r < ROWS_OF_WARP; r++) {
        const float mine = __shfl_sync(~0u, w[r][q], l);
        if (!(goes[r][q] >> l & 1)) continue;
        const float error = mine / diagonal;
#pragma unroll
        for (int p = q; p < 4; p++) w[r][p] -= error * line[p];
        if (lane == l) {
          w[r][q] = 0.f;
          e[r][q] = error;
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < ROWS_OF_WARP; r++)
#pragma unroll
    for (int q = 0; q < 4; q++) {
      const int j = q * 32 + lane;
      if (row + r >= rows || j >= width) continue;
      weight[(size_t)(row + r) * columns + first + j] = w[r][q];
      errors[(size_t)(row + r) * width + j] = e[r][q];
    }
}

// Sets the diagonal of a (width x width).
extern "C" __global__ void set_diagonal_f32_1(const float *diagonal, float *a, int width) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < width) a[(size_t)i * width + i] = diagonal[i];
}
