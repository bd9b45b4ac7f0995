// Passes over the queries on tensor cores: a block has 64 queries of one head, four warps 16 each,
// and streams keys and values past them. With kGradient it computes dq, otherwise each row's
// log-sum-exp and delta.
//
//   p_ij = exp(scale q_i.k_j + bias_ij - lse_i)      delta_i = sum_j p_ij dO_i.v_j = dO_i.O_i
//   dq_i = scale sum_j p_ij (dO_i.v_j - delta_i) k_j
#pragma once

#include "ops/cuda/aqa_rows.h"
#include "ops/cuda/aqa_tensor.h"

namespace tabes::gpu {

// dO . O of this thread's two rows, dO from its tile.
template <typename T, int D>
TABES_DEVICE void dot_rows(float (&delta)[2], const T* grad_tile, const T* out, int64_t stride,
                           int warp_row, const QueryRows& query) {
  const int lane = lane_index();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = warp_row + accumulator_row(lane, 2 * half);
    const int64_t row = query(r);
    float sum = 0.0f;
    if (row >= 0) {
      for (int piece = 0; piece < D / 8; ++piece) {
        const int within = accumulator_column(lane, 0);
        const T* g = grad_tile + tile_offset<D>(r, piece) + within;
        const T* o = out + row * stride + piece * 8 + within;
        sum += to_float(g[0]) * to_float(o[0]) + to_float(g[1]) * to_float(o[1]);
      }
    }
    delta[half] = sum_lanes(sum, 4);
  }
}

template <typename T, int D, bool kGradient>
TABES_DEVICE void aqa_query_pass(const AqaParams& p, char* shared) {
  constexpr AqaShape kShape = aqa_query_shape(Number::bf16, D);
  constexpr int kRows = kShape.rows, kKeys = kShape.streamed;
  const QueryRows query(p, kGradient, kRows);
  if (query.tile.sequence < 0) return;
  const int head = block_y(), group = head / (p.heads / p.groups), part = block_z();
  const int64_t first_key = p.cu_k[query.tile.sequence];
  const int keys = static_cast<int>(p.cu_k[query.tile.sequence + 1] - first_key);
  const Range tiles =
      share((keys + kKeys - 1) / kKeys, kGradient ? p.dq_splits : p.row_splits, part);

  T* q_tile = reinterpret_cast<T*>(shared);
  T* grad_tile = q_tile + kRows * D;
  T* kv_tiles = grad_tile + kRows * D;  // two stages of keys and values
  fetch_tile<D>(q_tile, static_cast<const T*>(p.q) + head * D, p.q_stride, kRows, query);
  fetch_tile<D>(grad_tile, static_cast<const T*>(p.grad) + head * D, p.grad_stride, kRows, query);
  commit_copies();
  const auto fetch_keys = [&](int tile) {
    T* stage = kv_tiles + (tile - tiles.from) % 2 * 2 * kKeys * D;
    const auto row = [&](int i) {
      const int j = tile * kKeys + i;
      return j < keys ? first_key + j : int64_t{-1};
    };
    fetch_tile<D>(stage, static_cast<const T*>(p.k) + group * D, p.k_stride, kKeys, row);
    fetch_tile<D>(stage + kKeys * D, static_cast<const T*>(p.v) + group * D, p.v_stride, kKeys,
                  row);
    commit_copies();
  };
  if (tiles.from < tiles.to) fetch_keys(tiles.from);

  const int lane = lane_index(), warp_row = warp_index() * 16;
  const int64_t rows[2] = {query(warp_row + accumulator_row(lane, 0)),
                           query(warp_row + accumulator_row(lane, 2))};
  const float scale = p.scale * kLog2E;
  RowPartial seen[2] = {empty_row(), empty_row()};
  float shift[2] = {infinity(), infinity()}, delta[2] = {0.0f, 0.0f};
  float dq[D / 8][4] = {};
  if constexpr (kGradient) {
    const bool inside = p.out && !p.queries;  // otherwise another kernel has found delta
    if (inside) {
      if (tiles.from < tiles.to) {
        wait_copies<1>();
      } else {
        wait_copies<0>();
      }
      sync_block();
      dot_rows<T, D>(delta, grad_tile, static_cast<const T*>(p.out) + head * D, p.out_stride,
                     warp_row, query);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (rows[half] < 0) continue;
      const int64_t at = rows[half] * p.heads + head;
      shift[half] = log2_shift(p.row_lse[at]);
      if (!inside) {
        delta[half] = p.row_delta[at];
      } else if (part == 0 && lane % 4 == 0) {
        p.row_delta[at] = delta[half];  // the keys' pass needs it
      }
    }
  }

  for (int tile = tiles.from; tile < tiles.to; ++tile) {
    if (tile + 1 < tiles.to) {
      fetch_keys(tile + 1);
      wait_copies<1>();
    } else {
      wait_copies<0>();
    }
    sync_block();
    const T* k_tile = kv_tiles + (tile - tiles.from) % 2 * 2 * kKeys * D;
    float s[kKeys / 8][4], dp[kKeys / 8][4];
    times_rows<T, D, kKeys>(s, q_tile, warp_row, k_tile);
    times_rows<T, D, kKeys>(dp, grad_tile, warp_row, k_tile + kKeys * D);
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int key = tile * kKeys + n * 8 + accumulator_column(lane, e);
        float x = s[n][e] * scale;
        if (p.bias && key < keys && rows[e / 2] >= 0) {
          x += kLog2E * to_float(static_cast<const T*>(p.bias)[rows[e / 2] * p.bias_stride + key]);
        }
        s[n][e] = key < keys ? x : -infinity();
      }
    }
    if constexpr (kGradient) {
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          s[n][e] = exp2f(s[n][e] - shift[e / 2]) * (dp[n][e] - delta[e / 2]);
        }
      }
      add_product<T, D, kKeys, D>(dq, s, k_tile, 0);
    } else {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float top = seen[half].max;
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
          top = fmaxf(top, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
        }
        top = fmaxf(top, shuffle_xor(top, 1));
        top = fmaxf(top, shuffle_xor(top, 2));
        if (top == -infinity()) continue;
        raise(seen[half], top);
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
          for (int e = 2 * half; e < 2 * half + 2; ++e) {
            const float weight = exp2f(s[n][e] - top);
            seen[half].sum += weight;
            seen[half].weighted += weight * dp[n][e];
          }
        }
      }
    }
    sync_block();  // the stage is about to be written again
  }
  wait_copies<0>();

  if constexpr (kGradient) {
    // Result rows are those of the tile, whichever queries they belong to.
    const auto row_of = [&](int r) {
      return warp_row + r < query.tile.rows ? query.tile.first + warp_row + r : int64_t{-1};
    };
    const int64_t stride = int64_t{p.heads} * D;
    float* parts = p.dq_splits > 1 ? p.dq_parts + part * p.total_dq * stride + head * D : nullptr;
    store_rows<T, D>(dq, p.scale, static_cast<T*>(p.dq) + head * D, parts, stride, row_of,
                     [&](int r) { return query(warp_row + r) < 0; });
  } else {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      seen[half].sum = sum_lanes(seen[half].sum, 4);
      seen[half].weighted = sum_lanes(seen[half].weighted, 4);
      if (lane % 4 == 0 && rows[half] >= 0) store_row(p, seen[half], rows[half], head);
    }
  }
}

}  // namespace tabes::gpu
