// Small kernels around the adjoint's passes: parts put together in a fixed order, and delta.
#pragma once

#include "ops/cuda/aqa_params.h"
#include "ops/cuda/device.h"
#include "ops/cuda/partials.h"

namespace tabes::gpu {

constexpr int kReduceThreads = 256;

// out[i] = parts[0][i] + parts[1][i] + ..., for `count` numbers.
struct PartsParams {
  void* out;
  const float* parts;
  int splits;
  int64_t count;
};
template <typename T>
TABES_DEVICE void add_parts(const PartsParams& p) {
  const int64_t i = int64_t{block_x()} * kReduceThreads + thread_index();
  if (i >= p.count) return;
  float sum = p.parts[i];
  for (int s = 1; s < p.splits; ++s) sum += p.parts[s * p.count + i];
  static_cast<T*>(p.out)[i] = from_float<T>(sum);
}

TABES_DEVICE void merge_rows(const AqaParams& p) {
  const int64_t count = p.total_q * p.heads;
  const int64_t i = int64_t{block_x()} * kReduceThreads + thread_index();
  if (i >= count) return;
  RowPartial row = empty_row();
  for (int s = 0; s < p.row_splits; ++s) {
    const float* part = p.row_parts + (s * count + i) * 3;
    row = merge(row, {part[0], part[1], part[2]});
  }
  p.row_lse[i] = log_sum(row);
  p.row_delta[i] = mean_weight(row);
}

// delta where the pass that computes dq does not see every query: a warp for a row of a head.
template <typename T>
TABES_DEVICE void find_delta(const AqaParams& p, int head_dim) {
  const int64_t i = int64_t{block_x()} * (kReduceThreads / kWarp) + warp_index();
  if (i >= p.total_q * p.heads) return;
  const int64_t row = i / p.heads, head = i % p.heads;
  const T* grad = static_cast<const T*>(p.grad) + row * p.grad_stride + head * head_dim;
  const T* out = static_cast<const T*>(p.out) + row * p.out_stride + head * head_dim;
  float sum = 0.0f;
  for (int d = lane_index(); d < head_dim; d += kWarp) sum += to_float(grad[d]) * to_float(out[d]);
  sum = sum_lanes(sum);
  if (lane_index() == 0) p.row_delta[i] = sum;
}

}  // namespace tabes::gpu
