// What both passes of the tensor-core adjoint are made of: tiles of D 16-bit numbers a row in
// shared memory, and products of 16 rows of one warp with such a tile.
#pragma once

#include "ops/cuda/device.h"
#include "ops/cuda/tiles.h"

namespace tabes::gpu {

// Asks for rows row_of(0..rows) of `base`, head already added, into `tile`; -1 gives zeros.
template <int D, typename T, typename RowOf>
TABES_DEVICE void fetch_tile(T* tile, const T* base, int64_t stride, int rows,
                             const RowOf& row_of) {
  constexpr int kPieces = D / 8;
  for (int i = thread_index(); i < rows * kPieces; i += block_threads()) {
    const int r = i / kPieces, piece = i % kPieces;
    const int64_t row = row_of(r);
    copy_async(tile + tile_offset<D>(r, piece), base + (row < 0 ? 0 : row) * stride + piece * 8,
               row >= 0);
  }
}

// out [16, N] = a's 16 rows from `row` times the N rows of b, transposed.
template <typename T, int D, int N>
TABES_DEVICE void times_rows(float (&out)[N / 8][4], const T* a, int row, const T* b) {
  const Corner of_a = matrix_corner(lane_index(), true), of_b = matrix_corner(lane_index(), false);
#pragma unroll
  for (int n = 0; n < N / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) out[n][e] = 0.0f;
  }
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    uint32_t left[4];
    load_matrices(left, a + tile_offset<D>(row + of_a.row, 2 * k + of_a.piece));
#pragma unroll
    for (int n = 0; n < N / 16; ++n) {
      uint32_t right[4];
      load_matrices(right, b + tile_offset<D>(16 * n + of_b.row, 2 * k + of_b.piece));
      mma<T>(out[2 * n], left, right[0], right[1]);
      mma<T>(out[2 * n + 1], left, right[2], right[3]);
    }
  }
}

// sum [16, C] += x [16, N] times the N rows of b, columns `column`..`column` + C. An accumulator is
// laid out over the lanes as the left operand of the next product is, so x goes from registers to
// registers.
template <typename T, int D, int N, int C>
TABES_DEVICE void add_product(float (&sum)[C / 8][4], const float (&x)[N / 8][4], const T* b,
                              int column) {
  const Corner of_b = matrix_corner(lane_index(), true);
#pragma unroll
  for (int k = 0; k < N / 16; ++k) {
    const uint32_t left[4] = {pack<T>(x[2 * k][0], x[2 * k][1]), pack<T>(x[2 * k][2], x[2 * k][3]),
                              pack<T>(x[2 * k + 1][0], x[2 * k + 1][1]),
                              pack<T>(x[2 * k + 1][2], x[2 * k + 1][3])};
#pragma unroll
    for (int n = 0; n < C / 16; ++n) {
      uint32_t right[4];
      load_matrices_transposed(
          right, b + tile_offset<D>(16 * k + of_b.row, column / 8 + 2 * n + of_b.piece));
      mma<T>(sum[2 * n], left, right[0], right[1]);
      mma<T>(sum[2 * n + 1], left, right[2], right[3]);
    }
  }
}

// Writes a warp's [16, C] sums times `scale`: row r to row_of(r) * stride (skipped below 0; NaN if
// `bad`(r)), in float32 to `parts` if that is given and in T to `out` otherwise.
template <typename T, int C, typename RowOf, typename Bad>
TABES_DEVICE void store_rows(const float (&sum)[C / 8][4], float scale, T* out, float* parts,
                             int64_t stride, const RowOf& row_of, const Bad& bad) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = accumulator_row(lane_index(), 2 * half);
    const int64_t row = row_of(r);
    if (row < 0) continue;
    const float factor = bad(r) ? infinity() - infinity() : scale;
#pragma unroll
    for (int n = 0; n < C / 8; ++n) {
      const int64_t at = row * stride + n * 8 + accumulator_column(lane_index(), 0);
      const float first = sum[n][2 * half] * factor, second = sum[n][2 * half + 1] * factor;
      if (parts) {
        parts[at] = first;
        parts[at + 1] = second;
      } else {
        *reinterpret_cast<uint32_t*>(out + at) = pack<T>(first, second);
      }
    }
  }
}

}  // namespace tabes::gpu
