// Where things lie: pieces of ragged batches, shares of split loops, and the places of 16-bit tiles
// in shared memory that ldmatrix reads without bank conflicts.
#pragma once

#include <cstdint>

#include "ops/cuda/number.h"

namespace tabes::gpu {

// A block's piece of a ragged batch: `rows` of one sequence from `first` on (counted over all).
struct Tile {
  int sequence;  // -1: past the last
  int64_t first;
  int rows;
};

// Piece `number` of those that arise when each sequence of `offsets` [batch + 1] is cut by `size`.
// Batches are small, so every thread walks them instead of reading a table made beforehand.
TABES_HOST_DEVICE inline Tile find_tile(const int64_t* offsets, int batch, int64_t number,
                                        int size) {
  for (int b = 0; b < batch; ++b) {
    const int64_t length = offsets[b + 1] - offsets[b], tiles = (length + size - 1) / size;
    if (number < tiles) {
      const int64_t from = number * size, left = length - from;
      return {b, offsets[b] + from, static_cast<int>(left < size ? left : size)};
    }
    number -= tiles;
  }
  return {-1, 0, 0};
}

struct Range {
  int from, to;
};

// Share `part` of [0, total) cut into `parts` that differ by at most one and keep their order.
TABES_HOST_DEVICE inline Range share(int total, int parts, int part) {
  const int base = total / parts, more = total % parts;
  const int from = part * base + (part < more ? part : more);
  return {from, from + base + (part < more ? 1 : 0)};
}

// A tile row of D 16-bit numbers is D / 8 pieces of 16 bytes. ldmatrix reads one piece number of
// eight neighbouring rows at a time; stored in order these would fall on few of the 32 banks, so
// pieces change places by their row. Where a row is a multiple of the 128 bytes that all banks
// hold, by its low three bits; where it is an odd multiple of 64, rows alternate between the halves
// and two bits are enough.
template <int D>
TABES_HOST_DEVICE constexpr int swizzle(int row, int piece) {
  static_assert(D % 32 == 0);
  return D % 64 == 0 ? piece ^ (row & 7) : piece ^ (row >> 1 & 3);
}
// Where piece `piece` of `row` begins in the tile, in numbers.
template <int D>
TABES_HOST_DEVICE constexpr int tile_offset(int row, int piece) {
  return row * D + swizzle<D>(row, piece) * 8;
}

// Which row and piece lane `lane` points ldmatrix.x4 at, from the corner of a 16 x 16 block.
// `major`: the four 8 x 8 matrices run down the rows first, as an A operand wants them (and, read
// transposed, a B operand that lies [k, n]); otherwise along the row first, for two B operands that
// lie [n, k].
struct Corner {
  int row, piece;
};
TABES_HOST_DEVICE constexpr Corner matrix_corner(int lane, bool major) {
  const int low = lane >> 3 & 1, high = lane >> 4;
  return major ? Corner{(lane & 7) + 8 * low, high} : Corner{(lane & 7) + 8 * high, low};
}

// Element `e` of a thread's four in a 16 x 8 accumulator.
TABES_HOST_DEVICE constexpr int accumulator_row(int lane, int e) {
  return lane / 4 + e / 2 * 8;
}
TABES_HOST_DEVICE constexpr int accumulator_column(int lane, int e) {
  return lane % 4 * 2 + e % 2;
}

}  // namespace tabes::gpu
