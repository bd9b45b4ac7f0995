// The pass over the wanted keys on tensor cores: a block has 64 keys of one key head and streams
// past them the queries of every head that reads it, so that grouped heads add up in registers.
//
//   dv_j = sum_i p_ij dO_i        dk_j = scale sum_i p_ij (dO_i.v_j - delta_i) q_i
//
// Scores are computed transposed, keys down the rows: then they are laid out as the left operand of
// both sums. Up to 128 numbers a head, four warps have 16 keys each; above, eight warps share them
// in pairs that compute the same scores and sum one half of the columns each.
#pragma once

#include "ops/cuda/aqa_rows.h"
#include "ops/cuda/aqa_tensor.h"

namespace tabes::gpu {

template <typename T, int D>
TABES_DEVICE void aqa_key_pass(const AqaParams& p, char* shared) {
  constexpr AqaShape kShape = aqa_key_shape(Number::bf16, D);
  constexpr int kKeys = kShape.rows, kQueries = kShape.streamed;
  constexpr int kColumns = D * 128 / kShape.threads;
  const KeyRows key(p, kKeys);
  if (key.tile.sequence < 0) return;
  const int group = block_y(), repeat = p.heads / p.groups, part = block_z();
  const int64_t first_query = p.cu_q[key.tile.sequence];
  const int queries = static_cast<int>(p.cu_q[key.tile.sequence + 1] - first_query);
  const int tiles = (queries + kQueries - 1) / kQueries;
  const Range steps = share(tiles * repeat, p.key_splits, part);

  T* k_tile = reinterpret_cast<T*>(shared);
  T* v_tile = k_tile + kKeys * D;
  T* q_tiles = v_tile + kKeys * D;  // two stages of queries and their gradients
  float* row_values = reinterpret_cast<float*>(q_tiles + 4 * kQueries * D);  // shift and delta
  fetch_tile<D>(k_tile, static_cast<const T*>(p.k) + group * D, p.k_stride, kKeys, key);
  fetch_tile<D>(v_tile, static_cast<const T*>(p.v) + group * D, p.v_stride, kKeys, key);
  const auto fetch_queries = [&](int step) {
    const int stage = (step - steps.from) % 2;
    const int head = group * repeat + step / tiles, start = step % tiles * kQueries;
    T* tile = q_tiles + stage * 2 * kQueries * D;
    const auto row = [&](int i) {
      return start + i < queries ? first_query + start + i : int64_t{-1};
    };
    fetch_tile<D>(tile, static_cast<const T*>(p.q) + head * D, p.q_stride, kQueries, row);
    fetch_tile<D>(tile + kQueries * D, static_cast<const T*>(p.grad) + head * D, p.grad_stride,
                  kQueries, row);
    commit_copies();
    float* values = row_values + stage * 2 * kQueries;
    for (int i = thread_index(); i < kQueries; i += block_threads()) {
      // Past the last query the shift is infinite, so that its probabilities are zero.
      const bool there = row(i) >= 0;
      values[i] = there ? log2_shift(p.row_lse[row(i) * p.heads + head]) : infinity();
      values[kQueries + i] = there ? p.row_delta[row(i) * p.heads + head] : 0.0f;
    }
  };
  if (steps.from < steps.to) fetch_queries(steps.from);

  const int lane = lane_index(), warp_row = warp_index() % 4 * 16;
  const int column = warp_index() / 4 * kColumns;
  const int64_t first_key = key.from;
  const int64_t rows[2] = {key(warp_row + accumulator_row(lane, 0)),
                           key(warp_row + accumulator_row(lane, 2))};
  const float scale = p.scale * kLog2E;
  float dk[kColumns / 8][4] = {}, dv[kColumns / 8][4] = {};
  for (int step = steps.from; step < steps.to; ++step) {
    if (step + 1 < steps.to) {
      fetch_queries(step + 1);
      wait_copies<1>();
    } else {
      wait_copies<0>();
    }
    sync_block();
    const int stage = (step - steps.from) % 2;
    const T* q_tile = q_tiles + stage * 2 * kQueries * D;
    const T* grad_tile = q_tile + kQueries * D;
    const float* values = row_values + stage * 2 * kQueries;
    float s[kQueries / 8][4], dp[kQueries / 8][4];
    times_rows<T, D, kQueries>(s, k_tile, warp_row, q_tile);
#pragma unroll
    for (int n = 0; n < kQueries / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int i = n * 8 + accumulator_column(lane, e);
        float x = s[n][e] * scale;
        if (p.bias && rows[e / 2] >= 0) {
          const int64_t query = step % tiles * kQueries + i;
          if (query < queries) {
            x += kLog2E *
                 to_float(static_cast<const T*>(
                     p.bias)[(first_query + query) * p.bias_stride + rows[e / 2] - first_key]);
          }
        }
        s[n][e] = exp2f(x - values[i]);
      }
    }
    add_product<T, D, kQueries, kColumns>(dv, s, grad_tile, column);
    times_rows<T, D, kQueries>(dp, v_tile, warp_row, grad_tile);
#pragma unroll
    for (int n = 0; n < kQueries / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        s[n][e] *= dp[n][e] - values[kQueries + n * 8 + accumulator_column(lane, e)];
      }
    }
    add_product<T, D, kQueries, kColumns>(dk, s, q_tile, column);
    sync_block();  // the stage is about to be written again
  }
  commit_copies();
  wait_copies<0>();  // without a single step the keys are still under way

  const auto row_of = [&](int r) {
    return warp_row + r < key.tile.rows ? key.tile.first + warp_row + r : int64_t{-1};
  };
  const auto bad = [&](int r) { return key(warp_row + r) < 0; };
  const int64_t stride = int64_t{p.groups} * D, to = group * D + column;
  const int64_t part_at = part * p.total_keys * stride + to;
  const bool parts = p.key_splits > 1;
  store_rows<T, kColumns>(dk, p.scale, static_cast<T*>(p.dk) + to,
                          parts ? p.dk_parts + part_at : nullptr, stride, row_of, bad);
  store_rows<T, kColumns>(dv, 1.0f, static_cast<T*>(p.dv) + to,
                          parts ? p.dv_parts + part_at : nullptr, stride, row_of, bad);
}

}  // namespace tabes::gpu
