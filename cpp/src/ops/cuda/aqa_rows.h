// The rows of a block in both implementations of the adjoint, tensor-core and SIMT.
#pragma once

#include "ops/cuda/aqa_params.h"
#include "ops/cuda/device.h"
#include "ops/cuda/partials.h"
#include "ops/cuda/tiles.h"

namespace tabes::gpu {

// The queries of a block's tile: all of a sequence's, or of those whose dq is wanted.
struct QueryRows {
  Tile tile;
  const int64_t* chosen;  // row numbers, or null for the rows themselves
  int64_t from, to;       // the sequence's rows

  TABES_DEVICE QueryRows(const AqaParams& p, bool wanted, int size)
      : chosen(wanted ? p.queries : nullptr) {
    tile = find_tile(chosen ? p.cu_queries : p.cu_q, p.batch, block_x(), size);
    from = tile.sequence < 0 ? 0 : p.cu_q[tile.sequence];
    to = tile.sequence < 0 ? 0 : p.cu_q[tile.sequence + 1];
  }
  // Row i of the tile, or -1 past its end and where the caller's row number lies outside the
  // sequence: then nothing is read and the result is NaN.
  TABES_DEVICE int64_t operator()(int i) const {
    if (i >= tile.rows) return -1;
    const int64_t row = chosen ? chosen[tile.first + i] : tile.first + i;
    return row >= from && row < to ? row : -1;
  }
};

// The wanted keys of a block's tile, the same way.
struct KeyRows {
  Tile tile;
  const int64_t* chosen;
  int64_t from, to;

  TABES_DEVICE KeyRows(const AqaParams& p, int size) : chosen(p.keys) {
    tile = find_tile(p.cu_keys, p.batch, block_x(), size);
    from = tile.sequence < 0 ? 0 : p.cu_k[tile.sequence];
    to = tile.sequence < 0 ? 0 : p.cu_k[tile.sequence + 1];
  }
  TABES_DEVICE int64_t operator()(int i) const {
    if (i >= tile.rows) return -1;
    const int64_t row = chosen[tile.first + i];
    return row >= from && row < to ? row : -1;
  }
};

// A row's statistics where its pass is one part, its part of them where there are more.
TABES_DEVICE void store_row(const AqaParams& p, const RowPartial& row, int64_t query, int head) {
  const int64_t at = query * p.heads + head;
  if (p.row_splits == 1) {
    p.row_lse[at] = log_sum(row);
    p.row_delta[at] = mean_weight(row);
    return;
  }
  float* part = p.row_parts + (int64_t{block_z()} * p.total_q * p.heads + at) * 3;
  part[0] = row.max;
  part[1] = row.sum;
  part[2] = row.weighted;
}

}  // namespace tabes::gpu
