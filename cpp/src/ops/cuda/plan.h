// What is decided on the host before kernels are launched. Pure functions of sizes, so that every
// decision can be tested where there is no GPU, and the same sizes always decide alike.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string_view>

#include "ops/cuda/aqa_params.h"

namespace tabes::gpu {

// Ways to compute the adjoint of attention: our kernels, or the active rows gathered and passed to
// PyTorch's FlashAttention-2 or memory-efficient backward, which compute dk and dv of every key.
enum class Route { own, flash, efficient };

struct AttentionSizes {
  Number number;
  int64_t head_dim;
  int64_t batch, queries, keys;  // rows of all sequences together
  bool equal_lengths;            // every sequence has as many queries as the others, and keys
  bool bias;
  bool kept;           // the forward pass's result and log-sum-exp are at hand
  bool deterministic;  // the same bits every time are asked for
};

inline bool route_possible(Route route, const AttentionSizes& s) {
  switch (route) {
    case Route::own:
      return aqa_has_head(static_cast<int>(s.head_dim));
    case Route::flash:
      // Deterministic under PyTorch's flag, which is what asks for it.
      return s.number != Number::fp32 && s.head_dim <= 256 && s.head_dim % 8 == 0 && !s.bias &&
             s.kept;
    case Route::efficient:
      return s.equal_lengths && s.head_dim % 8 == 0 && !s.bias && s.kept && !s.deterministic;
  }
  return false;
}

// Below this share of active rows our kernels' 6 A L + 8 A^2 multiplications (a head and column)
// are so few against the 10 A L of FlashAttention-2 that they win even at two thirds of its speed.
// Derived, not measured: tests/gpu/run times both and prints where they cross.
constexpr double kOwnShare = 0.0625;

// nullopt: none can. `wanted`, if possible, is taken as it is.
inline std::optional<Route> choose_route(const AttentionSizes& s,
                                         std::optional<Route> wanted = std::nullopt) {
  if (wanted) return route_possible(*wanted, s) ? wanted : std::nullopt;
  const bool own = route_possible(Route::own, s);
  const bool few = static_cast<double>(s.queries) <= kOwnShare * static_cast<double>(s.keys);
  if (own && (few || s.deterministic)) return Route::own;
  if (route_possible(Route::flash, s)) return Route::flash;
  if (own) return Route::own;
  if (route_possible(Route::efficient, s)) return Route::efficient;
  return std::nullopt;
}

inline std::optional<Route> route_named(std::string_view name) {
  if (name == "own") return Route::own;
  if (name == "flash") return Route::flash;
  if (name == "efficient") return Route::efficient;
  return std::nullopt;
}

// Parts that a pass of `blocks` blocks, each a loop of `steps`, is cut into so that two blocks come
// to each multiprocessor; each part keeps at least two steps, so that fetching still overlaps work.
inline int loop_splits(int64_t blocks, int processors, int64_t steps) {
  if (blocks <= 0) return 1;
  const int64_t wanted = (2 * int64_t{processors} + blocks - 1) / blocks;
  return static_cast<int>(
      std::clamp<int64_t>(std::min(wanted, steps / 2), 1, int64_t{kMostSplits}));
}

// Blocks a row of logits is cut into: one where there are as many rows as multiprocessors; each has
// at least 8192 logits, below which starting a block costs more than reading its share.
inline int row_splits(int64_t rows, int64_t vocab, int processors) {
  if (rows <= 0 || rows >= processors) return 1;
  const int64_t wanted = (processors + rows - 1) / rows;
  return static_cast<int>(std::clamp<int64_t>(std::min(wanted, vocab / 8192), 1, 64));
}

}  // namespace tabes::gpu
