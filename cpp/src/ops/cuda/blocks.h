// Kernels of a transformer block's pointwise parts: RMS norm, rotary positions, gated activations.
#pragma once

#include "ops/cuda/device.h"
#include "ops/cuda/rows_params.h"

namespace tabes::gpu {

constexpr int kBlockThreads = 256;

// Threads that share a row: a warp where rows are short, as in norms of single heads.
TABES_HOST_DEVICE constexpr int norm_lanes(int width) {
  return width <= 512 ? 32 : kBlockThreads;
}

// Whether the sum is over a warp or the block is the same for all threads.
TABES_DEVICE float norm_sum(float v, int lanes, float* scratch) {
  return lanes == kWarp ? sum_lanes(v) : sum_block(v, scratch);
}

template <typename T, bool kBackward>
TABES_DEVICE void rms_norm_rows(const NormParams& p, char* shared) {
  const int lanes = norm_lanes(p.width), lane = thread_index() % lanes;
  const int64_t row = int64_t{block_x()} * (kBlockThreads / lanes) + thread_index() / lanes;
  if (row >= p.rows) return;  // a whole warp, or the whole block
  float* scratch = reinterpret_cast<float*>(shared);
  const T* x = static_cast<const T*>(p.x) + row * p.stride;
  const T* grad = static_cast<const T*>(p.grad) + row * p.width;
  T* out = static_cast<T*>(p.out) + row * p.width;
  float squares = 0.0f, products = 0.0f;
  for (int i = lane; i < p.width; i += lanes) {
    const float v = to_float(x[i]);
    squares += v * v;
    if constexpr (kBackward) products += v * to_float(grad[i]) * p.weight[i];
  }
  const float n = static_cast<float>(p.width);
  const float scale = 1.0f / sqrtf(norm_sum(squares, lanes, scratch) / n + p.eps);
  float back = 0.0f;
  if constexpr (kBackward) {
    back = scale * scale * scale * norm_sum(products, lanes, scratch) / n;
  }
  for (int i = lane; i < p.width; i += lanes) {
    const float v = to_float(x[i]);
    if constexpr (kBackward) {
      out[i] = from_float<T>(to_float(grad[i]) * p.weight[i] * scale - v * back);
    } else {
      out[i] = from_float<T>(v * scale * p.weight[i]);
    }
  }
}

// A thread rotates one pair. A position outside the table gives NaN.
template <typename T>
TABES_DEVICE void rotate(const RopeParams& p) {
  const int64_t i = int64_t{block_x()} * kBlockThreads + thread_index();
  const int64_t per_row = int64_t{p.heads} * p.half;
  if (i >= p.rows * per_row) return;
  const int64_t row = i / per_row, head = i % per_row / p.half, j = i % p.half;
  T* x = static_cast<T*>(p.x) + row * p.stride + head * 2 * p.half + j;
  const int64_t position = p.positions[row];
  float c = infinity() - infinity(), s = c;
  if (position >= 0 && position < p.table) {
    c = p.cos[position * p.half + j];
    s = p.sin[position * p.half + j];
  }
  if (p.inverse) s = -s;
  const float a = to_float(x[0]), b = to_float(x[p.half]);
  x[0] = from_float<T>(a * c - b * s);
  x[p.half] = from_float<T>(b * c + a * s);
}

// act(x) = x share(x), and act's derivative.
struct Activation {
  float share, slope;
};
TABES_DEVICE Activation activation(float x, bool gelu) {
  if (gelu) {
    const float share = 0.5f * (1.0f + erff(x * 0.70710678118654752f));
    return {share, share + x * 0.3989422804014327f * expf(-0.5f * x * x)};
  }
  const float share = 1.0f / (1.0f + expf(-x));
  return {share, share * (1.0f + x * (1.0f - share))};
}

template <typename T, bool kBackward>
TABES_DEVICE void gate(const GatedParams& p) {
  const int64_t i = int64_t{block_x()} * kBlockThreads + thread_index();
  if (i >= p.rows * p.width) return;
  const int64_t row = i / p.width, at = row * p.width + i;  // rows of x are twice as wide
  const float x = to_float(static_cast<const T*>(p.x)[at]);
  const float up = to_float(static_cast<const T*>(p.x)[at + p.width]);
  const Activation a = activation(x, p.gelu);
  T* out = static_cast<T*>(p.out);
  if constexpr (kBackward) {
    const float grad = to_float(static_cast<const T*>(p.grad)[i]);
    out[at] = from_float<T>(grad * up * a.slope);
    out[at + p.width] = from_float<T>(grad * x * a.share);
  } else {
    out[i] = from_float<T>(x * a.share * up);
  }
}

}  // namespace tabes::gpu
