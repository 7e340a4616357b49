// The operations between products, on f32, f16 and bf16: sums and functions in f32.
//
// A kernel is a template over T, the type of the numbers, and N, how many of them one access moves:
// 16 bytes where pointers and widths allow it, otherwise one number. Its entry points are named
// NAME_TYPE_N, see the end.

#include "attention.cuh"
#include "solver.cuh"
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

template <typename T> __device__ float to_float(T x);
template <> __device__ inline float to_float(float x) { return x; }
template <> __device__ inline float to_float(__half x) { return __half2float(x); }
template <> __device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T> __device__ T from_float(float x);
template <> __device__ inline float from_float(float x) { return x; }
template <> __device__ inline __half from_float(float x) { return __float2half_rn(x); }
template <> __device__ inline __nv_bfloat16 from_float(float x) { return __float2bfloat16_rn(x); }

template <typename T, int N> struct alignas(sizeof(T) * N) Vector {
  T at[N];
};

// Element i of N numbers each.
template <typename T, int N> __device__ inline void load(const T *from, size_t i, float (&to)[N]) {
  const Vector<T, N> v = reinterpret_cast<const Vector<T, N> *>(from)[i];
#pragma unroll
  for (int k = 0; k < N; k++) to[k] = to_float(v.at[k]);
}

template <typename T, int N> __device__ inline void store(T *to, size_t i, const float (&from)[N]) {
  Vector<T, N> v;
#pragma unroll
  for (int k = 0; k < N; k++) v.at[k] = from_float<T>(from[k]);
  reinterpret_cast<Vector<T, N> *>(to)[i] = v;
}

// The sum of x over `lanes` lanes of a warp that follow each other, a power of two, for all of them.
__device__ inline float warp_sum(float x, int lanes = 32) {
  for (int o = lanes / 2; o; o >>= 1) x += __shfl_xor_sync(~0u, x, o);
  return x;
}

// The sum of x over all threads of a block, for all of them, in the same order every time.
__device__ inline float block_sum(float x) {
  __shared__ float of_warp[33];
  x = warp_sum(x);
  const int warps = (blockDim.x + 31) / 32;
  __syncthreads();
  if ((threadIdx.x & 31) == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  if (threadIdx.x < 32) {
    x = warp_sum(threadIdx.x < warps ? of_warp[threadIdx.x] : 0.f);
    if (threadIdx.x == 0) of_warp[32] = x;
  }
  __syncthreads();
  return of_warp[32];
}

// The greater one, NaN if either is.
__device__ inline float greater(float a, float b) { return a > b || isnan(a) ? a : b; }

__device__ inline float block_maximum(float x) {
  __shared__ float of_warp[33];
  for (int o = 16; o; o >>= 1) x = greater(x, __shfl_xor_sync(~0u, x, o));
  const int warps = (blockDim.x + 31) / 32;
  __syncthreads();
  if ((threadIdx.x & 31) == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  if (threadIdx.x < 32) {
    x = threadIdx.x < warps ? of_warp[threadIdx.x] : -INFINITY;
    for (int o = 16; o; o >>= 1) x = greater(x, __shfl_xor_sync(~0u, x, o));
    if (threadIdx.x == 0) of_warp[32] = x;
  }
  __syncthreads();
  return of_warp[32];
}

__device__ inline float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }
__device__ inline float silu(float x) { return x * sigmoid(x); }
__device__ inline float gelu(float x) { return 0.5f * x * (1.f + erff(x * 0.70710678f)); }

// In the order of `Activation`.
__device__ inline float activate(int kind, float x) {
  switch (kind) {
  case 0: return silu(x);
  case 1: return gelu(x);
  case 2: return x * sigmoid(1.5957691216f * (x + 0.044715f * x * x * x));
  case 3: return x * sigmoid(1.702f * x);
  default: return x > 0.f || isnan(x) ? x : 0.f;
  }
}

template <typename T, int N>
__device__ void activation(const T *x, T *y, size_t count, int kind) {
  const size_t stride = (size_t)gridDim.x * blockDim.x;
  for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count / N; i += stride) {
    float v[N];
    load<T, N>(x, i, v);
#pragma unroll
    for (int k = 0; k < N; k++) v[k] = activate(kind, v[k]);
    store<T, N>(y, i, v);
  }
}

// Rows of 2 * width to rows of width.
template <typename T, int N>
__device__ void geglu(const T *x, T *y, size_t rows, int width) {
  const size_t stride = (size_t)gridDim.x * blockDim.x, across = width / N;
  for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < rows * across; i += stride) {
    const size_t row = i / across, column = i % across;
    float a[N], b[N];
    load<T, N>(x, 2 * row * across + column, a);
    load<T, N>(x, (2 * row + 1) * across + column, b);
#pragma unroll
    for (int k = 0; k < N; k++) a[k] *= gelu(b[k]);
    store<T, N>(y, i, a);
  }
}

// A block a row.
template <typename T, int N>
__device__ void softmax(const T *x, T *y, int width) {
  const T *from = x + blockIdx.x * (size_t)width;
  T *to = y + blockIdx.x * (size_t)width;
  const int across = width / N;
  float v[N], most = -INFINITY, sum = 0.f;
  for (int i = threadIdx.x; i < across; i += blockDim.x) {
    load<T, N>(from, i, v);
#pragma unroll
    for (int k = 0; k < N; k++) most = greater(most, v[k]);
  }
  most = block_maximum(most);
  for (int i = threadIdx.x; i < across; i += blockDim.x) {
    load<T, N>(from, i, v);
#pragma unroll
    for (int k = 0; k < N; k++) sum += expf(v[k] - most);
  }
  const float inverse = 1.f / block_sum(sum);
  for (int i = threadIdx.x; i < across; i += blockDim.x) {
    load<T, N>(from, i, v);
#pragma unroll
    for (int k = 0; k < N; k++) v[k] = expf(v[k] - most) * inverse;
    store<T, N>(to, i, v);
  }
}

// y[plane][row][column] = x[plane][row / factor][column / factor]
template <typename T>
__device__ void upsample(const T *x, T *y, size_t count, int width, int factor) {
  const size_t stride = (size_t)gridDim.x * blockDim.x, wide = (size_t)width * factor;
  for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += stride) {
    const size_t row = i / wide / factor, column = i % wide / factor;
    y[i] = x[row * width + column];
  }
}

// A warp computes a row, and each lane keeps HELD accesses of it in registers.
// `rows`: successive rows with one scale and shift, which lie `scale_stride` and `shift_stride`
// numbers after those before; 0: all, and the scale is the weight itself. Not CENTRED: RMS norm, without
// a mean or a shift.
template <typename T, int N, bool CENTRED>
__device__ void layer_norm(const T *x, const T *scale, const T *shift, T *y, size_t all, int width,
                           int rows, int scale_stride, int shift_stride, float eps) {
  const int HELD = 12;
  const size_t row = blockIdx.x * (size_t)(blockDim.x / 32) + threadIdx.x / 32;
  if (row >= all) return;
  const int lane = threadIdx.x & 31, across = width / N;
  const Vector<T, N> *from = reinterpret_cast<const Vector<T, N> *>(x + row * width);
  Vector<T, N> held[HELD];
#pragma unroll
  for (int h = 0; h < HELD; h++)
    if (lane + 32 * h < across) held[h] = from[lane + 32 * h];
  // Calls f with all accesses of this lane.
  auto each = [&](auto f) {
#pragma unroll
    for (int h = 0; h < HELD; h++)
      if (lane + 32 * h < across) f(lane + 32 * h, held[h]);
    for (int i = lane + 32 * HELD; i < across; i += 32) f(i, from[i]);
  };
  float mean = 0.f;
  if (CENTRED) {
    float sum = 0.f;
    each([&](int, const Vector<T, N> &v) {
#pragma unroll
      for (int k = 0; k < N; k++) sum += to_float(v.at[k]);
    });
    mean = warp_sum(sum) / width;
  }
  float square = 0.f;
  each([&](int, const Vector<T, N> &v) {
#pragma unroll
    for (int k = 0; k < N; k++) {
      const float d = to_float(v.at[k]) - mean;
      square += d * d;
    }
  });
  const float inverse = rsqrtf(warp_sum(square) / width + eps), one = rows ? 1.f : 0.f;
  const size_t sample = rows ? row / rows : 0;
  const T *scales = scale + sample * scale_stride, *shifts = shift + sample * shift_stride;
  each([&](int i, const Vector<T, N> &v) {
    float a[N], b[N] = {};
    load<T, N>(scales, i, a);
    if (CENTRED) load<T, N>(shifts, i, b);
#pragma unroll
    for (int k = 0; k < N; k++) a[k] = (to_float(v.at[k]) - mean) * inverse * (one + a[k]) + b[k];
    store<T, N>(y + row * width, i, a);
  });
}

// Rows of `width`, each by as many lanes of a warp as it has accesses, rounded up to a power of two;
// such a group of lanes has AT_ONCE rows under way.
template <typename T, int N>
__device__ void rms_norm(const T *x, const T *weight, T *y, size_t rows, int width, float eps) {
  const int AT_ONCE = 4, across = width / N;
  int lanes = 32;
  while (lanes / 2 >= across && lanes > 1) lanes /= 2;
  const int lane = threadIdx.x % lanes, of_warp = 32 / lanes;
  const size_t warps = gridDim.x * (size_t)(blockDim.x / 32), step = (size_t)of_warp * AT_ONCE;
  size_t first = (blockIdx.x * (size_t)(blockDim.x / 32) + threadIdx.x / 32) * step;
  for (; first < rows; first += warps * step) {
    const size_t own = first + threadIdx.x % 32 / lanes;
    float v[AT_ONCE][N], more[N], w[N], sum[AT_ONCE] = {};
#pragma unroll
    for (int r = 0; r < AT_ONCE; r++)
      if (own + r * of_warp < rows && lane < across)
        load<T, N>(x + (own + r * of_warp) * width, lane, v[r]);
#pragma unroll
    for (int r = 0; r < AT_ONCE; r++) {
      const size_t row = own + r * of_warp;
      if (row < rows && lane < across) {
#pragma unroll
        for (int k = 0; k < N; k++) sum[r] += v[r][k] * v[r][k];
        for (int i = lane + lanes; i < across; i += lanes) {
          load<T, N>(x + row * width, i, more);
#pragma unroll
          for (int k = 0; k < N; k++) sum[r] += more[k] * more[k];
        }
      }
      sum[r] = rsqrtf(warp_sum(sum[r], lanes) / width + eps);
    }
    for (int i = lane; i < across; i += lanes) {
      load<T, N>(weight, i, w);
#pragma unroll
      for (int r = 0; r < AT_ONCE; r++) {
        const size_t row = own + r * of_warp;
        if (row >= rows) continue;
        if (i != lane) load<T, N>(x + row * width, i, v[r]);
#pragma unroll
        for (int k = 0; k < N; k++) more[k] = v[r][k] * (sum[r] * w[k]);
        store<T, N>(y + row * width, i, more);
      }
    }
  }
}

// Mean, and sum of squared deviations from it, of piece blockIdx.y of group blockIdx.x, whose
// numbers follow each other: `size` of them, in gridDim.y pieces of a multiple of N.
template <typename T, int N>
__device__ void group_moments(const T *x, float *moments, size_t size) {
  const size_t piece = (size / N + gridDim.y - 1) / gridDim.y;
  const size_t start = min(piece * blockIdx.y, size / N), end = min(start + piece, size / N);
  const T *from = x + blockIdx.x * size;
  const float count = (float)(end - start) * N;
  float v[N], sum = 0.f;
  for (size_t i = start + threadIdx.x; i < end; i += blockDim.x) {
    load<T, N>(from, i, v);
#pragma unroll
    for (int k = 0; k < N; k++) sum += v[k];
  }
  const float mean = count > 0.f ? block_sum(sum) / count : 0.f;
  sum = 0.f;
  for (size_t i = start + threadIdx.x; i < end; i += blockDim.x) {
    load<T, N>(from, i, v);
#pragma unroll
    for (int k = 0; k < N; k++) sum += (v[k] - mean) * (v[k] - mean);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) {
    float *to = moments + 3 * ((size_t)blockIdx.x * gridDim.y + blockIdx.y);
    to[0] = count;
    to[1] = mean;
    to[2] = sum;
  }
}

// Of channel blockIdx.x (samples x channels), piece blockIdx.y of its `area` pixels; the moments of
// its group are put together from `pieces` (Chan et al.).
template <typename T, int N>
__device__ void group_norm(const T *x, const T *weight, const T *bias, const float *moments, T *y,
                           int area, int channels, int groups, int pieces, float eps, int with_silu) {
  const int channel = blockIdx.x % channels, per_group = channels / groups;
  const size_t group = (size_t)(blockIdx.x / channels) * groups + channel / per_group;
  float count = 0.f, mean = 0.f, square = 0.f;
  for (int p = 0; p < pieces; p++) {
    const float *of = moments + 3 * (group * pieces + p);
    const float both = count + of[0], delta = of[1] - mean;
    if (of[0] > 0.f) {
      mean += delta * of[0] / both;
      square += of[2] + delta * delta * count * of[0] / both;
      count = both;
    }
  }
  const float factor = rsqrtf(square / count + eps) * to_float(weight[channel]);
  const float offset = to_float(bias[channel]) - mean * factor;
  const int across = area / N;
  const T *from = x + blockIdx.x * (size_t)area;
  T *to = y + blockIdx.x * (size_t)area;
  for (int i = blockIdx.y * blockDim.x + threadIdx.x; i < across; i += gridDim.y * blockDim.x) {
    float v[N];
    load<T, N>(from, i, v);
#pragma unroll
    for (int k = 0; k < N; k++) {
      v[k] = v[k] * factor + offset;
      if (with_silu) v[k] = silu(v[k]);
    }
    store<T, N>(to, i, v);
  }
}

// The same for pictures whose channels lie together (samples x pixels x channels), in three steps.
// Here: mean and sum of squared deviations of every channel over a piece of the pixels. Block
// (sample, piece); `across` threads share the channels, and the rows of them the pixels. The sums
// are of what differs from the piece's first pixel.
template <typename T, int N>
__device__ void channel_moments(const T *x, float *moments, int area, int channels, int across) {
  extern __shared__ float sums[]; // 2 x threads x N
  const int lane = threadIdx.x % across, row = threadIdx.x / across, rows = blockDim.x / across;
  const int piece = (area + gridDim.y - 1) / gridDim.y;
  const int start = min(piece * (int)blockIdx.y, area), end = min(start + piece, area);
  const int vectors = channels / N;
  const T *from = x + blockIdx.x * (size_t)area * channels;
  // All threads go round as often, for those that wait for each other.
  for (int base = 0; base < vectors; base += across) {
    const int v = base + lane;
    const bool is_there = v < vectors && start < end;
    float origin[N] = {}, sum[N] = {}, square[N] = {}, value[N];
    if (is_there) load<T, N>(from, (size_t)start * vectors + v, origin);
    for (int p = start + row; is_there && p < end; p += rows) {
      load<T, N>(from, (size_t)p * vectors + v, value);
#pragma unroll
      for (int k = 0; k < N; k++) {
        const float d = value[k] - origin[k];
        sum[k] += d;
        square[k] += d * d;
      }
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < N; k++) {
      sums[(2 * threadIdx.x) * N + k] = sum[k];
      sums[(2 * threadIdx.x + 1) * N + k] = square[k];
    }
    __syncthreads();
    if (row == 0 && v < vectors) {
      for (int r = 1; r < rows; r++)
#pragma unroll
        for (int k = 0; k < N; k++) {
          sum[k] += sums[(2 * (r * across + lane)) * N + k];
          square[k] += sums[(2 * (r * across + lane) + 1) * N + k];
        }
      const float count = end - start;
      float *to = moments + 2 * (((size_t)blockIdx.x * gridDim.y + blockIdx.y) * channels + v * N);
#pragma unroll
      for (int k = 0; k < N; k++) {
        to[2 * k] = count > 0.f ? origin[k] + sum[k] / count : 0.f;
        to[2 * k + 1] = count > 0.f ? square[k] - sum[k] * (sum[k] / count) : 0.f;
      }
    }
  }
}

// Of group blockIdx.x (samples x groups), from the moments of its channels in all pieces: count,
// mean and sum of squared deviations.
__device__ void moments_of_groups(const float *moments, float *groups, int area, int channels,
                                  int count_of_groups, int pieces) {
  const int per_group = channels / count_of_groups, piece = (area + pieces - 1) / pieces;
  const int sample = blockIdx.x / count_of_groups, first = blockIdx.x % count_of_groups * per_group;
  const float count = (float)area * per_group;
  float sum = 0.f;
  for (int i = threadIdx.x; i < pieces * per_group; i += blockDim.x) {
    const int p = i / per_group, n = min(piece, area - min(p * piece, area));
    const float *of = moments + 2 * (((size_t)sample * pieces + p) * channels + first + i % per_group);
    sum += n * of[0];
  }
  const float mean = block_sum(sum) / count;
  sum = 0.f;
  for (int i = threadIdx.x; i < pieces * per_group; i += blockDim.x) {
    const int p = i / per_group, n = min(piece, area - min(p * piece, area));
    const float *of = moments + 2 * (((size_t)sample * pieces + p) * channels + first + i % per_group);
    sum += of[1] + n * (of[0] - mean) * (of[0] - mean);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) {
    groups[3 * blockIdx.x] = count;
    groups[3 * blockIdx.x + 1] = mean;
    groups[3 * blockIdx.x + 2] = sum;
  }
}

template <typename T, int N>
__device__ void group_norm_last(const T *x, const T *weight, const T *bias, const float *moments,
                                T *y, size_t count, int area, int channels, int groups, float eps,
                                int with_silu) {
  const size_t stride = (size_t)gridDim.x * blockDim.x;
  const int vectors = channels / N, per_group = channels / groups;
  for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count / N; i += stride) {
    const int v = i % vectors;
    const size_t sample = i / vectors / area;
    float value[N], w[N], b[N];
    load<T, N>(x, i, value);
    load<T, N>(weight, v, w);
    load<T, N>(bias, v, b);
#pragma unroll
    for (int k = 0; k < N; k++) {
      const float *of = moments + 3 * (sample * groups + (v * N + k) / per_group);
      const float inverse = rsqrtf(of[2] / of[0] + eps);
      value[k] = (value[k] - of[1]) * inverse * w[k] + b[k];
      if (with_silu) value[k] = silu(value[k]);
    }
    store<T, N>(y, i, value);
  }
}

template <typename T, int N>
__device__ void upsample_last(const T *x, T *y, size_t count, int height, int width, int channels,
                              int factor) {
  const size_t stride = (size_t)gridDim.x * blockDim.x, vectors = channels / N;
  const size_t wide = (size_t)width * factor, high = (size_t)height * factor;
  for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count / N; i += stride) {
    const size_t v = i % vectors, column = i / vectors % wide, row = i / vectors / wide % high;
    const size_t sample = i / vectors / wide / high;
    float value[N];
    const size_t pixel = (sample * height + row / factor) * width + column / factor;
    load<T, N>(x, pixel * vectors + v, value);
    store<T, N>(y, i, value);
  }
}

// Pairs of numbers of rows of `row`, turned by the table's angles (tokens x width), cosine and sine.
// There are less than 2^31 accesses of N numbers, at least a pair.
template <typename T, int N>
__device__ void rope(const T *x, const float *table, T *y, size_t count, int row, int width,
                     int tokens) {
  const int A = N < 4 ? N : 4; // angles an access
  const unsigned stride = gridDim.x * blockDim.x, across = row / N, of_head = width / N;
  for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < count / N; i += stride) {
    const unsigned token = i / across % tokens, column = i % across % of_head;
    float v[N], angles[A];
    load<T, N>(x, i, v);
#pragma unroll
    for (int part = 0; part < N / A; part++) {
      load<float, A>(table, ((size_t)token * of_head + column) * (N / A) + part, angles);
#pragma unroll
      for (int k = 0; k < A; k += 2) {
        const float a = v[part * A + k], b = v[part * A + k + 1], cosine = angles[k],
                    sine = angles[k + 1];
        v[part * A + k] = a * cosine - b * sine;
        v[part * A + k + 1] = a * sine + b * cosine;
      }
    }
    store<T, N>(y, i, v);
  }
}

// x + gate * y: `rows` successive rows of `width` have one gate, `gate_stride` numbers after the one
// before.
template <typename T, int N>
__device__ void gated_add(const T *x, const T *gate, const T *y, T *out, size_t count, int rows,
                          int width, int gate_stride) {
  const size_t stride = (size_t)gridDim.x * blockDim.x, across = width / N;
  for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count / N; i += stride) {
    const size_t sample = i / across / rows, column = i % across;
    float a[N], b[N], g[N];
    load<T, N>(x, i, a);
    load<T, N>(y, i, b);
    load<T, N>(gate + sample * gate_stride, column, g);
#pragma unroll
    for (int k = 0; k < N; k++) a[k] += g[k] * b[k];
    store<T, N>(out, i, a);
  }
}

// x + y, or their product.
template <typename T, int N, bool MULTIPLIED>
__device__ void of_pairs(const T *x, const T *y, T *out, size_t count) {
  const size_t stride = (size_t)gridDim.x * blockDim.x;
  for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count / N; i += stride) {
    float a[N], b[N];
    load<T, N>(x, i, a);
    load<T, N>(y, i, b);
#pragma unroll
    for (int k = 0; k < N; k++) a[k] = MULTIPLIED ? a[k] * b[k] : a[k] + b[k];
    store<T, N>(out, i, a);
  }
}

// x + y: `rows` successive rows of `width` have one y.
template <typename T, int N>
__device__ void add_to_rows(const T *x, const T *y, T *out, size_t count, int rows, int width) {
  const size_t stride = (size_t)gridDim.x * blockDim.x, across = width / N;
  for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count / N; i += stride) {
    float a[N], b[N];
    load<T, N>(x, i, a);
    load<T, N>(y, i / across / rows * across + i % across, b);
#pragma unroll
    for (int k = 0; k < N; k++) a[k] += b[k];
    store<T, N>(out, i, a);
  }
}

// Runs of `run` numbers that follow each other, to places `pitch` apart, from `offset` on.
template <typename T, int N>
__device__ void copy_runs(const T *x, T *y, size_t count, size_t run, size_t pitch, size_t offset) {
  const size_t stride = (size_t)gridDim.x * blockDim.x, across = run / N;
  const Vector<T, N> *from = reinterpret_cast<const Vector<T, N> *>(x);
  Vector<T, N> *to = reinterpret_cast<Vector<T, N> *>(y + offset);
  for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count / N; i += stride)
    to[i / across * (pitch / N) + i % across] = from[i];
}

// The derivative of `activate`.
__device__ inline float slope_of(int kind, float x) {
  switch (kind) {
  case 0: {
    const float s = sigmoid(x), bend = s * (1.f - s);
    return s + (bend != 0.f ? x * bend : bend);
  }
  case 1: return 0.5f * (1.f + erff(x * 0.70710678f)) + x * expf(-0.5f * x * x) * 0.39894228f;
  case 2: {
    // Farther out it is 0, while x^3 grows beyond what a float holds.
    x = x < -1e3f ? -1e3f : x;
    const float s = sigmoid(1.5957691216f * (x + 0.044715f * x * x * x)), bend = s * (1.f - s);
    return s + (bend != 0.f ? x * 1.5957691216f * (1.f + 0.134145f * x * x) * bend : bend);
  }
  case 3: {
    const float s = sigmoid(1.702f * x), bend = s * (1.f - s);
    return s + (bend != 0.f ? 1.702f * x * bend : bend);
  }
  default: return x > 0.f ? 1.f : isnan(x) ? x : 0.f;
  }
}

template <typename T, int N>
__device__ void activation_gradient(const T *x, const T *gy, T *gx, size_t count, int kind) {
  const size_t stride = (size_t)gridDim.x * blockDim.x;
  for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count / N; i += stride) {
    float v[N], g[N];
    load<T, N>(x, i, v);
    load<T, N>(gy, i, g);
#pragma unroll
    for (int k = 0; k < N; k++) g[k] *= slope_of(kind, v[k]);
    store<T, N>(gx, i, g);
  }
}

// A picture (channels x height x width) as the columns that a convolution multiplies: (channels x
// kernel x kernel) x pixels, of the output's pixels from `first` on, `pixels` of them.
struct Window {
  int height, width, kernel, stride, padding, out_width;
};

template <typename T>
__device__ void columns(const T *x, T *y, size_t count, int first, int pixels, Window w) {
  const size_t stride = (size_t)gridDim.x * blockDim.x;
  for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += stride) {
    const int pixel = i % pixels + first;
    const size_t tap = i / pixels;
    const int dx = tap % w.kernel, dy = tap / w.kernel % w.kernel;
    const size_t channel = tap / w.kernel / w.kernel;
    const int row = pixel / w.out_width * w.stride + dy - w.padding;
    const int column = pixel % w.out_width * w.stride + dx - w.padding;
    const bool inside = row >= 0 && row < w.height && column >= 0 && column < w.width;
    y[i] = inside ? x[(channel * w.height + row) * w.width + column] : from_float<T>(0.f);
  }
}

// The way back of `columns` of all pixels: every number of the picture is the sum of those that
// were made of it.
template <typename T>
__device__ void picture(const T *y, T *x, size_t count, int out_height, Window w) {
  const size_t stride = (size_t)gridDim.x * blockDim.x;
  const size_t pixels = (size_t)out_height * w.out_width;
  for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += stride) {
    const int column = i % w.width, row = i / w.width % w.height;
    const size_t channel = i / w.width / w.height;
    float sum = 0.f;
    for (int dy = 0; dy < w.kernel; dy++) {
      const int down = row + w.padding - dy;
      if (down < 0 || down % w.stride || down / w.stride >= out_height) continue;
      for (int dx = 0; dx < w.kernel; dx++) {
        const int across = column + w.padding - dx;
        if (across < 0 || across % w.stride || across / w.stride >= w.out_width) continue;
        const size_t tap = (channel * w.kernel + dy) * w.kernel + dx;
        sum += to_float(y[tap * pixels + down / w.stride * w.out_width + across / w.stride]);
      }
    }
    x[i] = from_float<T>(sum);
  }
}

// Sums over the rows of part blockIdx.y: of x (to[part][0]) and of x^2 (to[part][1]). Where `places`
// is given, the rows are those of x at these places, and are copied to `taken`; every `tokens` rows
// of x begin `pitch` rows after those before them. The lanes of a warp have 32 accesses of a row; the
// warps of a block, and the parts, take rows in turn.
template <typename T, int N>
__device__ void column_sums(const T *x, const uint32_t *places, T *taken, float *to, size_t rows,
                            int width, int tokens, int pitch) {
  const int WARPS = 8, across = width / N;
  __shared__ float of_warps[WARPS][32][2 * N + 1];
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  for (int first = 32 * blockIdx.x; first < across; first += 32 * gridDim.x) {
    const int column = first + lane;
    float sums[N] = {}, squares[N] = {}, v[N];
    if (column < across)
      for (size_t row = warp + WARPS * blockIdx.y; row < rows; row += WARPS * gridDim.y) {
        size_t from = row;
        if (places) from = (size_t)(places[row] / tokens) * pitch + places[row] % tokens;
        load<T, N>(x + from * width, column, v);
        if (places) store<T, N>(taken + row * width, column, v);
#pragma unroll
        for (int k = 0; k < N; k++) {
          sums[k] += v[k];
          squares[k] += v[k] * v[k];
        }
      }
#pragma unroll
    for (int k = 0; k < N; k++) {
      of_warps[warp][lane][k] = sums[k];
      of_warps[warp][lane][N + k] = squares[k];
    }
    __syncthreads();
    if (warp == 0 && column < across) {
#pragma unroll
      for (int k = 0; k < 2 * N; k++) {
        float sum = 0.f;
        for (int w = 0; w < WARPS; w++) sum += of_warps[w][lane][k];
        to[((size_t)blockIdx.y * 2 + k / N) * width + column * N + k % N] = sum;
      }
    }
    __syncthreads();
  }
}

// Adds `column_sums` of rows that count `times` to 3 x width: weighted sums, sums and squares. The
// lanes of a warp have 32 columns; the warps of a block take parts in turn.
extern "C" __global__ void add_column_sums_f32_1(const float *of_parts, double *to, int parts,
                                                 int width, double times, double weight) {
  const int WARPS = 8;
  __shared__ double of_warps[2][WARPS][32];
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, column = 32 * blockIdx.x + lane;
  double sum = 0., square = 0.;
  if (column < width)
    for (int part = warp; part < parts; part += WARPS) {
      sum += of_parts[(size_t)part * 2 * width + column];
      square += of_parts[((size_t)part * 2 + 1) * width + column];
    }
  of_warps[0][warp][lane] = sum;
  of_warps[1][warp][lane] = square;
  __syncthreads();
  if (warp || column >= width) return;
  for (int w = 1; w < WARPS; w++) {
    sum += of_warps[0][w][lane];
    square += of_warps[1][w][lane];
  }
  to[column] += weight * (times * sum);
  to[width + column] += times * sum;
  to[2 * width + column] += times * square;
}

#define ENTRIES(T, TYPE, N)                                                                        \
  extern "C" __global__ void activation_##TYPE##_##N(const T *x, T *y, size_t count, int kind) {   \
    activation<T, N>(x, y, count, kind);                                                           \
  }                                                                                                \
  extern "C" __global__ void activation_gradient_##TYPE##_##N(const T *x, const T *gy, T *gx,      \
                                                              size_t count, int kind) {            \
    activation_gradient<T, N>(x, gy, gx, count, kind);                                             \
  }                                                                                                \
  extern "C" __global__ void geglu_##TYPE##_##N(const T *x, T *y, size_t rows, int width) {        \
    geglu<T, N>(x, y, rows, width);                                                                \
  }                                                                                                \
  extern "C" __global__ void softmax_##TYPE##_##N(const T *x, T *y, int width) {                   \
    softmax<T, N>(x, y, width);                                                                    \
  }                                                                                                \
  extern "C" __global__ void layer_norm_##TYPE##_##N(                                              \
      const T *x, const T *scale, const T *shift, T *y, size_t all, int width, int rows,           \
      int scale_stride, int shift_stride, float eps) {                                             \
    layer_norm<T, N, true>(x, scale, shift, y, all, width, rows, scale_stride, shift_stride, eps); \
  }                                                                                                \
  extern "C" __global__ void rms_norm_of_wide_rows_##TYPE##_##N(                                   \
      const T *x, const T *weight, T *y, size_t rows, int width, float eps) {                      \
    layer_norm<T, N, false>(x, weight, weight, y, rows, width, 0, 0, 0, eps);                      \
  }                                                                                                \
  extern "C" __global__ void rms_norm_##TYPE##_##N(const T *x, const T *weight, T *y, size_t rows, \
                                                   int width, float eps) {                         \
    rms_norm<T, N>(x, weight, y, rows, width, eps);                                                \
  }                                                                                                \
  extern "C" __global__ void group_moments_##TYPE##_##N(const T *x, float *moments, size_t size) { \
    group_moments<T, N>(x, moments, size);                                                         \
  }                                                                                                \
  extern "C" __global__ void group_norm_##TYPE##_##N(                                              \
      const T *x, const T *weight, const T *bias, const float *moments, T *y, int area,            \
      int channels, int groups, int pieces, float eps, int with_silu) {                            \
    group_norm<T, N>(x, weight, bias, moments, y, area, channels, groups, pieces, eps, with_silu); \
  }                                                                                                \
  extern "C" __global__ void channel_moments_##TYPE##_##N(const T *x, float *moments, int area,    \
                                                          int channels, int across) {              \
    channel_moments<T, N>(x, moments, area, channels, across);                                     \
  }                                                                                                \
  extern "C" __global__ void group_norm_last_##TYPE##_##N(                                         \
      const T *x, const T *weight, const T *bias, const float *moments, T *y, size_t count,        \
      int area, int channels, int groups, float eps, int with_silu) {                              \
    group_norm_last<T, N>(x, weight, bias, moments, y, count, area, channels, groups, eps,         \
                          with_silu);                                                              \
  }                                                                                                \
  extern "C" __global__ void column_sums_##TYPE##_##N(const T *x, const uint32_t *places, T *taken, \
                                                      float *to, size_t rows, int width,           \
                                                      int tokens, int pitch) {                     \
    column_sums<T, N>(x, places, taken, to, rows, width, tokens, pitch);                           \
  }                                                                                                \
  extern "C" __global__ void upsample_last_##TYPE##_##N(const T *x, T *y, size_t count,            \
                                                        int height, int width, int channels,       \
                                                        int factor) {                              \
    upsample_last<T, N>(x, y, count, height, width, channels, factor);                             \
  }                                                                                                \
  extern "C" __global__ void gated_add_##TYPE##_##N(const T *x, const T *gate, const T *y, T *out, \
                                                    size_t count, int rows, int width,             \
                                                    int gate_stride) {                             \
    gated_add<T, N>(x, gate, y, out, count, rows, width, gate_stride);                             \
  }                                                                                                \
  extern "C" __global__ void add_##TYPE##_##N(const T *x, const T *y, T *out, size_t count) {      \
    of_pairs<T, N, false>(x, y, out, count);                                                       \
  }                                                                                                \
  extern "C" __global__ void multiply_##TYPE##_##N(const T *x, const T *y, T *out, size_t count) { \
    of_pairs<T, N, true>(x, y, out, count);                                                        \
  }                                                                                                \
  extern "C" __global__ void add_to_rows_##TYPE##_##N(const T *x, const T *y, T *out,              \
                                                      size_t count, int rows, int width) {         \
    add_to_rows<T, N>(x, y, out, count, rows, width);                                              \
  }                                                                                                \
  extern "C" __global__ void copy_runs_##TYPE##_##N(const T *x, T *y, size_t count, size_t run,    \
                                                    size_t pitch, size_t offset) {                 \
    copy_runs<T, N>(x, y, count, run, pitch, offset);                                              \
  }

// N: as in the names of the others; PAIRED: of at least a pair.
#define ROPE(T, TYPE, N, PAIRED)                                                                   \
  extern "C" __global__ void rope_##TYPE##_##N(const T *x, const float *table, T *y, size_t count, \
                                               int row, int width, int tokens) {                   \
    rope<T, PAIRED>(x, table, y, count, row, width, tokens);                                       \
  }

#define ENTRIES_OF_ONE(T, TYPE)                                                                    \
  extern "C" __global__ void columns_##TYPE##_1(                                                   \
      const T *x, T *y, size_t count, int first, int pixels, int height, int width, int kernel,    \
      int stride, int padding, int out_width) {                                                    \
    columns<T>(x, y, count, first, pixels, {height, width, kernel, stride, padding, out_width});   \
  }                                                                                                \
  extern "C" __global__ void picture_##TYPE##_1(const T *y, T *x, size_t count, int out_height,    \
                                                int height, int width, int kernel, int stride,     \
                                                int padding, int out_width) {                      \
    picture<T>(y, x, count, out_height, {height, width, kernel, stride, padding, out_width});      \
  }                                                                                                \
  extern "C" __global__ void upsample_##TYPE##_1(const T *x, T *y, size_t count, int width,        \
                                                 int factor) {                                     \
    upsample<T>(x, y, count, width, factor);                                                       \
  }                                                                                                \
  ROPE(T, TYPE, 1, 2)

extern "C" __global__ void moments_of_groups_f32_1(const float *moments, float *groups, int area,
                                                   int channels, int count_of_groups, int pieces) {
  moments_of_groups(moments, groups, area, channels, count_of_groups, pieces);
}

ENTRIES(float, f32, 1)
ENTRIES(float, f32, 4)
ENTRIES(__half, f16, 1)
ENTRIES(__half, f16, 8)
ENTRIES(__nv_bfloat16, bf16, 1)
ENTRIES(__nv_bfloat16, bf16, 8)
ENTRIES_OF_ONE(float, f32)
ENTRIES_OF_ONE(__half, f16)
ENTRIES_OF_ONE(__nv_bfloat16, bf16)
ROPE(float, f32, 4, 4)
ROPE(__half, f16, 8, 8)
ROPE(__nv_bfloat16, bf16, 8, 8)
