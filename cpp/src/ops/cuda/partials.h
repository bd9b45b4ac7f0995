// Statistics of a row computed in parts, and how parts merge: the online softmax of Milakov and
// Gimelshein (arXiv 1805.02867), carrying what else is needed along. Merging in a fixed order gives
// the same bits every time.
#pragma once

#include <cmath>
#include <cstdint>

#include "ops/cuda/number.h"

namespace tabes::gpu {

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

TABES_HOST_DEVICE inline float infinity() {
#if defined(__CUDA_ARCH__)
  return __int_as_float(0x7f800000);
#else
  return INFINITY;
#endif
}

// Of scores x (in units of log 2, so that exp2 applies) with a weight w each:
// max x, sum of 2^(x - max), sum of 2^(x - max) w.
struct RowPartial {
  float max, sum, weighted;
};

TABES_HOST_DEVICE inline RowPartial empty_row() {
  return {-infinity(), 0.0f, 0.0f};
}

// Moves the sums to a new, no smaller maximum. A maximum of -inf has empty sums, and -inf - -inf is
// never formed.
TABES_HOST_DEVICE inline void raise(RowPartial& a, float max) {
  const float scale = a.max == max ? 1.0f : exp2f(a.max - max);
  a.sum *= scale;
  a.weighted *= scale;
  a.max = max;
}

TABES_HOST_DEVICE inline RowPartial merge(RowPartial a, RowPartial b) {
  const float max = a.max > b.max ? a.max : b.max;
  raise(a, max);
  raise(b, max);
  return {max, a.sum + b.sum, a.weighted + b.weighted};
}

// log sum e^x, in nats, and the mean of w under the softmax. A row without keys has the log-sum
// -inf and weight 0.
TABES_HOST_DEVICE inline float log_sum(const RowPartial& a) {
  return a.sum > 0.0f ? (a.max + log2f(a.sum)) * kLn2 : -infinity();
}
TABES_HOST_DEVICE inline float mean_weight(const RowPartial& a) {
  return a.sum > 0.0f ? a.weighted / a.sum : 0.0f;
}
// What to subtract from x before exp2 for a probability; makes it zero in a row without keys.
TABES_HOST_DEVICE inline float log2_shift(float log_sum) {
  return log_sum == -infinity() ? infinity() : log_sum * kLog2E;
}

// Below this e^x counts for nothing, while x e^x stays finite: forbidden tokens, whose logits are
// -inf, then add nothing to either sum.
constexpr float kLowest = -87.0f;

// Of a row of logits x: the two largest, where the first is, sum of e^(x - top) and sum of
// (x - top) e^(x - top). A NaN or +inf anywhere makes `top` NaN for good.
struct LogitPartial {
  float top, second, sum, weighted;
  int64_t argmax;
};

TABES_HOST_DEVICE inline LogitPartial empty_logits() {
  return {-infinity(), -infinity(), 0.0f, 0.0f, INT64_MAX};
}

TABES_HOST_DEVICE inline float bounded(float difference) {
  return difference < kLowest ? kLowest : difference;
}

TABES_HOST_DEVICE inline void raise(LogitPartial& a, float top) {
  if (a.top == top) return;
  // Of an empty part both sums are zero and only their scale would be undefined.
  const float shift = bounded(a.top - top), scale = expf(shift);
  a.weighted = scale * (a.weighted + shift * a.sum);
  a.sum *= scale;
  a.top = top;
}

// Ties of the largest go to the lower index, whichever side it is on.
TABES_HOST_DEVICE inline LogitPartial merge(LogitPartial a, LogitPartial b) {
  if (a.top != a.top) return a;
  if (b.top != b.top) return b;
  const bool first = a.top > b.top || (a.top == b.top && a.argmax < b.argmax);
  const LogitPartial &high = first ? a : b, &low = first ? b : a;
  LogitPartial out = high;
  out.second = high.second > low.top ? high.second : low.top;
  if (high.top == -infinity()) return out;  // nothing but forbidden tokens so far
  LogitPartial other = low;
  raise(other, high.top);
  out.sum += other.sum;
  out.weighted += other.weighted;
  return out;
}

// NaN, or +inf, which no softmax can share.
TABES_HOST_DEVICE inline bool is_bad_logit(float x) {
  return !(x < infinity());
}

// One logit more; indices come in rising order.
TABES_HOST_DEVICE inline void add(LogitPartial& a, float x, int64_t index) {
  if (is_bad_logit(x) || a.top != a.top) {
    a.top = infinity() - infinity();
    return;
  }
  if (x > a.top) {
    a.second = a.top;
    raise(a, x);
    a.argmax = index;
    a.sum += 1.0f;
    return;
  }
  a.second = a.second > x ? a.second : x;
  if (a.argmax == INT64_MAX) a.argmax = index;
  if (a.top == -infinity()) return;
  const float difference = bounded(x - a.top), e = expf(difference);
  a.sum += e;
  a.weighted += difference * e;
}

struct LogitStatistics {
  float lse, entropy, max_prob, margin;
  int64_t argmax;
};

TABES_HOST_DEVICE inline LogitStatistics finish(const LogitPartial& a) {
  const float log_sum = logf(a.sum), entropy = log_sum - a.weighted / a.sum;
  if (a.top != a.top) return {a.top, a.top, a.top, a.top, 0};
  return {a.top + log_sum, a.top == -infinity() ? a.top - a.top : (entropy > 0.0f ? entropy : 0.0f),
          1.0f / a.sum, (1.0f - expf(a.second - a.top)) / a.sum, a.argmax};
}

}  // namespace tabes::gpu
