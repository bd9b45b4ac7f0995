// Arguments of the ActiveQueryAttention adjoint's kernels (TABES, arXiv 2602.00250), and how they
// are launched. Plain data: nothing here knows ATen.
//
// m active queries of H heads, keys and values of R rows and Hkv heads, nk wanted key rows; the
// head size is a template argument. The offsets [batch + 1] cut each of them into sequences.
#pragma once

#include <cstdint>

#include "ops/cuda/number.h"

namespace tabes::gpu {

enum class Number { fp32, bf16, fp16 };

struct AqaParams {
  // Rows of heads, head after head; strides between rows in numbers. q, grad and out have m rows.
  const void *q, *grad, *k, *v;
  int64_t q_stride, grad_stride, k_stride, v_stride;

  // The forward pass's result at the queries and its log-sum-exp [m, H] (nats), if they were kept.
  // Without `out`, a pass of its own finds row_lse and row_delta first.
  const void* out;
  int64_t out_stride;
  // [m, H]: log-sum-exp, and delta = sum of dO * O, which is the softmax's mean of dO . v.
  float *row_lse, *row_delta;

  const void* bias;  // [m, >= longest sequence] added to the scores, or null
  int64_t bias_stride;

  const int64_t* keys;     // [nk] rows among R
  const int64_t* queries;  // the queries whose dq is wanted, or null for all
  const int64_t *cu_q, *cu_k, *cu_keys, *cu_queries;

  // dq [m or wanted, H, d]; dk, dv [nk, Hkv, d]; contiguous.
  void *dq, *dk, *dv;
  int64_t total_q, total_dq, total_keys;

  // Room for results in parts, [splits, ...] float32 each; unused where its splits are 1.
  float *row_parts, *dq_parts, *dk_parts, *dv_parts;
  int row_splits, dq_splits, key_splits;

  int batch, heads, groups;
  float scale;
};

// Tiles of a pass: how many rows a block takes, and how many it streams past them at a time.
struct AqaShape {
  int rows, streamed, threads, shared_bytes;
};

// Parts a loop may be cut into: what they add up to is read once more for each.
constexpr int kMostSplits = 16;

// Whether there are kernels for this head size.
TABES_HOST_DEVICE constexpr bool aqa_has_head(int head_dim) {
  return head_dim == 32 || head_dim == 64 || head_dim == 96 || head_dim == 128 || head_dim == 256;
}

TABES_HOST_DEVICE constexpr AqaShape aqa_query_shape(Number number, int d) {
  if (number == Number::fp32) return {32, 32, 256, 4 * 32 * (d + 4) * 4 + 32 * 33 * 4};
  const int streamed = d > 128 ? 32 : 64;
  // Queries and gradients once, keys and values twice: one tile is used while the next arrives.
  return {64, streamed, 128, (2 * 64 + 4 * streamed) * d * 2};
}

TABES_HOST_DEVICE constexpr AqaShape aqa_key_shape(Number number, int d) {
  if (number == Number::fp32) return {32, 32, 256, 4 * 32 * (d + 4) * 4 + 2 * 32 * 33 * 4 + 64 * 4};
  const int streamed = d > 128 ? 16 : d > 64 ? 32 : 64;
  // Above 128 a thread could not hold its sums: two warps share 16 keys, half the columns each.
  return {64, streamed, d > 128 ? 256 : 128, (2 * 64 + 4 * streamed) * d * 2 + 4 * streamed * 4};
}

// Blocks along x for rows cut by `offsets`: what find_tile counts.
inline int64_t aqa_tiles(const int64_t* offsets, int batch, int size) {
  int64_t tiles = 0;
  for (int b = 0; b < batch; ++b) tiles += (offsets[b + 1] - offsets[b] + size - 1) / size;
  return tiles;
}

// Launches, on a cudaStream_t, every pass that the parameters ask for; `query_tiles`, `dq_tiles`
// and `key_tiles` are aqa_tiles of the offsets of q, of the wanted queries and of the keys. Returns
// the first cudaError_t that is not success.
struct AqaGrid {
  int64_t query_tiles, dq_tiles, key_tiles;
};
int launch_aqa_adjoint(const AqaParams& p, Number number, int head_dim, AqaGrid grid, void* stream);

}  // namespace tabes::gpu
