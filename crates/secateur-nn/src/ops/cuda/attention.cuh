// Attention in 16 bits by the tensor cores, forward and backward, without a matrix of all scores
// (FlashAttention-2, Dao 2023).
//
// Tensors are samples x tokens x (heads * width), contiguous. A block of four warps keeps ROWS
// tokens of one head, 16 * M a warp, and goes over tiles of N tokens of the other side. D: the width
// of a head, of queries and values, padded with zeros to a multiple of 16. Tiles lie in shared memory
// in rows of D + 8 numbers, so that eight rows are in different banks.
//
// The backward pass computes the scores twice: once by keys, for the gradients of keys and values,
// and once by queries. So every sum has one order, and results are the same from run to run.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <float.h>
#include <stdint.h>

namespace attention {

const int WARPS = 4, THREADS = 32 * WARPS;
const float LOG2_E = 1.44269504f;
// Of exponents, in powers of two, before their origin moves.
const float MOST_GROWTH = 8.f;

struct Sizes {
  int heads, queries, keys, head_dim, value_dim;
  // Multiplies scores; above 0.
  float scale;
  // Query i sees the keys 0..=i.
  int causal;
  // Numbers from the bias of a sample, a head or a query to that of the next; 0 where it is the same.
  size_t bias_sample, bias_head, bias_query;
};

// ---- Tiles --------------------------------------------------------------------------------------

__device__ inline uint32_t shared_address(const void *p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ inline void copy_16_bytes(void *to, const void *from, bool is_there) {
  const int bytes = is_there ? 16 : 0; // the rest is set to zero
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)),
               "l"(from), "r"(bytes));
}

__device__ inline void end_of_copies() { asm volatile("cp.async.commit_group;\n"); }

// Until at most N groups of this thread's copies are under way.
template <int N> __device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(N));
}

// One head of a tensor. T is const where it is read.
template <typename T> struct Head {
  T *at; // of token 0
  int tokens, width, row; // `row`: numbers from token to token
};

// Of sample and head blockIdx.y (samples x heads).
template <typename T> __device__ inline Head<T> head(T *x, int heads, int tokens, int width) {
  const size_t sample = blockIdx.y / heads, row = (size_t)heads * width;
  return {x + sample * tokens * row + blockIdx.y % heads * (size_t)width, tokens, width, (int)row};
}

// Starts to copy ROWS tokens from `first` on; what is not there is zero.
template <typename T, int D, int ROWS>
__device__ inline void copy_tile(T *to, const Head<const T> &x, int first) {
  // So many threads copy a row, and so many rows are copied at a time.
  const int CHUNKS = D / 8, STEP = THREADS / CHUNKS;
  const int r = threadIdx.x / CHUNKS, c = threadIdx.x % CHUNKS * 8;
  if (r >= STEP) return;
  const bool in_row = c < x.width;
  const T *from = x.at + (size_t)(first + r) * x.row + c;
  T *at = to + r * (D + 8) + c;
  const size_t step = (size_t)STEP * x.row;
  if (x.width % 8 == 0 && (size_t)x.at % 16 == 0) {
#pragma unroll
    for (int i = 0; i < (ROWS + STEP - 1) / STEP; i++) {
      if (ROWS % STEP == 0 || r + i * STEP < ROWS) {
        const bool is_there = in_row && first + r + i * STEP < x.tokens;
        copy_16_bytes(at + i * STEP * (D + 8), is_there ? from + i * step : x.at, is_there);
      }
    }
  } else {
    for (int i = r; i < ROWS; i += STEP, from += step, at += STEP * (D + 8)) {
#pragma unroll
      for (int k = 0; k < 8; k++)
        at[k] = first + i < x.tokens && c + k < x.width ? from[k] : T(0.f);
    }
  }
}

// ---- Products -----------------------------------------------------------------------------------

__device__ inline void load_matrices(uint32_t (&to)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row)));
}

__device__ inline void load_transposed(uint32_t (&to)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row)));
}

// sum (16 x 8) += a (16 x 16) b (16 x 8). A thread holds of `sum` two numbers in a row of its
// number / 4, at columns 2 * (number % 4), and two in the eighth row after that.
__device__ inline void multiply(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                __nv_bfloat16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
               "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline void multiply(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                __half) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
               "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline uint32_t pair(float a, float b, __nv_bfloat16) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(a, b);
  return *reinterpret_cast<const uint32_t *>(&both);
}

__device__ inline uint32_t pair(float a, float b, __half) {
  const __half2 both = __floats2half2_rn(a, b);
  return *reinterpret_cast<const uint32_t *>(&both);
}

// 16 x 16 of a tile, from row `row` and column `column` on, as the left factor.
template <typename T, int D>
__device__ inline void left(uint32_t (&to)[4], const T *tile, int row, int column) {
  const int lane = threadIdx.x & 31;
  load_matrices(to, tile + (row + (lane & 15)) * (D + 8) + column + lane / 16 * 8);
}

template <int M, int N> __device__ inline void clear(float (&sum)[M][N / 8][4]) {
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int n = 0; n < N / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) sum[m][n][i] = 0.f;
}

// sum (M * 16 rows x N) += rows of `a`, from `row` on, times the transpose of `b`'s N rows.
template <typename T, int D, int M, int N>
__device__ inline void add_scores(float (&sum)[M][N / 8][4], const T *a, int row, const T *b) {
  const int lane = threadIdx.x & 31;
  const T *of_lane = b + (lane / 16 * 8 + (lane & 7)) * (D + 8) + (lane / 8 & 1) * 8;
#pragma unroll
  for (int k = 0; k < D / 16; k++) {
    uint32_t of_a[M][4];
#pragma unroll
    for (int m = 0; m < M; m++) left<T, D>(of_a[m], a, row + 16 * m, 16 * k);
#pragma unroll
    for (int n = 0; n < N / 16; n++) {
      uint32_t of_b[4];
      load_matrices(of_b, of_lane + 16 * n * (D + 8) + 16 * k);
#pragma unroll
      for (int m = 0; m < M; m++) {
        multiply(sum[m][2 * n], of_a[m], of_b[0], of_b[1], T());
        multiply(sum[m][2 * n + 1], of_a[m], of_b[2], of_b[3], T());
      }
    }
  }
}

// As `add_scores`, from zero on.
template <typename T, int D, int M, int N>
__device__ inline void products(float (&sum)[M][N / 8][4], const T *a, int row, const T *b) {
  clear<M, N>(sum);
  add_scores<T, D, M, N>(sum, a, row, b);
}

// sum (M * 16 rows x D) += weights (M * 16 rows x N), rounded to T, times `b` (N x D).
template <typename T, int D, int M, int N>
__device__ inline void add_products(float (&sum)[M][D / 8][4], const float (&weights)[M][N / 8][4],
                                    const T *b) {
  const int lane = threadIdx.x & 31;
  const T *of_lane = b + (lane & 15) * (D + 8) + lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < N / 16; k++) {
    uint32_t of_a[M][4];
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float(&from)[4] = weights[m][2 * k + i / 2];
        of_a[m][i] = pair(from[i % 2 * 2], from[i % 2 * 2 + 1], T());
      }
#pragma unroll
    for (int n = 0; n < D / 16; n++) {
      uint32_t of_b[4];
      load_transposed(of_b, of_lane + 16 * k * (D + 8) + 16 * n);
#pragma unroll
      for (int m = 0; m < M; m++) {
        multiply(sum[m][2 * n], of_a[m], of_b[0], of_b[1], T());
        multiply(sum[m][2 * n + 1], of_a[m], of_b[2], of_b[3], T());
      }
    }
  }
}

// Writes M * 16 rows of a warp, from token `first` on.
template <typename T, int D, int M>
__device__ inline void write(const Head<T> &y, int first, const float (&sum)[M][D / 8][4]) {
  const int lane = threadIdx.x & 31;
  const bool is_whole = y.width % 2 == 0 && (size_t)y.at % 4 == 0;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int token = first + 16 * m + lane / 4 + 8 * half;
      if (token >= y.tokens) continue;
      T *to = y.at + (size_t)token * y.row;
#pragma unroll
      for (int n = 0; n < D / 8; n++) {
        const int column = 8 * n + lane % 4 * 2;
        const float a = sum[m][n][2 * half], b = sum[m][n][2 * half + 1];
        if (column + 1 < y.width && is_whole) {
          *reinterpret_cast<uint32_t *>(to + column) = pair(a, b, T());
        } else {
          if (column < y.width) to[column] = T(a);
          if (column + 1 < y.width) to[column + 1] = T(b);
        }
      }
    }
}

// ---- Scores -------------------------------------------------------------------------------------

__device__ inline float power_of_2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

// Which token of the other side column `n`, part `i` of a thread's numbers is of.
__device__ inline int column_of(int first, int n, int i) {
  return first + 8 * n + (threadIdx.x & 3) * 2 + (i & 1);
}

// Whether query and key do not meet.
__device__ inline bool is_hidden(const Sizes &s, int query, int key) {
  return query >= s.queries || key >= s.keys || (s.causal && key > query);
}

// Of sample and head blockIdx.y.
__device__ inline const float *bias_of_head(const float *bias, const Sizes &s) {
  if (!bias) return nullptr;
  return bias + blockIdx.y / s.heads * s.bias_sample + blockIdx.y % s.heads * s.bias_head;
}

// A bias as a part of the product that the scale multiplies. Very low ones are alike and finite:
// where all keys have one, all weigh the same. A power of two, whose products are exact.
__device__ inline float before_scale(float bias, const Sizes &s) {
  const float quotient = bias / s.scale;
  return isfinite(bias) && quotient < -0x1p20f ? -0x1p100f : quotient;
}

// scores (M * 16 queries x N keys) = bias / scale, so that products are added to it.
template <int M, int N>
__device__ inline void start_from_bias(float (&scores)[M][N / 8][4], const float *bias,
                                       const Sizes &s, int first_query, int first_key) {
  const bool in_pairs = (s.bias_query | s.keys) % 2 == 0 && (size_t)bias % 8 == 0;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int n = 0; n < N / 8; n++) {
        const int query = first_query + 16 * m + (threadIdx.x & 31) / 4 + 8 * half;
        const int key = column_of(first_key, n, 0);
        float2 b = {0.f, 0.f};
        if (query < s.queries && key < s.keys) {
          const float *at = bias + query * s.bias_query + key;
          if (in_pairs) {
            b = *reinterpret_cast<const float2 *>(at);
          } else {
            b.x = at[0];
            if (key + 1 < s.keys) b.y = at[1];
          }
        }
        scores[m][n][2 * half] = before_scale(b.x, s);
        scores[m][n][2 * half + 1] = before_scale(b.y, s);
      }
}

// What `before_scale` makes of the bias of a tile's keys, which is the same for all queries. A thread
// that has none of the keys does nothing.
template <int N>
__device__ inline void bias_of_tile(float *to, const float *bias, const Sizes &s, int first_key) {
  const int key = first_key + threadIdx.x;
  if (threadIdx.x < N) to[threadIdx.x] = before_scale(key < s.keys ? bias[key] : 0.f, s);
}

// As `start_from_bias`, of `bias_of_tile`.
template <int M, int N>
__device__ inline void start_from_tile(float (&scores)[M][N / 8][4], const float *of_tile) {
#pragma unroll
  for (int n = 0; n < N / 8; n++) {
    const float2 b = *reinterpret_cast<const float2 *>(of_tile + column_of(0, n, 0));
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        scores[m][n][2 * half] = b.x;
        scores[m][n][2 * half + 1] = b.y;
      }
  }
}

// ---- Forward ------------------------------------------------------------------------------------

// What a bias differs by, besides samples and heads.
enum Bias { NONE, OF_KEYS, OF_QUERIES_AND_KEYS };

// y = softmax(scale * q k^T + bias) v. `log_sums` (samples x heads x queries): log2 of the sums of
// the exponentials of a query's scores. Block (queries / ROWS, samples x heads).
template <typename T, int D, int M, Bias BIAS>
__device__ void forward(const T *q_of_all, const T *k_of_all, const T *v_of_all,
                        const float *bias_of_all, float *log_sums, T *y_of_all, Sizes s) {
  const int ROWS = 16 * M * WARPS, N = 64;
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ __align__(8) float of_tile[N];
  T *queries = reinterpret_cast<T *>(memory), *keys = queries + ROWS * (D + 8),
    *values = keys + N * (D + 8);
  const Head<const T> q = head(q_of_all, s.heads, s.queries, s.head_dim),
                      k = head(k_of_all, s.heads, s.keys, s.head_dim),
                      v = head(v_of_all, s.heads, s.keys, s.value_dim);
  const float *bias = bias_of_head(bias_of_all, s);
  const int first = blockIdx.x * ROWS, row = threadIdx.x / 32 * 16 * M, lane = threadIdx.x & 31;
  const int seen = s.causal ? min(s.keys, first + ROWS) : s.keys;

  copy_tile<T, D, ROWS>(queries, q, first);
  copy_tile<T, D, N>(keys, k, 0);
  end_of_copies();

  float sum[M][D / 8][4] = {}, most[M][2], total[M][2] = {};
#pragma unroll
  for (int m = 0; m < M; m++) most[m][0] = most[m][1] = -INFINITY;
  // Scores are scaled within the exponential.
  const float in_exponential = s.scale * LOG2_E;

  for (int start = 0; start < seen; start += N) {
    // The bias comes while the keys do, the values while the scores are computed, and the next keys
    // while they are used.
    float scores[M][N / 8][4];
    if (BIAS == OF_QUERIES_AND_KEYS) start_from_bias<M, N>(scores, bias, s, first + row, start);
    if (BIAS == OF_KEYS) bias_of_tile<N>(of_tile, bias, s, start);
    if (BIAS == NONE) clear<M, N>(scores);
    wait_for_copies<0>();
    __syncthreads();
    if (BIAS == OF_KEYS) start_from_tile<M, N>(scores, of_tile);
    copy_tile<T, D, N>(values, v, start);
    end_of_copies();
    add_scores<T, D, M, N>(scores, queries, row, keys);
    wait_for_copies<0>();
    __syncthreads();
    if (start + N < seen) copy_tile<T, D, N>(keys, k, start + N);
    end_of_copies();

    if (s.causal || start + N > s.keys) {
#pragma unroll
      for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N / 8; n++)
#pragma unroll
          for (int i = 0; i < 4; i++) {
            const int query = first + row + 16 * m + lane / 4 + i / 2 * 8;
            const int key = column_of(start, n, i);
            if (key >= s.keys || (s.causal && key > query)) scores[m][n][i] = -INFINITY;
          }
    }
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float now = most[m][half];
#pragma unroll
        for (int n = 0; n < N / 8; n++)
          now = fmaxf(now, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
        now = fmaxf(now, __shfl_xor_sync(~0u, now, 1));
        now = fmaxf(now, __shfl_xor_sync(~0u, now, 2));
        // The origin of the exponents moves only where they would grow large, and to the first
        // score that is not hidden.
        const float before = most[m][half];
        if (__any_sync(~0u, (now - before) * in_exponential > MOST_GROWTH)) {
          const float factor =
              before == -INFINITY ? 0.f : power_of_2((before - now) * in_exponential);
          most[m][half] = now;
          total[m][half] *= factor;
#pragma unroll
          for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) sum[m][n][2 * half + i] *= factor;
        }
        const float origin = most[m][half] == -INFINITY ? 0.f : most[m][half] * in_exponential;
        float part = 0.f;
#pragma unroll
        for (int n = 0; n < N / 8; n++)
#pragma unroll
          for (int i = 0; i < 2; i++) {
            float &score = scores[m][n][2 * half + i];
            score = power_of_2(score * in_exponential - origin);
            part += score;
          }
        total[m][half] += part;
      }
    add_products<T, D, M, N>(sum, scores, values);
  }
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float all = total[m][half];
      all += __shfl_xor_sync(~0u, all, 1);
      all += __shfl_xor_sync(~0u, all, 2);
      const float inverse = 1.f / all;
#pragma unroll
      for (int n = 0; n < D / 8; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) sum[m][n][2 * half + i] *= inverse;
      const int query = first + row + 16 * m + lane / 4 + 8 * half;
      if (lane % 4 == 0 && query < s.queries)
        log_sums[(size_t)blockIdx.y * s.queries + query] =
            most[m][half] * in_exponential + log2f(all);
    }
  write<T, D, M>(head(y_of_all, s.heads, s.queries, s.value_dim), first + row, sum);
}

// ---- Backward -----------------------------------------------------------------------------------
// With P the probabilities, g the gradient of y, and delta = sum g y of a query:
//     gV = P^T g,  gS = P (g V^T - delta),  gQ = scale gS K,  gK = scale gS^T Q

template <int D, int M>
__device__ inline void scale_rows(float (&sum)[M][D / 8][4], float factor) {
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int n = 0; n < D / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) sum[m][n][i] *= factor;
}

// A warp a query of a head (samples x queries x heads).
template <typename T>
__device__ void deltas(const T *y, const T *gradient, float *to, size_t count, Sizes s) {
  const size_t i = blockIdx.x * (size_t)(blockDim.x / 32) + threadIdx.x / 32;
  if (i >= count) return;
  const int width = s.value_dim;
  float sum = 0.f;
  for (int c = threadIdx.x & 31; c < width; c += 32)
    sum += float(y[i * width + c]) * float(gradient[i * width + c]);
  for (int o = 16; o; o >>= 1) sum += __shfl_xor_sync(~0u, sum, o);
  const size_t head = i % s.heads, query = i / s.heads % s.queries, sample = i / s.heads / s.queries;
  if ((threadIdx.x & 31) == 0) to[(sample * s.heads + head) * s.queries + query] = sum;
}

// The gradient of the queries; the bias is the same for all. Block (queries / ROWS, samples x heads).
template <typename T, int D, int M, int N>
__device__ void of_queries(const T *q_of_all, const T *k_of_all, const T *v_of_all,
                           const float *bias_of_all, const T *g_of_all, const float *log_sums,
                           const float *deltas, T *to, Sizes s) {
  const int ROWS = 16 * M * WARPS;
  extern __shared__ __align__(16) unsigned char memory[];
  T *queries = reinterpret_cast<T *>(memory), *gradients = queries + ROWS * (D + 8),
    *keys = gradients + ROWS * (D + 8), *values = keys + N * (D + 8);
  const Head<const T> q = head(q_of_all, s.heads, s.queries, s.head_dim),
                      k = head(k_of_all, s.heads, s.keys, s.head_dim),
                      v = head(v_of_all, s.heads, s.keys, s.value_dim),
                      g = head(g_of_all, s.heads, s.queries, s.value_dim);
  const float *bias = bias_of_head(bias_of_all, s);
  const int first = blockIdx.x * ROWS, row = threadIdx.x / 32 * 16 * M, lane = threadIdx.x & 31;
  const int seen = s.causal ? min(s.keys, first + ROWS) : s.keys;
  const float in_exponential = s.scale * LOG2_E;
  copy_tile<T, D, ROWS>(queries, q, first);
  copy_tile<T, D, ROWS>(gradients, g, first);
  float log_sum[M][2] = {}, delta[M][2] = {}, sum[M][D / 8][4] = {};
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int query = first + row + 16 * m + lane / 4 + 8 * half;
      const size_t at = (size_t)blockIdx.y * s.queries + query;
      if (query < s.queries) log_sum[m][half] = log_sums[at], delta[m][half] = deltas[at];
    }
  for (int start = 0; start < seen; start += N) {
    __syncthreads();
    copy_tile<T, D, N>(keys, k, start);
    copy_tile<T, D, N>(values, v, start);
    end_of_copies();
    wait_for_copies<0>();
    __syncthreads();
    float scores[M][N / 8][4], of_scores[M][N / 8][4];
    products<T, D, M, N>(scores, queries, row, keys);
    products<T, D, M, N>(of_scores, gradients, row, values);
    const bool is_edge = bias || s.causal || start + N > s.keys;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int n = 0; n < N / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          float p = scores[m][n][i] * in_exponential - log_sum[m][i / 2];
          if (is_edge) {
            const int query = first + row + 16 * m + lane / 4 + i / 2 * 8;
            const int key = column_of(start, n, i);
            if (is_hidden(s, query, key))
              p = -INFINITY;
            else if (bias)
              p += before_scale(bias[key], s) * in_exponential;
          }
          of_scores[m][n][i] = power_of_2(p) * (of_scores[m][n][i] - delta[m][i / 2]);
        }
    add_products<T, D, M, N>(sum, of_scores, keys);
  }
  scale_rows<D, M>(sum, s.scale);
  write<T, D, M>(head(to, s.heads, s.queries, s.head_dim), first + row, sum);
}

// The gradients of keys and values; the bias is the same for all queries. Block (keys / ROWS, samples
// x heads).
template <typename T, int D, int M, int N>
__device__ void of_keys(const T *q_of_all, const T *k_of_all, const T *v_of_all,
                        const float *bias_of_all, const T *g_of_all, const float *log_sums,
                        const float *deltas, T *to_keys, T *to_values, Sizes s) {
  const int ROWS = 16 * M * WARPS;
  extern __shared__ __align__(16) unsigned char memory[];
  T *keys = reinterpret_cast<T *>(memory), *values = keys + ROWS * (D + 8),
    *queries = values + ROWS * (D + 8), *gradients = queries + N * (D + 8);
  __shared__ float2 of_queries[N]; // log_sum and delta
  const Head<const T> q = head(q_of_all, s.heads, s.queries, s.head_dim),
                      k = head(k_of_all, s.heads, s.keys, s.head_dim),
                      v = head(v_of_all, s.heads, s.keys, s.value_dim),
                      g = head(g_of_all, s.heads, s.queries, s.value_dim);
  const float *bias = bias_of_head(bias_of_all, s);
  const int first = blockIdx.x * ROWS, row = threadIdx.x / 32 * 16 * M, lane = threadIdx.x & 31;
  const float in_exponential = s.scale * LOG2_E;
  copy_tile<T, D, ROWS>(keys, k, first);
  copy_tile<T, D, ROWS>(values, v, first);
  float of_key[M][2] = {}, sum_of_keys[M][D / 8][4] = {}, sum_of_values[M][D / 8][4] = {};
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int key = first + row + 16 * m + lane / 4 + 8 * half;
      if (bias && key < s.keys) of_key[m][half] = before_scale(bias[key], s) * in_exponential;
    }
  for (int start = s.causal ? first / N * N : 0; start < s.queries; start += N) {
    __syncthreads();
    copy_tile<T, D, N>(queries, q, start);
    copy_tile<T, D, N>(gradients, g, start);
    end_of_copies();
    for (int i = threadIdx.x; i < N; i += THREADS) {
      const size_t at = (size_t)blockIdx.y * s.queries + start + i;
      // Where there is no query, all probabilities are zero.
      of_queries[i] = start + i < s.queries ? make_float2(log_sums[at], deltas[at])
                                            : make_float2(INFINITY, 0.f);
    }
    wait_for_copies<0>();
    __syncthreads();
    float p[M][N / 8][4], of_scores[M][N / 8][4];
    products<T, D, M, N>(p, keys, row, queries);
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int n = 0; n < N / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const float log_sum = of_queries[column_of(0, n, i)].x;
          float score = p[m][n][i] * in_exponential + of_key[m][i / 2] - log_sum;
          if (s.causal && first + row + 16 * m + lane / 4 + i / 2 * 8 > column_of(start, n, i))
            score = -INFINITY;
          p[m][n][i] = power_of_2(score);
        }
    add_products<T, D, M, N>(sum_of_values, p, gradients);
    products<T, D, M, N>(of_scores, values, row, gradients);
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int n = 0; n < N / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
          of_scores[m][n][i] = p[m][n][i] * (of_scores[m][n][i] - of_queries[column_of(0, n, i)].y);
    add_products<T, D, M, N>(sum_of_keys, of_scores, queries);
  }
  scale_rows<D, M>(sum_of_keys, s.scale);
  write<T, D, M>(head(to_keys, s.heads, s.keys, s.head_dim), first + row, sum_of_keys);
  write<T, D, M>(head(to_values, s.heads, s.keys, s.value_dim), first + row, sum_of_values);
}

} // namespace attention

// ---- Entry points -------------------------------------------------------------------------------

#define SIZES                                                                                      \
  int heads, int queries, int keys, int head_dim, int value_dim, float scale, int causal,          \
      size_t bias_sample, size_t bias_head, size_t bias_query
#define OF_SIZES                                                                                   \
  {heads, queries, keys, head_dim, value_dim, scale, causal, bias_sample, bias_head, bias_query}

// B: the blocks of a multiprocessor at a time, for which the compiler keeps to fewer registers.
#define ATTENTION(T, TYPE, D, M, B)                                                                \
  extern "C" __global__ void __launch_bounds__(attention::THREADS, B) attention_##D##_##TYPE##_1(  \
      const T *q, const T *k, const T *v, const float *bias, float *log_sums, T *y, SIZES) {       \
    attention::forward<T, D, M, attention::NONE>(q, k, v, bias, log_sums, y, OF_SIZES);            \
  }                                                                                                \
  extern "C" __global__ void __launch_bounds__(attention::THREADS, B)                              \
      attention_biased_by_key_##D##_##TYPE##_1(const T *q, const T *k, const T *v,                 \
                                               const float *bias, float *log_sums, T *y, SIZES) {  \
    attention::forward<T, D, M, attention::OF_KEYS>(q, k, v, bias, log_sums, y, OF_SIZES);         \
  }                                                                                                \
  extern "C" __global__ void __launch_bounds__(attention::THREADS, B)                              \
      attention_biased_##D##_##TYPE##_1(const T *q, const T *k, const T *v, const float *bias,     \
                                        float *log_sums, T *y, SIZES) {                            \
    attention::forward<T, D, 1, attention::OF_QUERIES_AND_KEYS>(q, k, v, bias, log_sums, y,        \
                                                                OF_SIZES);                         \
  }

#define ATTENTION_GRADIENTS(T, TYPE, D, B)                                                         \
  extern "C" __global__ void __launch_bounds__(attention::THREADS, B)                              \
      attention_of_queries_##D##_##TYPE##_1(const T *q, const T *k, const T *v, const float *bias, \
                                            const T *g, const float *log_sums,                     \
                                            const float *deltas, T *to, SIZES) {                   \
    attention::of_queries<T, D, 1, 64>(q, k, v, bias, g, log_sums, deltas, to, OF_SIZES);          \
  }                                                                                                \
  extern "C" __global__ void __launch_bounds__(attention::THREADS, B)                              \
      attention_of_keys_##D##_##TYPE##_1(const T *q, const T *k, const T *v, const float *bias,    \
                                         const T *g, const float *log_sums, const float *deltas,   \
                                         T *to_keys, T *to_values, SIZES) {                        \
    attention::of_keys<T, D, 1, 64>(q, k, v, bias, g, log_sums, deltas, to_keys, to_values,        \
                                    OF_SIZES);                                                     \
  }

#define ATTENTION_OF_TYPE(T, TYPE)                                                                 \
  ATTENTION(T, TYPE, 32, 2, 3)                                                                     \
  ATTENTION(T, TYPE, 48, 2, 3)                                                                     \
  ATTENTION(T, TYPE, 64, 2, 3)                                                                     \
  ATTENTION(T, TYPE, 80, 2, 2)                                                                     \
  ATTENTION(T, TYPE, 96, 2, 2)                                                                     \
  ATTENTION(T, TYPE, 128, 2, 2)                                                                    \
  ATTENTION(T, TYPE, 160, 1, 2)                                                                    \
  ATTENTION(T, TYPE, 256, 1, 1)                                                                    \
  ATTENTION_GRADIENTS(T, TYPE, 32, 3)                                                              \
  ATTENTION_GRADIENTS(T, TYPE, 48, 3)                                                              \
  ATTENTION_GRADIENTS(T, TYPE, 64, 3)                                                              \
  ATTENTION_GRADIENTS(T, TYPE, 80, 2)                                                              \
  ATTENTION_GRADIENTS(T, TYPE, 128, 2)                                                             \
  extern "C" __global__ void attention_deltas_##TYPE##_1(const T *y, const T *g, float *to,        \
                                                         size_t count, SIZES) {                    \
    attention::deltas<T>(y, g, to, count, OF_SIZES);                                               \
  }

ATTENTION_OF_TYPE(__half, f16)
ATTENTION_OF_TYPE(__nv_bfloat16, bf16)
