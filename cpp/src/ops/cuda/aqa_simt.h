// The adjoint in float32, whose products tensor cores would round: tiles of 32 by 32 scores, 256
// threads that compute four scores each. See aqa_query_pass.h and aqa_key_pass.h for the formulas.
#pragma once

#include "ops/cuda/aqa_rows.h"

namespace tabes::gpu {

constexpr int kSimtRows = 32;
// A row of scores, one longer than the warp so that columns too lie in different banks.
constexpr int kSimtScores = kSimtRows + 1;
// Rows of a tile are four numbers longer than a head: eight neighbours then start in other banks.
template <int D>
constexpr int kSimtStride = D + 4;

template <int D, typename RowOf>
TABES_DEVICE void load_simt(float* tile, const float* base, int64_t stride, const RowOf& row_of) {
  for (int i = thread_index(); i < kSimtRows * D; i += block_threads()) {
    const int64_t row = row_of(i / D);
    tile[i / D * kSimtStride<D> + i % D] = row < 0 ? 0.0f : base[row * stride + i % D];
  }
}

// out[a][b] = row (ty + 16 a) of x times row (tx + 16 b) of y.
template <int D>
TABES_DEVICE void dot_simt(float (&out)[2][2], const float* x, const float* y) {
  const int tx = thread_index() % 16, ty = thread_index() / 16;
  out[0][0] = out[0][1] = out[1][0] = out[1][1] = 0.0f;
  for (int d = 0; d < D; d += 4) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float x0 = x[ty * kSimtStride<D> + d + e], x1 = x[(ty + 16) * kSimtStride<D> + d + e];
      const float y0 = y[tx * kSimtStride<D> + d + e], y1 = y[(tx + 16) * kSimtStride<D> + d + e];
      out[0][0] += x0 * y0;
      out[0][1] += x0 * y1;
      out[1][0] += x1 * y0;
      out[1][1] += x1 * y1;
    }
  }
}

// sum[a][c] += scores of row (ty + 16 a) times column (tx + 16 c) of y.
template <int D>
TABES_DEVICE void add_simt(float (&sum)[2][D / 16], const float* scores, const float* y) {
  const int tx = thread_index() % 16, ty = thread_index() / 16;
  for (int j = 0; j < kSimtRows; ++j) {
    const float s0 = scores[ty * kSimtScores + j], s1 = scores[(ty + 16) * kSimtScores + j];
#pragma unroll
    for (int c = 0; c < D / 16; ++c) {
      const float value = y[j * kSimtStride<D> + tx + 16 * c];
      sum[0][c] += s0 * value;
      sum[1][c] += s1 * value;
    }
  }
}

template <int D>
TABES_DEVICE void store_simt(const float (&sum)[2][D / 16], float scale, float* out, int64_t stride,
                             const Tile& tile, const bool (&bad)[2]) {
  const int tx = thread_index() % 16, ty = thread_index() / 16;
#pragma unroll
  for (int a = 0; a < 2; ++a) {
    if (ty + 16 * a >= tile.rows) continue;
    const float factor = bad[a] ? infinity() - infinity() : scale;
    float* row = out + (tile.first + ty + 16 * a) * stride + tx;
#pragma unroll
    for (int c = 0; c < D / 16; ++c) row[16 * c] = sum[a][c] * factor;
  }
}

template <int D, bool kGradient>
TABES_DEVICE void aqa_query_pass_simt(const AqaParams& p, char* shared) {
  const QueryRows query(p, kGradient, kSimtRows);
  if (query.tile.sequence < 0) return;
  const int head = block_y(), group = head / (p.heads / p.groups), part = block_z();
  const int64_t first_key = p.cu_k[query.tile.sequence];
  const int keys = static_cast<int>(p.cu_k[query.tile.sequence + 1] - first_key);
  const Range tiles =
      share((keys + kSimtRows - 1) / kSimtRows, kGradient ? p.dq_splits : p.row_splits, part);
  constexpr int kTile = kSimtRows * kSimtStride<D>;
  float* q_tile = reinterpret_cast<float*>(shared);
  float *grad_tile = q_tile + kTile, *k_tile = grad_tile + kTile, *v_tile = k_tile + kTile;
  float* scores = v_tile + kTile;
  load_simt<D>(q_tile, static_cast<const float*>(p.q) + head * D, p.q_stride, query);
  load_simt<D>(grad_tile, static_cast<const float*>(p.grad) + head * D, p.grad_stride, query);

  const int tx = thread_index() % 16, ty = thread_index() / 16;
  const int64_t rows[2] = {query(ty), query(ty + 16)};
  RowPartial seen[2] = {empty_row(), empty_row()};
  float shift[2] = {infinity(), infinity()}, delta[2] = {0.0f, 0.0f}, dq[2][D / 16] = {};
  if constexpr (kGradient) {
    const bool inside = p.out && !p.queries;
    if (inside) sync_block();
#pragma unroll
    for (int a = 0; a < 2; ++a) {
      if (inside) {
        float sum = 0.0f;
        for (int d = tx; d < D && rows[a] >= 0; d += 16) {
          sum += grad_tile[(ty + 16 * a) * kSimtStride<D> + d] *
                 static_cast<const float*>(p.out)[rows[a] * p.out_stride + head * D + d];
        }
        delta[a] = sum_lanes(sum, 16);
      }
      if (rows[a] < 0) continue;
      const int64_t at = rows[a] * p.heads + head;
      shift[a] = log2_shift(p.row_lse[at]);
      if (!inside) {
        delta[a] = p.row_delta[at];
      } else if (part == 0 && tx == 0) {
        p.row_delta[at] = delta[a];
      }
    }
  }
  for (int tile = tiles.from; tile < tiles.to; ++tile) {
    const auto row = [&](int i) {
      const int j = tile * kSimtRows + i;
      return j < keys ? first_key + j : int64_t{-1};
    };
    load_simt<D>(k_tile, static_cast<const float*>(p.k) + group * D, p.k_stride, row);
    load_simt<D>(v_tile, static_cast<const float*>(p.v) + group * D, p.v_stride, row);
    sync_block();
    float s[2][2], dp[2][2];
    dot_simt<D>(s, q_tile, k_tile);
    dot_simt<D>(dp, grad_tile, v_tile);
#pragma unroll
    for (int a = 0; a < 2; ++a) {
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        const int key = tile * kSimtRows + tx + 16 * b;
        float x = s[a][b] * (p.scale * kLog2E);
        if (p.bias && key < keys && rows[a] >= 0) {
          x += kLog2E * static_cast<const float*>(p.bias)[rows[a] * p.bias_stride + key];
        }
        s[a][b] = key < keys ? x : -infinity();
      }
      if constexpr (kGradient) {
#pragma unroll
        for (int b = 0; b < 2; ++b) {
          scores[(ty + 16 * a) * kSimtScores + tx + 16 * b] =
              exp2f(s[a][b] - shift[a]) * (dp[a][b] - delta[a]);
        }
      } else {
        float top = fmaxf(seen[a].max, fmaxf(s[a][0], s[a][1]));
        for (int mask = 1; mask < 16; mask *= 2) top = fmaxf(top, shuffle_xor(top, mask));
        if (top == -infinity()) continue;
        raise(seen[a], top);
#pragma unroll
        for (int b = 0; b < 2; ++b) {
          const float weight = exp2f(s[a][b] - top);
          seen[a].sum += weight;
          seen[a].weighted += weight * dp[a][b];
        }
      }
    }
    sync_block();
    if constexpr (kGradient) {
      add_simt<D>(dq, scores, k_tile);
      sync_block();
    }
  }
  if constexpr (kGradient) {
    const int64_t stride = int64_t{p.heads} * D;
    const bool bad[2] = {rows[0] < 0, rows[1] < 0};
    float* out =
        p.dq_splits > 1 ? p.dq_parts + part * p.total_dq * stride : static_cast<float*>(p.dq);
    store_simt<D>(dq, p.scale, out + head * D, stride, query.tile, bad);
  } else {
#pragma unroll
    for (int a = 0; a < 2; ++a) {
      seen[a].sum = sum_lanes(seen[a].sum, 16);
      seen[a].weighted = sum_lanes(seen[a].weighted, 16);
      if (tx == 0 && rows[a] >= 0) store_row(p, seen[a], rows[a], head);
    }
  }
}

template <int D>
TABES_DEVICE void aqa_key_pass_simt(const AqaParams& p, char* shared) {
  const KeyRows key(p, kSimtRows);
  if (key.tile.sequence < 0) return;
  const int group = block_y(), repeat = p.heads / p.groups, part = block_z();
  const int64_t first_query = p.cu_q[key.tile.sequence];
  const int queries = static_cast<int>(p.cu_q[key.tile.sequence + 1] - first_query);
  const int tiles = (queries + kSimtRows - 1) / kSimtRows;
  const Range steps = share(tiles * repeat, p.key_splits, part);
  constexpr int kTile = kSimtRows * kSimtStride<D>;
  float* k_tile = reinterpret_cast<float*>(shared);
  float *v_tile = k_tile + kTile, *q_tile = v_tile + kTile, *grad_tile = q_tile + kTile;
  float* p_scores = grad_tile + kTile;
  float* ds_scores = p_scores + kSimtRows * kSimtScores;
  float* values = ds_scores + kSimtRows * kSimtScores;
  load_simt<D>(k_tile, static_cast<const float*>(p.k) + group * D, p.k_stride, key);
  load_simt<D>(v_tile, static_cast<const float*>(p.v) + group * D, p.v_stride, key);
  const int tx = thread_index() % 16, ty = thread_index() / 16;
  const int64_t rows[2] = {key(ty), key(ty + 16)};
  float dk[2][D / 16] = {}, dv[2][D / 16] = {};
  for (int step = steps.from; step < steps.to; ++step) {
    const int head = group * repeat + step / tiles, start = step % tiles * kSimtRows;
    const auto row = [&](int i) {
      return start + i < queries ? first_query + start + i : int64_t{-1};
    };
    load_simt<D>(q_tile, static_cast<const float*>(p.q) + head * D, p.q_stride, row);
    load_simt<D>(grad_tile, static_cast<const float*>(p.grad) + head * D, p.grad_stride, row);
    if (thread_index() < kSimtRows) {
      const int64_t i = row(thread_index());
      values[thread_index()] = i < 0 ? infinity() : log2_shift(p.row_lse[i * p.heads + head]);
      values[kSimtRows + thread_index()] = i < 0 ? 0.0f : p.row_delta[i * p.heads + head];
    }
    sync_block();
    float s[2][2], dp[2][2];
    dot_simt<D>(s, k_tile, q_tile);
    dot_simt<D>(dp, v_tile, grad_tile);
#pragma unroll
    for (int a = 0; a < 2; ++a) {
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        const int i = tx + 16 * b, at = (ty + 16 * a) * kSimtScores + i;
        float x = s[a][b] * (p.scale * kLog2E);
        if (p.bias && start + i < queries && rows[a] >= 0) {
          x += kLog2E * static_cast<const float*>(
                            p.bias)[(first_query + start + i) * p.bias_stride + rows[a] - key.from];
        }
        const float probability = exp2f(x - values[i]);
        p_scores[at] = probability;
        ds_scores[at] = probability * (dp[a][b] - values[kSimtRows + i]);
      }
    }
    sync_block();
    add_simt<D>(dv, p_scores, grad_tile);
    add_simt<D>(dk, ds_scores, q_tile);
    sync_block();
  }
  const int64_t stride = int64_t{p.groups} * D, at = part * p.total_keys * stride;
  const bool bad[2] = {rows[0] < 0, rows[1] < 0}, parts = p.key_splits > 1;
  store_simt<D>(dk, p.scale, (parts ? p.dk_parts + at : static_cast<float*>(p.dk)) + group * D,
                stride, key.tile, bad);
  store_simt<D>(dv, 1.0f, (parts ? p.dv_parts + at : static_cast<float*>(p.dv)) + group * D, stride,
                key.tile, bad);
}

}  // namespace tabes::gpu
