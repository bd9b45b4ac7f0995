// Kernels over rows of logits: statistics in one pass, and the entropy's derivative in place.
#pragma once

#include "ops/cuda/device.h"
#include "ops/cuda/rows_params.h"
#include "ops/cuda/tiles.h"

namespace tabes::gpu {

constexpr int kLogitThreads = 512;
constexpr int kEntropyThreads = 256, kEntropyPerThread = 8;

// Numbers that one 16-byte load brings.
template <typename T>
constexpr int kPiece = 16 / sizeof(T);

// `kPiece` logits more, with indices from `index` on: the largest of all first, so that sums move
// to a new maximum once and not logit by logit.
template <typename T>
TABES_DEVICE void add_piece(LogitPartial& a, const float (&x)[kPiece<T>], int64_t index) {
  float top = a.top;
  bool bad = top != top;
#pragma unroll
  for (int e = 0; e < kPiece<T>; ++e) {
    bad |= is_bad_logit(x[e]);
    if (x[e] > top) {
      a.second = top;
      top = x[e];
      a.argmax = index + e;
    } else if (x[e] > a.second) {
      a.second = x[e];
    }
  }
  if (a.argmax == INT64_MAX) a.argmax = index;
  if (bad) {
    a.top = infinity() - infinity();
    return;
  }
  if (top == -infinity()) return;
  raise(a, top);
#pragma unroll
  for (int e = 0; e < kPiece<T>; ++e) {
    const float difference = bounded(x[e] - top), share = expf(difference);
    a.sum += share;
    a.weighted += difference * share;
  }
}

template <typename T>
struct alignas(16) Piece {
  T value[kPiece<T>];
};

// A block reads its share of a row, 16 bytes a thread and load; rows need not start at a multiple
// of 16, so up to a piece of logits at either end is read one by one.
template <typename T>
TABES_DEVICE void logit_statistics(const StatisticsParams& p, char* shared) {
  const int64_t row = block_x();
  const int part = block_y(), thread = thread_index();
  const T* x = static_cast<const T*>(p.logits) + row * p.vocab;
  const int64_t misaligned = static_cast<int64_t>(reinterpret_cast<uint64_t>(x) % 16);
  int64_t lead = (16 - misaligned) % 16 / static_cast<int64_t>(sizeof(T));
  if (lead > p.vocab) lead = p.vocab;
  const int pieces = static_cast<int>((p.vocab - lead) / kPiece<T>);
  const Range mine = share(pieces, p.splits, part);
  LogitPartial seen = empty_logits();
  if (part == 0 && thread < lead) add(seen, to_float(x[thread]), thread);
  for (int i = mine.from + thread; i < mine.to; i += kLogitThreads) {
    const int64_t index = lead + int64_t{i} * kPiece<T>;
    const Piece<T> piece = *reinterpret_cast<const Piece<T>*>(x + index);
    float value[kPiece<T>];
#pragma unroll
    for (int e = 0; e < kPiece<T>; ++e) value[e] = to_float(piece.value[e]);
    add_piece<T>(seen, value, index);
  }
  const int64_t tail = lead + int64_t{pieces} * kPiece<T> + thread;
  if (part == p.splits - 1 && tail < p.vocab) add(seen, to_float(x[tail]), tail);

  // Merging takes its two sides alike, so both lanes of a pair end with the same bits.
  for (int mask = kWarp / 2; mask > 0; mask /= 2) seen = merge(seen, shuffle_xor(seen, mask));
  LogitPartial* warps = reinterpret_cast<LogitPartial*>(shared);
  if (lane_index() == 0) warps[warp_index()] = seen;
  sync_block();
  if (thread != 0) return;
  for (int w = 1; w < kLogitThreads / kWarp; ++w) seen = merge(seen, warps[w]);
  if (p.splits > 1) {
    p.parts[row * p.splits + part] = seen;
    return;
  }
  const LogitStatistics s = finish(seen);
  p.lse[row] = s.lse;
  p.entropy[row] = s.entropy;
  p.max_prob[row] = s.max_prob;
  p.margin[row] = s.margin;
  p.argmax[row] = s.argmax;
}

// A thread a row puts its parts together.
TABES_DEVICE void merge_statistics(const StatisticsParams& p) {
  const int64_t row = int64_t{block_x()} * block_threads() + thread_index();
  if (row >= p.rows) return;
  LogitPartial all = p.parts[row * p.splits];
  for (int s = 1; s < p.splits; ++s) all = merge(all, p.parts[row * p.splits + s]);
  const LogitStatistics s = finish(all);
  p.lse[row] = s.lse;
  p.entropy[row] = s.entropy;
  p.max_prob[row] = s.max_prob;
  p.margin[row] = s.margin;
  p.argmax[row] = s.argmax;
}

// The largest logits, before another block overwrites them. A foreign index gives a NaN row.
template <typename T>
TABES_DEVICE void entropy_tops(const EntropyParams& p) {
  const int64_t row = int64_t{block_x()} * block_threads() + thread_index();
  if (row >= p.rows) return;
  const int64_t at = p.argmax[row];
  const bool there = at >= 0 && at < p.vocab;
  p.top[row] = there ? to_float(static_cast<const T*>(p.logits)[row * p.vocab + at])
                     : infinity() - infinity();
}

// -weight p (log p + H). log p is taken from the largest logit, whose own is small where the row is
// almost certain: x - lse would lose most of its digits there.
template <typename T>
TABES_DEVICE void entropy_derivative(const EntropyParams& p) {
  const int64_t row = block_y();
  T* x = static_cast<T*>(p.logits) + row * p.vocab;
  const float top = p.top[row], log_top = logf(p.max_prob[row]);
  const float entropy = p.entropy[row], weight = p.weight[row];
  const int64_t from = int64_t{block_x()} * (kEntropyThreads * kEntropyPerThread) + thread_index();
#pragma unroll
  for (int i = 0; i < kEntropyPerThread; ++i) {
    const int64_t at = from + i * kEntropyThreads;
    if (at >= p.vocab) return;
    const float log_p = (to_float(x[at]) - top) + log_top;
    // A row that does not count may hold anything.
    const bool none = log_p < kLowest || weight == 0;
    const float d = none ? 0.0f : expf(log_p) * (log_p + entropy) * -weight;
    x[at] = from_float<T>(d);
  }
}

}  // namespace tabes::gpu
