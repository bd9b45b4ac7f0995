// How many rows' logits exist at a time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace tabes {

// Memory that logits may take at a time.
inline constexpr int64_t kLogitBytes = int64_t{256} << 20;

// Rows whose logits take that, at least one; in whole tiles of the product where there are
// several (1,024 rows in 16 bits at LLaDA's vocabulary). Each piece reads the head's weights once,
// which costs less than its multiplications from about 240 rows on.
inline int64_t rows_at_once(int64_t vocab_size, size_t element_size) {
  constexpr int64_t kTile = 128;
  const int64_t rows = kLogitBytes / (vocab_size * static_cast<int64_t>(element_size));
  return rows >= kTile ? rows / kTile * kTile : std::max<int64_t>(1, rows);
}

}  // namespace tabes
