// How much of the logits exists at a time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace tabes {

// Memory that logits may take at a time.
inline constexpr int64_t kLogitBytes = int64_t{256} << 20;

// How much of the logits that is: given V, how many rows; given rows, how many tokens. At least
// one, and in whole tiles of the product where there are several (at LLaDA's vocabulary 1,024 rows
// in 16 bits).
inline int64_t logits_at_once(int64_t across, size_t element_size) {
  constexpr int64_t kTile = 128;
  const int64_t rows = kLogitBytes / (across * static_cast<int64_t>(element_size));
  return rows >= kTile ? rows / kTile * kTile : std::max<int64_t>(1, rows);
}

}  // namespace tabes
